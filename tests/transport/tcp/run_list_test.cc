// Cutting ops into runs and vectors: no byte lost, none twice, whatever the limits.
#include "transport/tcp/run_list.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <vector>

namespace kvl::tcp {
namespace {

std::vector<PageOp> random_ops(std::mt19937_64& random) {
  std::vector<PageOp> ops(random() % 6 + 1);
  for (PageOp& op : ops) {
    op.bytes = static_cast<std::uint32_t>(random() % 40 + 1);
    op.count = static_cast<std::uint32_t>(random() % 8 + 1);
    op.local_offset = random() % 100;
    op.remote_offset = random() % 100;
    op.local_stride = op.bytes + random() % 3;
    op.remote_stride = op.bytes + random() % 3;
  }
  return ops;
}

// Position by position, as PageOp defines it.
std::vector<std::pair<std::uint64_t, std::uint64_t>> expected(const std::vector<PageOp>& ops,
                                                              std::uint64_t begin,
                                                              std::uint64_t end) {
  std::vector<std::pair<std::uint64_t, std::uint64_t>> all;
  for (std::size_t i = 0; i < ops.size(); ++i) {
    const PageOp& op = ops[i];
    const std::uint64_t last = i + 1 == ops.size() && end != 0 ? end : op.total_bytes();
    for (std::uint64_t p = i == 0 ? begin : 0; p < last; ++p) {
      all.emplace_back(op.local_offset + p / op.bytes * op.local_stride + p % op.bytes,
                       op.remote_offset + p / op.bytes * op.remote_stride + p % op.bytes);
    }
  }
  return all;
}

TEST(RunCursor, EveryPositionOnce) {
  for (std::uint64_t seed = 0; seed < 3000; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    std::mt19937_64 random(seed);
    const std::vector<PageOp> ops = random_ops(random);
    const std::uint64_t begin = random() % ops.front().total_bytes();
    std::uint64_t end = random() % (ops.back().total_bytes() + 1);
    if (ops.size() == 1 && end <= begin) end = 0;
    const std::uint64_t frame_max = random() % 60 + 1;
    std::vector<std::pair<std::uint64_t, std::uint64_t>> got;
    RunCursor cursor(ops, begin, end);
    while (!cursor.done()) {
      std::uint64_t frame = 0;
      kvl::tcp::Run run;
      while (frame < frame_max && !cursor.done() &&
             cursor.next(frame_max - frame, frame == 0, run)) {
        for (std::uint64_t piece = 0; piece < run.count; ++piece) {
          for (std::uint64_t i = 0; i < run.bytes; ++i) {
            got.emplace_back(run.local_offset + piece * run.local_stride + i,
                             run.remote_offset + piece * run.remote_stride + i);
          }
        }
        frame += std::uint64_t{run.bytes} * run.count;
      }
      ASSERT_GT(frame, 0U);
      ASSERT_LE(frame, frame_max);
    }
    ASSERT_EQ(got, expected(ops, begin, end));
  }
}

TEST(RunList, VectorsSeekAndCopiesAgree) {
  for (std::uint64_t seed = 0; seed < 3000; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    std::mt19937_64 random(seed);
    std::vector<std::byte> memory(4096);
    for (std::byte& b : memory) b = static_cast<std::byte>(random());
    std::vector<std::byte> scratch(kScratchBytes);
    std::vector<RunView> views(8);
    const auto count = static_cast<std::uint32_t>(random() % 8 + 1);
    const auto first = static_cast<std::uint32_t>(random() % 8);
    std::vector<std::byte> wanted;
    for (std::uint32_t i = 0; i < count; ++i) {
      RunView& view = views[(first + i) & 7];
      view.bytes = static_cast<std::uint32_t>(random() % 50 + 1);
      view.count = static_cast<std::uint32_t>(random() % 5 + 1);
      view.stride = view.bytes + random() % 3;
      view.at = random() % 5 == 0 ? nullptr : memory.data() + random() % 3000;
      for (std::uint32_t p = 0; p < view.count; ++p) {
        for (std::uint32_t b = 0; b < view.bytes; ++b) {
          wanted.push_back(view.at == nullptr ? std::byte{} : view.at[p * view.stride + b]);
        }
      }
    }
    RunList list(views.data(), first, 7, count);
    std::vector<std::byte> got;
    while (!list.done()) {
      if (random() % 4 == 0) list.seek(got.size());  // where it is already
      iovec vectors[5];
      const std::size_t used =
          list.fill(vectors, random() % 5 + 1, random() % 100 + 1, scratch.data());
      for (std::size_t i = 0; i < used; ++i) {
        const auto* const from = static_cast<const std::byte*>(vectors[i].iov_base);
        got.insert(got.end(), from, from + vectors[i].iov_len);
      }
      ASSERT_EQ(got.size(), list.position());
    }
    ASSERT_TRUE(got == wanted);
    RunList again(views.data(), first, 7, count);
    std::vector<std::byte> staged(wanted.size());
    for (std::uint64_t done = 0; done < wanted.size();) {
      CopyPiece pieces[3];
      std::uint64_t bytes = 0;
      const std::size_t used =
          again.fill_copies(pieces, 3, random() % 100 + 1, staged.data() + done, false, bytes);
      for (std::size_t i = 0; i < used; ++i) {
        std::memcpy(pieces[i].to, pieces[i].from, pieces[i].bytes);
      }
      done += bytes;
    }
    ASSERT_TRUE(staged == wanted);
  }
}

TEST(RunFits, NeverOverflows) {
  EXPECT_TRUE(run_fits(0, 0, 1, 1, 1));
  EXPECT_TRUE(run_fits(10, 20, 5, 3, 55));
  EXPECT_FALSE(run_fits(10, 20, 5, 3, 54));
  EXPECT_FALSE(run_fits(0, UINT64_MAX, 1, 3, UINT64_MAX));
  EXPECT_FALSE(run_fits(UINT64_MAX, 0, 1, 1, UINT64_MAX));
  EXPECT_FALSE(run_fits(UINT64_MAX - 10, 1, 5, 10, UINT64_MAX));
  EXPECT_FALSE(run_fits(0, 0, 0, 1, 10));
  EXPECT_FALSE(run_fits(0, 0, 1, 0, 10));
  EXPECT_TRUE(run_fits(5, UINT64_MAX, 5, 1, 10));  // one piece: the stride means nothing
}

}  // namespace
}  // namespace kvl::tcp
