// BlockIndex: longest prefix, leaf-first eviction by use, pins; then random use against a model.
#include "kvl/block_index.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <vector>

namespace kvl {
namespace {

using Chain = std::vector<BlockHash>;
using Values = std::vector<BlockValue>;

// The chain of a prompt whose blocks are the letters of a word.
Chain chain(std::string_view word) {
  std::vector<std::uint32_t> tokens(word.begin(), word.end());
  return *hash_blocks({.block_tokens = 1}, tokens);
}

struct Index {
  explicit Index(std::size_t blocks_max) : index(blocks_max) {}

  std::size_t insert(std::string_view word, BlockValue first) {
    const Chain hashes = chain(word);
    Values values;
    for (std::size_t i = 0; i < hashes.size(); ++i) values.push_back(first + i);
    return index.insert(hashes, values, evicted);
  }
  Values match(std::string_view word) {
    Values values;
    const std::size_t known = index.match(chain(word), values);
    EXPECT_EQ(known, values.size());
    return values;
  }

  BlockIndex index;
  Values evicted;
};

TEST(BlockIndex, MatchesTheLongestPrefix) {
  Index i(10);
  EXPECT_EQ(i.insert("abcd", 10), 4U);
  EXPECT_EQ(i.insert("abxy", 20), 4U);
  EXPECT_EQ(i.index.size(), 6U);
  EXPECT_EQ(i.match("abcdz"), (Values{10, 11, 12, 13}));
  EXPECT_EQ(i.match("abxyz"), (Values{10, 11, 22, 23})) << "known blocks keep their values";
  EXPECT_EQ(i.match("abq"), (Values{10, 11}));
  EXPECT_EQ(i.match("b"), Values{}) << "the same block behind another prefix is another block";
  EXPECT_EQ(i.match(""), Values{});
  EXPECT_EQ(i.index.matched_blocks(chain("abc")), 3U);
  EXPECT_TRUE(i.evicted.empty());
}

TEST(BlockIndex, EvictsLeavesLeastRecentlyUsedFirst) {
  Index i(5);
  i.insert("abc", 10);
  i.insert("xy", 20);
  i.match("abc");
  EXPECT_EQ(i.insert("q", 30), 1U);
  EXPECT_EQ(i.evicted, (Values{21})) << "y: a leaf of the chain not used for longest";
  i.insert("r", 31);
  EXPECT_EQ(i.evicted, (Values{21, 20}));
  i.insert("s", 32);
  EXPECT_EQ(i.evicted, (Values{21, 20, 12})) << "c, although b is older";
}

TEST(BlockIndex, AChainDoesNotEvictItself) {
  Index i(3);
  EXPECT_EQ(i.insert("abcdef", 10), 3U);
  EXPECT_TRUE(i.evicted.empty());
  EXPECT_EQ(i.match("abcdef"), (Values{10, 11, 12}));
  EXPECT_EQ(i.insert("xyz", 20), 3U);
  EXPECT_EQ(i.evicted, (Values{12, 11, 10}));
  Index none(0);
  EXPECT_EQ(none.insert("a", 1), 0U);
}

TEST(BlockIndex, PinsKeepAChain) {
  Index i(4);
  i.insert("abcd", 10);
  EXPECT_EQ(i.index.pin(chain("abcx")), 3U);
  EXPECT_EQ(i.index.pin(chain("zzz")), 0U);
  EXPECT_EQ(i.index.pinned(), 1U);
  EXPECT_EQ(i.insert("xy", 20), 1U) << "only d can go";
  EXPECT_EQ(i.evicted, (Values{13}));
  EXPECT_EQ(i.index.evict(10, i.evicted), 1U);
  EXPECT_EQ(i.evicted, (Values{13, 20}));
  EXPECT_EQ(i.index.pin(chain("abc")), 3U);
  EXPECT_TRUE(i.index.unpin(chain("abc")[2]).ok());
  EXPECT_EQ(i.index.evict(10, i.evicted), 0U);
  EXPECT_TRUE(i.index.unpin(chain("abc")[2]).ok());
  EXPECT_EQ(i.index.unpin(chain("abc")[2]).code(), Code::not_found);
  EXPECT_EQ(i.index.unpin(chain("q")[0]).code(), Code::not_found);
  EXPECT_EQ(i.index.evict(10, i.evicted), 3U);
  EXPECT_EQ(i.index.size(), 0U);
}

// Words instead of hashes, a clock instead of a list: slow and plain.
struct Model {
  struct Block {
    BlockValue value = 0;
    std::uint64_t used = 0;
    std::uint32_t pins = 0;
  };
  std::size_t blocks_max = 0;
  std::map<std::string, Block> blocks;
  std::uint64_t clock = 0;

