// The endpoint: what the owner calls, and where each Engine event goes.
#include <algorithm>
#include <limits>
#include <utility>

#include "kvcache/handoff/core.h"
#include "kvcache/handoff/decode.h"
#include "kvcache/handoff/prefill.h"
#include "kvl/handoff.h"
#include "kvl/log.h"

namespace kvl {
namespace handoff {
namespace {

constexpr std::size_t kLayoutBytesMax = 1u << 20;

class Endpoint final : public HandoffEndpoint {
 public:
  Endpoint(Engine& engine, const Clock& clock, HandoffRank rank, const HandoffConfig& config)
      : core_(engine, clock, std::move(rank), config), prefill_(core_), decode_(core_) {}

  Status open_prefill(const PrefillOpen& open) override { return after(prefill_.open(open)); }
  Status add_pages(std::uint64_t room, std::uint32_t group,
                   std::span<const std::uint32_t> ids) override {
    return prefill_.add_pages(room, group, ids);
  }
  Status ready(std::uint64_t room, Range layers, std::uint64_t tokens) override {
    return after(prefill_.ready(room, layers, tokens));
  }
  Status finish(std::uint64_t room, std::span<const std::byte> metadata) override {
    return after(prefill_.finish(room, metadata));
  }
  Status abort(HandoffSide side, std::uint64_t room, Code code, std::string_view reason) override {
    std::string text(reason.substr(0, kHandoffReasonBytesMax));
    if (text.empty()) text = "aborted by its owner";
    return after(side == HandoffSide::prefill ? prefill_.abort(room, code, std::move(text))
                                              : decode_.abort(room, code, std::move(text)));
  }
  Status open_decode(DecodeOpen open) override { return after(decode_.open(std::move(open))); }

  bool on_event(const EngineEvent& event) override;
  void step() override;
  std::int64_t wait_ms(std::int64_t most_ms) const override;
  std::size_t poll(std::span<HandoffEvent> events) override;
  std::size_t open_rooms() const override { return prefill_.size() + decode_.size(); }
  void visit_metrics(MetricVisitor& visitor) const override { core_.metrics.visit(visitor); }

 private:
  Status after(Status status) {
    reap();
    return status;
  }
  void reap() {
    prefill_.reap();
    decode_.reap();
    core_.metrics.rooms.store(open_rooms(), std::memory_order_relaxed);
  }
  void end_segment(std::uint64_t segment_id, Code code, Physical physical);
  bool on_transfer(const EngineEvent& event);
  bool on_proven(const EngineEvent& event);
  bool on_message(const EngineEvent& event);
  void dispatch(Peer& peer, const Message& message);
  bool to_prefill(Peer& peer, const Message& message);
  bool to_decode(Peer& peer, const Message& message);
  bool to_group(Peer& peer, const Message& message);
  void tell_rooms(Peer& peer);

