// Runs, patterns and checks of the benchmark, without an engine.
#include "tools/bench/workload.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "bench/support/memcpy_baseline.h"
#include "bench/support/stats.h"
#include "tools/bench/message.h"
#include "tools/bench/pattern.h"

namespace kvl::bench {
namespace {

WorkloadSpec small_spec() {
  WorkloadSpec spec;
  spec.pages = 24;
  spec.page_bytes = 96;
  spec.arena_bytes = 64 << 10;
  return spec;
}

WorkloadSpec random_spec(SplitMix& random) {
  WorkloadSpec spec;
  spec.pages = 1 + random.below(60);
  spec.page_bytes = 1 + random.below(700);
  spec.run_pieces = 1 + random.below(spec.pages);
  if (random.below(2) == 0) spec.local_stride = spec.page_bytes + random.below(300);
  if (random.below(2) == 0) spec.remote_stride = spec.page_bytes + random.below(300);
  spec.gap_bytes = random.below(2) * random.below(200);
  spec.arena_bytes = random.below(1 << 20);
  spec.contiguous = random.below(4) == 0;
  spec.seed = random.next();
  return spec;
}

TEST(Workload, MovesEveryPageOnceWithinTheArenas) {
  SplitMix random(7);
  for (int round = 0; round < 200; ++round) {
    SCOPED_TRACE("round " + std::to_string(round));
    const WorkloadSpec spec = random_spec(random);
    ASSERT_TRUE(validate(spec).ok()) << validate(spec).to_string();
    const Workload workload(spec);
    ASSERT_GE(workload.transfers(), 1U);
    std::uint64_t pages = 0;
    for (const PageOp& op : workload.ops_of(0)) pages += op.count;
    EXPECT_EQ(pages, spec.pages);
    for (const Direction direction : {Direction::write, Direction::read}) {
      auto pieces = workload.moved(direction, workload.transfers());
      EXPECT_EQ(pieces.size(), spec.pages * workload.transfers());
      std::sort(pieces.begin(), pieces.end(),
                [](const MovedPiece& a, const MovedPiece& b) { return a.offset < b.offset; });
      const bool write = direction == Direction::write;
      const std::uint64_t to_bytes = write ? workload.remote_bytes() : workload.local_bytes();
      const std::uint64_t from_bytes = write ? workload.local_bytes() : workload.remote_bytes();
      std::uint64_t end = 4096;  // the guard at the start
      for (const MovedPiece& piece : pieces) {
        ASSERT_GE(piece.offset, end);
        ASSERT_LE(piece.from + piece.bytes, from_bytes - 4096);
        end = piece.offset + piece.bytes;
      }
      EXPECT_LE(end, to_bytes - 4096);
    }
  }
}

TEST(Workload, ScattersUnlessContiguous) {
  WorkloadSpec spec = small_spec();
  const auto ordered = [](const Workload& workload) {
    const auto ops = workload.ops_of(0);
    return std::is_sorted(ops.begin(), ops.end(), [](const PageOp& a, const PageOp& b) {
      return a.remote_offset < b.remote_offset;
    });
  };
  EXPECT_FALSE(ordered(Workload(spec)));
  spec.contiguous = true;
  EXPECT_TRUE(ordered(Workload(spec)));
}

TEST(Workload, SameSpecSameRunsOnBothSides) {
  SplitMix random(11);
  const WorkloadSpec spec = random_spec(random);
  const auto bytes = Message("arena").set(spec).encode();
  const auto message = Message::parse(std::as_bytes(std::span(bytes)));
  ASSERT_TRUE(message.ok());
  EXPECT_EQ(message->spec(), spec);
}

TEST(Workload, RefusesWhatDoesNotFit) {
  const auto refused = [](auto change) {
    WorkloadSpec spec = small_spec();
    change(spec);
    return validate(spec).code() == Code::invalid_argument;
  };
  EXPECT_TRUE(refused([](WorkloadSpec& s) { s.pages = 0; }));
  EXPECT_TRUE(refused([](WorkloadSpec& s) { s.page_bytes = 0; }));
  EXPECT_TRUE(refused([](WorkloadSpec& s) { s.run_pieces = 25; }));
  EXPECT_TRUE(refused([](WorkloadSpec& s) { s.remote_stride = 95; }));
  EXPECT_TRUE(refused([](WorkloadSpec& s) { s.local_stride = UINT64_MAX; }));
  EXPECT_TRUE(refused([](WorkloadSpec& s) { s.pages = kPagesMax, s.page_bytes = 1 << 30; }));
  EXPECT_TRUE(refused([](WorkloadSpec& s) { s.arena_bytes = UINT64_MAX; }));
  EXPECT_TRUE(refused([](WorkloadSpec& s) { s.gap_bytes = UINT64_MAX; }));
}

TEST(Pattern, FindsAnyByteThatIsWrong) {
  std::vector<std::byte> bytes(1000);
  fill_pattern(std::span(bytes).subspan(3, 990), 5, 13);
  EXPECT_EQ(count_wrong(std::span(bytes).subspan(3, 990), 5, 13), 0U);
  EXPECT_EQ(count_wrong(std::span(bytes).subspan(10, 400), 5, 20), 0U);  // any cut of it
  EXPECT_GT(count_wrong(std::span(bytes).subspan(3, 990), 6, 13), 900U);
  EXPECT_GT(count_wrong(std::span(bytes).subspan(3, 990), 5, 14), 900U);
  for (const std::size_t at : {3U, 4U, 500U, 992U}) {
    bytes[at] ^= std::byte{0x10};
    std::uint64_t first = 0;
    EXPECT_EQ(count_wrong(std::span(bytes).subspan(3, 990), 5, 13, &first), 1U);
    EXPECT_EQ(first + 3, at);
    bytes[at] ^= std::byte{0x10};
  }
}

struct Arenas {
  explicit Arenas(const Workload& workload)
      : local(workload.local_bytes()), remote(workload.remote_bytes()) {
    fill_pattern(local, 1, 0);
    fill_pattern(remote, 2, 0);
  }
  std::vector<std::byte> local, remote;
};

TEST(CheckArena, PassesARightCopyBothWays) {
  SplitMix random(3);
  for (int round = 0; round < 40; ++round) {
    const Workload workload(random_spec(random));
    Arenas write(workload), read(workload);
    for (std::size_t i = 0; i < workload.transfers(); ++i) {
      memcpy_ops(write.remote.data(), write.local.data(), workload.ops_of(i));
      memcpy_ops_back(read.local.data(), read.remote.data(), workload.ops_of(i));
    }
    EXPECT_EQ(
        check_arena(write.remote, 2, 1, workload.moved(Direction::write, workload.transfers()))
            .wrong_bytes,
        0U);
    EXPECT_EQ(check_arena(read.local, 1, 2, workload.moved(Direction::read, workload.transfers()))
                  .wrong_bytes,
              0U);
  }
}

TEST(CheckArena, SeesBrokenPagesGuardsAndMissingPages) {
  WorkloadSpec spec = small_spec();
  spec.gap_bytes = 40;
  const Workload workload(spec);
  const auto moved = workload.moved(Direction::write, workload.transfers());
  Arenas arenas(workload);
  for (std::size_t i = 0; i < workload.transfers(); ++i) {
    memcpy_ops(arenas.remote.data(), arenas.local.data(), workload.ops_of(i));
  }
  const auto check = [&] { return check_arena(arenas.remote, 2, 1, moved); };
  const PageOp& op = workload.ops_of(0)[5];

  arenas.remote[op.remote_offset + 95] ^= std::byte{1};  // last byte of a page
  EXPECT_EQ(check().wrong_bytes, 1U);
  EXPECT_TRUE(check().inside_page);
  arenas.remote[op.remote_offset + 95] ^= std::byte{1};
  for (const std::size_t at : {op.remote_offset + 96, op.remote_offset - 1, std::uint64_t{0},
                               workload.remote_bytes() - 1}) {  // one byte outside
    arenas.remote[at] ^= std::byte{1};
    EXPECT_EQ(check().wrong_bytes, 1U);
    EXPECT_FALSE(check().inside_page);
    EXPECT_EQ(check().first_offset, at);
    arenas.remote[at] ^= std::byte{1};
  }
  fill_pattern(std::span(arenas.remote).subspan(op.remote_offset, 96), 2, op.remote_offset);
  EXPECT_GT(check().wrong_bytes, 80U);  // a page that never came
}

TEST(Sizes, ReadsSuffixesAndRefusesTheRest) {
  EXPECT_EQ(*parse_size("4096"), 4096U);
  EXPECT_EQ(*parse_size("4k"), 4096U);
  EXPECT_EQ(*parse_size("1MiB"), 1U << 20);
  EXPECT_EQ(*parse_size("2G"), 2ULL << 30);
  for (const char* text :
       {"", "k", "-1", "4kk", "4 k", "1e3", "99999999999999999999", "17179869185g"}) {
    EXPECT_FALSE(parse_size(text).ok()) << text;
  }
  EXPECT_EQ(*parse_sizes("4k,16k,1m"), (std::vector<std::uint64_t>{4096, 16384, 1 << 20}));
  EXPECT_FALSE(parse_sizes("4k,,1m").ok());
  EXPECT_FALSE(parse_sizes("4k,").ok());
}

TEST(Message, RefusesGarbageAndKeepsNumbersExact) {
  const auto parse = [](std::string_view text) {
    return Message::parse(std::as_bytes(std::span(text)));
  };
  for (const std::string_view text :
       {"", "verb field", "verb =x", "a\nb", "a k=\x01", "\xff\xfe\xfd"}) {
    EXPECT_FALSE(parse(text).ok()) << text;
  }
  EXPECT_FALSE(parse(std::string(Message::kBytesMax + 1, 'a')).ok());
  const auto message =
      parse(Message("x").set("n", UINT64_MAX).set("r", 0.25).set("t", "two words").encode());
  ASSERT_TRUE(message.ok());
  EXPECT_EQ(message->verb(), "x");
  EXPECT_EQ(message->number("n"), UINT64_MAX);
  EXPECT_EQ(message->real("r"), 0.25);
  EXPECT_EQ(message->text("t"), "two_words");
  EXPECT_EQ(message->number("t", 9), 9U);
  EXPECT_EQ(message->number("absent", 8), 8U);
}

}  // namespace
}  // namespace kvl::bench
