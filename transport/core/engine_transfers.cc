// The engine: a transfer is cut into pieces, rails take pieces, lost pieces are posted again.
//
// A write piece whose rail was lost may still land. It is posted again at once (the bytes are the
// same), but the transfer does not end as ok before the other side has proven that the lost rail is
// closed. What cannot be proven is reported as quarantined.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "kvl/failure.h"
#include "kvl/log.h"
#include "transport/core/engine_impl.h"

namespace kvl {
namespace {

constexpr std::int64_t kMs = 1'000'000;
constexpr std::int64_t kTimeoutGraceNs = 500 * kMs;
constexpr std::ptrdiff_t kPiecesPerRail = 4;
constexpr std::size_t kLateProofsMax = 4096;  // of a peer; beyond, only its end proves
constexpr std::uint32_t kPieceBits = 24, kSlotBits = 16, kGenerationBits = 24;

Ticket ticket_of(std::uint64_t transfer, std::uint32_t piece) {
  const std::uint64_t slot = (transfer & 0xFFFFFFFFU) - 1;
  const std::uint64_t generation = (transfer >> 32) & ((1U << kGenerationBits) - 1);
  return {(std::uint64_t{piece} << (kSlotBits + kGenerationBits)) | (slot << kGenerationBits) |
          generation};
}

bool retryable(Code code) {
  return code == Code::unavailable || code == Code::peer_lost || code == Code::aborted;
}

}  // namespace

Result<TransferId> EngineImpl::submit(const Transfer& request) {
  if (request.note.size() > kTransferNoteBytesMax ||
      (request.direction == Direction::read && !request.note.empty()) ||
      (request.ops.empty() && request.note.empty()) || request.ops.size() > UINT32_MAX / 2) {
    return Status{Code::invalid_argument, "transfer: note or ops"};
  }
  const std::int64_t now_ns = clock_.now_ns();
  const Lock lock(mutex_);
  Peer* const peer = peers_.find(request.peer.value);
  if (peer == nullptr || peer->leaving) return Status{Code::not_found, "peer"};
  if (transfers_.size() >= static_cast<std::size_t>(config_.transfers_max)) {
    return Status{Code::exhausted, "transfers_max"};
  }
  for (const MemoryHandle handle : request.locals) {
    const MemoryState* const memory = memories_.find(handle.value);
    if (memory == nullptr || !memory->ready || memory->dropping) {
      return Status{Code::invalid_argument, "local memory handle"};
    }
  }
  if (peer->state == Peer::State::up) {
    for (const MemoryHandle handle : request.remotes) {
      if (!peer->memories.contains(handle.value)) {
        return Status{Code::not_found, "remote memory handle; the peer has not registered it"};
      }
    }
  }
  const auto [id, transfer] = transfers_.insert();
  transfer->reset();
  transfer->id = id;
  transfer->request = request;
  transfer->locals.assign(request.locals.begin(), request.locals.end());
  transfer->remotes.assign(request.remotes.begin(), request.remotes.end());
  if (const Status status = make_pieces(*peer, *transfer); !status.ok()) {
    transfers_.erase(id);
    return status;
  }
  const std::int64_t timeout_ms =
      request.timeout_ms > 0 ? request.timeout_ms : config_.transfer_timeout_ms;
  transfer->deadline_ns = now_ns + timeout_ms * kMs;
  if (!request.note.empty()) {
    const std::uint64_t sequence = ++peer->note_next;
    std::memcpy(transfer->note.data(), &sequence, sizeof(sequence));
    std::copy(request.note.begin(), request.note.end(), transfer->note.begin() + sizeof(sequence));
    transfer->note_bytes = static_cast<std::uint8_t>(sizeof(sequence) + request.note.size());
  }
  for (const MemoryHandle handle : transfer->locals) ++memories_.find(handle.value)->uses;
  const std::size_t slot = (id & 0xFFFFFFFFU) - 1;
  if (transfer_ids_.size() <= slot) transfer_ids_.resize(slot + 1);
  transfer_ids_[slot] = id;
  peer->transfers.push_back(id);
  if (transfer->deadline_ns < next_deadline_ns_) {
    next_deadline_ns_ = transfer->deadline_ns;
    // The control loop sleeps for its own timers at most; this deadline may be nearer.
    if (timeout_ms < config_.heartbeat_ms) wake_control();
  }
  kick(*peer);
  return TransferId{id};
}

// Over several rails a transfer is cut into a few pieces for each, so that all of them work on it
// and end at about the same time, but not into pieces that are not worth a rail of their own.
StripeLimits EngineImpl::stripe_limits(const Peer& peer, const Transfer& request) const {
  StripeLimits limits{static_cast<std::uint64_t>(config_.piece_bytes),
                      static_cast<std::uint32_t>(config_.piece_runs)};
  const int best = best_rank(peer);
  const auto rails = std::ranges::count_if(peer.pairs, [best](const Pair& pair) {
    return pair.state == Pair::State::up && pair.rank == best;
  });
  if (rails < 2) return limits;
  std::uint64_t total = 0;
  for (const PageOp& op : request.ops) total += op.total_bytes();
  const std::uint64_t share = total / static_cast<std::uint64_t>(rails * kPiecesPerRail) + 1;
  const auto least = static_cast<std::uint64_t>(config_.stripe_bytes);
  limits.piece_bytes = std::min(limits.piece_bytes, std::max(share, least));
  return limits;
}

Status EngineImpl::make_pieces(const Peer& peer, TransferState& transfer) {
  const Transfer& request = transfer.request;
  for (const PageOp& op : request.ops) {
    if (op.bytes == 0 || op.count == 0 || op.local_region >= request.locals.size() ||
        op.remote_region >= request.remotes.size()) {
      return {Code::invalid_argument, "page op: bytes, count or region"};
    }
  }
  cut(request.ops, stripe_limits(peer, request), transfer.ranges);
  transfer.pieces.resize(transfer.ranges.size());
  for (std::size_t i = 0; i < transfer.ranges.size(); ++i) {
    transfer.pieces[i] = Piece{transfer.ranges[i], Piece::State::queued, 0, 0};
    transfer.unposted_bytes += transfer.ranges[i].bytes;
  }
  // One piece carries the note itself; several are followed by a note on its own.
  transfer.note_apart = !request.note.empty() && transfer.pieces.size() != 1;
  if (transfer.note_apart) transfer.pieces.emplace_back();
  if (transfer.pieces.size() >= (1U << kPieceBits)) {
    transfer.reset();
    return {Code::invalid_argument, "transfer too large for piece_bytes"};
  }
  return {};
}

void EngineImpl::kick(Peer& peer) {
  if (peer.transfers.empty()) return;
  for (std::size_t i = 0; i < peer.pairs.size(); ++i) {
    if (peer.pairs[i].state == Pair::State::up) kick_pair(peer, static_cast<std::uint16_t>(i));
  }
}

void EngineImpl::kick_pair(Peer& peer, std::uint16_t index) {
  Pair& pair = peer.pairs[index];
  if (pair.queued || pair.inflight >= config_.pieces_inflight) return;
  pair.queued = true;
  RailState& rail = rails_[pair.rail];
  rail.ready.push_back({peer.id, index, pair.incarnation});
  rail.has_ready.store(true, std::memory_order_release);
  rail.rail->wake();
}

bool EngineImpl::has_work(std::size_t rail) {
  const Lock lock(mutex_);
  return !rails_[rail].ready.empty() && !rails_[rail].blocked;
}

std::size_t EngineImpl::exchange(std::size_t index, std::span<const Event> events,
                                 std::span<Post> posts) {
  RailState& rail = rails_[index];
  const Lock lock(mutex_);
  // One rail needs no rates: there is nothing to choose.
  if (rails_.size() > 1) exchange_ns_ = clock_.now_ns();
  for (const Event& event : events) {
    switch (event.kind) {
      case Event::Kind::batch:
        on_batch(index, event);
        break;
      case Event::Kind::note:
        on_note(index, event);
        break;
      case Event::Kind::peer_up:
        if (const auto found = rail.peers.find(event.peer.value); found != rail.peers.end()) {
          on_pair_up(found->second);
        }
        break;
      case Event::Kind::peer_down:
        on_link_down(index, event);
        break;
    }
  }
  rail.rate.settle(exchange_ns_);
  rail.blocked = false;
  std::size_t count = 0;
  // Each pair that is ready now gets its turn once; those with more work queue again.
  for (std::size_t turns = rail.ready.size(); turns > 0 && count < posts.size(); --turns) {
    const PairName name = rail.ready.front();
    rail.ready.pop_front();
    Peer* peer = nullptr;
    Pair* pair = nullptr;
    if (!alive(name, peer, pair)) continue;
    pair->queued = false;
    if (pair->state != Pair::State::up) continue;
    while (count < posts.size() && pair->inflight < config_.pieces_inflight &&
           next_post(*peer, name.pair, posts[count])) {
      ++count;
    }
    if (count == posts.size()) kick_pair(*peer, name.pair);
  }
  rail.has_ready.store(!rail.ready.empty(), std::memory_order_release);
  return count;
}

void EngineImpl::on_note(std::size_t index, const Event& event) {
  const auto found = rails_[index].peers.find(event.peer.value);
  Peer* peer = nullptr;
  Pair* pair = nullptr;
  std::uint64_t sequence = 0;
  if (found == rails_[index].peers.end() || !alive(found->second, peer, pair) ||
      event.note_bytes < sizeof(sequence)) {
    return;
  }
  std::memcpy(&sequence, event.note.data(), sizeof(sequence));
  if (!peer->notes.first_time(sequence)) return;
  rails_[index].notes.add();
  announce(*peer);
  EngineEvent out;
  out.kind = EngineEvent::Kind::note;
  out.peer = {peer->id};
  out.epoch = peer->remote.epoch;
  out.data.assign(event.note.begin() + sizeof(sequence), event.note.begin() + event.note_bytes);
  emit(std::move(out));
}

// The best transport that is up and reaches every region of the transfer. False: wait.
bool EngineImpl::choose_rank(const Peer& peer, TransferState& transfer) {
  if (transfer.rank_version == peer.version) return transfer.rank >= 0;
  transfer.rank_version = peer.version;
  look_for_rank(peer, transfer, transfer.request.avoid);
  if (transfer.rank < 0 && transfer.avoid != 0) look_for_rank(peer, transfer, 0);
  return transfer.rank >= 0;
}

void EngineImpl::look_for_rank(const Peer& peer, TransferState& transfer, RailSet avoid) {
  transfer.rank = -1;
  transfer.avoid = avoid;
  int waiting = INT32_MAX;
  for (std::size_t i = 0; i < peer.pairs.size(); ++i) {
    const Pair& pair = peer.pairs[i];
    if (pair.state != Pair::State::up || (rail_bit(pair.rail) & avoid) != 0) continue;
    const std::uint32_t needed = static_cast<std::uint32_t>(
        transfer.request.direction == Direction::write ? Cap::write : Cap::read);
    bool usable = (rails_[pair.rail].rail->device().caps & needed) != 0, pending = false;
    for (const MemoryHandle handle : transfer.locals) {
      usable = usable && memories_.find(handle.value)->ids[pair.rail].value != 0;
    }
    for (const MemoryHandle handle : transfer.remotes) {
      const auto memory = peer.memories.find(handle.value);
      const auto state =
          memory == peer.memories.end() ? PeerMemory::State::refused : memory->second.ways[i].state;
      usable = usable && state != PeerMemory::State::refused;
      pending = pending || state == PeerMemory::State::pending;
    }
    if (!usable) continue;
    if (pending)
      waiting = std::min(waiting, pair.rank);
    else if (transfer.rank < 0 || pair.rank < transfer.rank)
      transfer.rank = pair.rank;
  }
  // A better way is just being opened to this memory: it is worth the moment.
  if (waiting < transfer.rank) transfer.rank = -1;
}

// The ids of the regions on this pair. False: this pair cannot reach one of them.
bool EngineImpl::fill_table(Peer& peer, std::uint16_t index, TransferState& transfer) {
  if (transfer.tables.size() < peer.pairs.size()) transfer.tables.resize(peer.pairs.size());
  RegionTable& table = transfer.tables[index];
  const Pair& pair = peer.pairs[index];
  if (table.filled && table.incarnation == pair.incarnation) return true;
  table.locals.clear();
  table.remotes.clear();
  for (const MemoryHandle handle : transfer.locals) {
    table.locals.push_back(memories_.find(handle.value)->ids[pair.rail]);
    if (table.locals.back().value == 0) return false;
  }
  for (const MemoryHandle handle : transfer.remotes) {
    const auto memory = peer.memories.find(handle.value);
    if (memory == peer.memories.end() ||
        memory->second.ways[index].state != PeerMemory::State::ready) {
      return false;
    }
    table.remotes.push_back(memory->second.ways[index].id);
  }
  table.incarnation = pair.incarnation;
  table.filled = true;
  return true;
}

bool EngineImpl::next_post(Peer& peer, std::uint16_t index, Post& post) {
  Pair& pair = peer.pairs[index];
  for (const std::uint64_t id : peer.transfers) {
    TransferState& transfer = *transfers_.find(id);
    if (!transfer.has_work() || !choose_rank(peer, transfer) || transfer.rank != pair.rank ||
        (rail_bit(pair.rail) & transfer.avoid) != 0 || !fill_table(peer, index, transfer)) {
      continue;
    }
    const std::uint32_t number = transfer.again.empty() ? transfer.next : transfer.again.back();
    Piece& piece = transfer.pieces[number];
    if (others_are_sooner(peer, index, transfer, piece.range.bytes)) continue;
    if (transfer.again.empty()) {
      ++transfer.next;
    } else {
      transfer.again.pop_back();
    }
    piece.state = Piece::State::posted;
    piece.pair = index;
    piece.incarnation = pair.incarnation;
    transfer.rails |= rail_bit(pair.rail);
    ++transfer.posted;
    ++pair.inflight;
    transfer.unposted_bytes -= piece.range.bytes;
    piece_posted(peer, index, piece.range.bytes);
    const RegionTable& table = transfer.tables[index];
    const bool is_note = number == transfer.note_index();
    const bool with_note = transfer.note_bytes > 0 && (is_note || !transfer.note_apart);
    post.transfer = id;
    post.piece = number;
    post.batch =
        Batch{.ticket = ticket_of(id, number),
              .peer = pair.link_peer,
              .direction = transfer.request.direction,
              .ops = transfer.request.ops.subspan(piece.range.op_begin, piece.range.op_count),
              .begin = piece.range.begin,
              .end = piece.range.end,
              .locals = table.locals,
              .remotes = table.remotes,
              .after = transfer.request.after,
              .note = std::span(transfer.note).first(with_note ? transfer.note_bytes : 0)};
    return true;
  }
  return false;
}

// Whether the other rails that are as good would be done with the whole transfer before this one is
// with the piece: a slow rail must not be what a transfer waits for in the end. Of all rails the
// one that is soonest done with the piece never leaves it.
bool EngineImpl::others_are_sooner(Peer& peer, std::uint16_t index, TransferState& transfer,
                                   std::uint64_t bytes) {
  if (rails_.size() < 2 || bytes == 0) return false;
  const auto usable = [&](const Pair& pair) {
    return pair.state == Pair::State::up && pair.rank == transfer.rank &&
           (rail_bit(pair.rail) & transfer.avoid) == 0;
  };
  double unknown = 0;  // of a rail that has moved nothing: as fast as the fastest
  for (const Pair& pair : peer.pairs) {
    if (usable(pair)) unknown = std::max(unknown, rails_[pair.rail].rate.bytes_per_ns());
  }
  if (unknown == 0) unknown = 1;
  Pair& mine = peer.pairs[index];
  double work = static_cast<double>(transfer.unposted_bytes), rate = 0, soonest = INFINITY;
  std::uint16_t soonest_pair = index;
  for (const Pair& pair : peer.pairs) {
    const auto i = static_cast<std::uint16_t>(&pair - peer.pairs.data());
    if (pair.rail == mine.rail || !usable(pair) || !fill_table(peer, i, transfer)) continue;
    const RailRate& other = rails_[pair.rail].rate;
    work += static_cast<double>(other.loaded());
    rate += other.bytes_per_ns() > 0 ? other.bytes_per_ns() : unknown;
    const double finish_ns = other.finish_ns(bytes, unknown);
    if (finish_ns < soonest) soonest_pair = i;
    soonest = std::min(soonest, finish_ns);
  }
  if (soonest_pair == index) return false;
  const double here = rails_[mine.rail].rate.finish_ns(bytes, unknown);
  if (here <= std::max(soonest, work / rate)) return false;
  mine.deferred = true;
  kick_pair(peer, soonest_pair);
  return true;
}

// The rail has more to do now: those that left it the piece may be the sooner ones for the next.
void EngineImpl::piece_posted(Peer& peer, std::uint16_t index, std::uint64_t bytes) {
  if (rails_.size() < 2) return;
  rails_[peer.pairs[index].rail].rate.posted(bytes, exchange_ns_);
  for (Pair& pair : peer.pairs) {
    const auto i = static_cast<std::uint16_t>(&pair - peer.pairs.data());
    if (i == index || !pair.deferred) continue;
    pair.deferred = false;
    if (pair.state == Pair::State::up) kick_pair(peer, i);
  }
}

void EngineImpl::post_failed(std::size_t rail, const Post& post, Status status) {
  const Lock lock(mutex_);
  TransferState* const transfer = transfers_.find(post.transfer);
  if (transfer == nullptr) return;
  Piece& piece = transfer->pieces[post.piece];
  Peer* peer = peers_.find(transfer->request.peer.value);
  const bool same = peer != nullptr && piece.pair < peer->pairs.size() &&
                    peer->pairs[piece.pair].incarnation == piece.incarnation;
  const bool up = same && peer->pairs[piece.pair].state == Pair::State::up;
  --transfer->posted;
  transfer->unposted_bytes += piece.range.bytes;
  rails_[rail].rate.ended(piece.range.bytes, 0);
  piece.state = Piece::State::queued;
  if (same) --peer->pairs[piece.pair].inflight;
  if (status.code() == Code::exhausted) rails_[rail].blocked = true;
  const bool again = status.code() == Code::exhausted || !up;
  if (!transfer->ending && again) transfer->again.push_back(post.piece);
  if (!transfer->ending && !again) {
    count(rails_[rail].failures, status.code());
    end_transfer(*transfer, status.code(), kTimeoutGraceNs);
  } else {
    check_finished(*transfer);
  }
  if (peer != nullptr) kick(*peer);
}

void EngineImpl::on_batch(std::size_t rail, const Event& event) {
  const std::uint64_t slot = (event.ticket.value >> kGenerationBits) & ((1U << kSlotBits) - 1);
  const auto number =
      static_cast<std::uint32_t>(event.ticket.value >> (kSlotBits + kGenerationBits));
  if (slot >= transfer_ids_.size()) return;
  TransferState* const transfer = transfers_.find(transfer_ids_[slot]);
  if (transfer == nullptr || number >= transfer->pieces.size() ||
      ticket_of(transfer->id, number) != event.ticket ||
      transfer->pieces[number].state != Piece::State::posted) {
    log(LogLevel::error, "rail.unknown_batch",
        {{"rail", rail},
         {"transport", rail_names_[rail].transport},
         {"ticket", event.ticket.value},
         {"code", to_string(Code::internal)},
         {"hint", remedy(Code::internal)}});
    count(rails_[rail].failures, Code::internal);
    return;
  }
  if (event.code == Code::ok) {
    rails_[rail].pieces.add();
    rails_[rail].bytes.add(transfer->pieces[number].range.bytes);
  } else {
    count(rails_[rail].failures, event.code);
  }
  piece_ended(rail, *transfer, number, event.code, event.bytes_done);
}

void EngineImpl::piece_ended(std::size_t rail, TransferState& transfer, std::uint32_t number,
                             Code code, std::uint64_t bytes) {
  Piece& piece = transfer.pieces[number];
  Peer* const peer = transfer.peer_gone ? nullptr : peers_.find(transfer.request.peer.value);
  Pair* pair = nullptr;
  if (peer != nullptr && piece.pair < peer->pairs.size()) pair = &peer->pairs[piece.pair];
  const bool same = pair != nullptr && pair->incarnation == piece.incarnation;
  if (same) {
    --pair->inflight;
    ++pair->ended;
  }
  --transfer.posted;
  rails_[rail].rate.ended(piece.range.bytes, code == Code::ok ? piece.range.bytes : 0);
  if (code == Code::ok) {
    piece.state = Piece::State::done;
    ++transfer.done;
    transfer.bytes_done += piece.range.bytes;
  } else {
    piece.state = Piece::State::queued;
    transfer.unposted_bytes += piece.range.bytes;
    if (transfer.ending) transfer.bytes_done += bytes;
    const bool cancelled = code == Code::aborted && same && pair->state == Pair::State::up;
    const bool lost = code == Code::peer_lost || (code == Code::aborted && !cancelled);
    // Where the fence is the writer's exit, the writer is a CPU: ours has stopped with the event.
    const bool may_land = rails_[rail].rail->device().fence != Fence::process_exit;
    if (lost && may_land && transfer.request.direction == Direction::write) {
      const bool proven = pair != nullptr && pair->remote_closed >= piece.incarnation;
      if (transfer.peer_gone || pair == nullptr)
        transfer.quarantined = true;
      else if (!proven)
        transfer.unproven.push_back({piece.pair, piece.incarnation});
    }
    // Twice per piece is more than any honest sequence of lost rails needs.
    const bool again = retryable(code) && transfer.retries < 2 * transfer.pieces.size() + 16;
    if (!transfer.ending && again) {
      ++transfer.retries;
      retries_.add();
      transfer.again.push_back(number);
    } else if (!transfer.ending) {
      end_transfer(transfer, code, kTimeoutGraceNs);
      if (peer != nullptr) kick(*peer);
      return;
    }
  }
  // The piece's transfer may be gone after this; the pair has room for the next one.
  const std::uint16_t index = piece.pair;
  const bool kick_all = code != Code::ok || transfer.note_apart;
  check_finished(transfer);
  if (peer == nullptr || peer->transfers.empty()) return;
  if (same && pair->state == Pair::State::up) kick_pair(*peer, index);
  if (kick_all) kick(*peer);
}

void EngineImpl::cancel_posted(const TransferState& transfer) {
  const Peer* const peer = peers_.find(transfer.request.peer.value);
  if (peer == nullptr || transfer.posted == 0) return;
  for (std::uint32_t i = 0; i < transfer.pieces.size(); ++i) {
    const Piece& piece = transfer.pieces[i];
    if (piece.state != Piece::State::posted || piece.pair >= peer->pairs.size()) continue;
    rails_[peer->pairs[piece.pair].rail].rail->run(
        [ticket = ticket_of(transfer.id, i)](Link& link) {
          // not_found: it has ended meanwhile.
          [[maybe_unused]] const Status status = link.cancel(ticket);
        });
  }
}

void EngineImpl::end_transfer(TransferState& transfer, Code code, std::int64_t grace_ns) {
  if (transfer.peer_gone && !transfer.unproven.empty()) transfer.quarantined = true;
  if (!transfer.ending) {
    transfer.ending = true;
    transfer.code = code;
    transfer.give_up_ns = clock_.now_ns() + grace_ns;
    if (!transfer.peer_gone) cancel_posted(transfer);
  }
  if (check_finished(transfer)) return;
  next_deadline_ns_ = std::min(next_deadline_ns_, transfer.give_up_ns);
  wake_control();
}

Status EngineImpl::cancel(TransferId id, std::int64_t deadline_ms) {
  const Lock lock(mutex_);
  TransferState* const transfer = transfers_.find(id.value);
  if (transfer == nullptr) return {Code::not_found, "transfer"};
  if (transfer->ending) return {};
  end_transfer(*transfer, Code::aborted, std::max<std::int64_t>(deadline_ms, 0) * kMs);
  return {};
}

bool EngineImpl::check_finished(TransferState& transfer) {
  if (transfer.posted > 0) return false;
  const bool proven = transfer.unproven.empty();
  if (transfer.ending) {
    if (!proven && !transfer.quarantined) return false;
    if (proven && !transfer.quarantined && transfer.moved_all()) transfer.code = Code::ok;
  } else if (!transfer.moved_all() || !proven) {
    return false;
  }
  finish(transfer);
  return true;
}

void EngineImpl::finish(TransferState& transfer) {
  EngineEvent event;
  event.kind = EngineEvent::Kind::transfer;
  event.code = transfer.code;
  event.physical = transfer.quarantined ? Physical::quarantined : Physical::quiescent;
  event.peer = transfer.request.peer;
  event.transfer = {transfer.id};
  event.user = transfer.request.user;
  event.bytes = transfer.bytes_done;
  event.rails = transfer.rails;
  count(transfers_ended_, transfer.code);
  for (const MemoryHandle handle : transfer.locals) {
    if (MemoryState* const memory = memories_.find(handle.value)) --memory->uses;
  }
  if (Peer* const peer = peers_.find(transfer.request.peer.value)) {
    event.epoch = peer->remote.epoch;
    const auto found = std::find(peer->transfers.begin(), peer->transfers.end(), transfer.id);
    if (found != peer->transfers.end()) peer->transfers.erase(found);
    if (transfer.proof_late && peer->late.size() < kLateProofsMax) {
      peer->late.push_back({transfer.id, transfer.request.user, transfer.unproven});
    }
  }
  transfers_.erase(transfer.id);
  emit(std::move(event));
}

// The peer's Link has closed this incarnation: writes that were lost on it cannot land any more.
void EngineImpl::prove(Peer& peer, std::uint16_t pair, std::uint32_t incarnation) {
  const auto closed = [&](const Unproven& open) {
    return open.pair == pair && open.incarnation <= incarnation;
  };
  for (const std::uint64_t id : std::vector<std::uint64_t>(peer.transfers)) {
    TransferState* const transfer = transfers_.find(id);
    if (transfer == nullptr || transfer->unproven.empty()) continue;
    std::erase_if(transfer->unproven, closed);
    check_finished(*transfer);
  }
  for (LateProof& late : peer.late) {
    std::erase_if(late.unproven, closed);
    if (!late.unproven.empty()) continue;
    EngineEvent event;
    event.kind = EngineEvent::Kind::proven;
    event.peer = {peer.id};
    event.transfer = {late.transfer};
    event.user = late.user;
    event.epoch = peer.remote.epoch;
    emit(std::move(event));
  }
  std::erase_if(peer.late, [](const LateProof& late) { return late.unproven.empty(); });
  kick(peer);
}

void EngineImpl::transfer_timers(std::int64_t now_ns) {
  next_deadline_ns_ = INT64_MAX;
  std::vector<std::uint64_t> due;
  transfers_.for_each([&](std::uint64_t id, const TransferState& transfer) {
    const std::int64_t at = transfer.ending ? transfer.give_up_ns : transfer.deadline_ns;
    if (now_ns >= at)
      due.push_back(id);
    else
      next_deadline_ns_ = std::min(next_deadline_ns_, at);
  });
  for (const std::uint64_t id : due) {
    TransferState* const transfer = transfers_.find(id);
    if (transfer == nullptr) continue;
    if (!transfer->ending) {
      end_transfer(*transfer, Code::timed_out, kTimeoutGraceNs);
      continue;
    }
    Peer* const peer = peers_.find(transfer->request.peer.value);
    if (transfer->posted > 0 && !transfer->pairs_closed && peer != nullptr) {
      // The hard stop: the Links give the local bytes back; the remote side has to prove its own.
      transfer->pairs_closed = true;
      for (const Piece& piece : transfer->pieces) {
        if (piece.state != Piece::State::posted || piece.pair >= peer->pairs.size()) continue;
        Pair& pair = peer->pairs[piece.pair];
        if (pair.incarnation != piece.incarnation || pair.state != Pair::State::up) continue;
        close_pair(*peer, pair, Code::timed_out, "a transfer did not end in time");
      }
    } else if (transfer->posted == 0) {
      transfer->proof_late = !transfer->quarantined;
      transfer->quarantined = true;
      check_finished(*transfer);
      continue;
    }
    transfer->give_up_ns = now_ns + kTimeoutGraceNs;
    next_deadline_ns_ = std::min(next_deadline_ns_, transfer->give_up_ns);
  }
}

}  // namespace kvl
