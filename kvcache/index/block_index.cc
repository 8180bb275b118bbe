// BlockIndex: a hash map of blocks that know their parent, and an ordered set of those that may go.
#include "kvl/block_index.h"

#include <algorithm>
#include <cassert>
#include <set>
#include <unordered_map>
#include <utility>

namespace kvl {
namespace {

struct Block {
  BlockHash hash;
  Block* parent = nullptr;
  BlockValue value = 0;
  std::uint32_t children = 0;
  std::uint32_t pins = 0;
  std::uint64_t used = 0;  // rises with each use; unique per block

  bool evictable() const { return children == 0 && pins == 0; }
};

}  // namespace

struct BlockIndex::State {
  explicit State(std::size_t limit) : blocks_max(limit) {}

  // Every change of a block that bears on eviction goes through here, so that `leaves` is exactly
  // the evictable blocks in order of use.
  template <typename Change>
  void update(Block& block, Change change) {
    if (block.evictable()) leaves.erase({block.used, &block});
    change(block);
    if (block.evictable()) leaves.emplace(block.used, &block);
  }

  Block* find(const BlockHash& hash) {
    const auto found = blocks.find(hash);
    return found == blocks.end() ? nullptr : &found->second;
  }

  void touch(Block& block) {
    update(block, [this](Block& b) { b.used = ++clock; });
  }

  // Removes the least recently used leaf, but not `kept`.
  bool evict_one(const Block* kept, std::vector<BlockValue>& evicted) {
    auto victim = leaves.begin();
    if (victim != leaves.end() && victim->second == kept) ++victim;
    if (victim == leaves.end()) return false;
    Block* const block = victim->second;
    leaves.erase(victim);
    evicted.push_back(block->value);
    if (block->parent != nullptr) {
      update(*block->parent, [](Block& parent) { --parent.children; });
    }
    const BlockHash hash = block->hash;
    blocks.erase(hash);
    return true;
  }

  std::size_t blocks_max;
  std::unordered_map<BlockHash, Block> blocks;
  std::set<std::pair<std::uint64_t, Block*>> leaves;
  std::uint64_t clock = 0;
  std::size_t pinned = 0;
};

BlockIndex::BlockIndex(std::size_t blocks_max) : state_(std::make_unique<State>(blocks_max)) {}
BlockIndex::~BlockIndex() = default;
BlockIndex::BlockIndex(BlockIndex&&) noexcept = default;
BlockIndex& BlockIndex::operator=(BlockIndex&&) noexcept = default;

std::size_t BlockIndex::size() const { return state_->blocks.size(); }
std::size_t BlockIndex::blocks_max() const { return state_->blocks_max; }
std::size_t BlockIndex::pinned() const { return state_->pinned; }

std::size_t BlockIndex::match(std::span<const BlockHash> chain, std::vector<BlockValue>& values) {
  values.clear();
  for (const BlockHash& hash : chain) {
    Block* const block = state_->find(hash);
    if (block == nullptr) break;
    state_->touch(*block);
    values.push_back(block->value);
  }
  return values.size();
}

std::size_t BlockIndex::matched_blocks(std::span<const BlockHash> chain) const {
  const auto unknown = std::find_if(chain.begin(), chain.end(), [this](const BlockHash& hash) {
    return state_->find(hash) == nullptr;
  });
  return static_cast<std::size_t>(unknown - chain.begin());
}

std::size_t BlockIndex::insert(std::span<const BlockHash> chain, std::span<const BlockValue> values,
                               std::vector<BlockValue>& evicted) {
  assert(chain.size() == values.size());
  Block* parent = nullptr;
  for (std::size_t i = 0; i < chain.size(); ++i) {
    Block* block = state_->find(chain[i]);
    if (block == nullptr) {
      // The only block of this chain that can be a leaf is the one just passed.
      if (state_->blocks.size() >= state_->blocks_max && !state_->evict_one(parent, evicted)) {
        return i;
      }
      block = &state_->blocks[chain[i]];
      block->hash = chain[i];
      block->parent = parent;
      block->value = values[i];
      block->used = ++state_->clock;
      state_->leaves.emplace(block->used, block);
      if (parent != nullptr) state_->update(*parent, [](Block& b) { ++b.children; });
    } else {
      state_->touch(*block);
    }
    parent = block;
  }
  return chain.size();
}

std::size_t BlockIndex::pin(std::span<const BlockHash> chain) {
  const std::size_t known = matched_blocks(chain);
  if (known == 0) return 0;
  state_->update(*state_->find(chain[known - 1]), [this](Block& block) {
    if (block.pins++ == 0) ++state_->pinned;
  });
  return known;
}

Status BlockIndex::unpin(const BlockHash& last) {
  Block* const block = state_->find(last);
  if (block == nullptr || block->pins == 0) return {Code::not_found, "index: block is not pinned"};
  state_->update(*block, [this](Block& b) {
    if (--b.pins == 0) --state_->pinned;
  });
  return {};
}

std::size_t BlockIndex::evict(std::size_t blocks, std::vector<BlockValue>& evicted) {
  std::size_t done = 0;
  while (done < blocks && state_->evict_one(nullptr, evicted)) ++done;
  return done;
}

}  // namespace kvl
