// SimLink: what travels, and what happens where it arrives.
#include <algorithm>
#include <cstring>

#include "transport/sim/sim_link.h"

namespace kvl::sim {
namespace {

constexpr std::uint64_t kHeaderBytes = 64;
constexpr std::size_t kRunsPerPacket = 1024;

// What a broken NIC or bus does to data now and then.
void corrupt(SimWorld& world, std::vector<std::byte>& payload) {
  if (world.options().corrupt <= 0 || payload.empty()) return;
  if (world.uniform() >= world.options().corrupt) return;
  payload[world.below(payload.size())] ^= std::byte{0x40};
}

}  // namespace

// Runs f at the other side, if our connection still exists there; a reset comes back if it does
// not.
template <typename F>
void SimLink::at_remote(std::uint64_t peer_id, const Address& remote, std::uint64_t bytes, F f,
                        bool repeats) {
  const auto lose = [&world = world_, link = id_, peer_id] {
    SimLink* const self = world.link(link);
    if (self != nullptr && self->peers_.find(peer_id) != nullptr) {
      self->lose_peer(peer_id, Code::peer_lost, false);
    }
  };
  world_.transmit(
      port_, remote.port, bytes,
      [&world = world_, me = port_, remote, lose, f = std::move(f)]() mutable {
        SimLink* const there = world.link(remote.link);
        if (there != nullptr && there->admit(remote.peer, remote.secret)) {
          f(*there, remote.peer);
        } else {
          world.transmit(remote.port, me, kHeaderBytes, lose, [] {});
        }
      },
      lose, repeats);
}

// Whatever comes from the peer proves that it has accepted us.
bool SimLink::admit(std::uint64_t peer_id, std::uint64_t secret) {
  Peer* const peer = peers_.find(peer_id);
  if (peer == nullptr || peer->secret != secret) return false;
  peer->heard = true;
  if (peer->accepted) make_up(peer_id, *peer);
  return true;
}

void SimLink::say_hello(std::uint64_t peer_id, const Peer& peer) {
  at_remote(peer_id, peer.remote, kHeaderBytes, [](SimLink&, std::uint64_t) {});
}

void SimLink::say_bye(const Peer& peer) {
  world_.transmit(
      port_, peer.remote.port, kHeaderBytes,
      [&world = world_, remote = peer.remote] {
        SimLink* const there = world.link(remote.link);
        if (there == nullptr) return;
        const Peer* const known = there->peers_.find(remote.peer);
        if (known != nullptr && known->secret == remote.secret) {
          there->lose_peer(remote.peer, Code::peer_lost, false);
        }
      },
      [] {});
}

template <typename F>
void SimLink::for_each_local(const BatchState& state, Cursor from, std::uint64_t bytes, F f) const {
  while (bytes > 0) {
    const PageOp& op = state.batch.ops[from.op];
    const std::uint64_t in_piece = from.position % op.bytes;
    const std::uint64_t length = std::min(op.bytes - in_piece, bytes);
    const Memory& memory = memories_.find(state.batch.locals[op.local_region].value)->memory;
    f(memory.data + op.local_offset + from.position / op.bytes * op.local_stride + in_piece,
      length);
    bytes -= length;
    from.position += length;
    if (from.position == op.total_bytes()) from = {from.op + 1, 0};
  }
}

void SimLink::send_packet(std::uint64_t id, BatchState& state) {
  const Batch& batch = state.batch;
  const auto packet = std::make_shared<Packet>();
  packet->batch = id;
  packet->direction = batch.direction;
  packet->from = state.next;
  std::uint64_t room = std::min(state.left, world_.options().packet_bytes_max);
  while (room > 0 && packet->runs.size() < kRunsPerPacket) {
    const PageOp& op = batch.ops[state.next.op];
    const std::uint64_t bytes = std::min(op.total_bytes() - state.next.position, room);
    packet->runs.push_back({remotes_.find(batch.remotes[op.remote_region].value)->key,
                            op.remote_offset, op.remote_stride, op.bytes, op.count,
                            state.next.position, state.next.position + bytes});
    packet->bytes += bytes;
    room -= bytes;
    state.next.position += bytes;
    if (state.next.position == op.total_bytes()) state.next = {state.next.op + 1, 0};
  }
  state.left -= packet->bytes;
  ++state.inflight;
  packets_.add();
  if (batch.direction == Direction::write) {
    packet->payload.reserve(packet->bytes);
    const NodeId to = peers_.find(batch.peer.value)->remote.port.node;
    for_each_local(state, packet->from, packet->bytes,
                   [&](const std::byte* data, std::uint64_t length) {
                     observe(Touch::local_read, data, length, to);
                     packet->payload.insert(packet->payload.end(), data, data + length);
                   });
  }
  packet->sender_link = id_;
  packet->sent_ns = world_.now_ns();
  packet->sender_peer = batch.peer.value;
  if (batch.direction == Direction::write) corrupt(world_, packet->payload);
  const Address& remote = peers_.find(batch.peer.value)->remote;
  const auto lose = [&world = world_, link = id_, peer_id = batch.peer.value] {
    SimLink* const self = world.link(link);
    if (self != nullptr && self->peers_.find(peer_id) != nullptr) {
      self->lose_peer(peer_id, Code::peer_lost, false);
    }
  };
  world_.transmit(
      port_, remote.port, kHeaderBytes + packet->payload.size(),
      [&world = world_, me = port_, remote, lose, packet] {
        SimLink* const there = world.link(remote.link);
        const bool ghost =
            there != nullptr && there->admit_ghost(remote.peer, remote.secret, *packet);
        if (there != nullptr && (ghost || there->admit(remote.peer, remote.secret))) {
          there->on_data(remote.peer, ghost, packet, me.node);
        } else {
          world.transmit(remote.port, me, kHeaderBytes, lose, [] {});
        }
      },
      lose, true);
}

// A closed peer whose copy was under way.
bool SimLink::admit_ghost(std::uint64_t peer_id, std::uint64_t secret, const Packet& packet) const {
  const auto found = ghosts_.find(peer_id);
  return found != ghosts_.end() && found->second.secret == secret &&
         packet.sent_ns <= found->second.closed_ns;
}

// Where only the sender's own end fences (Fence::process_exit), nothing is on its way after it.
bool SimLink::sender_has_closed(const Packet& packet) const {
  if (world_.options().fence == Fence::immediate) return false;
  const SimLink* const sender = world_.link(packet.sender_link);
  return sender == nullptr || sender->peers_.find(packet.sender_peer) == nullptr;
}

// Its batch has ended: whatever is read, the answer is thrown away.
bool SimLink::reads_into_nothing(const Packet& packet) const {
  if (packet.direction != Direction::read) return false;
  const SimLink* const sender = world_.link(packet.sender_link);
  return sender == nullptr || sender->batches_.find(packet.batch) == nullptr;
}

// A ghost gets no answer.
void SimLink::on_data(std::uint64_t peer_id, bool ghost, const PacketPtr& packet, NodeId sender) {
  if (sender_has_closed(*packet)) return;
  if (!packet->applied) {
    packet->applied = true;
    move(packet, ghost ? ghosts_.find(peer_id)->second.exported : peers_.find(peer_id)->exported,
         sender);
  }
  // Applying may not be repeated, answering may be: the answer is a packet of its own.
  const Peer* const peer = ghost ? nullptr : peers_.find(peer_id);
  if (peer == nullptr || !peer->accepted) return;
  at_remote(
      peer_id, peer->remote, kHeaderBytes + packet->payload.size(),
      [packet](SimLink& there, std::uint64_t) {
        if (packet->answered) return;
        packet->answered = true;
        there.on_answer(*packet);
      },
      true);
}

void SimLink::move(const PacketPtr& packet, const Grants& granted, NodeId sender) {
  if (packet->direction == Direction::read) packet->payload.resize(packet->bytes);
  std::byte* payload = packet->payload.data();
  const bool watched = !reads_into_nothing(*packet);
  for (const Run& run : packet->runs) {
    const Code code = apply(run, granted, packet->direction, payload, sender, watched);
    if (code != Code::ok) refused_.add();
    if (packet->code == Code::ok) packet->code = code;
    payload += run.end - run.begin;
  }
  if (packet->direction == Direction::write) packet->payload.clear();
  if (packet->direction == Direction::read) corrupt(world_, packet->payload);
}

// A run is judged as a whole before any byte of it moves.
Code SimLink::apply(const Run& run, const Grants& granted, Direction direction, std::byte* payload,
                    NodeId sender, bool watched) {
  const MemoryState* const state = memories_.find(run.key);
  if (state == nullptr) return Code::invalid_argument;
  if (!granted.contains(run.key)) return Code::permission;
  const Access wanted = direction == Direction::write ? Access::remote_write : Access::remote_read;
  if (!allows(state->memory.access, wanted)) return Code::permission;
  if (!run_inside(run, state->memory.bytes)) return Code::invalid_argument;
  for (std::uint64_t position = run.begin; position < run.end;) {
    const std::uint64_t in_piece = position % run.bytes;
    const std::uint64_t length = std::min(run.bytes - in_piece, run.end - position);
    std::byte* const here =
        state->memory.data + run.offset + position / run.bytes * run.stride + in_piece;
    if (watched) {
      observe(direction == Direction::write ? Touch::remote_write : Touch::remote_read, here,
              length, sender);
    }
    std::memcpy(direction == Direction::write ? here : payload,
                direction == Direction::write ? payload : here, length);
    payload += length;
    position += length;
  }
  return Code::ok;
}

void SimLink::on_answer(const Packet& packet) {
  BatchState* const state = batches_.find(packet.batch);
  if (state == nullptr) return;  // ended meanwhile: its memory is not ours to touch any more
  --state->inflight;
  if (packet.code == Code::ok) {
    state->done += packet.bytes;
    bytes_.add(packet.bytes);
    if (packet.direction == Direction::read) {
      const std::byte* from = packet.payload.data();
      const NodeId source = peer_of(state->batch.peer)->remote.port.node;
      for_each_local(*state, packet.from, packet.bytes, [&](std::byte* data, std::uint64_t length) {
        observe(Touch::local_write, data, length, source);
        std::memcpy(data, from, length);
        from += length;
      });
    }
  } else if (state->code == Code::ok) {
    state->code = packet.code;
  }
  settle(packet.batch);
}

void SimLink::send_note(std::uint64_t id, BatchState& state) {
  state.note_sent = true;
  ++state.inflight;
  Event event;
  event.kind = Event::Kind::note;
  event.note = state.note;
  event.note_bytes = static_cast<std::uint8_t>(state.batch.note.size());
  const std::uint64_t peer_id = state.batch.peer.value;
  at_remote(peer_id, peers_.find(peer_id)->remote, kHeaderBytes,
            [event, id](SimLink& there, std::uint64_t their_peer) mutable {
              event.peer = PeerId{their_peer};
              there.events_.push_back(event);
              const Peer* const peer = there.peers_.find(their_peer);
              if (!peer->accepted) return;
              there.at_remote(their_peer, peer->remote, kHeaderBytes,
                              [id](SimLink& back, std::uint64_t) { back.on_note_answer(id); });
            });
}

void SimLink::on_note_answer(std::uint64_t batch) {
  BatchState* const state = batches_.find(batch);
  if (state == nullptr) return;
  --state->inflight;
  settle(batch);
}

}  // namespace kvl::sim
