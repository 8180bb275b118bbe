// Authentication over real connections: who gets through, what those are told who do not, how many
// strangers are borne and how long, and that nothing readable travels.
#include "transport/core/secure_control_net.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstring>
#include <functional>

#include "tests/support/log_guard.h"
#include "transport/base/address.h"
#include "transport/base/unique_fd.h"
#include "transport/core/tcp_control_net.h"

namespace kvl {
namespace {

using Kind = ControlEvent::Kind;

const std::string kOne = "the first secret of this test, 32 and more";
const std::string kTwo = "the second secret of this test, 32 and more";

std::vector<std::byte> bytes_of(std::string_view text) {
  const auto raw = std::as_bytes(std::span(text));
  return {raw.begin(), raw.end()};
}

struct SetClock final : Clock {
  std::int64_t now = 1;
  std::int64_t now_ns() const override { return now; }
};

struct Node {
  explicit Node(const std::string& secret, std::size_t strangers_max = 256) {
    SecureControlNet::Options options;
    options.secrets = Secrets::parse(secret).value();
    auto tcp = TcpControlNet::open("127.0.0.1:0", "", {.max = strangers_max});
    net = std::make_unique<SecureControlNet>(std::move(tcp).value(), std::move(options), clock);
  }
  SetClock clock;
  std::unique_ptr<SecureControlNet> net;
  std::vector<ControlEvent> events;

