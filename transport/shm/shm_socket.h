// The sockets under a pair of peers: abstract SOCK_SEQPACKET names, credentials, descriptors.
#pragma once

#include <sys/types.h>

#include <cstdint>

#include "kvl/status.h"
#include "transport/base/unique_fd.h"
#include "transport/shm/shm_wire.h"

namespace kvl::shm {

Token random_token();
Result<HostIdentity> host_identity();

// Abstract names vanish with their socket: nothing is left behind by kill -9.
Result<UniqueFd> listen_on(const Token& name);
// exhausted: the listener's queue is full, try again; unavailable: nobody listens there.
Result<UniqueFd> connect_to(const Token& name);

struct PeerProcess {
  pid_t pid = 0;  // 0: not visible from our PID namespace
  uid_t uid = 0;
};
// Who opened the other end, by the kernel's word.
Result<PeerProcess> peer_process(int socket);
// A descriptor that becomes readable when the process exits; empty where the kernel has none.
UniqueFd open_pidfd(int socket, pid_t pid);
bool process_exited(int pidfd);

// exhausted: the socket's queue is full; peer_lost.
Status send_message(int socket, const Message& message, int fd = -1);

struct Received {
  enum class Kind : std::uint8_t { message, nothing, closed, garbage };
  Kind kind = Kind::nothing;
  Message message;
  UniqueFd fd;  // at most one; any other is closed and makes the message garbage
};
Received receive_message(int socket);
// The other end is closed, though messages may be left to read.
bool hung_up(int socket);

}  // namespace kvl::shm
