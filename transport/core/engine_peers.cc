// The engine: peers, their control connections, and what is known when one is lost.
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "kvl/failure.h"
#include "kvl/log.h"
#include "transport/core/engine_impl.h"

namespace kvl {
namespace {

constexpr std::int64_t kMs = 1'000'000;
constexpr std::int64_t kFenceCheckNs = 50 * kMs;
constexpr std::size_t kUnwatchedMax = 4096;

bool exited(const UniqueFd& process) {
  pollfd wait{process.get(), POLLIN, 0};
  return process && ::poll(&wait, 1, 0) == 1;
}

}  // namespace

Peer* EngineImpl::new_peer(std::string address, bool dialer) {
  if (peers_.size() >= static_cast<std::size_t>(config_.peers_max)) return nullptr;
  const auto [id, peer] = peers_.insert();
  *peer = Peer{};
  peer->id = id;
  peer->address = std::move(address);
  peer->dialer = dialer;
  return peer;
}

Result<PeerHandle> EngineImpl::connect(std::string_view address) {
  if (address.rfind(':') == std::string_view::npos) {
    return Status{Code::invalid_argument, "peer address must be HOST:PORT"};
  }
  const Lock lock(mutex_);
  if (const auto known = dialed_.find(std::string(address)); known != dialed_.end()) {
    return PeerHandle{known->second};
  }
  Peer* const peer = new_peer(std::string(address), true);
  if (peer == nullptr) return Status{Code::exhausted, "peers_max"};
  dialed_[peer->address] = peer->id;
  peer->backoff_ns = config_.reconnect_ms * kMs;
  peer->notice_ns = clock_.now_ns() + config_.connect_timeout_ms * kMs;
  next_timer_ns_ = 0;  // dial at the next control step
  wake_control();
  return PeerHandle{peer->id};
}

Status EngineImpl::disconnect(PeerHandle handle) {
  const Lock lock(mutex_);
  Peer* const peer = peers_.find(handle.value);
  if (peer == nullptr) return {Code::not_found, "peer"};
  peer->leaving = true;
  peer->announced = false;
  if (peer->dialer) dialed_.erase(peer->address);
  if (peer->conn.value != 0) queue_message(*peer, control::encode(control::Type::bye));
  peer_lost(*peer, Code::aborted, "disconnected");
  return {};
}

Status EngineImpl::send(PeerHandle handle, std::span<const std::byte> message) {
  if (message.size() > kMessageBytesMax) return {Code::invalid_argument, "message too long"};
  const Lock lock(mutex_);
  Peer* const peer = peers_.find(handle.value);
  if (peer == nullptr) return {Code::not_found, "peer"};
  if (peer->state != Peer::State::up) return {Code::peer_lost, "the peer is not up"};
  queue_message(*peer, control::encode_user(message));
  return {};
}

Result<PeerInfo> EngineImpl::describe(PeerHandle handle) const {
  const Lock lock(mutex_);
  const Peer* const peer = peers_.find(handle.value);
  if (peer == nullptr) return Status{Code::not_found, "peer"};
  PeerInfo info{peer->address,
                peer->remote.id,
                peer->remote.epoch,
                peer->state == Peer::State::up,
                peer->keys.has_value(),
                peer->keys.has_value() && peer->keys->encrypt,
                {}};
  const int best = best_rank(*peer);
  std::vector<const Pair*> pairs;
  for (const Pair& pair : peer->pairs) pairs.push_back(&pair);
  std::stable_sort(pairs.begin(), pairs.end(),
                   [](const Pair* a, const Pair* b) { return a->rank < b->rank; });
  for (const Pair* pair : pairs) {
    const bool in_use = pair->state == Pair::State::up && pair->rank == best;
    std::string reason = pair->reason;
    if (in_use)
      reason.clear();
    else if (pair->state == Pair::State::up)
      reason = "a better one is up; this one is the reserve";
    else if (reason.empty())
      reason = "not connected yet";
    info.paths.push_back({rail_names_[pair->rail].transport, rail_names_[pair->rail].device, in_use,
                          std::move(reason), rails_[pair->rail].rail->device().caps});
  }
  for (const control::RailName& rail : rail_names_) {
    const bool paired = std::any_of(pairs.begin(), pairs.end(), [&](const Pair* pair) {
      return rail_names_[pair->rail].transport == rail.transport;
    });
    if (paired || peer->remote.rails.empty()) continue;
    const auto there = std::find_if(
        peer->remote.rails.begin(), peer->remote.rails.end(),
        [&](const control::RailName& other) { return other.transport == rail.transport; });
    info.paths.push_back(
        {rail.transport, rail.device, false,
         there == peer->remote.rails.end()
             ? "the peer does not have it"
             : "not in one domain: here " + rail.domain + ", there " + there->domain});
  }
  info.paths.insert(info.paths.end(), unusable_.begin(), unusable_.end());
  return info;
}

void EngineImpl::queue_message(Peer& peer, std::vector<std::byte> message) {
  if (peer.conn.value == 0) return;
  peer.sent_ns = clock_.now_ns();
  outbox_.emplace_back(peer.conn, std::move(message));
  has_outbox_.store(true, std::memory_order_seq_cst);
  wake_control();
}

Status EngineImpl::send_link_message(std::size_t rail, PeerId link_peer,
                                     std::span<const std::byte> message) {
  if (message.size() > control::kBlobBytesMax) return {Code::invalid_argument, "link message size"};
  const Lock lock(mutex_);
  const auto found = rails_[rail].peers.find(link_peer.value);
  Peer* peer = nullptr;
  Pair* pair = nullptr;
  if (found == rails_[rail].peers.end() || !alive(found->second, peer, pair)) {
    return {Code::not_found, "peer of the link"};
  }
  queue_message(*peer, control::encode(control::Type::link_message, ref_of(*pair), message));
  return {};
}

bool EngineImpl::alive(PairName name, Peer*& peer, Pair*& pair) {
  peer = peers_.find(name.peer);
  if (peer == nullptr || name.pair >= peer->pairs.size()) return false;
  pair = &peer->pairs[name.pair];
  return pair->incarnation == name.incarnation;
}

void EngineImpl::dial(Peer& peer) {
  const std::int64_t now_ns = clock_.now_ns();
  auto conn = world_.control->connect(peer.address);
  if (!conn) {
    peer.retry_ns = now_ns + peer.backoff_ns;
    peer.backoff_ns = std::min(peer.backoff_ns * 2, kBackoffMaxNs);
    if (conn.code() == Code::invalid_argument) peer.notice_ns = now_ns;  // will never work
    peer.down_code = conn.code();
    peer.down_why = conn.status().context();
    timer_at(std::min(peer.retry_ns, peer.notice_ns));
    return;
  }
  peer.conn = *conn;
  peer.state = Peer::State::connecting;
  peer.deadline_ns = now_ns + config_.connect_timeout_ms * kMs;
  peer.heard_ns = now_ns;
  connections_[conn->value] = peer.id;
  timer_at(peer.deadline_ns);
}

void EngineImpl::send_hello(Peer& peer) {
  const std::int32_t pid = world_.pid != 0 ? world_.pid : static_cast<std::int32_t>(::getpid());
  queue_message(peer, control::encode(control::Hello{id_, epoch_, address_, pid, rail_names_}));
}

void EngineImpl::on_control(ControlEvent& event) {
  using Kind = ControlEvent::Kind;
  if (event.kind == Kind::accepted) {
    Peer* const peer = new_peer(event.remote, false);
    if (peer == nullptr) {
      refusals_.add(Refusal::peers, event.remote);
      hang_up_.push_back(event.conn);
      return;
    }
    peer->conn = event.conn;
    peer->state = Peer::State::connecting;
    peer->heard_ns = clock_.now_ns();
    peer->deadline_ns = peer->heard_ns + config_.connect_timeout_ms * kMs;
    connections_[event.conn.value] = peer->id;
    timer_at(peer->deadline_ns);
    return;
  }
  const auto found = connections_.find(event.conn.value);
  Peer* const peer = found == connections_.end() ? nullptr : peers_.find(found->second);
  if (peer == nullptr || peer->conn != event.conn) return;
  if (event.kind == Kind::connected) {
    send_hello(*peer);
  } else if (event.kind == Kind::closed) {
    const bool refused = event.status.code() == Code::permission;
    if (refused && peer->dialer && !peer->announced) {
      peer->notice_ns = clock_.now_ns();  // trying again is no help before somebody has acted
    }
    peer_lost(*peer, refused ? Code::permission : Code::peer_lost, event.status.context());
  } else if (event.kind == Kind::message) {
    peer->heard_ns = clock_.now_ns();
    on_message(*peer, event.bytes);
  }
}

void EngineImpl::on_message(Peer& peer, std::span<const std::byte> message) {
  using control::Type;
  const auto malformed = [&](const char* why) { refuse(peer, Refusal::malformed, why); };
  if (message.empty()) return malformed("empty control message");
  const auto type = static_cast<Type>(message[0]);
  const auto body = message.subspan(1);
  const bool greeted = peer.state == Peer::State::opening || peer.state == Peer::State::up;
  if (greeted != (type != Type::hello)) {
    return refuse(peer, Refusal::out_of_place, "control message out of place");
  }
  switch (type) {
    case Type::hello:
      return on_hello(peer, body);
    case Type::rail_offer:
    case Type::rail_accept:
    case Type::rail_close:
    case Type::rail_closed:
    case Type::link_message: {
      const auto decoded = control::decode_pair(body);
      return decoded ? on_rail_message(peer, type, *decoded) : malformed("malformed rail message");
    }
    case Type::memory_add:
    case Type::memory_drop: {
      const auto handle = control::decode_memory(body);
      if (!handle) return malformed("malformed memory message");
      if (type == Type::memory_drop) return on_memory_drop(peer, *handle);
      if (peer.memories.size() >= static_cast<std::size_t>(config_.peer_memories_max)) {
        return refuse(peer, Refusal::memories, "more memories than peer_memories_max");
      }
      peer.memories[*handle].ways.resize(peer.pairs.size());
      return;
    }
    case Type::memory_export: {
      const auto decoded = control::decode_export(body);
      return decoded ? on_memory_export(peer, *decoded) : malformed("malformed memory export");
    }
    case Type::user: {
      EngineEvent event;
      event.kind = EngineEvent::Kind::message;
      event.peer = {peer.id};
      event.epoch = peer.remote.epoch;
      event.data.assign(body.begin(), body.end());
      announce(peer);  // the other side is up, so we are
      return emit(std::move(event));
    }
    case Type::heartbeat:
      return;
    case Type::bye:
      return peer_lost(peer, Code::peer_lost, "the peer has left", true);
  }
  malformed("unknown control message");
}

void EngineImpl::refuse(Peer& peer, Refusal refusal, const char* why) {
  refusals_.add(refusal, peer.address, why);
  peer_lost(peer, about(refusal).code, why);
}

void EngineImpl::on_hello(Peer& peer, std::span<const std::byte> body) {
  auto hello = control::decode_hello(body);
  if (!hello) {
    const bool version = hello.code() == Code::unsupported;
    return refuse(peer, version ? Refusal::other_version : Refusal::malformed,
                  hello.status().context());
  }
  peer.remote = std::move(*hello);
  const auth::SessionKeys* const keys = world_.control->session(peer.conn);
  peer.keys = keys != nullptr ? std::optional(*keys) : std::nullopt;
  world_.control->know(peer.conn);
  world_.control->limit(peer.conn, ControlNet::kMessageBytesMax);
  if (!peer.dialer) {
    peer.address = peer.remote.address;
    send_hello(peer);
  }
  peer.state = Peer::State::opening;
  peer.deadline_ns = clock_.now_ns() + config_.connect_timeout_ms * kMs;
  timer_at(peer.deadline_ns);
  make_pairs(peer);
  if (peer.pairs.empty()) {
    log(LogLevel::warning, "peer.no_common_transport",
        {{"peer", peer.address},
         {"code", to_string(Code::unsupported)},
         {"hint", "kvlane doctor PEER shows what each side has; compare transports and require"}});
    return peer_lost(peer, Code::unsupported, "no transport in common");
  }
  memories_.for_each([&](std::uint64_t handle, const MemoryState& memory) {
    if (memory.ready && memory.memory.access != Access::local) {
      queue_message(peer, control::encode_memory(control::Type::memory_add, handle));
    }
  });
  if (peer.dialer) {
    for (Pair& pair : peer.pairs) open_pair(peer, pair, {});
  }
}

// peer_up is shown when every pair has come up or been refused, so that the first transfer already
// takes the best way.
void EngineImpl::check_up(Peer& peer) {
  if (peer.state != Peer::State::opening) return;
  bool any = false, waiting = false;
  for (const Pair& pair : peer.pairs) {
    any |= pair.state == Pair::State::up;
    waiting |= !pair.resolved;
  }
  if (waiting && clock_.now_ns() < peer.deadline_ns) return;
  if (!any) {
    if (!waiting) {
      peer_lost(peer, Code::unavailable, "no rail could be joined");
    }
    return;
  }
  announce(peer);
}

void EngineImpl::announce(Peer& peer) {
  if (peer.state != Peer::State::opening) return;
  peer.state = Peer::State::up;
  peer.announced = true;
  peer.notice_ns = INT64_MAX;
  peer.path_rank = INT32_MAX;
  peer.worse_ns = 0;
  say_path(peer);
  peer.backoff_ns = config_.reconnect_ms * kMs;
  timer_at(clock_.now_ns() + config_.heartbeat_ms * kMs);
  wake_control();
  EngineEvent event;
  event.kind = EngineEvent::Kind::peer_up;
  event.peer = {peer.id};
  event.epoch = peer.remote.epoch;
  emit(std::move(event));
  kick(peer);
}

void EngineImpl::peer_lost(Peer& peer, Code code, const char* why, bool goodbye) {
  if (peer.state == Peer::State::closing || peer.state == Peer::State::waiting) {
    if (peer.state == Peer::State::waiting && peer.leaving) {
      peer.state = Peer::State::closing;
      check_closed(peer);
    }
    return;
  }
  if (peer.announced && goodbye) {
    peers_left_.add();
    log(LogLevel::info, "peer.left", {{"peer", peer.address}});
  } else if (peer.announced) {
    peers_lost_.add({to_string(code)}, {peer.address});
    log(LogLevel::warning, "peer.down",
        {{"peer", peer.address}, {"code", to_string(code)}, {"why", why}, {"hint", remedy(code)}});
  }
  peer.down_code = code;
  peer.down_why = why;
  peer.state = Peer::State::closing;
  hang_up_.push_back(peer.conn);
  connections_.erase(peer.conn.value);
  peer.conn = {};
  for (Pair& pair : peer.pairs) {
    if (pair.state == Pair::State::opening || pair.state == Pair::State::up) {
      close_pair(peer, pair, code, why);
    }
  }
  wake_control();
  check_closed(peer);
}

// Whether no byte of the peer's epoch can land here, now that our Links have let go of it.
bool EngineImpl::is_fenced(const Peer& peer) const {
  if (exited(peer.process)) return true;
  bool closed = true, lasting = false;
  for (const Pair& pair : peer.pairs) {
    const Fence fence = rails_[pair.rail].rail->device().fence;
    if (fence == Fence::immediate || fence == Fence::av_remove) continue;
    lasting = true;
    closed = closed && (pair.fenced || pair.remote_closed >= pair.incarnation);
  }
  if (!lasting) return true;
  // The fence is for the whole epoch: an earlier connection of it may have ended without proof.
  const bool earlier = unwatched_.contains(peer.remote.id) || unwatched_.size() >= kUnwatchedMax ||
                       std::ranges::any_of(unfenced_, [&peer](const Unfenced& waiting) {
                         return waiting.id == peer.remote.id;
                       });
  return closed && !earlier;
}

// All Links have let go: say so, then forget the peer or dial again.
void EngineImpl::check_closed(Peer& peer) {
  if (peer.state != Peer::State::closing || peer.links_open > 0) return;
  // Nothing can prove remote quiescence now: what is left ends as lost.
  const std::vector<std::uint64_t> left = peer.transfers;
  const bool fenced = is_fenced(peer);
  peer.late.clear();
  for (const std::uint64_t id : left) {
    TransferState* const transfer = transfers_.find(id);
    // Transfers that wait for a peer_up that is still to come keep waiting for their deadline.
    if (transfer == nullptr || (!peer.announced && !peer.leaving)) continue;
    transfer->peer_gone = true;
    end_transfer(*transfer, peer.down_code, 0);
  }
  if (!peer.leaving && peer.announced) {
    EngineEvent event;
    event.kind = EngineEvent::Kind::peer_down;
    event.code = peer.down_code;
    event.peer = {peer.id};
    event.epoch = peer.remote.epoch;
    event.fenced = fenced;
    if (!fenced && !peer.process) give_up_watching(peer.remote.id);
    if (!fenced && peer.process) await_exit(peer, event);
    emit(std::move(event));
  }
  peer.process.reset();
  peer.announced = false;
  if (!peer.dialer || peer.leaving) {
    peers_.erase(peer.id);
    return;
  }
  peer.state = Peer::State::waiting;
  peer.retry_ns = clock_.now_ns() + peer.backoff_ns;
  peer.backoff_ns = std::min(peer.backoff_ns * 2, kBackoffMaxNs);
  timer_at(peer.retry_ns);
  wake_control();
}

void EngineImpl::give_up_watching(const EngineId& id) {
  if (unwatched_.size() < kUnwatchedMax) unwatched_.insert(id);
}

// A process that is stopped and goes on is lost as often as that happens: one descriptor for all
// its losses, and bounds. What is dropped stays quarantined, as with a peer whose end nobody can
// see.
void EngineImpl::await_exit(Peer& peer, EngineEvent event) {
  constexpr std::size_t kLivesMax = 256, kLossesMax = 256;
  event.fenced = true;
  timer_at(clock_.now_ns() + kFenceCheckNs);
  const auto same = [&](const Unfenced& waiting) {
    return waiting.id == peer.remote.id && waiting.epoch == peer.remote.epoch;
  };
  auto found = std::ranges::find_if(unfenced_, same);
  if (found == unfenced_.end()) {
    if (unfenced_.size() >= kLivesMax) {
      give_up_watching(unfenced_.front().id);
      unfenced_.pop_front();
    }
    unfenced_.push_back({peer.remote.id, peer.remote.epoch, std::move(peer.process), {}});
    found = std::prev(unfenced_.end());
  }
  // A peer that we dial keeps its handle: one event says it all.
  std::erase_if(found->events, [&](const EngineEvent& e) { return e.peer == event.peer; });
  if (found->events.size() >= kLossesMax) found->events.pop_front();
  found->events.push_back(std::move(event));
}

// connect() has not led to a peer in time. The engine goes on trying.
void EngineImpl::say_unreachable(Peer& peer) {
  peer.notice_ns = INT64_MAX;
  const Code code = peer.down_code == Code::peer_lost ? Code::unavailable : peer.down_code;
  peers_unreachable_.add({to_string(code)}, {peer.address});
  // Secrets that differ have been told by control.refused, with the cause.
  if (code != Code::permission) {
    log(LogLevel::warning, "peer.unreachable",
        {{"peer", peer.address},
         {"code", to_string(code)},
         {"why", peer.down_why},
         {"hint", remedy(code)}});
  }
  for (const std::uint64_t id : std::vector<std::uint64_t>(peer.transfers)) {
    if (TransferState* const transfer = transfers_.find(id)) end_transfer(*transfer, code, 0);
  }
  EngineEvent event;
  event.kind = EngineEvent::Kind::peer_down;
  event.code = code;
  event.peer = {peer.id};
  emit(std::move(event));
}

void EngineImpl::peer_timers(std::int64_t now_ns) {
  next_timer_ns_ = INT64_MAX;
  std::vector<std::uint64_t> lost;
  peers_.for_each([&](std::uint64_t id, Peer& peer) {
    if (peer.dialer && !peer.announced) {
      if (now_ns >= peer.notice_ns)
        say_unreachable(peer);
      else
        timer_at(peer.notice_ns);
    }
    switch (peer.state) {
      case Peer::State::waiting:
        if (now_ns >= peer.retry_ns)
          dial(peer);
        else
          timer_at(peer.retry_ns);
        return;
      case Peer::State::connecting:
        if (now_ns >= peer.deadline_ns)
          lost.push_back(id);
        else
          timer_at(peer.deadline_ns);
        return;
      case Peer::State::opening:
        check_up(peer);
        if (peer.state == Peer::State::opening) {
          if (now_ns >= peer.deadline_ns)
            lost.push_back(id);
          else
            timer_at(peer.deadline_ns);
        }
        [[fallthrough]];
      case Peer::State::up:
        break;
      case Peer::State::closing:
        return;
    }
    if (now_ns - peer.heard_ns >= config_.peer_timeout_ms * kMs) {
      lost.push_back(id);
      return;
    }
    if (now_ns - peer.sent_ns >= config_.heartbeat_ms * kMs) {
      queue_message(peer, control::encode(control::Type::heartbeat));
    }
    watch_pairs(peer, now_ns);
    say_path(peer);
    timer_at(std::min(peer.sent_ns + config_.heartbeat_ms * kMs,
                      peer.heard_ns + config_.peer_timeout_ms * kMs));
    if (!peer.dialer) return;
    for (Pair& pair : peer.pairs) {
      if (pair.state != Pair::State::closed) continue;
      // The other side must have let go of the last attempt first.
      const bool both_closed = pair.remote_closed >= pair.incarnation;
      if (both_closed && now_ns >= pair.retry_ns)
        open_pair(peer, pair, {});
      else
        timer_at(std::max(pair.retry_ns, now_ns + kPairBackoffNs));
    }
  });
  for (const std::uint64_t id : lost) {
    Peer* const peer = peers_.find(id);
    if (peer == nullptr) continue;
    const bool silent = peer->state == Peer::State::up;
    if (peer->state == Peer::State::connecting && !peer->dialer) {
      refuse(*peer, Refusal::timed_out, "no hello in time");
      continue;
    }
    peer_lost(*peer, silent ? Code::peer_lost : Code::timed_out,
              silent ? "no heartbeat" : "not connected in time");
  }
  std::erase_if(unfenced_, [&](Unfenced& waiting) {
    if (!exited(waiting.process)) {
      timer_at(now_ns + kFenceCheckNs);
      return false;
    }
    for (EngineEvent& event : waiting.events) emit(std::move(event));
    return true;
  });
}

}  // namespace kvl