  const ControlEvent* find(Kind kind) const {
    const auto found = std::find_if(events.begin(), events.end(),
                                    [&](const ControlEvent& e) { return e.kind == kind; });
    return found == events.end() ? nullptr : &*found;
  }
  std::uint64_t refused(Refusal refusal) const {
    Refusals::Counts counts{};
    net->count_refusals(counts);
    return counts[static_cast<std::size_t>(refusal)];
  }
};

bool drive(const std::vector<Node*>& nodes, const std::function<bool()>& done) {
  const SteadyClock clock;
  const std::int64_t end_ns = clock.now_ns() + 20'000'000'000;
  while (!done()) {
    if (clock.now_ns() > end_ns) return false;
    std::vector<pollfd> waits;
    for (Node* node : nodes) {
      node->net->poll(node->events);
      waits.push_back({node->net->wait_fd(), POLLIN, 0});
    }
    if (!done()) ::poll(waits.data(), waits.size(), 50);
  }
  return true;
}

// A client that writes what it likes.
struct Raw {
  explicit Raw(const std::string& address) {
    const SocketAddress to = parse_address(address).value();
    fd.reset(::socket(to.family(), SOCK_STREAM, 0));
    EXPECT_EQ(::connect(fd.get(), to.raw(), to.bytes), 0);
  }
  void say(std::span<const std::byte> message) {
    const auto bytes = static_cast<std::uint32_t>(message.size());
    std::vector<std::byte> framed(sizeof(bytes));
    std::memcpy(framed.data(), &bytes, sizeof(bytes));
    framed.insert(framed.end(), message.begin(), message.end());
    EXPECT_EQ(::send(fd.get(), framed.data(), framed.size(), MSG_NOSIGNAL),
              static_cast<ssize_t>(framed.size()));
  }
  // All there is up to the end of the connection; `nodes` run meanwhile.
  std::vector<std::byte> rest(const std::vector<Node*>& nodes) {
    std::vector<std::byte> all;
    bool over = false;
    EXPECT_TRUE(drive(nodes, [&] {
      std::array<std::byte, 4096> part;
      ssize_t n = 0;
      while ((n = ::recv(fd.get(), part.data(), part.size(), MSG_DONTWAIT)) > 0) {
        all.insert(all.end(), part.begin(), part.begin() + n);
      }
      over = n == 0 || (n < 0 && errno != EAGAIN);
      return over;
    }));
    return all;
  }
  UniqueFd fd;
};

TEST(SecureControlNet, SameSecretPassesMessagesBothWays) {
  Node a(kOne), b(kTwo + "\n" + kOne);
  const ConnId conn = a.net->connect(b.net->address()).value();
  EXPECT_EQ(a.net->send(conn, bytes_of("too early")).code(), Code::unavailable);
  ASSERT_TRUE(drive({&a, &b}, [&] { return a.find(Kind::connected) && b.find(Kind::accepted); }));
  ASSERT_NE(a.net->session(conn), nullptr);
  const ConnId back = b.find(Kind::accepted)->conn;
  ASSERT_NE(b.net->session(back), nullptr);
  EXPECT_EQ(a.net->session(conn)->data.bytes, b.net->session(back)->data.bytes);
  ASSERT_TRUE(a.net->send(conn, bytes_of("ping")).ok());
  ASSERT_TRUE(b.net->send(back, bytes_of("pong")).ok());
  ASSERT_TRUE(drive({&a, &b}, [&] { return a.find(Kind::message) && b.find(Kind::message); }));
  EXPECT_EQ(b.find(Kind::message)->bytes, bytes_of("ping"));
  EXPECT_EQ(a.find(Kind::message)->bytes, bytes_of("pong"));
  a.net->close(conn);
  EXPECT_TRUE(drive({&a, &b}, [&] { return b.find(Kind::closed) != nullptr; }));
}

TEST(SecureControlNet, WrongSecretIsPermissionAndCountedOnBothSides) {
  const test::ExpectLog log("control.refused");
  Node a(kOne), b(kTwo);
  ASSERT_TRUE(a.net->connect(b.net->address()).ok());
  ASSERT_TRUE(drive(
      {&a, &b}, [&] { return a.find(Kind::closed) && b.refused(Refusal::wrong_secret) == 1U; }));
  EXPECT_EQ(a.find(Kind::closed)->status.code(), Code::permission);
  EXPECT_EQ(a.refused(Refusal::wrong_secret), 1U);
  EXPECT_TRUE(b.events.empty()) << "the engine hears nothing of strangers";
}

TEST(SecureControlNet, OneSideWithoutASecretIsTold) {
  const test::ExpectLog log("control.refused");
  {
    Node with(kOne), without("");
    ASSERT_TRUE(with.net->connect(without.net->address()).ok());
    ASSERT_TRUE(drive({&with, &without}, [&] {
      return with.find(Kind::closed) != nullptr && without.find(Kind::closed) != nullptr;
    }));
    EXPECT_EQ(with.find(Kind::closed)->status.code(), Code::permission);
    EXPECT_EQ(without.find(Kind::closed)->status.code(), Code::permission);
  }
  Node with(kOne), without("");
  const ConnId conn = without.net->connect(with.net->address()).value();
  ASSERT_TRUE(drive({&with, &without}, [&] { return without.find(Kind::connected) != nullptr; }));
  ASSERT_TRUE(without.net->send(conn, bytes_of("\1hello")).ok());
  ASSERT_TRUE(drive({&with, &without}, [&] { return without.find(Kind::closed) != nullptr; }));
  EXPECT_EQ(without.find(Kind::closed)->status.code(), Code::permission);
  EXPECT_EQ(with.refused(Refusal::secret_required), 1U);
  EXPECT_TRUE(with.events.empty());
}

TEST(SecureControlNet, NobodyGetsPastTheHandshakeAndLongMessagesEndIt) {
  const test::ExpectLog log("control.refused");
  Node node(kOne);
  for (const std::vector<std::byte>& message :
       {bytes_of("\1hello"), std::vector<std::byte>{std::byte{34}}, std::vector<std::byte>{},
        std::vector<std::byte>(auth::kMessageBytesMax, std::byte{32})}) {
    Raw raw(node.net->address());
    raw.say(message);
    EXPECT_LE(raw.rest({&node}).size(), 16U) << "at most the reason";
  }
  Raw raw(node.net->address());
  raw.say(std::vector<std::byte>(auth::kMessageBytesMax + 1, std::byte{32}));
  EXPECT_TRUE(raw.rest({&node}).empty());
  EXPECT_TRUE(node.events.empty());
  EXPECT_EQ(node.refused(Refusal::malformed) + node.refused(Refusal::secret_required), 4U);
}

TEST(SecureControlNet, SilentStrangersHaveADeadlineAndABound) {
  const test::ExpectLog log("control.refused");
  Node node(kOne, 4);
  std::vector<std::unique_ptr<Raw>> silent;
  for (int i = 0; i < 8; ++i) silent.push_back(std::make_unique<Raw>(node.net->address()));
  ASSERT_TRUE(drive({&node}, [&] { return node.refused(Refusal::strangers) == 4U; }));
  EXPECT_TRUE(silent[0]->rest({&node}).empty());
  node.clock.now += 4'999'000'000;
  node.net->poll(node.events);
  EXPECT_EQ(node.refused(Refusal::timed_out), 0U);
  node.clock.now += 2'000'000;
  ASSERT_TRUE(drive({&node}, [&] { return node.refused(Refusal::timed_out) == 4U; }));
  EXPECT_TRUE(silent[7]->rest({&node}).empty());
  EXPECT_TRUE(node.events.empty());
  // Those who know the secret come in all the same.
  Node friendly(kOne);
  ASSERT_TRUE(friendly.net->connect(node.net->address()).ok());
  EXPECT_TRUE(drive({&node, &friendly}, [&] { return node.find(Kind::accepted) != nullptr; }));
}

TEST(SecureControlNet, ManyRefusalsLeaveFewLogLinesAndNoSecretInThem) {
  std::size_t lines = 0;
  set_log_sink([&](LogLevel, std::string_view line) {
    lines += line.find("control.refused") != std::string_view::npos ? 1U : 0U;
    EXPECT_EQ(line.find(kOne), std::string_view::npos);
  });
  Node node(kOne);
  for (int i = 0; i < 50; ++i) {
    Raw raw(node.net->address());
    raw.say(bytes_of("\1hello"));
    raw.rest({&node});
  }
  EXPECT_EQ(node.refused(Refusal::secret_required), 50U);
  test::install_log_guard();
  EXPECT_GE(lines, 1U);
  EXPECT_LT(lines, 50U) << "the limit of the log";
}

// What a listener in the middle has seen and passed on, and may change.
struct Middle {
  explicit Middle(const std::string& to)
      : to_(to), net(std::move(TcpControlNet::open("127.0.0.1:0", "")).value()) {}
  std::string to_;
  std::unique_ptr<TcpControlNet> net;
  ConnId dialer{}, listener{};
  std::vector<std::byte> seen;
  std::function<std::vector<std::vector<std::byte>>(std::vector<std::byte>)> from_dialer =
      [](std::vector<std::byte> m) { return std::vector<std::vector<std::byte>>{std::move(m)}; };

