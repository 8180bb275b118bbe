// Calls that fail as planned, events that come late or changed.
#include "transport/fault/fault_link.h"

#include <algorithm>
#include <array>

namespace kvl::fault {

Status FaultLink::Control::send(PeerId peer, std::span<const std::byte> message) {
  KVL_TRY(state_.enter(Call::control_send));
  return inner_.send(peer, message);
}

Result<CopyTicket> FaultLink::Copies::copy(std::span<const CopyPiece> pieces) {
  KVL_TRY(state_.enter(Call::memory_copy));
  return inner_.copy(pieces);
}

Result<std::unique_ptr<Link>> FaultLink::open(Transport& inner, const Device& device,
                                              const LinkContext& context,
                                              std::shared_ptr<FaultState> state) {
  KVL_TRY(state->enter(Call::open_link));
  std::unique_ptr<FaultLink> self(new FaultLink(context, std::move(state)));
  auto opened = inner.open(device, {self->control_, self->copies_, context.clock});
  if (!opened) return opened.status();
  self->inner_ = std::move(*opened);
  return std::unique_ptr<Link>(std::move(self));
}

Result<PeerId> FaultLink::open_peer(PeerRole role) {
  KVL_TRY(state_->enter(Call::open_peer));
  return inner_->open_peer(role);
}

Result<Blob> FaultLink::offer(PeerId peer) {
  KVL_TRY(state_->enter(Call::offer));
  return inner_->offer(peer);
}

Status FaultLink::accept(PeerId peer, std::span<const std::byte> remote_offer) {
  KVL_TRY(state_->enter(Call::accept));
  return inner_->accept(peer, remote_offer);
}

Result<MemoryId> FaultLink::add_memory(const Memory& memory) {
  KVL_TRY(state_->enter(Call::add_memory));
  return inner_->add_memory(memory);
}

Status FaultLink::remove_memory(MemoryId memory) {
  KVL_TRY(state_->enter(Call::remove_memory));
  return inner_->remove_memory(memory);
}

Result<Blob> FaultLink::export_memory(MemoryId memory, PeerId peer) {
  KVL_TRY(state_->enter(Call::export_memory));
  return inner_->export_memory(memory, peer);
}

Result<RemoteId> FaultLink::import_memory(PeerId peer, std::span<const std::byte> blob) {
  KVL_TRY(state_->enter(Call::import_memory));
  return inner_->import_memory(peer, blob);
}

Status FaultLink::post(const Batch& batch) {
  KVL_TRY(state_->enter(Call::post));
  return inner_->post(batch);
}

Status FaultLink::cancel(Ticket ticket) {
  KVL_TRY(state_->enter(Call::cancel));
  return inner_->cancel(ticket);
}

bool FaultLink::arm() { return held_.empty() && inner_->arm(); }

std::size_t FaultLink::poll(std::span<Event> events) {
  if (!state_->plan().touches_events()) return inner_->poll(events);
  for (Held& held : held_) {
    if (held.polls_left > 0) --held.polls_left;
  }
  std::array<Event, 64> taken;
  const std::size_t count =
      inner_->poll(std::span(taken).first(std::min(taken.size(), events.size())));
  for (std::size_t i = 0; i < count; ++i) take(taken[i]);
  std::size_t shown = 0;
  while (shown < events.size() && !held_.empty() && held_.front().polls_left == 0) {
    events[shown++] = held_.front().event;
    held_.pop_front();
  }
  return shown;
}

void FaultLink::take(Event event) {
  const FaultPlan& plan = state_->plan();
  if (event.kind == Event::Kind::peer_down) {
    const auto lost = lost_.find(event.peer.value);
    if (lost != lost_.end()) {
      event.code = lost->second;
      lost_.erase(lost);
    }
  }
  if (event.kind == Event::Kind::batch) {
    const std::uint64_t batch = state_->next_batch();
    for (const FailedBatch& failed : plan.batches) {
      if (failed.number != batch || event.code != Code::ok) continue;
      event.code = state_->hit({failed.code, ""}).code();
      event.bytes_done = 0;
    }
    for (const LostPeer& lost : plan.peers) {
      if (lost.batch != batch) continue;
      lost_[event.peer.value] = state_->hit({lost.code, ""}).code();
      inner_->close_peer(event.peer);
    }
  }
  const std::uint64_t number = state_->next_event();
  Held held{event, 0};
  for (const HeldEvents& late : plan.events) {
    if (number < late.first || number - late.first >= late.count) continue;
    static_cast<void>(state_->hit());
    if (late.polls == HeldEvents::kForever) return;
    held.polls_left = std::max(held.polls_left, late.polls);
  }
  held_.push_back(held);
}

}  // namespace kvl::fault
