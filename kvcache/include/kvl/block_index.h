// BlockIndex: which blocks a worker already has, by prefix-chained hash. A chain is the hashes of a
// prompt's blocks from the first on; because each hash covers its prefix, blocks form a forest and
// a chain is a path from a root.
//
// Bounded. A full index makes room by forgetting leaves, least recently used first, so that what it
// keeps is always matched from the start. It stores a value per block and owns nothing behind it:
// whoever inserted a value gets it back when it is evicted.
//
// Thread: one, the owner's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kvl/block_hash.h"

namespace kvl {

// The owner's: a page id, a packed PageRef, an index of its own.
using BlockValue = std::uint64_t;

class BlockIndex {
 public:
  explicit BlockIndex(std::size_t blocks_max);
  ~BlockIndex();
  BlockIndex(BlockIndex&&) noexcept;
  BlockIndex& operator=(BlockIndex&&) noexcept;

  std::size_t size() const;
  std::size_t blocks_max() const;
  std::size_t pinned() const;  // blocks with at least one pin

  // How many blocks of the chain are known, counted from its start. Replaces `values` with theirs
  // and makes them the most recently used.
  std::size_t match(std::span<const BlockHash> chain, std::vector<BlockValue>& values);
  // The same without a trace, for whoever only asks.
  std::size_t matched_blocks(std::span<const BlockHash> chain) const;

  // Adds the blocks of a chain that are not known yet; values[i] belongs to chain[i], known blocks
  // keep theirs. Returns how many leading blocks of the chain are now known: fewer than
  // chain.size() if pins leave no room. Evicted values are appended to `evicted`, never one of this
  // chain. The two spans have equal length.
  std::size_t insert(std::span<const BlockHash> chain, std::span<const BlockValue> values,
                     std::vector<BlockValue>& evicted);

  // A pinned block and, since eviction begins at leaves, all blocks before it stay. pin() counts;
  // it takes the known blocks of the chain and returns their number. Each pin ends with unpin() of
  // the last block that it covered. unpin answers not_found for a block without a pin.
  std::size_t pin(std::span<const BlockHash> chain);
  Status unpin(const BlockHash& last);

  // Forgets up to `blocks` blocks; returns how many, appends their values.
  std::size_t evict(std::size_t blocks, std::vector<BlockValue>& evicted);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace kvl
