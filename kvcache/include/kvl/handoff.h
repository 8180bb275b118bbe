// Handoff: one request's KV pages move from the prefill ranks that computed them to the decode
// ranks that continue, as a state machine. All of it arrives or none of it is delivered.
//
// One HandoffEndpoint per rank, over that rank's Engine. Both sides open the same room (the
// request's number, chosen by the router) in any order; decode names its destination pages; prefill
// says which layers are ready; bytes move by push (prefill writes) or pull (decode reads).
//
//   prefill   opened -> accepted -> moving -> committed | aborted
//   decode    opened -> accepted -> moving -> complete -> committed | aborted
//
// Use (both sides run the same loop):
//
//   auto engine = Engine::open(settings);
//   HandoffRank rank{.layout = layout, .regions = {{handle, buffer->data(), buffer->bytes()}},
//                    .model = "llama-3.1-8b/bf16/0f3a…"};
//   auto endpoint = HandoffEndpoint::open(**engine, clock, rank, config);
//
//   prefill:  endpoint->open_prefill({.room = 7, .tokens = 300});
//             endpoint->add_pages(7, 0, page_ids);            // as they are allocated
//             endpoint->ready(7, {layer, 1}, 300);            // after each layer (and chunk)
//             endpoint->finish(7, first_token_bytes);
//   decode:   PeerHandle p = engine->connect(prefill_address);  // found by the rendezvous
//             endpoint->open_decode({.room = 7, .tokens = 300, .sources = {{p, 1}},
//                                    .pages = {{page_ids}}});
//   both:     while (running) {
//               engine->wait(endpoint->wait_ms(100));
//               n = engine->poll(engine_events);   for each: endpoint->on_event(event);
//               endpoint->step();
//               n = endpoint->poll(handoff_events);  // committed, failed, layer_ready, …
//             }
//
// Promises
//  1 every handoff that opened gets exactly one of committed and failed, within its deadline
//  2 committed (decode) means: every byte of every source is in the pages, checked by CRC
//    where asked for (a mismatch: moved once more by another path, then failed as corrupt), and
//    every decode rank of the group had that; metadata is not visible before
//  3 the lead's (group rank 0) committed comes last, after every rank of the group has said that it
//    committed: an engine that starts when its lead says so never runs on part of the ranks. If any
//    rank fails, the lead never commits. Prefill's committed means that all its decode ranks did
//  4 pages_safe means: no byte of this handoff can land in (decode) or be read from (prefill) the
//    pages any more. failed with pages_safe = false is followed by pages_released when that is
//    proven: by the peer's word that its engine is quiescent, or because the peer is fenced. It may
//    never come from a peer that is gone and cannot be fenced: the pages stay quarantined
//  5 a message that makes no sense fails the handoff it names at most, never another
//
// Not thread-safe: one owner thread per endpoint. Nothing blocks or calls back. Errors are Status.
// Wire form: docs/wire/handoff.md.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kvl/clock.h"
#include "kvl/config.h"
#include "kvl/engine.h"
#include "kvl/metrics.h"
#include "kvl/page_layout.h"
#include "kvl/status.h"
#include "kvl/transfer_plan.h"

