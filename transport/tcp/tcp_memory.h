// The registered memory of one Link, and how a registration ends while bytes are on their way.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <mutex>
#include <span>
#include <utility>

#include "kvl/transport.h"
#include "transport/base/slot_map.h"
#include "transport/tcp/run_list.h"
#include "transport/tcp/tcp_wire.h"

namespace kvl::tcp {

// A peer names memory by a grant, which export makes for that peer alone: it is of no use on a lane
// of any other peer, and ends with the memory or with the peer.
//
// add() and remove() may be called by any thread, the rest by the Link's owner.
//
// The owner resolves the runs of a frame once, under the lock, and then scatters without it. To
// keep remove() true ("after return no peer reaches it") every system call that touches memory of a
// peer's choosing runs between enter() and leave(): enter() fails when anything was removed since
// the runs were resolved (resolve again: removed runs lose their place), and remove() waits for the
// call that is under way. Nobody waits longer than one non-blocking system call.
class MemoryTable {
 public:
  Result<MemoryId> add(const Memory& memory);
  // invalid_argument: no such id; exhausted: in use by a batch of ours or by a copy.
  Status remove(MemoryId id);

  // The name by which `peer` may address this memory; the same one every time. invalid_argument: no
  // such memory.
  Result<std::uint64_t> grant(MemoryId id, std::uint64_t peer);
  // The peer is gone: it names nothing any more.
  void revoke(std::uint64_t peer);

  // A batch uses all of `ids` until release(). invalid_argument (none held): one is stale.
  Status hold(std::span<const MemoryId> ids);
  void release(std::span<const MemoryId> ids);
  // A copy to or from this memory is under way (staged memory only).
  void pin(std::uint64_t id);
  void unpin(std::uint64_t id);

  std::unique_lock<std::mutex> lock() const { return std::unique_lock(mutex_); }
  // Under lock().
  const Memory* find(std::uint64_t id) const;
  // Where a run of `peer` lies; null and `code` when it must not be. Under lock(). `seen` remembers
  // the last memory found, for the next run; start with an empty one after each lock().
  struct Seen {
    std::uint64_t grant = 0;
    std::uint64_t id = 0;
    const Memory* memory = nullptr;
  };
  std::byte* target(const WireRun& run, std::uint64_t peer, Access wanted, Seen& seen,
                    Code& code) const;
  // Takes the place from views whose memory is gone; true when there was one. Under lock().
  bool revalidate(RunList& list) const;

  // Counts removals. Read it before resolving.
  std::uint64_t epoch() const { return epoch_.load(std::memory_order_acquire); }
  bool enter(std::uint64_t epoch) {
    io_.store(io_.load(std::memory_order_relaxed) + 1, std::memory_order_seq_cst);
    if (epoch_.load(std::memory_order_seq_cst) == epoch) return true;
    leave();
    return false;
  }
  void leave() { io_.store(io_.load(std::memory_order_relaxed) + 1, std::memory_order_release); }

 private:
  struct Entry {
    Memory memory;
    std::uint32_t used = 0;
  };
  struct Grant {
    std::uint64_t memory = 0, peer = 0;
  };
  mutable std::mutex mutex_;
  SlotMap<Entry> entries_;
  SlotMap<Grant> grants_;
  std::map<std::pair<std::uint64_t, std::uint64_t>, std::uint64_t> granted_;  // peer, memory
  std::atomic<std::uint64_t> epoch_{0};
  std::atomic<std::uint64_t> io_{0};  // odd: the owner is between enter() and leave()
};

}  // namespace kvl::tcp
