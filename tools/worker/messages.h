// What the scheduler and the ranks of a worker say to each other. Plain values: the ranks may be
// threads of the scheduler's process or processes of their own (rank_wire.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <variant>
#include <vector>

#include "kvl/engine.h"
#include "kvl/handoff.h"
#include "worker/batch.h"

namespace kvl::worker {

// ---- To every rank, in one order. ComputeJob (batch.h) is one of them.

struct OpenPrefill {
  std::uint64_t room = 0;
  std::uint64_t tokens = 0;
  std::uint64_t ready_tokens = 0;  // a reused prefix: in place already
  std::int64_t deadline_ms = 0;
  std::vector<std::uint32_t> pages;
};
struct FinishPrefill {
  std::uint64_t room = 0;
  std::vector<std::byte> metadata;
};
struct SourceAddress {
  std::string address;  // of the prefill rank's engine
  std::uint32_t accepts = 1;
};
struct OpenDecode {
  std::uint64_t room = 0;
  std::uint64_t tokens = 0;
  std::uint64_t skip_tokens = 0;
  HandoffMode mode = HandoffMode::best;
  std::int64_t deadline_ms = 0;
  std::vector<std::uint32_t> pages;                 // from token 0 on
  std::vector<std::vector<SourceAddress>> sources;  // by decode rank
};
struct AbortRoom {
  HandoffSide side = HandoffSide::decode;
  std::uint64_t room = 0;
  Code code = Code::aborted;
  std::string reason;
};
// For rank 0 only: a message to another worker's rank 0. By address, or (empty) by handle.
struct SendMessage {
  std::string address;
  PeerHandle peer;
  std::vector<std::byte> bytes;
};
// Before any OpenDecode: where the worker's rank 0 listens.
struct SetLead {
  std::string address;
};
using Command = std::variant<ComputeJob, OpenPrefill, FinishPrefill, OpenDecode, AbortRoom,
                             SendMessage, SetLead>;

// ---- From the ranks. RankOutput (batch.h) is one of them.

// The rank is ready; its engine listens at `address` ("" without handoffs).
struct RankUp {
  std::uint32_t rank = 0;
  std::string address;
  std::uint64_t epoch = 0;
  std::vector<std::byte> layout;
};
// A HandoffEvent of one rank. Exactly one of committed and failed per rank and opened room.
struct RoomEvent {
  std::uint32_t rank = 0;
  HandoffEvent::Kind kind = HandoffEvent::Kind::failed;
  HandoffSide side = HandoffSide::decode;
  Code code = Code::ok;
  bool pages_safe = true;
  std::uint64_t room = 0;
  std::uint64_t bytes = 0;
  std::int64_t elapsed_ns = 0;
  std::string reason;
  std::vector<std::byte> metadata;  // of the first source: all send the same
};
// Rank 0: a message from another worker's rank 0.
struct PeerMessage {
  PeerHandle peer;
  std::vector<std::byte> bytes;
};
// Rank 0: a peer is lost. `address` is empty for one that dialed us.
struct PeerLost {
  PeerHandle peer;
  std::string address;
  Code code = Code::peer_lost;
};
// The rank's process is gone: nothing more comes from it.
struct RankLost {
  std::uint32_t rank = 0;
};
using RankEvent = std::variant<RankOutput, RankUp, RoomEvent, PeerMessage, PeerLost, RankLost>;

// Called by any thread; must not block.
using RankEventSink = std::function<void(RankEvent)>;

// Some ranks of a worker, wherever they run.
class RankHost {
 public:
  virtual ~RankHost() = default;
  // Any thread. Never blocks; commands to a lost rank are dropped.
  virtual void post(const Command& command) = 0;
  virtual void visit_metrics(MetricVisitor& visitor) const = 0;
};

}  // namespace kvl::worker
