// Merged blocks move exactly the bytes that the flat arrays name.
#include "kvcache/capi/blocks.h"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <string>
#include <tuple>

namespace kvl::capi {
namespace {

struct Blocks {
  std::vector<std::uint64_t> local, remote, bytes;
  std::vector<std::uint32_t> local_index, remote_index;
  std::vector<std::uint64_t> handles{11, 12, 13};

  void add(std::uint64_t from, std::uint64_t to, std::uint64_t size, std::uint32_t region = 0) {
    local.push_back(from);
    remote.push_back(to);
    bytes.push_back(size);
    local_index.push_back(region);
    remote_index.push_back(region);
  }
  kvl_transfer transfer() const {
    kvl_transfer t = KVL_SIZED(kvl_transfer);
    t.count = local.size();
    t.local_offsets = local.data();
    t.remote_offsets = remote.data();
    t.bytes = bytes.data();
    t.locals = t.remotes = handles.data();
    t.local_count = t.remote_count = handles.size();
    t.local_index = local_index.data();
    t.remote_index = remote_index.data();
    return t;
  }
};

// (local region and offset) -> (remote region and offset), byte by byte.
using Bytes =
    std::map<std::pair<std::uint32_t, std::uint64_t>, std::pair<std::uint32_t, std::uint64_t>>;

Bytes of_blocks(const Blocks& blocks) {
  Bytes out;
  for (std::size_t i = 0; i < blocks.local.size(); ++i) {
    for (std::uint64_t b = 0; b < blocks.bytes[i]; ++b) {
      out[{blocks.local_index[i], blocks.local[i] + b}] = {blocks.remote_index[i],
                                                           blocks.remote[i] + b};
    }
  }
  return out;
}

Bytes of_ops(const std::vector<PageOp>& ops) {
  Bytes out;
  for (const PageOp& op : ops) {
    for (std::uint64_t piece = 0; piece < op.count; ++piece) {
      for (std::uint64_t b = 0; b < op.bytes; ++b) {
        const bool fresh =
            out.emplace(
                   std::pair(op.local_region, op.local_offset + piece * op.local_stride + b),
                   std::pair(op.remote_region, op.remote_offset + piece * op.remote_stride + b))
                .second;
        EXPECT_TRUE(fresh) << "a byte twice";
      }
    }
  }
  return out;
}

std::vector<PageOp> merged(const Blocks& blocks) {
  std::vector<PageOp> ops;
  EXPECT_TRUE(merge_blocks(blocks.transfer(), ops).ok());
  return ops;
}

TEST(Blocks, NeighboursAreOneOp) {
  Blocks contiguous, strided, backward;
  for (std::uint64_t i = 0; i < 100; ++i) {
    contiguous.add(i * 64, 1000 + i * 64, 64);
    strided.add(i * 256, i * 128, 64);
    backward.add(i * 64, 6400 - i * 64, 64);
  }
  ASSERT_EQ(merged(contiguous).size(), 1U);
  EXPECT_EQ(merged(contiguous)[0].bytes, 6400U);
  ASSERT_EQ(merged(strided).size(), 1U);
  EXPECT_EQ(merged(strided)[0].count, 100U);
  EXPECT_EQ(merged(backward).size(), 100U);
}

TEST(Blocks, WhatIsMovedIsWhatWasNamed) {
  const std::uint64_t seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937_64 random(seed);
  for (int round = 0; round < 300; ++round) {
    Blocks blocks;
    std::uint64_t local[3] = {}, remote[3] = {};
    const auto count = 1 + random() % 40;
    std::uint64_t size = 1 + random() % 16;
    std::uint64_t gap = 0;
    for (std::uint64_t i = 0; i < count; ++i) {
      const auto region = static_cast<std::uint32_t>(random() % 4 == 0 ? random() % 3 : 0);
      if (random() % 4 == 0) size = 1 + random() % 16;
      if (random() % 4 == 0) gap = random() % 3 * 8;
      local[region] += random() % 5 == 0 ? 3 : gap;
      remote[region] += gap;
      blocks.add(local[region], remote[region], size, region);
      local[region] += size;
      remote[region] += size;
    }
    ASSERT_EQ(of_ops(merged(blocks)), of_blocks(blocks));
  }
}

TEST(Blocks, OffsetsAtTheEndOfTheNumbersDoNotWrapIntoARun) {
  Blocks blocks;
  blocks.add(UINT64_MAX - 63, UINT64_MAX - 63, 64);
  blocks.add(0, 0, 64);
  EXPECT_EQ(merged(blocks).size(), 2U);
}

}  // namespace
}  // namespace kvl::capi
