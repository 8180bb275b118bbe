// Sockets and addresses of the tcp transport: listening, dialing, options.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kvl/status.h"
#include "transport/base/address.h"
#include "transport/base/unique_fd.h"
#include "transport/tcp/tcp_config.h"
#include "transport/tcp/tcp_wire.h"

namespace kvl::tcp {

// A non-blocking listener on tcp.bind or, without it, on loopback when all peers are on this host,
// else on every address of both families where the kernel has both. `bound` is where it listens.
// invalid_argument: tcp.bind is not an address; unavailable: it is not ours.
Result<UniqueFd> listen_data(const TcpConfig& config, bool same_host, SocketAddress& bound);

// What others may dial where we listen on every address: tcp.bind, or the addresses of
// tcp.interface, or all; loopback last. At most kOfferAddressesMax.
std::vector<SocketAddress> offered_addresses(const TcpConfig& config, std::uint16_t port);

// Equal in two processes that see the same loopback interface: boot and network namespace.
Token host_identity();
Result<Token> random_token();

// The addresses of an offer that may lead there, the most promising first: loopback on one host and
// never elsewhere, then by the length of the prefix shared with an address of ours.
std::vector<SocketAddress> dial_order(const Offer& offer, const Token& own_host);

// Starts to connect. `fd` becomes writable when that has succeeded or failed.
Result<UniqueFd> dial(const SocketAddress& to, const TcpConfig& config);

// The other end, for logs: "10.0.0.1:4711"; "?" when it is gone.
std::string remote_text(int fd);

// Options of a data lane; `same_host` decides about congestion control when it is "auto".
Status tune_lane(int fd, const TcpConfig& config, bool same_host);

}  // namespace kvl::tcp