  Core core_;
  PrefillRooms prefill_;
  DecodeRooms decode_;
};

bool Endpoint::on_event(const EngineEvent& event) {
  bool consumed = false;
  switch (event.kind) {
    case EngineEvent::Kind::transfer:
      consumed = on_transfer(event);
      break;
    case EngineEvent::Kind::message:
      consumed = on_message(event);
      break;
    case EngineEvent::Kind::proven:
      consumed = on_proven(event);
      break;
    case EngineEvent::Kind::note:
      break;
    case EngineEvent::Kind::peer_up: {
      const Peer* const known = core_.find_peer(event.peer);
      if (known != nullptr && known->epoch != 0 && known->epoch < event.epoch) {
        // A later life of the peer: nothing of the earlier one is left.
        prefill_.on_peer_down(event.peer, known->epoch, true);
        decode_.on_peer_down(event.peer, known->epoch, true, false);
      }
      core_.on_up(event);
      if (Peer* const peer = core_.find_peer(event.peer); peer->ready()) tell_rooms(*peer);
      break;
    }
    case EngineEvent::Kind::peer_down: {
      const bool now = core_.on_down(event);
      prefill_.on_peer_down(event.peer, event.epoch, event.fenced);
      decode_.on_peer_down(event.peer, event.epoch, event.fenced, now);
      break;
    }
  }
  reap();
  return consumed;
}

void Endpoint::end_segment(std::uint64_t segment_id, Code code, Physical physical) {
  const Segment* const segment = core_.segments.find(segment_id);
  if (segment == nullptr) return;
  if (segment->side == HandoffSide::prefill) {
    prefill_.on_transfer(*segment, segment_id, code, physical);
  } else {
    decode_.on_transfer(*segment, segment_id, code, physical);
  }
  core_.segments.erase(segment_id);
}

bool Endpoint::on_transfer(const EngineEvent& event) {
  const auto found = core_.by_transfer.find(event.transfer.value);
  if (found == core_.by_transfer.end()) return false;
  const std::uint64_t segment_id = found->second;
  core_.by_transfer.erase(found);
  if (Segment* const segment = core_.segments.find(segment_id)) {
    segment->rails = event.rails;
    core_.note_moved(*segment, event.code);
  }
  end_segment(segment_id, event.code, event.physical);
  return true;
}

// The last proof of an attempt has come late: the other side waits for our word.
bool Endpoint::on_proven(const EngineEvent& event) {
  const bool ours = core_.unproven_transfers.contains(event.transfer.value);
  const std::optional<Core::Attempt> attempt = core_.on_proven(event.transfer.value);
  if (attempt && attempt->side == HandoffSide::prefill) prefill_.on_proven(*attempt);
  if (attempt && attempt->side == HandoffSide::decode) decode_.on_proven(*attempt);
  return ours;
}

bool Endpoint::on_message(const EngineEvent& event) {
  if (!is_handoff_message(event.data)) return false;
  Result<Message> message = decode(event.data);
  if (!message.ok()) {
    Peer& peer = core_.peers[event.peer.value];
    peer.handle = event.peer;
    if (message.code() != Code::unsupported || peer.remote != nullptr) {
      core_.note_malformed(event.peer, message.status());
      return true;
    }
    // Another version: each side finds out by itself, so no answer that the other could not read.
    Metrics::count(core_.metrics.bad_messages, Code::unsupported);
    if (core_.refuse(peer, Code::unsupported, "speaks another version of the handoff protocol")) {
      tell_rooms(peer);
    }
    return true;
  }
  if (std::holds_alternative<Hello>(message->body)) {
    Peer& peer = core_.peers[event.peer.value];
    peer.handle = event.peer;
    if (core_.on_hello(peer, std::get<Hello>(message->body))) tell_rooms(peer);
    return true;
  }
  Peer* const peer = core_.find_peer(event.peer);
  if (peer == nullptr) {
    core_.note_misplaced(event.peer, Code::not_found, "its sender has not said hello");
    return true;
  }
  if (const auto* verdict = std::get_if<Verdict>(&message->body)) {
    if (core_.on_verdict(*peer, *verdict)) tell_rooms(*peer);
  } else if (peer->remote == nullptr || peer->refused()) {
    core_.note_misplaced(event.peer, peer->refused() ? peer->refusal_code : Code::not_found,
                         peer->refused() ? "its sender is refused" : "its sender is not known");
  } else {
    dispatch(*peer, *message);
  }
  return true;
}

// The peer has become ready, or it was refused.
void Endpoint::tell_rooms(Peer& peer) {
  if (peer.refused()) {
    decode_.on_peer_refused(peer);
  } else if (peer.ready()) {
    prefill_.on_peer_ready(peer);
    decode_.on_peer_ready(peer);
  }
}

void Endpoint::dispatch(Peer& peer, const Message& message) {
  bool known = false;
  switch (message.to) {
    case Part::prefill:
      known = core_.rank.prefill && peer.remote->decode && to_prefill(peer, message);
      break;
    case Part::decode:
      known = core_.rank.decode && peer.remote->prefill && to_decode(peer, message);
      break;
    case Part::lead:
    case Part::member:
      known = core_.rank.decode && peer.remote->decode && to_group(peer, message);
      break;
  }
  if (!known) {
    core_.note_misplaced(peer.handle, Code::invalid_argument, "not of its sender's role, or ours");
  }
}

bool Endpoint::to_prefill(Peer& peer, const Message& message) {
  if (const auto* accept = std::get_if<Accept>(&message.body)) {
    prefill_.on_accept(peer, message, *accept);
  } else if (std::holds_alternative<Done>(message.body)) {
    prefill_.on_done(peer, message);
  } else if (const auto* again = std::get_if<Again>(&message.body)) {
    prefill_.on_again(peer, message, *again);
  } else if (const auto* abort = std::get_if<Abort>(&message.body)) {
    prefill_.on_abort(peer, message, *abort);
  } else if (const auto* quiet = std::get_if<Quiet>(&message.body)) {
    prefill_.on_quiet(peer, message, *quiet);
  } else {
    return false;
  }
  return true;
}

bool Endpoint::to_decode(Peer& peer, const Message& message) {
  if (const auto* segment = std::get_if<SegmentMessage>(&message.body)) {
    decode_.on_segment(peer, message, *segment);
  } else if (const auto* offer = std::get_if<Offer>(&message.body)) {
    decode_.on_offer(peer, message, *offer);
  } else if (const auto* finish = std::get_if<Finish>(&message.body)) {
    decode_.on_finish(peer, message, *finish);
  } else if (const auto* abort = std::get_if<Abort>(&message.body)) {
    decode_.on_abort(peer, message, *abort);
  } else if (const auto* quiet = std::get_if<Quiet>(&message.body)) {
    decode_.on_quiet(peer, message, *quiet);
  } else {
    return false;
  }
  return true;
}

bool Endpoint::to_group(Peer& peer, const Message& message) {
  const bool lead = message.to == Part::lead;
  if (const auto* abort = std::get_if<Abort>(&message.body)) {
    lead ? decode_.on_member_abort(peer, message, *abort)
         : decode_.on_lead_abort(peer, message, *abort);
  } else if (const auto* join = std::get_if<Join>(&message.body); lead && join != nullptr) {
    decode_.on_join(peer, message, *join);
  } else if (lead && std::holds_alternative<Vote>(message.body)) {
    decode_.on_vote(peer, message);
  } else if (lead && std::holds_alternative<Committed>(message.body)) {
    decode_.on_committed(peer, message);
  } else if (!lead && std::holds_alternative<Commit>(message.body)) {
    decode_.on_commit(peer, message);
  } else {
    return false;
  }
  return true;
}

void Endpoint::step() {
  const std::int64_t now_ns = core_.clock.now_ns();
  core_.flush_outboxes();
  core_.retry_waiting();
  while (!core_.stillborn.empty()) {
    const auto [segment_id, status] = core_.stillborn.front();
    core_.stillborn.pop_front();
    end_segment(segment_id, status.code(), Physical::quiescent);
  }
  while (!core_.deadlines.empty() && std::get<0>(*core_.deadlines.begin()) <= now_ns) {
    const auto [when, side, room] = *core_.deadlines.begin();
    core_.deadlines.erase(core_.deadlines.begin());
    side == HandoffSide::prefill ? prefill_.expire(room) : decode_.expire(room);
  }
  for (const Core::Early& early : core_.expired_early(now_ns)) {
    const Message& message = early.message;
    if (std::holds_alternative<Accept>(message.body) ||
        std::holds_alternative<Join>(message.body)) {
      const Part to = message.to == Part::prefill ? Part::decode : Part::member;
      core_.send(early.peer, {to, message.room, message.nonce,
                              Abort{Code::not_found, true, "the room was not opened here"}});
    }
  }
  core_.expire_outcomes(now_ns);
  reap();
}

std::int64_t Endpoint::wait_ms(std::int64_t most_ms) const {
  const bool put_off =
      !core_.waiting.empty() || std::ranges::any_of(core_.peers, [](const auto& item) {
        return !item.second.outbox.empty();
      });
  std::int64_t wait_ms = put_off ? std::min<std::int64_t>(most_ms, 1) : most_ms;
  if (!core_.events.empty()) return 0;
  const auto until = [&](std::int64_t when_ns) {
    // Rounded up: waking before the time would make the owner spin.
    const std::int64_t left_ms = (when_ns - core_.clock.now_ns() + kMs - 1) / kMs;
    wait_ms = std::clamp<std::int64_t>(left_ms, 0, wait_ms);
  };
  if (!core_.deadlines.empty()) until(std::get<0>(*core_.deadlines.begin()));
  if (!core_.early_order.empty()) until(core_.early_order.front().first);
  return wait_ms;
}

std::size_t Endpoint::poll(std::span<HandoffEvent> events) {
  std::size_t count = 0;
  for (; count < events.size() && !core_.events.empty(); ++count) {
    events[count] = std::move(core_.events.front());
    core_.events.pop_front();
  }
  return count;
}

Status check_rank(const HandoffRank& rank, const HandoffConfig& config, std::string& why) {
  const auto refuse = [&why](const char* text) {
    why = text;
    return Status{Code::invalid_argument, text};
  };
  if (rank.model.size() > kModelBytesMax) return refuse("model name longer than 256 bytes");
  if (!rank.prefill && !rank.decode) return refuse("a rank needs a role");
  if (layer_span(rank.layout).count == 0) return refuse("the layout holds no layer");
  if (rank.layout.encode().size() > kLayoutBytesMax) return refuse("layout longer than 1 MiB");
  if (rank.regions.size() < rank.layout.region_count() ||
      rank.regions.size() > PageLayout::kRegionsMax) {
    return refuse("not one region for each that the layout uses");
  }
  for (std::uint32_t i = 0; i < rank.regions.size(); ++i) {
    if (rank.regions[i].bytes < rank.layout.region_bytes(i)) {
      return refuse("a region is smaller than the layout says");
    }
  }
  const bool readable = std::ranges::all_of(
      rank.regions, [](const HandoffRegion& region) { return region.data != nullptr; });
  if (config.crc != "auto" && config.crc != "off" && config.crc != "sampled" &&
      config.crc != "all") {
    return refuse("handoff.crc must be auto, off, sampled or all");
  }
  if ((config.crc == "sampled" || config.crc == "all") && !readable)
    return refuse("handoff.crc needs memory the CPU can read");
  return {};
}

}  // namespace
}  // namespace handoff

Result<std::unique_ptr<HandoffEndpoint>> HandoffEndpoint::open(Engine& engine, const Clock& clock,
                                                               HandoffRank rank,
                                                               const HandoffConfig& config,
                                                               std::string* error) {
  std::string why;
  if (const Status status = handoff::check_rank(rank, config, why); !status.ok()) {
    if (error != nullptr) *error = why;
    return status;
  }
  return std::unique_ptr<HandoffEndpoint>(
      std::make_unique<handoff::Endpoint>(engine, clock, std::move(rank), config));
}

}  // namespace kvl
