// The handoff's wire form: round trips, pinned bytes, and hostile input.
#include "kvcache/handoff/wire.h"

#include <gtest/gtest.h>

#include <random>

namespace kvl::handoff {
namespace {

std::vector<Message> samples() {
  const std::vector<std::byte> some{std::byte{1}, std::byte{2}, std::byte{3}};
  EngineId engine{};
  engine[3] = std::byte{42};
  Hello hello{engine,  true, false,
              "llama", some, {{MemoryHandle{7}, 4096}, {MemoryHandle{9}, 1u << 20}}};
  Accept accept{300, 64, HandoffMode::pull, {CrcMode::sampled, 16}, 2, {{64, {5, 6, 7}}, {0, {}}}};
  SegmentMessage delivered{false,        3,         {2, 4}, 64, 300, 123456, {{0, {1, 2}}, {2, {}}},
                           {11, 12, 13}, "tcp/eth0"};
  SegmentMessage readable = delivered;
  readable.readable = true;
  return {
      {Part::prefill, 0, 0, hello},
      {Part::prefill, 0, 0, Verdict{Code::unsupported, "why"}},
      {Part::prefill, 77, 5, accept},
      {Part::decode, 77, 5, Offer{{CrcMode::all, 1}}},
      {Part::decode, 77, 5, delivered},
      {Part::decode, 77, 5, readable},
      {Part::decode, 77, 5, Finish{9, some}},
      {Part::prefill, 77, 5, Done{}},
      {Part::decode, 77, 5, Abort{Code::timed_out, true, "late"}},
      {Part::decode, 77, 5, Quiet{true}},
      {Part::lead, 77, 5, Join{1, 4}},
      {Part::lead, 77, 5, Vote{}},
      {Part::member, 77, 5, Commit{}},
      {Part::lead, 77, 5, Committed{}},
      {Part::prefill, 77, 5, Again{3}},
  };
}

TEST(HandoffWire, EveryMessageComesBack) {
  for (const Message& message : samples()) {
    const auto bytes = encode(message);
    EXPECT_TRUE(is_handoff_message(bytes));
    const Result<Message> back = decode(bytes);
    ASSERT_TRUE(back.ok()) << message.body.index() << " " << back.status().to_string();
    EXPECT_EQ(back->to, message.to);
    EXPECT_EQ(back->room, message.room);
    EXPECT_EQ(back->nonce, message.nonce);
    EXPECT_EQ(back->body, message.body) << message.body.index();
  }
}

// The document's byte offsets (docs/wire/handoff.md).
TEST(HandoffWire, BytesArePinned) {
  const auto bytes =
      encode({Part::decode, 0x1122334455667788, 5, Abort{Code::timed_out, true, "ab"}});
  const std::vector<unsigned> expected{0x4b, 0x56, 0x48, 0x4f, 2,    9, 1, 0, 0x88, 0x77, 0x66,
                                       0x55, 0x44, 0x33, 0x22, 0x11, 5, 0, 0, 0,    0,    0,
                                       0,    0,    7,    1,    2,    0, 0, 0, 'a',  'b'};
  ASSERT_EQ(bytes.size(), expected.size());
  for (std::size_t i = 0; i < expected.size(); ++i) {
    EXPECT_EQ(std::to_integer<unsigned>(bytes[i]), expected[i]) << i;
  }
  EXPECT_EQ(encode({Part::lead, 1, 2, Vote{}}).size(), kHeaderBytes);
}

TEST(HandoffWire, OtherVersionsAndTypesAreUnsupported) {
  auto bytes = encode({Part::prefill, 1, 2, Done{}});
  bytes[4] = std::byte{1};
  EXPECT_EQ(decode(bytes).code(), Code::unsupported);
  bytes[4] = std::byte{kVersion};
  bytes[5] = std::byte{99};
  EXPECT_EQ(decode(bytes).code(), Code::unsupported);
  bytes[5] = std::byte{8};
  bytes[6] = std::byte{4};
  EXPECT_EQ(decode(bytes).code(), Code::corrupt);
  EXPECT_FALSE(is_handoff_message(std::span(bytes).first(3)));
}

TEST(HandoffWire, TruncatedAndPaddedMessagesAreCorrupt) {
  for (const Message& message : samples()) {
    auto bytes = encode(message);
    for (std::size_t cut = 0; cut < bytes.size(); ++cut) {
      EXPECT_FALSE(decode(std::span(bytes).first(cut)).ok()) << message.body.index() << " " << cut;
    }
    bytes.push_back(std::byte{0});
    EXPECT_EQ(decode(bytes).code(), Code::corrupt) << message.body.index();
  }
}

// A count that promises more than the message has must cost neither memory nor time.
TEST(HandoffWire, HostileCountsAreRefused) {
  Message message{Part::prefill, 1, 2, Accept{10, 0, HandoffMode::push, {}, 1, {{0, {1, 2, 3}}}}};
  auto bytes = encode(message);
  const std::size_t pages_at = kHeaderBytes + 8 + 8 + 1 + 1 + 4 + 4 + 4 + 8;
  for (int i = 0; i < 4; ++i) bytes[pages_at + static_cast<std::size_t>(i)] = std::byte{0xff};
  EXPECT_EQ(decode(bytes).code(), Code::corrupt);
}

TEST(HandoffWire, MutatedMessagesNeverHarm) {
  constexpr std::uint64_t kSeed = 20240607;
  std::mt19937_64 random(kSeed);
  const auto originals = samples();
  std::size_t accepted = 0;
  for (int round = 0; round < 60000; ++round) {
    auto bytes = encode(originals[random() % originals.size()]);
    const std::size_t changes = 1 + random() % 4;
    for (std::size_t i = 0; i < changes && !bytes.empty(); ++i) {
      switch (random() % 4) {
        case 0:
          bytes[random() % bytes.size()] = static_cast<std::byte>(random());
          break;
        case 1:
          bytes.resize(random() % bytes.size());
          break;
        case 2:
          bytes.insert(bytes.begin() + static_cast<std::ptrdiff_t>(random() % bytes.size()),
                       static_cast<std::byte>(random()));
          break;
        default:
          bytes[random() % bytes.size()] ^= static_cast<std::byte>(1u << random() % 8);
      }
    }
    const Result<Message> message = decode(bytes);
    if (!message.ok()) continue;
    ++accepted;
    // What is accepted is canonical: it encodes to the same bytes.
    ASSERT_EQ(encode(*message), bytes) << "seed " << kSeed << " round " << round;
  }
  EXPECT_GT(accepted, 100U);
}

}  // namespace
}  // namespace kvl::handoff
