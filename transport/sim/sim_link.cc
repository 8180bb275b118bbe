// SimLink: peers, memory and the life of a batch. Packets are in sim_packets.cc.
#include "transport/sim/sim_link.h"

#include <algorithm>
#include <limits>

#include "transport/base/wire.h"

namespace kvl::sim {
namespace {

constexpr std::uint32_t kOfferMagic = 0x314D4953;   // "SIM1"
constexpr std::uint32_t kMemoryMagic = 0x4D4D4953;  // "SIMM"
constexpr int kPacketsPerPoll = 32;
constexpr std::int64_t kGhostNs = 50'000'000;  // then a peer that is stuck inside is given up
constexpr std::int64_t kTokenPollNs = 10'000;  // how often an unready token is looked at

}  // namespace

SimLink::SimLink(SimWorld& world, const Port& port, Device device)
    : world_(world), port_(port), device_(std::move(device)), id_(world.add_link(this)) {}

SimLink::~SimLink() {
  peers_.for_each([this](std::uint64_t id, Peer&) { lose_peer(id, Code::aborted, true); });
  world_.remove_link(id_);
}

Result<PeerId> SimLink::open_peer(PeerRole) {
  if (!world_.usable(port_)) return Status{Code::unavailable, "the simulated device is dead"};
  const auto [id, peer] = peers_.insert();
  *peer = {};
  peer->secret = world_.below(std::numeric_limits<std::uint64_t>::max());
  peer->deadline_ns = world_.now_ns() + world_.options().connect_timeout_ns;
  return PeerId{id};
}

Result<Blob> SimLink::offer(PeerId id) {
  const Peer* const peer = peer_of(id);
  if (peer == nullptr) return Status{Code::invalid_argument, "offer: stale peer"};
  WireWriter out;
  out.put(kOfferMagic).put(port_.node).put(port_.device).put(port_.life);
  out.put(id_).put(id.value).put(peer->secret);
  return out.take();
}

Status SimLink::accept(PeerId id, std::span<const std::byte> remote_offer) {
  Peer* const peer = peer_of(id);
  if (peer == nullptr) return {Code::invalid_argument, "accept: stale peer"};
  if (peer->accepted) return {Code::invalid_argument, "accept: second offer"};
  WireReader in(remote_offer);
  const auto magic = in.get<std::uint32_t>();
  Address remote;
  remote.port.node = in.get<std::uint32_t>();
  remote.port.device = in.get<std::uint32_t>();
  remote.port.life = in.get<std::uint32_t>();
  remote.link = in.get<std::uint64_t>();
  remote.peer = in.get<std::uint64_t>();
  remote.secret = in.get<std::uint64_t>();
  if (!in.finished() || magic != kOfferMagic) {
    return {Code::invalid_argument, "accept: not an offer of sim"};
  }
  peer->remote = remote;
  peer->accepted = true;
  say_hello(id.value, *peer);
  if (peer->heard) make_up(id.value, *peer);
  return {};
}

void SimLink::make_up(std::uint64_t id, Peer& peer) {
  if (peer.up) return;
  peer.up = true;
  Event event;
  event.kind = Event::Kind::peer_up;
  event.peer = PeerId{id};
  events_.push_back(event);
}

void SimLink::close_peer(PeerId id) {
  if (peer_of(id) != nullptr) lose_peer(id.value, Code::aborted, true);
}

void SimLink::lose_peer(std::uint64_t id, Code code, bool tell) {
  Peer& peer = *peers_.find(id);
  while (!peer.batches.empty()) finish(peer.batches.front(), code);
  if (tell && peer.accepted) say_bye(peer);
  remotes_.for_each([&](std::uint64_t remote_id, const Remote& remote) {
    if (remote.peer == id) remotes_.erase(remote_id);
  });
  if (world_.options().fence == Fence::process_exit && peer.accepted) {
    // As shared memory: shut to new packets, but those of the peer's copy that is under way land.
    ghosts_[id] = {peer.remote, peer.secret, world_.now_ns(), code, false, peer.exported};
    peers_.erase(id);
    return settle_ghosts();
  }
  peers_.erase(id);
  Event event;
  event.kind = Event::Kind::peer_down;
  event.code = code;
  event.peer = PeerId{id};
  events_.push_back(event);
}

// Whether packets of ours to the peer are on their way.
bool SimLink::sends_to(std::uint64_t peer_id) const {
  const Peer* const peer = peers_.find(peer_id);
  return peer != nullptr && std::ranges::any_of(peer->batches, [this](std::uint64_t batch) {
           return batches_.find(batch)->inflight > 0;
         });
}

void SimLink::settle_ghosts() {
  for (auto& [id, ghost] : ghosts_) {
    if (ghost.told) continue;
    const SimLink* const there = world_.link(ghost.remote.link);
    const bool outside =
        there == nullptr || !world_.alive(ghost.remote.port) || !there->sends_to(ghost.remote.peer);
    if (!outside && world_.now_ns() < ghost.closed_ns + kGhostNs) continue;
    ghost.told = true;
    Event event;
    event.kind = Event::Kind::peer_down;
    event.code = outside ? ghost.code : Code::timed_out;
    event.peer = PeerId{id};
    events_.push_back(event);
  }
}

void SimLink::on_lanes_broken(NodeId other) {
  peers_.for_each([&](std::uint64_t id, const Peer& peer) {
    if (peer.accepted && peer.remote.port.node == other) lose_peer(id, Code::peer_lost, false);
  });
}

void SimLink::on_device_dead() {
  peers_.for_each([this](std::uint64_t id, Peer&) { lose_peer(id, Code::unavailable, false); });
}

Result<MemoryId> SimLink::add_memory(const Memory& memory) {
  if (memory.kind != MemoryKind::host) return Status{Code::unsupported, "sim moves host memory"};
  if (memory.data == nullptr || memory.bytes == 0) {
    return Status{Code::invalid_argument, "empty memory"};
  }
  const auto [id, state] = memories_.insert();
  *state = {memory, 0};
  return MemoryId{id};
}

Status SimLink::remove_memory(MemoryId id) {
  const MemoryState* const state = memories_.find(id.value);
  if (state == nullptr) return {Code::invalid_argument, "remove_memory: stale id"};
  if (state->uses > 0) return {Code::exhausted, "memory is in use by a batch"};
  memories_.erase(id.value);
  return {};
}

Result<Blob> SimLink::export_memory(MemoryId id, PeerId peer) {
  const MemoryState* const state = memories_.find(id.value);
  Peer* const user = peer_of(peer);
  if (state == nullptr || user == nullptr) {
    return Status{Code::invalid_argument, "export_memory: stale id"};
  }
  user->exported.insert(id.value);
  return WireWriter().put(kMemoryMagic).put(id.value).put(state->memory.bytes).take();
}

Result<RemoteId> SimLink::import_memory(PeerId peer, std::span<const std::byte> blob) {
  if (peer_of(peer) == nullptr) return Status{Code::invalid_argument, "import_memory: stale peer"};
  WireReader in(blob);
  const auto magic = in.get<std::uint32_t>();
  const auto key = in.get<std::uint64_t>();
  in.get<std::uint64_t>();  // bytes: for readers of a trace; the target judges
  if (!in.finished() || magic != kMemoryMagic) {
    return Status{Code::invalid_argument, "import_memory: not a memory of sim"};
  }
  const auto [id, remote] = remotes_.insert();
  *remote = {peer.value, key};
  return RemoteId{id};
}

Code SimLink::check_local(const Batch& batch) const {
  if (batch.note.size() > kNoteBytesMax) return Code::invalid_argument;
  if (!batch.note.empty() && batch.direction == Direction::read) return Code::invalid_argument;
  for (const MemoryId id : batch.locals) {
    if (memories_.find(id.value) == nullptr) return Code::invalid_argument;
  }
  for (const RemoteId id : batch.remotes) {
    const Remote* const remote = remotes_.find(id.value);
    if (remote == nullptr || remote->peer != batch.peer.value) return Code::invalid_argument;
  }
  for (const PageOp& op : batch.ops) {
    if (op.local_region >= batch.locals.size() || op.remote_region >= batch.remotes.size()) {
      return Code::invalid_argument;
    }
    const MemoryState& local = *memories_.find(batch.locals[op.local_region].value);
    if (!run_inside({0, op.local_offset, op.local_stride, op.bytes, op.count, 0, 0},
                    local.memory.bytes)) {
      return Code::invalid_argument;
    }
  }
  if (batch.ops.empty()) return batch.begin + batch.end == 0 ? Code::ok : Code::invalid_argument;
  const std::uint64_t first = batch.ops.front().total_bytes();
  const std::uint64_t last = batch.ops.back().total_bytes();
  const std::uint64_t end = batch.end == 0 ? last : batch.end;
  if (batch.begin >= first || end > last) return Code::invalid_argument;
  if (batch.ops.size() == 1 && batch.begin >= end) return Code::invalid_argument;
  return Code::ok;
}

bool SimLink::run_inside(const Run& run, std::uint64_t memory_bytes) {
  if (run.bytes == 0 || run.count == 0) return false;
  std::uint64_t end = 0;
  return !__builtin_mul_overflow(std::uint64_t{run.count - 1}, run.stride, &end) &&
         !__builtin_add_overflow(end, run.offset, &end) &&
         !__builtin_add_overflow(end, std::uint64_t{run.bytes}, &end) && end <= memory_bytes;
}

Status SimLink::post(const Batch& batch) {
  Peer* const peer = peer_of(batch.peer);
  if (peer == nullptr) return {Code::invalid_argument, "post: stale peer"};
  if (check_local(batch) != Code::ok) return {Code::invalid_argument, "post: malformed batch"};
  if (by_ticket_.contains(batch.ticket.value)) {
    return {Code::invalid_argument, "post: this ticket is in flight"};
  }
  if (batches_.size() >= device_.limits.batches_inflight_max) {
    return {Code::exhausted, "post: too many batches in flight"};
  }
  const auto [id, state] = batches_.insert();
  *state = {};
  state->batch = batch;
  std::copy(batch.note.begin(), batch.note.end(), state->note.begin());
  state->next.position = batch.begin;
  for (const PageOp& op : batch.ops) state->left += op.total_bytes();
  state->left -= batch.begin;
  if (batch.end != 0) state->left -= batch.ops.back().total_bytes() - batch.end;
  for (const MemoryId local : batch.locals) ++memories_.find(local.value)->uses;
  by_ticket_[batch.ticket.value] = id;
  peer->batches.push_back(id);
  return {};
}

Status SimLink::cancel(Ticket ticket) {
  const auto found = by_ticket_.find(ticket.value);
  if (found == by_ticket_.end()) return {Code::not_found, "cancel: no such batch in flight"};
  batches_.find(found->second)->cancelled = true;
  settle(found->second);
  return {};
}

// Ends a batch, or sends its note, once nothing of it is on its way.
void SimLink::settle(std::uint64_t id) {
  BatchState& state = *batches_.find(id);
  if (state.inflight > 0) return;
  const bool wants_note = !state.batch.note.empty() && !state.note_sent;
  if (state.code != Code::ok) {
    finish(id, state.code);
  } else if (state.cancelled && (state.left > 0 || wants_note)) {
    finish(id, Code::aborted);
  } else if (state.left == 0 && wants_note) {
    send_note(id, state);
  } else if (state.left == 0) {
    finish(id, Code::ok);
  }
}

void SimLink::finish(std::uint64_t id, Code code) {
  BatchState& state = *batches_.find(id);
  Event event;
  event.kind = Event::Kind::batch;
  event.code = code;
  event.peer = state.batch.peer;
  event.ticket = state.batch.ticket;
  event.bytes_done = state.done;
  events_.push_back(event);
  for (const MemoryId local : state.batch.locals) --memories_.find(local.value)->uses;
  std::deque<std::uint64_t>& batches = peer_of(state.batch.peer)->batches;
  batches.erase(std::find(batches.begin(), batches.end(), id));
  by_ticket_.erase(state.batch.ticket.value);
  batches_.erase(id);
}

bool SimLink::can_send(const BatchState& state) const {
  if (state.cancelled || state.code != Code::ok || !state.batch.after.ready()) return false;
  return state.left > 0 ? state.inflight < world_.options().packets_inflight_max
                        : state.inflight == 0 && !state.note_sent;
}

std::size_t SimLink::poll(std::span<Event> events) {
  if (!world_.alive(port_)) return 0;
  const std::int64_t now_ns = world_.now_ns();
  int budget = kPacketsPerPoll;
  settle_ghosts();
  peers_.for_each([&](std::uint64_t id, Peer& peer) {
    if (!peer.up) {
      if (now_ns >= peer.deadline_ns) lose_peer(id, Code::timed_out, true);
      return;
    }
    for (std::size_t i = 0; i < peer.batches.size() && budget > 0;) {
      const std::uint64_t batch_id = peer.batches[i];
      BatchState& state = *batches_.find(batch_id);
      if (!can_send(state)) {
        ++i;
        continue;
      }
      --budget;
      if (state.left > 0) {
        send_packet(batch_id, state);
      } else {
        settle(batch_id);  // nothing to move: its note, or its end
      }
    }
  });
  std::size_t count = 0;
  while (count < events.size() && !events_.empty()) {
    events[count++] = events_.front();
    events_.pop_front();
  }
  return count;
}

bool SimLink::arm() {
  if (!world_.alive(port_)) return true;
  bool pending = !events_.empty();
  batches_.for_each([&](std::uint64_t, const BatchState& state) {
    pending = pending || (peer_of(state.batch.peer)->up && can_send(state));
  });
  return !pending;
}

std::int64_t SimLink::next_timer_ns() const {
  std::int64_t at_ns = INT64_MAX;
  if (!world_.alive(port_)) return at_ns;
  peers_.for_each([&](std::uint64_t, const Peer& peer) {
    if (!peer.up) at_ns = std::min(at_ns, peer.deadline_ns);
  });
  batches_.for_each([&](std::uint64_t, const BatchState& state) {
    if (!state.batch.after.ready()) at_ns = std::min(at_ns, world_.now_ns() + kTokenPollNs);
  });
  return at_ns;
}

void SimLink::visit_metrics(MetricVisitor& visitor, const MetricLabels& labels) const {
  visitor.counter("kvlane_sim_bytes_total", "Bytes acknowledged.", labels,
                  static_cast<double>(bytes_.value()));
  visitor.counter("kvlane_sim_packets_total", "Data packets sent.", labels,
                  static_cast<double>(packets_.value()));
  visitor.counter("kvlane_sim_runs_refused_total", "Runs of peers refused here.", labels,
                  static_cast<double>(refused_.value()));
}

}  // namespace kvl::sim
