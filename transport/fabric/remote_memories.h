// Memory of peers under our RemoteIds, and the check of batches that name it.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "kvl/metrics.h"
#include "kvl/transport.h"
#include "transport/base/batch_cursor.h"
#include "transport/base/slot_map.h"
#include "transport/fabric/memory_table.h"
#include "transport/fabric/peer_wire.h"

namespace kvl {

template <typename Name>
struct ImportedMemory {
  PeerId peer;
  Name name;
  Blob blob;
  std::uint32_t uses = 0;  // batches in flight
  bool verified = false;   // its seal was found to be the peer's
  bool gone = false;       // removed by the peer
  bool dropped = false;
};

// What a NIC's key names.
struct RemoteMemory : ImportedMemory<RemoteName> {
  static Result<RemoteName> decode(std::span<const std::byte> blob) { return decode_name(blob); }
};

// One Link's; its owner's thread. Entry is an ImportedMemory with decode(), and what its fabric
// needs, which ends when it goes. `owner` is what the peer's offer said, null before it is there:
// until then nothing can be said of a seal, and nothing is posted either.
template <typename Entry>
class RemoteTable {
 public:
  // `blob` is hostile. invalid_argument: not a name; permission: not made for us.
  Result<RemoteId> import(PeerId peer, const PeerToken* owner, std::span<const std::byte> blob) {
    auto name = Entry::decode(blob);
    if (!name.ok()) {
      refused_.add();
      return name.status();
    }
    Entry memory;
    memory.peer = peer;
    memory.name = std::move(*name);
    memory.blob.assign(blob.begin(), blob.end());
    if (!verify(memory, owner)) {
      return Status{Code::permission, "a name of memory that was not made for us"};
    }
    const auto [id, slot] = memories_.insert();
    *slot = std::move(memory);
    return RemoteId{id};
  }
  bool verify(Entry& memory, const PeerToken* owner) {
    if (memory.verified || owner == nullptr) return true;
    memory.verified = sealed_by(memory.blob, *owner);
    if (!memory.verified) refused_.add();
    return memory.verified;
  }
  Entry* find(RemoteId id) { return memories_.find(id.value); }

  void drop(RemoteId id) {
    Entry* const memory = memories_.find(id.value);
    if (memory == nullptr) return;
    memory->dropped = true;
    if (memory->uses == 0) erase(id.value, *memory);
  }
  // Of a batch that was checked.
  void hold(std::span<const RemoteId> ids) {
    for (const RemoteId id : ids) ++memories_.find(id.value)->uses;
  }
  void release(std::span<const RemoteId> ids) {
    for (const RemoteId id : ids) {
      Entry& memory = *memories_.find(id.value);
      if (--memory.uses == 0 && memory.dropped) erase(id.value, memory);
    }
  }
  // The owner has removed it: operations to it would fail there, and perhaps take the connection
  // with them.
  void forget(PeerId peer, std::uint64_t serial) {
    for_each_of(peer, [&](Entry& memory) {
      if (memory.name.serial == serial) memory.gone = true;
    });
  }
  void erase_all_of(PeerId peer) {
    memories_.for_each([&](std::uint64_t id, Entry& memory) {
      if (memory.peer == peer) erase(id, memory);
    });
  }
  template <typename F>
  void for_each_of(PeerId peer, F f) {
    memories_.for_each([&](std::uint64_t, Entry& memory) {
      if (memory.peer == peer) f(memory);
    });
  }
  const Counter& refused() const { return refused_; }

  // Whether `batch` may be posted; its local memories are held.
  template <typename Local>
  Status check(const Batch& batch, MemoryTable<Local>& locals, const PeerToken* owner) {
    if (batch.note.size() > kNoteBytesMax) return {Code::invalid_argument, "note too long"};
    if (!batch.note.empty() && batch.direction != Direction::write) {
      return {Code::invalid_argument, "a read carries no note"};
    }
    if (batch.ops.empty()) {
      if (batch.begin != 0 || batch.end != 0) {
        return {Code::invalid_argument, "positions of no ops"};
      }
      return {};
    }
    const Access wanted =
        batch.direction == Direction::write ? Access::remote_write : Access::remote_read;
    for (const RemoteId id : batch.remotes) {
      const Entry* const memory = memories_.find(id.value);
      if (memory == nullptr || memory->dropped || memory->peer != batch.peer) {
        return {Code::invalid_argument, "stale remote memory"};
      }
    }
    return check_ops(
        batch.ops, batch.begin, batch.end, batch.locals.size(), batch.remotes.size(),
        [&](std::uint32_t region) { return locals.find(batch.locals[region])->memory.bytes; },
        [&](std::uint32_t region, std::uint64_t& bytes) -> Status {
          Entry& memory = *memories_.find(batch.remotes[region].value);
          if (memory.gone) return {Code::permission, "remote memory was removed"};
          if (!allows(memory.name.access, wanted) || !verify(memory, owner)) {
            return {Code::permission, "access of remote memory"};
          }
          bytes = memory.name.bytes;
          return {};
        });
  }

 private:
  void erase(std::uint64_t id, Entry& memory) {
    memory = {};
    memories_.erase(id);
  }

  SlotMap<Entry> memories_;
  Counter refused_;
};
using RemoteMemories = RemoteTable<RemoteMemory>;

}  // namespace kvl