  bool leaf(const std::string& word) const {
    return std::none_of(blocks.begin(), blocks.end(), [&](const auto& other) {
      return other.first.size() == word.size() + 1 && other.first.starts_with(word);
    });
  }
  bool evict_one(const std::string& kept, Values& evicted) {
    auto victim = blocks.end();
    for (auto it = blocks.begin(); it != blocks.end(); ++it) {
      if (it->second.pins > 0 || it->first == kept || !leaf(it->first)) continue;
      if (victim == blocks.end() || it->second.used < victim->second.used) victim = it;
    }
    if (victim == blocks.end()) return false;
    evicted.push_back(victim->second.value);
    blocks.erase(victim);
    return true;
  }
  std::size_t known(const std::string& word) const {
    std::size_t n = 0;
    while (n < word.size() && blocks.contains(word.substr(0, n + 1))) ++n;
    return n;
  }
  std::size_t insert(const std::string& word, const Values& values, Values& evicted) {
    for (std::size_t n = 0; n < word.size(); ++n) {
      const std::string prefix = word.substr(0, n + 1);
      if (!blocks.contains(prefix)) {
        if (blocks.size() >= blocks_max && !evict_one(word.substr(0, n), evicted)) return n;
        blocks[prefix].value = values[n];
      }
      blocks[prefix].used = ++clock;
    }
    return word.size();
  }
};

TEST(BlockIndexProperty, AgreesWithTheModel) {
  const std::uint64_t seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937_64 random(seed);
  const auto below = [&](std::uint64_t bound) { return random() % bound; };
  for (int run = 0; run < 10; ++run) {
    BlockIndex index(12);
    Model model{.blocks_max = 12};
    std::vector<std::string> pinned;
    BlockValue next = 1;
    for (int step = 0; step < 400; ++step) {
      std::string word;
      for (std::uint64_t i = 0; i <= below(6); ++i) word += static_cast<char>('a' + below(3));
      const Chain hashes = chain(word);
      const std::size_t known = model.known(word);
      ASSERT_EQ(index.matched_blocks(hashes), known);
      Values evicted;
      Values evicted_wanted;
      switch (below(5)) {
        case 0:
        case 1: {
          Values values;
          for (std::size_t i = 0; i < word.size(); ++i) values.push_back(next++);
          ASSERT_EQ(index.insert(hashes, values, evicted),
                    model.insert(word, values, evicted_wanted));
          break;
        }
        case 2: {
          Values values;
          ASSERT_EQ(index.match(hashes, values), known);
          for (std::size_t i = 0; i < known; ++i) {
            Model::Block& block = model.blocks[word.substr(0, i + 1)];
            block.used = ++model.clock;
            ASSERT_EQ(values[i], block.value);
          }
          break;
        }
        case 3:
          if (below(2) == 0) {
            ASSERT_EQ(index.pin(hashes), known);
            if (known > 0) {
              ++model.blocks[word.substr(0, known)].pins;
              pinned.push_back(word.substr(0, known));
            }
          } else if (!pinned.empty()) {
            ASSERT_TRUE(index.unpin(chain(pinned.back()).back()).ok());
            --model.blocks[pinned.back()].pins;
            pinned.pop_back();
          }
          break;
        default: {
          const std::size_t count = below(3);
          std::size_t done = 0;
          while (done < count && model.evict_one("", evicted_wanted)) ++done;
          ASSERT_EQ(index.evict(count, evicted), done);
          break;
        }
      }
      ASSERT_EQ(evicted, evicted_wanted);
      ASSERT_EQ(index.size(), model.blocks.size());
      ASSERT_LE(index.size(), index.blocks_max());
      ASSERT_EQ(index.pinned(), static_cast<std::size_t>(std::count_if(
                                    model.blocks.begin(), model.blocks.end(),
                                    [](const auto& block) { return block.second.pins > 0; })));
    }
  }
}

}  // namespace
}  // namespace kvl
