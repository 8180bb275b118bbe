// Engines with and without secrets: who may listen where, who reaches whom, what the user is told.
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fstream>

#include "kvl/security.h"
#include "tests/support/engine_pair.h"
#include "tests/support/log_guard.h"

namespace kvl {
namespace {

using Kind = EngineEvent::Kind;
using test::TestEngine;

const std::string kOne = "the first secret of this test, 32 and more";
const std::string kTwo = "the second secret of this test, 32 and more";

// A file with these secrets, of this test alone.
std::string secret_file(const std::string& secrets) {
  static int number = 0;
  const auto* const test = ::testing::UnitTest::GetInstance()->current_test_info();
  std::string name = test->name() + std::to_string(::getpid()) + std::to_string(++number);
  std::replace(name.begin(), name.end(), '/', '_');
  const std::string path = ::testing::TempDir() + "kvlane_secret_" + name;
  std::ofstream(path) << secrets << "\n";
  EXPECT_EQ(::chmod(path.c_str(), 0600), 0);
  return path;
}

Code open_code(test::Flags flags, std::string& error) {
  return Engine::open(test::engine_test_settings(std::move(flags)), &error).code();
}

TEST(EngineSecurity, ListenerBeyondLoopbackNeedsASecret) {
  std::string error;
  EXPECT_EQ(open_code({{"listen", "0.0.0.0:0"}}, error), Code::permission);
  EXPECT_NE(error.find("secret_file"), std::string::npos) << error;
  EXPECT_NE(error.find("insecure=true"), std::string::npos) << error;
  EXPECT_TRUE(TestEngine({{"listen", "0.0.0.0:0"}, {"insecure", "true"}}));
  EXPECT_TRUE(TestEngine({{"listen", "0.0.0.0:0"}, {"secret_file", secret_file(kOne)}}));
  EXPECT_EQ(EngineConfig{}.listen, "127.0.0.1:0");
  EXPECT_TRUE(TestEngine({{"listen", EngineConfig{}.listen}}));
}

TEST(EngineSecurity, BadSecretsAreTypedErrors) {
  std::string error;
  EXPECT_EQ(open_code({{"secret_file", "/nonexistent"}}, error), Code::not_found);
  EXPECT_EQ(open_code({{"secret_file", secret_file("short")}}, error), Code::invalid_argument);
  EXPECT_EQ(error.find("short\n"), std::string::npos) << error;
  const std::string path = secret_file(kOne);
  EXPECT_EQ(::chmod(path.c_str(), 0644), 0);
  EXPECT_EQ(open_code({{"secret_file", path}}, error), Code::permission);
  EXPECT_NE(error.find("chmod 600 " + path), std::string::npos) << error;
  EXPECT_EQ(open_code({{"encrypt", "on"}}, error), Code::invalid_argument);
}

struct Mode {
  std::string transport, progress;
  bool encrypt = false;
};

class SecuredEngines : public ::testing::TestWithParam<Mode> {};

TEST_P(SecuredEngines, MoveBytesAndSayHowTheyAreProtected) {
  const Mode& mode = GetParam();
  const test::Flags flags{{"require", mode.transport}, {"progress", mode.progress}};
  test::Flags of_a = flags, of_b = flags;
  of_a.emplace_back("secret_file", secret_file(kTwo + "\n" + kOne));
  of_b.emplace_back("secret_file", secret_file(kOne));
  if (mode.encrypt) of_b.emplace_back("encrypt", "on");  // one side is enough
  TestEngine a(of_a), b(of_b);
  ASSERT_TRUE(a && b);
  constexpr std::uint64_t kBytes = 1 << 20;
  auto here = SharedBuffer::open(kBytes).value(), there = SharedBuffer::open(kBytes).value();
  for (std::uint64_t i = 0; i < kBytes; ++i) here->data()[i] = static_cast<std::byte>(i * 7 >> 3);
  const MemoryHandle local = a->register_memory(here->memory(Access::remote_all)).value();
  const MemoryHandle remote = b->register_memory(there->memory(Access::remote_all)).value();
  const PeerHandle peer = a->connect(b->address()).value();
  EXPECT_EQ(a.wait(Kind::peer_up, {&b}).peer, peer);
  const PeerHandle back = b.wait(Kind::peer_up, {&a}).peer;
  for (const PeerInfo& info : {a->describe(peer).value(), b->describe(back).value()}) {
    EXPECT_TRUE(info.authenticated);
    EXPECT_EQ(info.encrypted, mode.encrypt);
  }
  PageOp op;
  op.bytes = 4096;
  op.count = kBytes / 4096;
  op.local_stride = op.remote_stride = 4096;
  Transfer transfer;
  transfer.peer = peer;
  transfer.ops = {&op, 1};
  transfer.locals = {&local, 1};
  transfer.remotes = {&remote, 1};
  for (const Direction direction : {Direction::write, Direction::read}) {
    transfer.direction = direction;
    if (direction == Direction::read) std::fill_n(here->data(), kBytes, std::byte{});
    ASSERT_TRUE(a->submit(transfer).ok());
    const EngineEvent done = a.wait(Kind::transfer, {&b});
    EXPECT_EQ(done.code, Code::ok);
    EXPECT_EQ(done.bytes, kBytes);
    EXPECT_TRUE(std::equal(here->data(), here->data() + kBytes, there->data()));
  }
  for (std::uint64_t i = 0; i < kBytes; i += 997) {
    ASSERT_EQ(here->data()[i], static_cast<std::byte>(i * 7 >> 3)) << i;
  }
  ASSERT_TRUE(b->send(back, std::as_bytes(std::span("hello"))).ok());
  EXPECT_EQ(a.wait(Kind::message, {&b}).data.size(), 6U);
}

std::vector<Mode> modes() {
  std::vector<Mode> all;
  for (const auto& transport : make_transports(Settings{})) {
    if (transport->devices().empty()) continue;
    for (const char* progress : {"thread", "caller"}) {
      for (const bool encrypt : {false, true}) {
        all.push_back({std::string(transport->name()), progress, encrypt});
      }
    }
  }
  return all;
}

INSTANTIATE_TEST_SUITE_P(All, SecuredEngines, ::testing::ValuesIn(modes()), [](const auto& mode) {
  return mode.param.transport + "_" + mode.param.progress +
         (mode.param.encrypt ? "_encrypted" : "");
});

TEST(EngineSecurity, WrongOrMissingSecretIsPermissionAndTransfersEnd) {
  const test::ExpectLog log("control.refused");
  const test::Flags one{{"secret_file", secret_file(kOne)}};
  const test::Flags two{{"secret_file", secret_file(kTwo)}};
  for (const auto& [dialer, listener] :
       std::vector<std::pair<test::Flags, test::Flags>>{{one, two}, {one, {}}, {{}, one}}) {
    TestEngine a(dialer), b(listener);
    const auto memory = SharedBuffer::open(4096).value();
    const MemoryHandle local = a->register_memory(memory->memory(Access::local)).value();
    const PeerHandle peer = a->connect(b->address()).value();
    PageOp op;
    op.bytes = 4096;
    Transfer transfer;
    transfer.peer = peer;
    transfer.ops = {&op, 1};
    transfer.locals = transfer.remotes = {&local, 1};
    ASSERT_TRUE(a->submit(transfer).ok());
    EXPECT_EQ(a.wait(Kind::transfer).code, Code::permission);
    const EngineEvent down = a.wait(Kind::peer_down);
    EXPECT_EQ(down.code, Code::permission);
    EXPECT_EQ(down.peer, peer);
    b.pump();
    EXPECT_FALSE(b.has(Kind::peer_up));
    EXPECT_FALSE(a->describe(peer).value().up);
  }
}

TEST(EngineSecurity, WithoutSecretsNothingIsClaimed) {
  TestEngine a, b;
  const PeerHandle peer = a->connect(b->address()).value();
  a.wait(Kind::peer_up);
  EXPECT_FALSE(a->describe(peer).value().authenticated);
  EXPECT_FALSE(a->describe(peer).value().encrypted);
}

}  // namespace
}  // namespace kvl
