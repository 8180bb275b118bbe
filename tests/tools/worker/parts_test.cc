// The worker's small parts: its page cache, and what its processes and peers say as bytes.
#include <gtest/gtest.h>

#include <random>

#include "worker/metadata.h"
#include "worker/page_cache.h"
#include "worker/rank_wire.h"
#include "worker/room_wire.h"

namespace kvl::worker::test {
namespace {

std::vector<BlockHash> chain_of(std::uint32_t first, std::uint32_t count) {
  std::vector<BlockHash> chain(count);
  for (std::uint32_t i = 0; i < count; ++i) {
    chain[i].bytes[0] = static_cast<std::uint8_t>(first);
    chain[i].bytes[1] = static_cast<std::uint8_t>(i + 1);
  }
  return chain;
}

TEST(PageCache, ReusesEvictsAndWaits) {
  PageCache cache(10);
  const std::vector<BlockHash> one = chain_of(1, 4);
  PageHold first = *cache.acquire(one, 4, 5);
  EXPECT_EQ(first.reused, 0U);
  cache.publish(first, one);
  cache.release(first);
  EXPECT_EQ(cache.counts(), (BlockPool::Counts{.free = 6, .held = 4}));

  PageHold again = *cache.acquire(one, 3, 5);  // one fewer than it could have
  EXPECT_EQ(again.reused, 3U);
  EXPECT_TRUE(std::equal(again.pages.begin(), again.pages.begin() + 3, first.pages.begin()));
  // 4 free and one cached that nobody holds: 5 can be had, 6 cannot.
  EXPECT_EQ(cache.acquire(chain_of(2, 6), 6, 6).code(), Code::exhausted);
  const PageHold other = *cache.acquire(chain_of(2, 5), 5, 5);
  EXPECT_EQ(cache.cached_pages(), 3U);  // those in use were not evicted
  cache.release(again);
  cache.release(other);
  cache.flush();
  EXPECT_EQ(cache.counts(), (BlockPool::Counts{.free = 10}));
}

TEST(PageCache, ExposedPagesStayLocked) {
  PageCache cache(4);
  const PageHold hold = *cache.acquire({}, 0, 3);
  cache.expose(hold);
  const QuarantineToken token = cache.release(hold);
  EXPECT_TRUE(token);
  EXPECT_EQ(cache.acquire({}, 0, 2).code(), Code::exhausted);
  cache.unlock(token);
  EXPECT_TRUE(cache.acquire({}, 0, 4).ok());
  const PageHold settled = [] {
    PageCache second(4);
    PageHold h = *second.acquire({}, 0, 3);
    second.expose(h);
    second.settle(h);
    EXPECT_FALSE(second.release(h));
    return h;
  }();
  EXPECT_EQ(settled.pages.size(), 3U);
}

TEST(PageCache, TwoRequestsWithOnePromptPublishItOnce) {
  PageCache cache(8);
  const std::vector<BlockHash> chain = chain_of(3, 2);
  PageHold a = *cache.acquire(chain, 2, 3);
  PageHold b = *cache.acquire(chain, 2, 3);
  cache.publish(a, chain);
  cache.publish(b, chain);
  cache.release(b);
  cache.release(a);
  EXPECT_EQ(cache.counts(), (BlockPool::Counts{.free = 6, .held = 2}));
  cache.flush();
  EXPECT_EQ(cache.counts().free, 8U);
}

std::vector<Command> commands() {
  ComputeJob job;
  job.id = 9;
  job.kind = ComputeJob::Kind::verify;
  job.batch = {{{1, -2}, 7, {3, 4}, true, true, 8}, {}};
  job.kv = {{512, {1, 2, 3}}, {5, 6}, 1, 2, true, 77};
  OpenDecode decode;
  decode.room = 1;
  decode.mode = HandoffMode::pull;
  decode.sources = {{{"a:1", 2}, {"b:2", 3}}, {}};
  return {job,
          OpenPrefill{1, 2, 3, 4, {5, 6}},
          FinishPrefill{1, {std::byte{7}}},
          decode,
          AbortRoom{HandoffSide::prefill, 3, Code::peer_lost, "why"},
          SendMessage{"addr", {5}, {std::byte{1}, std::byte{2}}},
          SetLead{"lead"}};
}

std::vector<RankEvent> events() {
  RoomEvent room;
  room.reason = "reason";
  room.metadata = {std::byte{3}};
  room.pages_safe = false;
  return {RankOutput{1, 2, Code::corrupt, 3, {{1.5F, -2.0F}, {}}, {4, 5}},
          RankUp{1, "host:1", 2, {std::byte{9}}},
          room,
          PeerMessage{{4}, {std::byte{1}}},
          PeerLost{{4}, "x", Code::timed_out},
          RankLost{6}};
}

TEST(RankWire, ComesBackAsItWas) {
  for (const Command& command : commands()) {
    const std::vector<std::byte> bytes = encode(command);
    const std::optional<Command> back = decode_command(bytes);
    ASSERT_TRUE(back.has_value()) << command.index();
    EXPECT_EQ(back->index(), command.index());
    EXPECT_EQ(encode(*back), bytes);
  }
  for (const RankEvent& event : events()) {
    const std::vector<std::byte> bytes = encode(event);
    const std::optional<RankEvent> back = decode_event(bytes);
    ASSERT_TRUE(back.has_value()) << event.index();
    EXPECT_EQ(encode(*back), bytes);
  }
}

TEST(RankWire, CutAndScrambledBytesAreRefusedOrHarmless) {
  std::mt19937 random(1);
  for (const Command& command : commands()) {
    const std::vector<std::byte> bytes = encode(command);
    for (std::size_t length = 0; length < bytes.size(); ++length) {
      EXPECT_FALSE(decode_command(std::span(bytes).first(length)).has_value());
    }
    for (int round = 0; round < 500; ++round) {
      std::vector<std::byte> scrambled = bytes;
      scrambled[random() % bytes.size()] = static_cast<std::byte>(random());
      (void)decode_command(scrambled);
      (void)decode_event(scrambled);
    }
  }
}

TEST(RoomWire, ComesBackAsItWasOrNotAtAll) {
  const RoomMessage message{RoomMessage::Kind::ended, Code::peer_lost, 0x1122334455667788};
  std::vector<std::byte> bytes = encode(message);
  ASSERT_EQ(bytes.size(), 24U);
  const std::optional<RoomMessage> back = decode_room_message(bytes);
  ASSERT_TRUE(back.has_value());
  EXPECT_EQ(back->room, message.room);
  EXPECT_EQ(back->code, Code::peer_lost);
  EXPECT_EQ(back->kind, RoomMessage::Kind::ended);
  EXPECT_FALSE(decode_room_message(std::span(bytes).first(23)).has_value());
  bytes[9] = std::byte{200};
  EXPECT_EQ(decode_room_message(bytes)->code, Code::internal);
  bytes[8] = std::byte{8};
  EXPECT_FALSE(decode_room_message(bytes).has_value());
}

TEST(Metadata, ComesBackAsItWasOrNotAtAll) {
  const OutputToken token{257, -1.25F, 0xfedcba9876543210};
  std::vector<std::byte> bytes = encode_metadata(token);
  const std::optional<FirstToken> back = decode_metadata(bytes);
  ASSERT_TRUE(back.has_value());
  EXPECT_EQ(back->token, token);
  EXPECT_GT(back->wall_ns, 0);
  bytes[0] = std::byte{2};
  EXPECT_FALSE(decode_metadata(bytes).has_value());
  EXPECT_FALSE(decode_metadata({}).has_value());
}

}  // namespace
}  // namespace kvl::worker::test
