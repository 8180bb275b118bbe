// Messages between Links: active messages of UCX, checked where they arrive and held until there is
// room for their events.
#include <algorithm>

#include "transport/base/crypto.h"
#include "transport/ucx/ucx_link.h"

namespace kvl::ucx {

UcxLink::Posted UcxLink::post_message(Peer& peer, MessageType type, std::uint64_t value,
                                      std::span<const std::byte> note, std::uint32_t batch) {
  if (operations_.full()) return Posted::again;
  const auto kind = batch == kNoSlot ? Operation::Kind::message : Operation::Kind::note;
  const std::uint32_t number = take_operation(kind, peer, batch);
  PeerMessage& message = messages_[number];
  message = PeerMessage{};
  message.type = type;
  message.note_bytes = static_cast<std::uint8_t>(note.size());
  message.to_peer = peer.remote.peer;
  message.to_secret = peer.remote.secret;
  message.value = value;
  std::copy(note.begin(), note.end(), message.note.begin());
  ucp_request_param_t params = params_of(number);
  params.op_attr_mask |= UCP_OP_ATTR_FIELD_FLAGS;
  params.flags = UCP_AM_SEND_FLAG_EAGER;
  return outcome(
      api().am_send_nbx(peer.ep, kMessageId, &message, sizeof(message), nullptr, 0, &params), peer,
      number);
}

// From inside UCX, and from anybody who has our worker's address.
ucs_status_t UcxLink::on_message(void* link, const void* header, std::size_t header_bytes, void*,
                                 std::size_t, const ucp_am_recv_param_t*) {
  UcxLink& self = *static_cast<UcxLink*>(link);
  PeerMessage message;
  if (!decode({static_cast<const std::byte*>(header), header_bytes}, message)) {
    self.strangers_[static_cast<std::size_t>(Stranger::malformed)].add();
    return UCS_OK;
  }
  Peer* const peer = self.find_peer({message.to_peer});
  if (peer == nullptr || !crypto::equal(peer->token.secret, message.to_secret)) {
    self.strangers_[static_cast<std::size_t>(Stranger::unknown_token)].add();
    return UCS_OK;
  }
  peer->active = true;
  if (self.arrived_count_ == self.arrived_.size()) {
    peer->flooded = true;
    return UCS_OK;
  }
  self.arrived_[(self.arrived_first_ + self.arrived_count_++) % self.arrived_.size()] = message;
  return UCS_OK;
}

void UcxLink::take_messages(EventSink& sink) {
  while (arrived_count_ > 0) {
    if (!take_message(arrived_[arrived_first_], sink)) return;  // no room for its event
    arrived_first_ = (arrived_first_ + 1) % arrived_.size();
    --arrived_count_;
  }
}

// False: there is no room for its event yet.
bool UcxLink::take_message(const PeerMessage& message, EventSink& sink) {
  Peer* const peer = find_peer({message.to_peer});
  if (peer == nullptr) return true;  // it has gone in the meantime
  switch (message.type) {
    case MessageType::hello:
      if (peer->state != PeerState::closing) hear_hello(*peer, message.value);
      return true;
    case MessageType::note:
      return take_note(*peer, message, sink);
    case MessageType::forget:
      remotes_.forget(peer->id, message.value);
      return true;
    case MessageType::goodbye:
      begin_close(*peer, Code::peer_lost);
      return true;
    case MessageType::nothing:
    case MessageType::clear:
    case MessageType::quiet:
    case MessageType::grant:
    case MessageType::uncount:
    case MessageType::freed:
      return true;
  }
  return true;
}

bool UcxLink::take_note(Peer& peer, const PeerMessage& message, EventSink& sink) {
  // Nothing orders messages: who sends notes is up, whether or not its hello came first.
  if (peer.state == PeerState::connecting) {
    peer.heard = true;
    come_up(peer);
  }
  if (peer.state == PeerState::opened || peer.closed_here) return true;
  if (!peer.up_announced) {
    if (peer.state != PeerState::up) return true;  // what UCX chose for it was turned down
    announce_up(peer, sink);
  }
  if (sink.left() == 0) return false;
  show_note(peer.id, message.note, message.note_bytes, sink);
  notes_received_.add();
  return true;
}

}  // namespace kvl::ucx
