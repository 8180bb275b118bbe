// What the two workers of a room say to each other, and the handoff between them.
#include <algorithm>

#include "worker/metadata.h"
#include "worker/scheduler.h"

namespace kvl::worker {
namespace {

constexpr std::int64_t kSayAgainNs = 500'000'000;
constexpr std::size_t kEarlyMax = 4096;

}  // namespace

HandoffSide Scheduler::side_of(const Sequence& sequence) {
  return sequence.way == Way::prefill ? HandoffSide::prefill : HandoffSide::decode;
}

Scheduler::SequencePtr Scheduler::room_at(HandoffSide side, std::uint64_t room) const {
  const auto found = rooms_.find({side, room});
  return found == rooms_.end() ? nullptr : found->second;
}

void Scheduler::say(const Sequence& sequence, RoomMessage::Kind kind, Code code) {
  SendMessage message;
  if (sequence.way == Way::decode) {
    if (!sequence.resolved) return;
    message.address = sequence.source.addresses[0];
  } else {
    if (sequence.peer == PeerHandle{}) return;
    message.peer = sequence.peer;
  }
  message.bytes = encode(RoomMessage{kind, code, sequence.request.session->room});
  send(std::move(message));
}

void Scheduler::resolve(const SequencePtr& sequence) {
  sequence->state = State::resolving;
  const Session& session = *sequence->request.session;
  rendezvous_->find(session.host, session.port, [this, sequence](Result<Instance> found) {
    post([this, sequence, found = std::move(found)] {
      const bool ended = sequence->state != State::resolving;
      if (!found) {
        if (!ended) fail(sequence, found.status(), "the prefill worker cannot be found");
        return;
      }
      sequence->source = *found;
      sequence->resolved = true;
      // It ended before anybody could be told.
      if (ended) return say(*sequence, RoomMessage::Kind::gone, Code::aborted);
      sequence->state = State::waiting;
      mark(*sequence, Stage::resolved);
      sequence->heard_ns = clock_.now_ns();
    });
  });
}

void Scheduler::start_prefill(const SequencePtr& sequence) {
  OpenPrefill open;
  open.room = sequence->request.session->room;
  open.tokens = sequence->prompt_tokens;
  open.ready_tokens = sequence->computed;
  open.deadline_ms = options_.handoff_timeout_ms;
  open.pages = sequence->hold.pages;
  sequence->ranks_open = ranks_;
  sequence->room_open = true;
  cache_.expose(sequence->hold);
  send(std::move(open));
  say(*sequence, RoomMessage::Kind::start);
}

void Scheduler::start_decode(const SequencePtr& sequence) {
  OpenDecode open;
  open.room = sequence->request.session->room;
  open.tokens = sequence->prompt_tokens;
  open.skip_tokens = sequence->computed;
  open.mode = options_.mode;
  open.deadline_ms = options_.handoff_timeout_ms;
  open.pages = sequence->hold.pages;
  open.pages.resize((sequence->prompt_tokens + options_.page_tokens - 1) / options_.page_tokens);
  for (std::uint32_t rank = 0; rank < ranks_; ++rank) {
    const Result<std::vector<HandoffRoute>> routes =
        handoff_sources(options_.model.kv, sequence->source.sizes, options_.sizes, rank);
    if (!routes) return fail(sequence, routes.status());
    std::vector<SourceAddress>& sources = open.sources.emplace_back();
    for (const HandoffRoute& route : *routes) {
      sources.push_back({sequence->source.addresses[route.src_rank], route.accepts});
    }
  }
  sequence->state = State::receiving;
  sequence->ranks_open = ranks_;
  sequence->room_open = true;
  const auto moved = open.pages.size() - sequence->hold.reused;
  sequence->figures.pages_moved = static_cast<std::uint32_t>(moved);
  cache_.expose(sequence->hold);
  send(std::move(open));
}

void Scheduler::on_room_event(const RoomEvent& event) {
  using Kind = HandoffEvent::Kind;
  const SequencePtr sequence = room_at(event.side, event.room);
  if (event.kind == Kind::pages_released) {
    if (sequence != nullptr && sequence->ranks_unsafe > 0) {
      --sequence->ranks_unsafe;
    } else if (const auto unsafe = unsafe_.find({event.side, event.room});
               unsafe != unsafe_.end() && --unsafe->second.ranks == 0) {
      cache_.unlock(unsafe->second.token);
      unsafe_.erase(unsafe);
    }
    return;
  }
  if (sequence == nullptr || sequence->ranks_open == 0) return;
  --sequence->ranks_open;
  sequence->figures.bytes_moved += event.bytes;
  if (event.kind == Kind::committed) {
    if (event.rank == 0) {
      sequence->metadata = event.metadata;
      sequence->figures.handoff_ns = event.elapsed_ns;
    }
    if (sequence->ranks_open == 0 && !sequence->room_failed && sequence->state != State::ending) {
      return on_room_committed(sequence);
    }
  } else {
    if (!event.pages_safe) ++sequence->ranks_unsafe;
    if (!sequence->room_failed) ++figures_.handoffs_failed;
    sequence->room_failed = true;
    if (sequence->way == Way::decode) {
      rendezvous_->doubt(sequence->request.session->host, sequence->request.session->port);
    }
    const Status status{event.code, "the handoff failed"};
    fail(sequence, status, event.reason, event.code == Code::peer_lost ? Blame::peer : Blame::own);
  }
  settle_end(sequence);
}

void Scheduler::on_room_committed(const SequencePtr& sequence) {
  cache_.settle(sequence->hold);
  const Figures& figures = sequence->figures;
  if (sequence->way == Way::prefill) {
    // Committed before our own compute was seen to end: finish_prefill() comes back here.
    if (sequence->state != State::transferring) return;
    ++figures_.handoffs_ok;
    emit(*sequence, sequence->output);
    return succeed(sequence, false);
  }
  const std::optional<FirstToken> first = decode_metadata(sequence->metadata);
  if (!first) return fail(sequence, {Code::corrupt, "the handoff's metadata"});
  ++figures_.handoffs_ok;
  figures_.bytes_moved += figures.bytes_moved;
  figures_.pages_moved += figures.pages_moved;
  sequence->figures.exposed_ns = std::max<std::int64_t>(0, wall_clock_ns() - first->wall_ns);
  if (options_.damage_received) {
    ComputeJob job;
    job.kind = ComputeJob::Kind::damage;
    job.kv.content = {1, {0}};
    job.kv.pages = sequence->hold.pages;
    job.kv.end_token = 1;
    send(std::move(job));  // ranks take jobs in order; id 0: nobody waits for it
  }
  cache_.publish(sequence->hold, sequence->chain);
  sequence->computed = options_.kv_only ? 0 : sequence->prompt_tokens;
  sequence->state = options_.kv_only ? State::verifying : State::decoding;
  advance(sequence, first->token);
}

void Scheduler::on_peer_message(const PeerMessage& message) {
  const std::optional<RoomMessage> decoded = decode_room_message(message.bytes);
  if (!decoded) return;
  using Kind = RoomMessage::Kind;
  const bool to_prefill =
      decoded->kind == Kind::waiting || decoded->kind == Kind::offer || decoded->kind == Kind::gone;
  if (to_prefill) {
    on_message_to_prefill(message.peer, *decoded);
  } else {
    on_message_to_decode(*decoded);
  }
}

void Scheduler::on_message_to_prefill(PeerHandle peer, const RoomMessage& message) {
  using Kind = RoomMessage::Kind;
  const auto answer = [&](Kind kind, Code code) {
    send(SendMessage{"", peer, encode(RoomMessage{kind, code, message.room})});
  };
  const SequencePtr sequence = room_at(HandoffSide::prefill, message.room);
  if (sequence == nullptr || sequence->state == State::ending) {
    if (message.kind == Kind::gone) {
      early_.erase(message.room);
      return;
    }
    if (const auto ended = ended_.find(message.room); ended != ended_.end()) {
      return answer(Kind::ended, ended->second);
    }
    // The decode worker was faster than the router's request to us.
    if (early_.size() < kEarlyMax || early_.contains(message.room)) {
      early_[message.room] = {peer, message.kind == Kind::offer, clock_.now_ns()};
    }
    return answer(Kind::unknown, Code::not_found);
  }
  sequence->heard_ns = clock_.now_ns();
  sequence->peer = peer;
  if (message.kind == Kind::gone) {
    // Also where the handoff is open: decode may have failed before it opened its side.
    const Code code = message.code == Code::ok ? Code::aborted : message.code;
    return fail(sequence, {code, "the decode worker gave up"});
  }
  sequence->offered = sequence->offered || message.kind == Kind::offer;
  answer(sequence->room_open ? Kind::start : Kind::queued, Code::ok);
}

void Scheduler::on_message_to_decode(const RoomMessage& message) {
  using Kind = RoomMessage::Kind;
  const SequencePtr sequence = room_at(HandoffSide::decode, message.room);
  if (sequence == nullptr) return;
  const bool before = sequence->state == State::waiting || sequence->state == State::offered;
  if (before && (message.kind == Kind::queued || message.kind == Kind::start)) {
    const Session& session = *sequence->request.session;
    rendezvous_->trust(session.host, session.port, sequence->source.addresses[0]);
  }
  if (message.kind == Kind::queued) sequence->heard_ns = clock_.now_ns();
  if (message.kind == Kind::start && sequence->state == State::offered) start_decode(sequence);
  if (message.kind == Kind::ended && before) {
    const Code code = message.code == Code::ok ? Code::aborted : message.code;
    fail(sequence, {code, "the prefill worker failed"}, {}, Blame::peer);
  }
}

// Requests whose handoff is open hear of it from their endpoint.
void Scheduler::on_peer_lost(const PeerLost& lost) {
  // Also without a request of it: its next life listens elsewhere.
  if (!lost.address.empty() && rendezvous_ != nullptr) rendezvous_->doubt(lost.address);
  for (const SequencePtr& sequence : std::list(sequences_)) {
    if (sequence->way == Way::local || sequence->ranks_open > 0) continue;
    const bool before = sequence->state == State::waiting || sequence->state == State::offered;
    if (!before) continue;
    const bool prefill_lost = sequence->way == Way::decode && !lost.address.empty() &&
                              sequence->source.addresses[0] == lost.address;
    const bool decode_lost = sequence->way == Way::prefill && !(lost.peer == PeerHandle{}) &&
                             sequence->peer == lost.peer;
    if (prefill_lost) {
      rendezvous_->doubt(sequence->request.session->host, sequence->request.session->port);
      fail(sequence, {lost.code, "the prefill worker is lost"}, {}, Blame::peer);
    } else if (decode_lost) {
      fail(sequence, {lost.code, "the decode worker is lost"}, {}, Blame::peer);
    }
  }
}

// Signs of life, and the deadline of silence.
void Scheduler::tick() {
  const std::int64_t now_ns = clock_.now_ns();
  if (now_ns - ticked_ns_ < kSayAgainNs / 10) return;
  ticked_ns_ = now_ns;
  const std::int64_t silence_ns = options_.handoff_timeout_ms * 1'000'000;
  std::erase_if(early_, [&](const auto& e) { return now_ns - e.second.heard_ns > silence_ns; });
  for (const SequencePtr& sequence : std::list(sequences_)) {
    if (sequence->way == Way::local || sequence->ranks_open > 0) continue;
    const bool before = sequence->state == State::waiting || sequence->state == State::offered;
    if (!before) continue;
    if (now_ns - sequence->heard_ns > silence_ns) {
      if (sequence->way == Way::decode) {
        rendezvous_->doubt(sequence->request.session->host, sequence->request.session->port);
      }
      fail(sequence, {Code::timed_out, sequence->way == Way::decode
                                           ? "the prefill worker has not taken up this request"
                                           : "no decode worker has asked for this request"});
      continue;
    }
    if (sequence->way != Way::decode || now_ns - sequence->said_ns < kSayAgainNs) continue;
    sequence->said_ns = now_ns;
    say(*sequence,
        sequence->state == State::offered ? RoomMessage::Kind::offer : RoomMessage::Kind::waiting);
  }
}

}  // namespace kvl::worker
