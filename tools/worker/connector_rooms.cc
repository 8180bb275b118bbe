// What the connector does with the scheduler's commands: rooms open, grow ready and end.
#include <algorithm>

#include "kvl/failure.h"
#include "kvl/log.h"
#include "worker/connector.h"

namespace kvl::worker {
namespace {

constexpr std::size_t kUnsentMax = 1024;  // messages to a peer that is being dialed

}  // namespace

void Connector::refuse(const Port& port, HandoffSide side, std::uint64_t room,
                       const Status& status) {
  RoomEvent event;
  event.rank = port.rank;
  event.kind = HandoffEvent::Kind::failed;
  event.side = side;
  event.code = status.code();
  event.room = room;
  event.reason = status.context();
  sink_(std::move(event));
}

void Connector::handle(Port& port, const OpenPrefill& command) {
  HandoffEndpoint& endpoint = *port.endpoint;
  const Status opened = endpoint.open_prefill({command.room, command.tokens, command.deadline_ms});
  if (!opened.ok()) return refuse(port, HandoffSide::prefill, command.room, opened);
  Status status = endpoint.add_pages(command.room, 0, command.pages);
  if (status.ok() && command.ready_tokens > 0) {
    const Range all{0, PageLayout::kLayersMax};
    status = endpoint.ready(command.room, all, command.ready_tokens);
  }
  // It is open: from here on its end is an event.
  if (!status.ok()) {
    (void)endpoint.abort(HandoffSide::prefill, command.room, status.code(), status.context());
  }
}

void Connector::handle(Port& port, const Ready& ready) {
  // not_found: the room failed while its layers were being computed; the event has said so.
  const Status status = port.endpoint->ready(ready.room, {ready.layer, 1}, ready.tokens);
  if (status.ok() || status.code() == Code::not_found) return;
  (void)port.endpoint->abort(HandoffSide::prefill, ready.room, status.code(), status.context());
}

void Connector::handle(Port& port, const FinishPrefill& command) {
  const Status status = port.endpoint->finish(command.room, command.metadata);
  if (status.ok() || status.code() == Code::not_found) return;
  (void)port.endpoint->abort(HandoffSide::prefill, command.room, status.code(), status.context());
}

void Connector::handle(Port& port, const OpenDecode& command) {
  DecodeOpen open;
  open.room = command.room;
  open.tokens = command.tokens;
  open.skip_tokens = command.skip_tokens;
  open.mode = command.mode;
  open.pages = {{command.pages, 0}};
  open.deadline_ms = command.deadline_ms;
  open.group_rank = port.rank;
  open.group_size = static_cast<std::uint32_t>(command.sources.size());
  open.lead = port.lead;
  if (port.rank >= command.sources.size()) {
    const Status status(Code::internal, "no sources named for this rank");
    return refuse(port, HandoffSide::decode, command.room, status);
  }
  for (const SourceAddress& source : command.sources[port.rank]) {
    const Result<PeerHandle> peer = peer_at(port, source.address);
    if (!peer) return refuse(port, HandoffSide::decode, command.room, peer.status());
    open.sources.push_back({*peer, source.accepts});
  }
  const Status status = port.endpoint->open_decode(std::move(open));
  if (!status.ok()) refuse(port, HandoffSide::decode, command.room, status);
}

void Connector::handle(Port& port, const AbortRoom& command) {
  // not_found: it has ended, or never opened, here.
  (void)port.endpoint->abort(command.side, command.room, command.code, command.reason);
}

void Connector::handle(Port& port, const SendMessage& command) {
  if (port.rank != 0) return;
  PeerHandle peer = command.peer;
  if (!command.address.empty()) {
    const Result<PeerHandle> dialed = peer_at(port, command.address);
    if (!dialed) {
      sink_(PeerLost{{}, command.address, dialed.code()});
      return;
    }
    peer = *dialed;
    Port::Dialed& entry = port.dialed.find(command.address)->second;
    if (!entry.up && entry.down_since_ns != 0) {
      // Lost, and being dialed again: whoever waits there learns it now, not after its deadline.
      sink_(PeerLost{peer, command.address, Code::unavailable});
      return;
    }
    if (!entry.up) {
      if (entry.unsent.size() < kUnsentMax) entry.unsent.push_back(command.bytes);
      return;
    }
  }
  // A message that cannot go now is sent again by the scheduler's timer.
  (void)port.engine->send(peer, command.bytes);
}

void Connector::handle(Port& port, const SetLead& command) {
  if (port.rank == 0) return;
  const Result<PeerHandle> lead = port.engine->connect(command.address);
  if (lead) {
    port.lead = *lead;
  } else {
    log(LogLevel::error, "worker.no_lead",
        {{"address", command.address},
         {"code", to_string(lead.code())},
         {"why", lead.status().to_string()},
         {"hint", remedy(lead.code())}});
  }
}

Result<PeerHandle> Connector::peer_at(Port& port, const std::string& address) {
  const auto known = port.dialed.find(address);
  if (known != port.dialed.end()) return known->second.peer;
  const Result<PeerHandle> peer = port.engine->connect(address);
  if (peer) port.dialed[address].peer = *peer;
  return peer;
}

}  // namespace kvl::worker