namespace kvl {

// The longest metadata and the longest reason text that the wire form can carry.
inline constexpr std::size_t kHandoffMetadataBytesMax = 64u << 10;
inline constexpr std::size_t kHandoffReasonBytesMax = 256;

struct HandoffConfig {
  // CRC-32C of runs, checked before delivery: auto | off | sampled | all. auto: all while that
  // takes less than 5 % of the time in which the bytes move, as measured, else sampled; it follows
  // the other side where that has an own choice, and is off where the CPU cannot read the memory.
  std::string crc = "auto";
  std::int64_t crc_sample = 64;      // sampled: one run in so many, and the first of each segment
  std::int64_t deadline_ms = 30000;  // of a handoff that names none
  std::int64_t abort_ms = 2000;      // how long an ended handoff's transfers may take to stop
  std::int64_t early_max = 1024;     // messages kept for rooms that are not open here yet
  std::int64_t early_ms = 30000;     // how long they, and the outcomes of ended rooms, are kept
  std::int64_t metadata_bytes_max = kHandoffMetadataBytesMax;
  std::int64_t segment_bytes = 16 << 20;  // one transfer moves about so much, at least one layer
};
std::vector<Setting> handoff_settings();

enum class HandoffMode : std::uint8_t {
  push = 0,  // prefill writes
  pull = 1,  // decode reads
  best = 2,  // push, but pull where the path's devices can read and not write
};
enum class HandoffSide : std::uint8_t { prefill = 0, decode = 1 };
// "push", "pull", "best"; "prefill", "decode".
std::string_view to_string(HandoffMode mode);
std::string_view to_string(HandoffSide side);

// A registered region of this rank, by the index that the layout uses. data: for CRC; null where
// the CPU cannot read it (then crc must be off or auto).
struct HandoffRegion {
  MemoryHandle handle;
  const std::byte* data = nullptr;
  std::uint64_t bytes = 0;
};

// What this rank is. The memory stays registered as long as the endpoint lives.
struct HandoffRank {
  PageLayout layout;
  std::vector<HandoffRegion> regions;  // at least layout.region_count()
  std::string model;                   // fingerprint: ranks with another one are refused. <= 256
  bool prefill = true, decode = true;  // roles it may take
  std::uint32_t index = 0;             // flat, of its engine's ranks: for traces
};

struct PrefillOpen {
  std::uint64_t room = 0;
  std::uint64_t tokens = 0;      // of the prompt; must equal what decode says
  std::int64_t deadline_ms = 0;  // from now until committed; 0: HandoffConfig::deadline_ms
};

// A prefill rank that a decode rank takes from, and how many decode ranks (this one included) take
// from it in this room: handoff_sources() knows both.
struct HandoffSource {
  PeerHandle peer;
  std::uint32_t accepts = 1;
};

// Destination pages of one group: entry i holds the tokens from first_token + i * page_tokens on.
struct HandoffPages {
  std::vector<std::uint32_t> ids;
  std::uint64_t first_token = 0;  // a multiple of page_tokens, <= skip_tokens
};

struct DecodeOpen {
  std::uint64_t room = 0;
  std::uint64_t tokens = 0;
  std::uint64_t skip_tokens = 0;  // decode has these already; < tokens
  HandoffMode mode = HandoffMode::best;
  std::vector<HandoffSource> sources;
  std::vector<HandoffPages> pages;  // one per group of the layout
  std::int64_t deadline_ms = 0;     // from now until committed; 0: HandoffConfig::deadline_ms
  // The decode ranks of the request. Rank 0 leads; the others name it.
  std::uint32_t group_rank = 0, group_size = 1;
  PeerHandle lead;
};

// The prefill ranks (flat, see flat_rank) that decode rank `dst_rank` must name as sources, and the
// count of decode ranks that name each. A prefill rank whose bytes nobody needs (a replica) is
// given one decode rank all the same, so that every rank learns the outcome.
struct HandoffRoute {
  std::uint32_t src_rank = 0;
  std::uint32_t accepts = 1;
  friend bool operator==(const HandoffRoute&, const HandoffRoute&) = default;
};
Result<std::vector<HandoffRoute>> handoff_sources(const ModelGeometry& geometry,
                                                  const ParallelSizes& src,
                                                  const ParallelSizes& dst, std::uint32_t dst_rank);

struct HandoffEvent {
  enum class Kind : std::uint8_t {
    peer_ready,      // peer: hello exchanged and compatible
    peer_refused,    // peer, code, reason: not compatible, or does not speak this protocol
    accepted,        // prefill: every decode rank has named its pages; skip_tokens = the least
    layer_ready,     // decode: every byte of `layer` is here (and checked)
    committed,       // room, bytes, elapsed_ns; decode: metadata, one per source, in their order
    failed,          // room, code, reason, pages_safe
    pages_released,  // room: follows a failed with pages_safe = false
  };
  Kind kind = Kind::peer_ready;
  HandoffSide side = HandoffSide::decode;
  Code code = Code::ok;
  bool pages_safe = true;
  PeerHandle peer;
  std::uint64_t room = 0;
  std::uint32_t layer = 0;  // numbered over the whole model
  std::uint64_t skip_tokens = 0;
  std::uint64_t bytes = 0;      // moved by this rank (prefill: written or told to read)
  std::int64_t elapsed_ns = 0;  // since the handoff was opened here
  std::string reason;           // for people; begins with the peer's side where it said so
  std::vector<std::vector<std::byte>> metadata;
};

class HandoffEndpoint {
 public:
  // invalid_argument: regions smaller than the layout says, crc without readable memory, a model
  // name too long; `error` (optional) receives a sentence. Engine and clock outlive the endpoint.
  static Result<std::unique_ptr<HandoffEndpoint>> open(Engine& engine, const Clock& clock,
                                                       HandoffRank rank,
                                                       const HandoffConfig& config = {},
                                                       std::string* error = nullptr);
  // Call with no handoff open, or destroy the Engine first: transfers read the endpoint's plans.
  virtual ~HandoffEndpoint() = default;

  // Prefill. Errors of all: not_found (no such open room: it may have failed meanwhile; the event
  // says why), invalid_argument (the call contradicts the layout or an earlier call; nothing
  // changed), exhausted.
  virtual Status open_prefill(const PrefillOpen& open) = 0;
  // Appends source pages of a group, in token order from token 0. They stay the request's until
  // committed, or failed with pages_safe, or pages_released.
  virtual Status add_pages(std::uint64_t room, std::uint32_t group,
                           std::span<const std::uint32_t> ids) = 0;
  // The KV of tokens [0, tokens) of these layers is in place and will not change. Layers that this
  // rank does not hold are ignored. Moves what is new and was accepted; remembers the rest.
  virtual Status ready(std::uint64_t room, Range layers, std::uint64_t tokens) = 0;
  // All layers are ready for all tokens. `metadata` is delivered with decode's committed.
  virtual Status finish(std::uint64_t room, std::span<const std::byte> metadata) = 0;
  // Ends the handoff as failed with `code` (not ok) here and on the other side. not_found when it
  // has ended before: whoever comes first wins.
  virtual Status abort(HandoffSide side, std::uint64_t room, Code code = Code::aborted,
                       std::string_view reason = {}) = 0;

  // Decode. invalid_argument: room is open, pages out of range or too few, token range, group,
  // no source. unsupported: peer was refused.
  virtual Status open_decode(DecodeOpen open) = 0;

  // Hand every EngineEvent in, in order. True: it was the endpoint's and is done with. peer_up and
  // peer_down are used but answered false, since others may want them too.
  virtual bool on_event(const EngineEvent& event) = 0;
  // Deadlines and whatever was put off by an exhausted engine. Call after each round of events.
  virtual void step() = 0;
  // How long the owner may sleep until step() has something to do, at most `most_ms`.
  virtual std::int64_t wait_ms(std::int64_t most_ms) const = 0;
  virtual std::size_t poll(std::span<HandoffEvent> events) = 0;

  // Handoffs that still hold pages: open ones and ended ones whose pages are not released.
  virtual std::size_t open_rooms() const = 0;
  // Any thread.
  virtual void visit_metrics(MetricVisitor& visitor) const = 0;
};

}  // namespace kvl
