// Control connections: messages in order, garbage and oversized frames refused, closing seen.
#include "transport/core/tcp_control_net.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <functional>

#include "kvl/clock.h"
#include "transport/base/address.h"

namespace kvl {
namespace {

using Kind = ControlEvent::Kind;

std::unique_ptr<TcpControlNet> open_net(const std::string& listen = "127.0.0.1:0") {
  return std::move(TcpControlNet::open(listen, "")).value();
}

// Polls both nets until `done`, sleeping on their descriptors; at most 10 s.
bool drive(std::vector<TcpControlNet*> nets, std::vector<std::vector<ControlEvent>>& events,
           const std::function<bool()>& done) {
  events.resize(nets.size());
  const SteadyClock clock;
  const std::int64_t end_ns = clock.now_ns() + 10'000'000'000;
  while (!done()) {
    if (clock.now_ns() > end_ns) return false;
    std::vector<pollfd> waits;
    for (std::size_t i = 0; i < nets.size(); ++i) {
      nets[i]->poll(events[i]);
      waits.push_back({nets[i]->wait_fd(), POLLIN, 0});
    }
    if (!done()) ::poll(waits.data(), waits.size(), 100);
  }
  return true;
}

std::size_t count(const std::vector<ControlEvent>& events, Kind kind) {
  return static_cast<std::size_t>(std::count_if(
      events.begin(), events.end(), [&](const ControlEvent& e) { return e.kind == kind; }));
}

TEST(TcpControlNet, DeliversMessagesInOrderAlsoLongOnes) {
  for (const char* listen : {"127.0.0.1:0", "[::1]:0"}) {
    auto a = open_net(listen), b = open_net(listen);
    const ConnId conn = a->connect(b->address()).value();
    std::vector<std::vector<std::byte>> sent;
    for (std::size_t bytes : {0UL, 1UL, 100UL, 3'000'000UL, 5UL}) {
      sent.emplace_back(bytes, static_cast<std::byte>(bytes));
      ASSERT_TRUE(a->send(conn, sent.back()).ok());
    }
    std::vector<std::vector<ControlEvent>> events;
    ASSERT_TRUE(drive({a.get(), b.get()}, events,
                      [&] { return events.size() == 2 && count(events[1], Kind::message) == 5; }));
    std::size_t next = 0;
    for (const ControlEvent& event : events[1]) {
      if (event.kind != Kind::message) continue;
      EXPECT_EQ(event.bytes, sent[next++]);
    }
    a->close(conn);
    ASSERT_TRUE(
        drive({a.get(), b.get()}, events, [&] { return count(events[1], Kind::closed) == 1; }));
  }
}

TEST(TcpControlNet, OversizedFrameClosesThatConnectionOnly) {
  auto net = open_net();
  const SocketAddress address = parse_address(net->address()).value();
  const UniqueFd raw(::socket(address.family(), SOCK_STREAM, 0));
  ASSERT_EQ(::connect(raw.get(), address.raw(), address.bytes), 0);
  const std::uint32_t huge = 0xFFFFFFFF;
  ASSERT_EQ(::send(raw.get(), &huge, sizeof(huge), 0), 4);
  std::vector<std::vector<ControlEvent>> events;
  ASSERT_TRUE(drive({net.get()}, events,
                    [&] { return !events.empty() && count(events[0], Kind::closed) == 1; }));
  auto other = open_net();
  EXPECT_TRUE(other->connect(net->address()).ok());
  ASSERT_TRUE(drive({net.get(), other.get()}, events,
                    [&] { return count(events[1], Kind::connected) == 1; }));
}

TEST(TcpControlNet, RefusedConnectionAndBadAddressesAreTyped) {
  auto net = open_net();
  std::string gone;
  {
    auto other = open_net();
    gone = other->address();
  }
  std::vector<std::vector<ControlEvent>> events;
  const auto conn = net->connect(gone);
  if (conn.ok()) {
    ASSERT_TRUE(drive({net.get()}, events,
                      [&] { return !events.empty() && count(events[0], Kind::closed) == 1; }));
    EXPECT_EQ(events[0].back().status.code(), Code::unavailable);
  } else {
    EXPECT_EQ(conn.code(), Code::unavailable);
  }
  EXPECT_EQ(net->connect("nowhere").code(), Code::invalid_argument);
  EXPECT_EQ(net->connect("::1:80").code(), Code::invalid_argument);
  EXPECT_EQ(TcpControlNet::open(net->address(), "").code(), Code::unavailable);
}

}  // namespace
}  // namespace kvl