  void step() {
    std::vector<ControlEvent> events;
    net->poll(events);
    for (ControlEvent& event : events) {
      if (event.kind == Kind::accepted) {
        dialer = event.conn;
        listener = net->connect(to_).value();
      } else if (event.kind == Kind::message) {
        seen.insert(seen.end(), event.bytes.begin(), event.bytes.end());
        if (event.conn != dialer) {
          static_cast<void>(net->send(dialer, event.bytes));
          continue;
        }
        for (const auto& m : from_dialer(std::move(event.bytes))) {
          static_cast<void>(net->send(listener, m));
        }
      }
    }
  }
};

TEST(SecureControlNet, NothingReadableTravelsAndWhatIsTamperedWithEndsTheConnection) {
  const std::string precious = "the name of a secret region of memory";
  enum Deed { none, flip, repeat, drop, swap };
  for (const Deed deed : {none, flip, repeat, drop, swap}) {
    const test::ExpectLog log("control.refused");
    Node a(kOne), b(kOne);
    Middle middle(b.net->address());
    const ConnId conn = a.net->connect(middle.net->address()).value();
    const auto until = [&](const std::function<bool()>& done) {
      return drive({&a, &b}, [&] {
        middle.step();
        return done();
      });
    };
    ASSERT_TRUE(until([&] { return a.find(Kind::connected) && b.find(Kind::accepted); }));
    std::vector<std::byte> held;
    int number = 0;
    middle.from_dialer = [&](std::vector<std::byte> m) -> std::vector<std::vector<std::byte>> {
      ++number;
      switch (deed) {
        case none:
          return {m};
        case flip:
          m[3] ^= std::byte{4};
          return {m};
        case repeat:
          return {m, m};
        case drop:
          return number == 1 ? std::vector<std::vector<std::byte>>{}
                             : std::vector<std::vector<std::byte>>{m};
        case swap:
          if (number == 1) return held = m, std::vector<std::vector<std::byte>>{};
          return {m, held};
      }
      return {};
    };
    ASSERT_TRUE(a.net->send(conn, bytes_of(precious)).ok());
    ASSERT_TRUE(a.net->send(conn, bytes_of(precious)).ok());
    if (deed == none) {
      ASSERT_TRUE(until([&] {
        return std::count_if(b.events.begin(), b.events.end(),
                             [](const ControlEvent& e) { return e.kind == Kind::message; }) == 2;
      }));
    } else {
      ASSERT_TRUE(until([&] { return b.find(Kind::closed) != nullptr; })) << deed;
      EXPECT_EQ(b.find(Kind::closed)->status.code(), Code::corrupt);
      EXPECT_EQ(b.refused(Refusal::tampered), 1U);
      const ControlEvent* const message = b.find(Kind::message);
      EXPECT_EQ(message != nullptr, deed == repeat) << "only what came first and unchanged";
    }
    const std::string seen(reinterpret_cast<const char*>(middle.seen.data()), middle.seen.size());
    EXPECT_EQ(seen.find("secret"), std::string::npos);
  }
}

}  // namespace
}  // namespace kvl
