// Control connections: messages in order, garbage and oversized frames refused, closing seen.
#include "transport/core/tcp_control_net.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <functional>

#include "kvl/clock.h"
#include "tests/support/log_guard.h"
#include "transport/base/address.h"
#include "transport/base/unique_fd.h"

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
    std::vector<std::vector<ControlEvent>> events;
    ASSERT_TRUE(drive({a.get(), b.get()}, events,
                      [&] { return events.size() == 2 && count(events[1], Kind::accepted) == 1; }));
    b->limit(events[1][0].conn, ControlNet::kMessageBytesMax);
    std::vector<std::vector<std::byte>> sent;
    for (std::size_t bytes : {0UL, 1UL, 100UL, 3'000'000UL, 5UL}) {
      sent.emplace_back(bytes, static_cast<std::byte>(bytes));
      ASSERT_TRUE(a->send(conn, sent.back()).ok());
    }
    ASSERT_TRUE(
        drive({a.get(), b.get()}, events, [&] { return count(events[1], Kind::message) == 5; }));
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
  const test::ExpectLog log("control.refused");
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

TEST(TcpControlNet, StrangersSendShortMessagesOnly) {
  const test::ExpectLog log("control.refused");
  auto a = open_net(), b = open_net();
  const ConnId conn = a->connect(b->address()).value();
  std::vector<std::vector<ControlEvent>> events;
  const std::vector<std::byte> longest(ControlNet::kStrangerBytesMax);
  ASSERT_TRUE(a->send(conn, longest).ok());
  ASSERT_TRUE(drive({a.get(), b.get()}, events,
                    [&] { return events.size() == 2 && count(events[1], Kind::message) == 1; }));
  ASSERT_TRUE(a->send(conn, std::vector<std::byte>(longest.size() + 1)).ok());
  ASSERT_TRUE(
      drive({a.get(), b.get()}, events, [&] { return count(events[1], Kind::closed) == 1; }));
  EXPECT_EQ(count(events[1], Kind::message), 1U);
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

UniqueFd dial_raw(const std::string& to) {
  const auto address = parse_address(to);
  UniqueFd fd(::socket(address->family(), SOCK_STREAM | SOCK_CLOEXEC, 0));
  EXPECT_EQ(::connect(fd.get(), address->raw(), address->bytes), 0);
  return fd;
}

// The other end is closed; what it said before does not matter.
bool closed(const UniqueFd& fd) {
  char byte = 0;
  const ssize_t n = ::recv(fd.get(), &byte, 1, MSG_DONTWAIT);
  return n == 0 || (n < 0 && errno != EAGAIN);
}

std::uint64_t refused(const ControlNet& net, Refusal refusal) {
  Refusals::Counts counts{};
  net.count_refusals(counts);
  return counts[static_cast<std::size_t>(refusal)];
}

TEST(TcpControlNet, TheStrangerThatIsSilentLongestMakesRoom) {
  const test::ExpectLog log("control.refused");
  auto net =
      std::move(TcpControlNet::open("127.0.0.1:0", "", {.max = 2, .per_address_max = 9})).value();
  std::vector<std::vector<ControlEvent>> events;
  const UniqueFd first = dial_raw(net->address()), second = dial_raw(net->address());
  ASSERT_TRUE(drive({net.get()}, events,
                    [&] { return !events.empty() && count(events[0], Kind::accepted) == 2; }));
  const UniqueFd third = dial_raw(net->address());
  ASSERT_TRUE(drive({net.get()}, events, [&] { return count(events[0], Kind::closed) == 1; }));
  ASSERT_TRUE(drive({net.get()}, events, [&] { return closed(first); }));
  EXPECT_FALSE(closed(second));
  // Who has said something goes after those who have not.
  const std::uint32_t bytes = 0;
  ASSERT_EQ(::send(second.get(), &bytes, sizeof(bytes), MSG_NOSIGNAL), 4);
  ASSERT_TRUE(drive({net.get()}, events, [&] { return count(events[0], Kind::message) == 1; }));
  const UniqueFd fourth = dial_raw(net->address());
  ASSERT_TRUE(drive({net.get()}, events, [&] { return closed(third); }));
  EXPECT_FALSE(closed(second));
  // But it is a stranger until somebody knows it.
  const UniqueFd fifth = dial_raw(net->address());
  ASSERT_TRUE(drive({net.get()}, events, [&] { return closed(second); }));
  EXPECT_EQ(refused(*net, Refusal::strangers), 3U);
}

TEST(TcpControlNet, WhoIsKnownIsNoStranger) {
  const test::ExpectLog log("control.refused");
  auto net =
      std::move(TcpControlNet::open("127.0.0.1:0", "", {.max = 1, .per_address_max = 9})).value();
  std::vector<std::vector<ControlEvent>> events;
  std::vector<UniqueFd> known;
  for (std::size_t i = 1; i <= 3; ++i) {
    known.push_back(dial_raw(net->address()));
    ASSERT_TRUE(drive({net.get()}, events,
                      [&] { return !events.empty() && count(events[0], Kind::accepted) == i; }));
    net->know(events[0].back().conn);
  }
  EXPECT_EQ(refused(*net, Refusal::strangers), 0U);
  const UniqueFd first = dial_raw(net->address()), second = dial_raw(net->address());
  ASSERT_TRUE(drive({net.get()}, events, [&] { return closed(first); }));
  for (const UniqueFd& fd : known) EXPECT_FALSE(closed(fd));
}

TEST(TcpControlNet, StrangersOfOneAddressAndLongFirstMessagesAreRefused) {
  const test::ExpectLog log("control.refused");
  auto net =
      std::move(TcpControlNet::open("127.0.0.1:0", "", {.max = 9, .per_address_max = 2})).value();
  std::vector<std::vector<ControlEvent>> events;
  const UniqueFd first = dial_raw(net->address()), second = dial_raw(net->address());
  const UniqueFd third = dial_raw(net->address());
  ASSERT_TRUE(drive({net.get()}, events, [&] { return closed(third); }));
  EXPECT_EQ(count(events[0], Kind::accepted), 2U);
  const std::uint32_t bytes = 1 << 20;  // allowed later, not as a first word
  ASSERT_EQ(::send(first.get(), &bytes, sizeof(bytes), MSG_NOSIGNAL), 4);
  ASSERT_TRUE(drive({net.get()}, events, [&] { return closed(first); }));
  EXPECT_EQ(refused(*net, Refusal::address), 1U);
  EXPECT_EQ(refused(*net, Refusal::too_long), 1U);
  const UniqueFd fourth = dial_raw(net->address());  // the place is free again
  ASSERT_TRUE(drive({net.get()}, events, [&] { return count(events[0], Kind::accepted) == 3; }));
}

}  // namespace
}  // namespace kvl
