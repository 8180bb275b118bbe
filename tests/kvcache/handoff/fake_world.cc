// The fake engines and the world that moves between them.
#include "tests/kvcache/handoff/fake_world.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

namespace kvl::test {

EngineId FakeEngine::id() const {
  EngineId id{};
  id[0] = static_cast<std::byte>(index_ + 1);
  return id;
}

Result<MemoryHandle> FakeEngine::register_memory(const Memory& memory) {
  world_.memories_.push_back(memory);
  return MemoryHandle{world_.memories_.size()};
}

Result<PeerHandle> FakeEngine::connect(std::string_view address) {
  return FakeWorld::handle(static_cast<std::size_t>(std::stoul(std::string(address))));
}

Status FakeEngine::disconnect(PeerHandle peer) {
  const std::size_t to = peer.value - 1;
  world_.cut(index_, to, true);
  world_.down_event(to, index_, true);
  return {};
}

Result<TransferId> FakeEngine::submit(const Transfer& transfer) {
  if (refuse_submits > 0) {
    --refuse_submits;
    return Status{Code::exhausted, "scripted"};
  }
  const std::size_t to = transfer.peer.value - 1;
  if (!world_.linked(index_, to)) return Status{Code::peer_lost, "peer"};
  ++submitted;
  FakeWorld::Flight flight;
  flight.from = index_;
  flight.to = to;
  flight.id = world_.next_transfer_++;
  flight.user = transfer.user;
  flight.direction = transfer.direction;
  flight.ops = transfer.ops;
  flight.locals = transfer.locals;
  flight.remotes = transfer.remotes;
  flight.rail = (transfer.avoid & 1U) != 0 ? 1 : 0;
  world_.flights_.push_back(flight);
  return TransferId{flight.id};
}

Status FakeEngine::cancel(TransferId transfer, std::int64_t) {
  for (FakeWorld::Flight& flight : world_.flights_) {
    if (flight.id != transfer.value || flight.from != index_) continue;
    flight.cancelled = true;
    return {};
  }
  return {Code::not_found, "transfer"};
}

Status FakeEngine::send(PeerHandle peer, std::span<const std::byte> message) {
  if (refuse_sends > 0) {
    --refuse_sends;
    return {Code::exhausted, "scripted"};
  }
  const std::size_t to = peer.value - 1;
  if (!world_.linked(index_, to)) return {Code::peer_lost, "peer"};
  world_.inject(index_, to, {message.begin(), message.end()});
  return {};
}

std::size_t FakeEngine::poll(std::span<EngineEvent> events) {
  std::size_t count = 0;
  for (; count < events.size() && !events_.empty(); ++count) {
    events[count] = std::move(events_.front());
    events_.pop_front();
  }
  return count;
}

FakeEngine& FakeWorld::add_engine() {
  engines_.push_back(std::make_unique<FakeEngine>(*this, engines_.size()));
  return *engines_.back();
}

void FakeWorld::inject(std::size_t from, std::size_t to, std::vector<std::byte> message) {
  ways_[{from, to}].messages.push_back(std::move(message));
}

void FakeWorld::connect(std::size_t a, std::size_t b) {
  connect_half(a, b);
  connect_half(b, a);
}

void FakeWorld::connect_half(std::size_t first, std::size_t second) {
  if (linked(first, second)) return;
  ways_[{first, second}].up = true;
  up_event(first, second);
}

void FakeWorld::up_event(std::size_t at, std::size_t of) {
  EngineEvent event;
  event.kind = EngineEvent::Kind::peer_up;
  event.peer = handle(of);
  event.epoch = engines_[of]->epoch_;
  engines_[at]->events_.push_back(event);
}

void FakeWorld::down_event(std::size_t at, std::size_t of, bool fenced, std::uint64_t epoch) {
  EngineEvent event;
  event.kind = EngineEvent::Kind::peer_down;
  event.code = Code::peer_lost;
  event.peer = handle(of);
  event.epoch = epoch;
  event.fenced = fenced;
  engines_[at]->events_.push_back(event);
}

void FakeWorld::cut(std::size_t a, std::size_t b, bool fenced) {
  for (const auto& way : {std::pair{a, b}, std::pair{b, a}}) {
    ways_[way].up = false;
    ways_[way].messages.clear();
  }
  if (fenced) {  // also what earlier breaks have left
    std::erase_if(ghosts_, [&](const Ghost& g) {
      return (g.from == a && g.to == b) || (g.from == b && g.to == a);
    });
  }
  for (std::size_t i = 0; i < flights_.size();) {
    const Flight& flight = flights_[i];
    if ((flight.from == a && flight.to == b) || (flight.from == b && flight.to == a)) {
      if (!fenced) leave_ghosts(flight);
      end(i, Code::peer_lost, fenced ? Physical::quiescent : Physical::quarantined);
    } else {
      ++i;
    }
  }
}

void FakeWorld::break_link(std::size_t a, std::size_t b, bool fenced) {
  cut(a, b, fenced);
  down_event(a, b, fenced);
  down_event(b, a, fenced);
}

void FakeWorld::kill(std::size_t index, bool fenced) {
  dead_.insert(index);
  for (std::size_t other = 0; other < engines_.size(); ++other) {
    if (other == index || !linked(index, other)) continue;
    cut(index, other, fenced);
    if (!dead_.contains(other)) down_event(other, index, fenced);
  }
}

void FakeWorld::fence(std::size_t at, std::size_t from) {
  std::erase_if(ghosts_, [&](const Ghost& g) { return g.from == from && g.to == at; });
  down_event(at, from, true);
}

void FakeWorld::fence_life(std::size_t at, std::size_t from, std::uint64_t epoch) {
  down_event(at, from, true, epoch);
}

std::byte* FakeWorld::address(MemoryHandle handle, std::uint64_t offset,
                              std::uint64_t bytes) const {
  EXPECT_TRUE(handle.value >= 1 && handle.value <= memories_.size());
  const Memory& memory = memories_[handle.value - 1];
  EXPECT_LE(offset + bytes, memory.bytes);
  return memory.data + offset;
}

void FakeWorld::end(std::size_t index, Code code, Physical physical) {
  const Flight flight = flights_[index];
  flights_.erase(flights_.begin() + static_cast<std::ptrdiff_t>(index));
  EngineEvent event;
  event.kind = EngineEvent::Kind::transfer;
  event.code = code;
  event.physical = physical;
  event.peer = handle(flight.to);
  event.transfer = {flight.id};
  event.user = flight.user;
  event.rails = RailSet{1} << flight.rail;
  engines_[flight.from]->events_.push_back(event);
}

void FakeWorld::land(const Flight& flight, const PageOp& op) {
  for (std::uint64_t i = 0; i < op.count; ++i) {
    std::byte* const local =
        address(flight.locals[op.local_region], op.local_offset + i * op.local_stride, op.bytes);
    std::byte* const remote = address(flight.remotes[op.remote_region],
                                      op.remote_offset + i * op.remote_stride, op.bytes);
    const bool write = flight.direction == Direction::write;
    std::memcpy(write ? remote : local, write ? local : remote, op.bytes);
    if (corrupt) corrupt(flight.rail, write ? remote : local, op.bytes);
    if (on_landed) on_landed(write ? remote : local, op.bytes);
  }
}

void FakeWorld::leave_ghosts(const Flight& flight) {
  for (std::size_t i = flight.next_op; i < flight.ops.size(); ++i) {
    const PageOp& op = flight.ops[i];
    const bool write = flight.direction == Direction::write;
    for (std::uint64_t k = 0; k < op.count; ++k) {
      std::byte* const local =
          address(flight.locals[op.local_region], op.local_offset + k * op.local_stride, op.bytes);
      std::byte* const remote = address(flight.remotes[op.remote_region],
                                        op.remote_offset + k * op.remote_stride, op.bytes);
      const std::byte* const source = write ? local : remote;
      // The one whose memory is written is the one who needs the fence.
      ghosts_.push_back({write ? flight.from : flight.to,
                         write ? flight.to : flight.from,
                         write ? remote : local,
                         {source, source + op.bytes}});
    }
  }
}

void FakeWorld::progress(std::size_t index) {
  Flight& flight = flights_[index];
  if (flight.cancelled) {
    const bool proven = cancel_is_proven();
    if (!proven) leave_ghosts(flight);
    end(index, Code::aborted, proven ? Physical::quiescent : Physical::quarantined);
    return;
  }
  if (flight.next_op < flight.ops.size()) {
    land(flight, flight.ops[flight.next_op++]);
    return;
  }
  end(index, Code::ok, Physical::quiescent);
}

bool FakeWorld::deliver(std::size_t from, std::size_t to) {
  Way& way = ways_[{from, to}];
  if (!way.up || way.messages.empty() || dead_.contains(to)) return false;
  std::vector<std::byte> message = std::move(way.messages.front());
  way.messages.pop_front();
  if (on_message && !on_message(from, to, message)) return true;
  EngineEvent event;
  event.kind = EngineEvent::Kind::message;
  event.peer = handle(from);
  event.epoch = engines_[from]->epoch_;
  event.data = std::move(message);
  engines_[to]->events_.push_back(std::move(event));
  return true;
}

bool FakeWorld::step_in_order() {
  bool any = false;
  if (!hold_messages) {
    for (std::size_t from = 0; from < engines_.size(); ++from) {
      for (std::size_t to = 0; to < engines_.size(); ++to) any = deliver(from, to) || any;
    }
  }
  if (!hold_transfers && !flights_.empty()) {
    progress(0);
    any = true;
  }
  return any;
}

void FakeWorld::run_ghosts() {
  for (const Ghost& ghost : ghosts_) {
    std::memcpy(ghost.at, ghost.bytes.data(), ghost.bytes.size());
    if (on_landed) on_landed(ghost.at, ghost.bytes.size());
  }
  ghosts_.clear();
}

bool FakeWorld::step_at_random() {
  std::vector<std::function<void()>> choices;
  for (auto& [ends, way] : ways_) {
    if (hold_messages || !way.up || way.messages.empty() || dead_.contains(ends.second)) continue;
    choices.emplace_back([this, pair = ends] { deliver(pair.first, pair.second); });
  }
  for (std::size_t i = 0; !hold_transfers && i < flights_.size(); ++i) {
    choices.emplace_back([this, i] { progress(i); });
  }
  const bool any = !choices.empty();
  for (std::size_t i = 0; i < ghosts_.size(); ++i) {
    choices.emplace_back([this, i] {
      std::memcpy(ghosts_[i].at, ghosts_[i].bytes.data(), ghosts_[i].bytes.size());
      if (on_landed) on_landed(ghosts_[i].at, ghosts_[i].bytes.size());
      ghosts_.erase(ghosts_.begin() + static_cast<std::ptrdiff_t>(i));
    });
  }
  if (!choices.empty()) choices[random() % choices.size()]();
  return any;
}

}  // namespace kvl::test
