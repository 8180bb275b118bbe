// Where UCX has no remote memory access: runs as active messages. The target's CPU checks each and
// copies it, so that nothing is written there that was not exported to this very peer.
//
// Not by UCX's own emulation of puts and gets: its target takes any address, and ends its process
// when the peer of a put dies before the acknowledgement is out (1.13 to 1.20).
#include <algorithm>
#include <cstring>

#include "transport/base/crypto.h"
#include "transport/ucx/ucx_link.h"

namespace kvl::ucx {

UcxLink::Posted UcxLink::post_run(Peer& peer, std::uint32_t number, RunHeader header,
                                  std::span<const std::byte> data) {
  header.to_peer = peer.remote.peer;
  header.to_secret = peer.remote.secret;
  headers_[number] = header;
  ucp_request_param_t params = params_of(number);
  params.op_attr_mask |= UCP_OP_ATTR_FIELD_FLAGS | UCP_OP_ATTR_FIELD_MEMORY_TYPE;
  params.flags = UCP_AM_SEND_FLAG_EAGER;
  params.memory_type = UCS_MEMORY_TYPE_HOST;
  return outcome(api().am_send_nbx(peer.ep, kRunId, &headers_[number], sizeof(RunHeader),
                                   data.data(), data.size(), &params),
                 peer, number);
}

// A write, or the request of a read: its answer brings the bytes.
UcxLink::Posted UcxLink::post_copy(Peer& peer, std::uint32_t number, const RemoteName& remote,
                                   std::uint64_t offset, std::byte* data) {
  Operation& operation = operations_[number];
  RunHeader header;
  header.memory = remote.base;
  header.offset = offset;
  header.bytes = operation.bytes;
  if (operation.kind == Operation::Kind::get) {
    header.type = RunType::fetch;
    header.cookie = operation.cookie;
    operation.local = data;
    ask(peer, operation);
    return post_run(peer, number, header, {});
  }
  header.type = RunType::write;
  header.cookie = batches_[operation.batch].cookie;
  ++peer.writes_sent;
  const Posted posted = post_run(peer, number, header, {data, header.bytes});
  if (posted != Posted::yes) --peer.writes_sent;
  return posted;
}

// Its answer says that all writes so far are in place, or why one of this batch is not.
UcxLink::Posted UcxLink::post_fence(Peer& peer, std::uint32_t number, std::uint32_t batch) {
  RunHeader header;
  header.type = RunType::fence;
  header.cookie = operations_[number].cookie;
  header.memory = batches_[batch].cookie;
  header.offset = peer.writes_sent;
  ask(peer, operations_[number]);
  return post_run(peer, number, header, {});
}

void UcxLink::ask(Peer& peer, Operation& operation) {
  operation.waits = true;
  ++peer.asked;
}

// From inside UCX, and from anybody who has our worker's address.
ucs_status_t UcxLink::on_run(void* link, const void* header, std::size_t header_bytes, void* data,
                             std::size_t bytes, const ucp_am_recv_param_t* param) {
  UcxLink& self = *static_cast<UcxLink*>(link);
  RunHeader run;
  const bool here = (param->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV) == 0;
  if (!here || !decode({static_cast<const std::byte*>(header), header_bytes}, bytes, run)) {
    self.strangers_[static_cast<std::size_t>(Stranger::malformed)].add();
    return UCS_OK;
  }
  Peer* const peer = self.find_peer({run.to_peer});
  if (peer == nullptr || !crypto::equal(peer->token.secret, run.to_secret)) {
    self.strangers_[static_cast<std::size_t>(Stranger::unknown_token)].add();
    return UCS_OK;
  }
  peer->active = true;
  if (peer->state != PeerState::connecting && peer->state != PeerState::up) return UCS_OK;
  const std::span<const std::byte> content(static_cast<const std::byte*>(data), bytes);
  switch (run.type) {
    case RunType::write:
      self.place(*peer, run, content);
      break;
    case RunType::fetch:
    case RunType::fence:
      self.take_question(*peer, run);
      break;
    case RunType::fetched:
    case RunType::fenced:
      self.take_answer(*peer, run, content);
      break;
  }
  return UCS_OK;
}

void UcxLink::take_question(Peer& peer, const RunHeader& run) {
  const std::uint64_t bytes = run.type == RunType::fetch ? run.bytes : 0;
  if (peer.answers.push({run.type, run.cookie, run.memory, run.offset, bytes, 0})) return;
  peer.flooded = true;
}

void UcxLink::place(Peer& peer, const RunHeader& run, std::span<const std::byte> data) {
  ++peer.writes_seen;
  const Status status =
      memory_.reach({run.memory}, peer.id.value, Access::remote_write, run.offset, run.bytes,
                    [&](LocalMemory& entry) {
                      std::memcpy(entry.memory.data + run.offset, data.data(), data.size());
                    });
  if (status.ok()) return;
  refused_runs_.add();
  const auto known = std::ranges::find(peer.refused, run.cookie, &RefusedBatch::cookie);
  if (known != peer.refused.end()) return;
  if (peer.refused.size() == kAnswersMax) {
    peer.flooded = true;
    return;
  }
  peer.refused.push_back({run.cookie, status.code()});
}

// Bytes of a read, or the end of what we asked for. What does not fit is a hostile peer's.
void UcxLink::take_answer(Peer& peer, const RunHeader& run, std::span<const std::byte> data) {
  const auto number = static_cast<std::uint32_t>(run.cookie & kSlotMask);
  const bool known = number < operations_.size() && operations_[number].used &&
                     operations_[number].cookie == run.cookie && operations_[number].waits &&
                     operations_[number].peer == peer.id.value;
  const auto kind = run.type == RunType::fetched ? Operation::Kind::get : Operation::Kind::flush;
  if (!known || operations_[number].kind != kind) {
    strangers_[static_cast<std::size_t>(Stranger::malformed)].add();
    return;
  }
  Operation& operation = operations_[number];
  if (run.code == Code::ok && kind == Operation::Kind::get) {
    if (run.offset != operation.received || run.bytes > operation.bytes - operation.received) {
      strangers_[static_cast<std::size_t>(Stranger::malformed)].add();
      return;
    }
    std::memcpy(operation.local + run.offset, data.data(), data.size());
    operation.received += run.bytes;
    if (operation.received < operation.bytes) return;
  }
  operation.code = run.code;
  operation.waits = false;
  --peer.asked;
  if (operation.sent) operations_.push(completed_, number);
}

// The order of runs is UCX's to keep; here they are only counted.
bool UcxLink::answerable(Peer& peer) {
  if (peer.answers.empty()) return false;
  const Answer& next = peer.answers.front();
  return next.type != RunType::fence || peer.writes_seen >= next.offset;
}

// What peers have asked for, in turn.
void UcxLink::answer(Peer& peer, std::uint32_t& budget) {
  while (answerable(peer) && budget > 0 && !operations_.full()) {
    Answer& next = peer.answers.front();
    const Posted posted =
        next.type == RunType::fence ? answer_fence(peer, next) : answer_fetch(peer, next);
    if (posted != Posted::yes) return;
    --budget;
    if (next.done == next.bytes) peer.answers.pop();
  }
}

UcxLink::Posted UcxLink::answer_fence(Peer& peer, const Answer& next) {
  RunHeader header;
  header.type = RunType::fenced;
  header.cookie = next.cookie;
  const auto refused = std::ranges::find(peer.refused, next.memory, &RefusedBatch::cookie);
  if (refused != peer.refused.end()) header.code = refused->code;
  const std::uint32_t number = take_operation(Operation::Kind::answer, peer, kNoSlot);
  const Posted posted = post_run(peer, number, header, {});
  if (posted == Posted::yes && refused != peer.refused.end()) peer.refused.erase(refused);
  return posted;
}

UcxLink::Posted UcxLink::answer_fetch(Peer& peer, Answer& next) {
  RunHeader header;
  header.type = RunType::fetched;
  header.cookie = next.cookie;
  header.offset = next.done;
  std::span<const std::byte> data;
  const MemoryId memory{next.memory};
  const Status status = memory_.reach(memory, peer.id.value, Access::remote_read, next.offset,
                                      next.bytes, [&](LocalMemory& entry) {
                                        ++entry.uses;  // until the answer is out
                                        const std::uint64_t left = next.bytes - next.done;
                                        data = {entry.memory.data + next.offset + next.done,
                                                std::min<std::uint64_t>(left, kCopyBytes)};
                                      });
  const std::uint32_t number = take_operation(Operation::Kind::answer, peer, kNoSlot);
  if (status.ok()) operations_[number].memory = memory;
  header.code = status.code();
  header.bytes = data.size();
  const Posted posted = post_run(peer, number, header, data);
  if (posted == Posted::again && status.ok()) memory_.release(std::span(&memory, 1));
  if (!status.ok()) refused_runs_.add();
  if (posted == Posted::yes) next.done = status.ok() ? next.done + data.size() : next.bytes;
  return posted;
}

// The endpoint is gone, and with it every answer that has not come.
void UcxLink::give_up_answers(Peer& peer) {
  for (std::uint32_t i = 0; i < operations_.size(); ++i) {
    Operation& operation = operations_[i];
    if (!operation.used || operation.peer != peer.id.value || !operation.waits) continue;
    operation.waits = false;
    --peer.asked;
    if (operation.sent) complete(i, UCS_ERR_CANCELED);
  }
}

}  // namespace kvl::ucx
