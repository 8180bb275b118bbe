// What is under way: batches, the operations that they are made of, and peers.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "kvl/transport.h"
#include "transport/base/slot_pool.h"
#include "transport/fabric/batch_table.h"
#include "transport/fabric/remote_memories.h"
#include "transport/ucx/ucx_wire.h"
#include "transport/ucx/ucx_worker.h"

namespace kvl::ucx {

struct BatchSlot : PostedBatch {
  std::uint64_t cookie = 0;       // what its writes are called at the target
  std::uint64_t bytes_moved = 0;  // out of our memory, or in it
  std::uint32_t operations = 0;   // under way; nothing is said of memory before they have ended
  bool finished = false;          // only its event is left
  bool unflushed = false;         // puts may not have arrived
  bool flush_posted = false;      // … and will have when it is done

  bool wants_flush() const { return unflushed && !flush_posted && (ending || cursor.done()); }
  // Nothing that was posted can touch either side any more.
  bool quiet() const { return operations == 0 && !unflushed; }
};

// One operation of UCX, whose own part of it lies in the Link's requests.
struct Operation {
  enum class Kind : std::uint8_t { put, get, flush, note, message, answer };
  std::uint64_t peer = 0;
  std::uint64_t cookie = 0;  // never used twice; its slot in the low bits
  std::uint64_t bytes = 0;
  std::byte* local = nullptr;  // where the answer to a read belongs
  std::uint64_t received = 0;  // … so much of it has come
  MemoryId memory;             // held for an answer
  std::uint32_t batch = kNoSlot;
  std::uint32_t next = kNoSlot, previous = kNoSlot;
  ucs_status_t status = UCS_OK;
  Kind kind = Kind::message;
  Code code = Code::ok;  // what the answer says
  bool waits = false;    // for an answer
  bool sent = false;     // UCX has done its part
  bool used = false;
};
inline constexpr std::uint64_t kSlotMask = 0xFFFF;  // of a cookie
inline constexpr unsigned kSlotBits = 16;

// What a peer has asked for: RunType::fetch or fence.
struct Answer {
  RunType type = RunType::fence;
  std::uint64_t cookie = 0, memory = 0, offset = 0, bytes = 0;
  std::uint64_t done = 0;  // of the bytes
};
// Nobody asks a peer for more at once.
inline constexpr std::size_t kAnswersMax = 64;
class Answers {
 public:
  bool empty() const { return count_ == 0; }
  bool push(const Answer& answer) {
    if (count_ == kAnswersMax) return false;
    ring_[(first_ + count_++) % kAnswersMax] = answer;
    return true;
  }
  Answer& front() { return ring_[first_]; }
  void pop() {
    first_ = (first_ + 1) % kAnswersMax;
    --count_;
  }

 private:
  std::array<Answer, kAnswersMax> ring_;
  std::size_t first_ = 0, count_ = 0;
};

struct RefusedBatch {
  std::uint64_t cookie = 0;
  Code code = Code::permission;
};

struct Peer {
  PeerId id;
  PeerRole role = PeerRole::active;
  PeerState state = PeerState::opened;
  PeerToken token;   // ours for this peer
  PeerToken remote;  // the peer's for us, once accepted
  bool accepted = false;
  bool heard = false;  // a hello came: the other side has our address
  bool up_announced = false;
  bool closed_here = false;
  std::vector<std::byte> address;
  ucp_ep_h ep = nullptr;
  ucs_status_t failure = UCS_OK;  // what UCX said of the endpoint
  bool flooded = false;           // there was no room for a message of it
  std::string chosen;             // what UCX took for its pages
  Code down_code = Code::ok;
  std::int64_t deadline_ns = INT64_MAX;
  std::int64_t hello_ns = INT64_MAX;   // when the next hello is due
  std::int64_t probe_ns = INT64_MAX;   // when it is asked whether it lives
  bool active = false;                 // something came from it since the last probe
  std::int64_t probed_ns = INT64_MAX;  // since when a probe is not out
  bool last_flush = false;             // posted: the one before the endpoint is closed
  bool force = false;                  // … which is of no use any more
  bool closing_ep = false;
  Closing closing;
  SlotList queue;
  std::uint32_t batches_open = 0;  // without their event
  std::uint32_t operations = 0;    // under way
  std::deque<Owed> owed;
  const PeerToken* owner() const { return accepted ? &remote : nullptr; }
  // Where runs are copied.
  std::uint64_t writes_sent = 0, writes_seen = 0;
  std::uint32_t asked = 0;            // answers that are still to come
  Answers answers;                    // … and to be given
  std::vector<RefusedBatch> refused;  // batches of the peer, until their fence
};

struct DestroyKey {
  decltype(&::ucp_rkey_destroy) destroy = nullptr;
  void operator()(ucp_rkey_h key) const { destroy(key); }
};
// A peer's memory under a RemoteId.
struct RemoteKey : ImportedMemory<RemoteName> {
  static Result<RemoteName> decode(std::span<const std::byte> blob) { return decode_name(blob); }
  std::unique_ptr<ucp_rkey, DestroyKey> key;  // once it was needed
};

}  // namespace kvl::ucx
