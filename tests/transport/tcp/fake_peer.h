// A peer made of a plain socket: says whatever a test wants it to say.
#pragma once

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>

#include <cstring>
#include <span>
#include <vector>

#include "tests/transport/tcp/pair.h"
#include "transport/base/unique_fd.h"
#include "transport/tcp/tcp_wire.h"

namespace kvl::test {

inline UniqueFd dial_port(std::uint16_t port) {
  const auto address = parse_address("127.0.0.1:" + std::to_string(port));
  UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  EXPECT_EQ(::connect(fd.get(), address->raw(), address->bytes), 0);
  return fd;
}

// Sends all of it, as far as the other side is willing.
inline void say(const UniqueFd& fd, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::send(fd.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n <= 0) return;
    bytes = bytes.subspan(static_cast<std::size_t>(n));
  }
}

template <typename T>
std::span<const std::byte> raw_bytes(const T& value) {
  return std::as_bytes(std::span(&value, 1));
}

// Polls the host until `bytes` bytes have come on the lane, or the host has closed it.
inline std::vector<std::byte> hear_bytes(Host& host, const UniqueFd& lane, std::size_t bytes) {
  std::vector<std::byte> in(bytes);
  const SteadyClock clock;
  const std::int64_t deadline = clock.now_ns() + kPatienceNs;
  for (std::size_t done = 0; done < bytes;) {
    host.poll();
    const ssize_t n = ::recv(lane.get(), in.data() + done, bytes - done, MSG_DONTWAIT);
    if (n > 0) {
      done += static_cast<std::size_t>(n);
    } else if (n == 0 || errno != EAGAIN || clock.now_ns() > deadline) {
      in.resize(done);
      return in;
    }
  }
  return in;
}

// Connected to a passive host as a peer with one lane.
struct FakePeer {
  explicit FakePeer(Host& target, std::uint32_t inflight_max = 64) : host(target) {
    peer = *host.link->open_peer(PeerRole::passive);
    offer = *tcp::decode_offer(*host.link->offer(peer));
    tcp::Offer own;
    own.token[0] = std::byte{42};
    own.addresses = offer.addresses;
    EXPECT_TRUE(host.link->accept(peer, tcp::encode(own)).ok());
    lane = dial_port(offer.addresses.front().port());
    tcp::Greeting hello;
    hello.token = offer.token;
    hello.lanes = 1;
    hello.incarnation = 1;
    hello.batches_inflight_max = inflight_max;
    say(lane, raw_bytes(hello));
    const auto welcome = hear<tcp::Greeting>();
    EXPECT_EQ(welcome.kind, tcp::GreetingKind::welcome);
    EXPECT_EQ(welcome.token, own.token);
    EXPECT_TRUE(host.take(Event::Kind::peer_up).has_value());
  }
  // As this peer may name memory of the host.
  std::uint64_t name(MemoryId memory) {
    return tcp::decode_memory(*host.link->export_memory(memory, peer))->memory;
  }
  std::vector<std::byte> hear_bytes(std::size_t bytes) {
    return test::hear_bytes(host, lane, bytes);
  }
  template <typename T>
  T hear() {
    const auto in = hear_bytes(sizeof(T));
    EXPECT_EQ(in.size(), sizeof(T)) << "the lane was closed";
    return in.size() == sizeof(T) ? tcp::read_wire<T>(in.data()) : T{};
  }
  // True: the host has closed the lane, whatever it said before.
  bool closed() {
    while (!hear_bytes(1).empty()) continue;
    char one = 0;
    const ssize_t n = ::recv(lane.get(), &one, 1, MSG_DONTWAIT);
    return n == 0 || (n < 0 && errno != EAGAIN);
  }
  // A write frame that ends its batch; `data` follows.
  static std::vector<std::byte> write_frame(std::uint64_t batch, std::span<const tcp::WireRun> runs,
                                            std::span<const std::byte> data) {
    tcp::FrameHeader header;
    header.flags = tcp::kFlagEnd;
    header.count = static_cast<std::uint32_t>(runs.size());
    header.batch = batch;
    header.data_bytes = data.size();
    std::vector<std::byte> out;
    const auto append = [&out](std::span<const std::byte> part) {
      out.insert(out.end(), part.begin(), part.end());
    };
    append(raw_bytes(header));
    append(std::as_bytes(runs));
    append(data);
    return out;
  }

  Host& host;
  PeerId peer;
  tcp::Offer offer;
  UniqueFd lane;
};

}  // namespace kvl::test
