// The engine: the pairs of rails between us and a peer.
//
// A pair is one rail of ours joined with one of the peer's. Both sides compute the same list of
// pairs from the two hellos; the dialer opens each. Every attempt has an incarnation. When a Link
// loses its peer, the engines tell each other: rail_close and rail_closed both mean "my Link has
// closed this incarnation, nothing of yours lands here any more".
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>

#include "kvl/failure.h"
#include "kvl/log.h"
#include "transport/base/wire.h"
#include "transport/core/engine_impl.h"

namespace kvl {
namespace {

constexpr std::int64_t kMs = 1'000'000;
constexpr std::int64_t kWorseNs = 500 * kMs;  // a worse path for so long is worth a warning
constexpr std::size_t kReasonBytesMax = 256;  // of a peer's reason to close a pair

// All pairs of rails of one transport, domain and nearness; the shorter side is used round robin.
template <typename Add>
void for_each_pair(const std::vector<control::RailName>& dialer,
                   const std::vector<control::RailName>& listener, Add&& add) {
  std::vector<bool> seen(dialer.size(), false);
  for (std::size_t i = 0; i < dialer.size(); ++i) {
    if (seen[i]) continue;
    const auto same = [&](const control::RailName& other) {
      return other.transport == dialer[i].transport && other.domain == dialer[i].domain &&
             (other.nearness == 0) == (dialer[i].nearness == 0);
    };
    std::vector<std::uint16_t> ours, theirs;
    for (std::size_t k = i; k < dialer.size(); ++k) {
      if (!same(dialer[k])) continue;
      seen[k] = true;
      ours.push_back(static_cast<std::uint16_t>(k));
    }
    for (std::size_t k = 0; k < listener.size(); ++k) {
      if (same(listener[k])) theirs.push_back(static_cast<std::uint16_t>(k));
    }
    if (theirs.empty()) continue;
    for (std::size_t k = 0; k < std::max(ours.size(), theirs.size()); ++k) {
      add(ours[k % ours.size()], theirs[k % theirs.size()]);
    }
  }
}

int open_pidfd(std::int32_t pid) {
#ifdef SYS_pidfd_open
  return static_cast<int>(::syscall(SYS_pidfd_open, pid, 0));
#else
  return -1;
#endif
}

}  // namespace

void EngineImpl::make_pairs(Peer& peer) {
  // Attempts are numbered on, so that a late message of an earlier epoch names none of these.
  std::uint32_t newest = 0;
  for (const Pair& pair : peer.pairs) newest = std::max(newest, pair.incarnation);
  peer.pairs.clear();
  peer.memories.clear();
  ++peer.version;
  const auto& dialer = peer.dialer ? rail_names_ : peer.remote.rails;
  const auto& listener = peer.dialer ? peer.remote.rails : rail_names_;
  for_each_pair(dialer, listener, [&](std::uint16_t d, std::uint16_t l) {
    Pair pair;
    pair.dialer_rail = d;
    pair.listener_rail = l;
    pair.rail = peer.dialer ? d : l;
    // A reserve comes after the near rails of its transport and before the next transport.
    const bool near = rail_names_[pair.rail].nearness == 0;
    pair.rank = rails_[pair.rail].rail->transport().rank() + (near ? 0 : 1);
    pair.backoff_ns = kPairBackoffNs;
    pair.incarnation = pair.remote_closed = newest;
    if (rails_[pair.rail].rail->device().fence == Fence::process_exit && !peer.process) {
      const std::int32_t pid = peer.remote.pid;
      peer.process.reset(world_.open_process ? world_.open_process(pid) : open_pidfd(pid));
    }
    peer.pairs.push_back(std::move(pair));
  });
}

Pair* EngineImpl::find_pair(Peer& peer, control::PairRef ref) {
  for (Pair& pair : peer.pairs) {
    if (pair.dialer_rail == ref.dialer_rail && pair.listener_rail == ref.listener_rail) {
      return &pair;
    }
  }
  return nullptr;
}

// What the Links of this attempt on a pair share; nothing without authentication.
std::optional<PeerSecurity> EngineImpl::security_of(const Peer& peer, const Pair& pair) const {
  if (!peer.keys) return std::nullopt;
  const auto name =
      WireWriter().put(pair.dialer_rail).put(pair.listener_rail).put(pair.incarnation).take();
  return PeerSecurity{crypto::expand(peer.keys->data, "kvlane pair", name).bytes,
                      peer.keys->encrypt};
}

// A path can die without a word: a switch between, a queue that is stuck. While the peer is heard
// and another path is up, one on which nothing ends is given up; its pieces go elsewhere.
void EngineImpl::watch_pairs(Peer& peer, std::int64_t now_ns) {
  const auto up = std::ranges::count(peer.pairs, Pair::State::up, &Pair::state);
  const bool heard = now_ns - peer.heard_ns < 2 * config_.heartbeat_ms * kMs;
  for (Pair& pair : peer.pairs) {
    if (pair.state != Pair::State::up) continue;
    const bool moved = pair.ended != pair.ended_before;
    pair.ended_before = pair.ended;
    if (up < 2 || !heard || moved || pair.inflight == 0 || !could_end(peer, pair)) {
      pair.still_ns = 0;
      continue;
    }
    if (pair.still_ns == 0) pair.still_ns = now_ns;
    const RailRate& rate = rails_[pair.rail].rate;
    const double due_ns = rate.bytes_per_ns() > 0 ? 4 * rate.finish_ns(0, 1) : 0;
    const auto limit_ns = std::max(static_cast<double>(config_.rail_stall_ms * kMs), due_ns);
    if (static_cast<double>(now_ns - pair.still_ns) < limit_ns) continue;
    close_pair(peer, pair, Code::timed_out, "nothing moves there, and the peer is heard");
  }
}

// Whether a piece on this pair waits for nothing but the path.
bool EngineImpl::could_end(const Peer& peer, const Pair& pair) {
  const auto index = static_cast<std::uint16_t>(&pair - peer.pairs.data());
  return std::ranges::any_of(peer.transfers, [&](std::uint64_t id) {
    const TransferState& transfer = *transfers_.find(id);
    if (transfer.posted == 0 || !transfer.request.after.ready()) return false;
    return std::ranges::any_of(transfer.pieces, [&](const Piece& piece) {
      return piece.state == Piece::State::posted && piece.pair == index &&
             piece.incarnation == pair.incarnation;
    });
  });
}

int EngineImpl::best_rank(const Peer& peer) {
  int best = INT32_MAX;
  for (const Pair& pair : peer.pairs) {
    if (pair.state == Pair::State::up) best = std::min(best, pair.rank);
  }
  return best;
}

// Bytes that change to a worse transport are no failure, and everything is slower: that is said
// loudly, once it has lasted. A peer that leaves closes its paths one after the other, and a path
// that only broke is soon there again.
void EngineImpl::say_path(Peer& peer) {
  const int best = best_rank(peer);
  if (peer.state != Peer::State::up || best == INT32_MAX) return;
  const std::int64_t now_ns = clock_.now_ns();
  if (best <= peer.path_rank) {
    peer.worse_ns = 0;
  } else if (peer.worse_ns == 0) {
    peer.worse_ns = now_ns;
  }
  if (best == peer.path_rank) return;
  if (best > peer.path_rank && now_ns - peer.worse_ns < kWorseNs) {
    return timer_at(peer.worse_ns + kWorseNs);
  }
  const auto pair = std::ranges::find_if(
      peer.pairs, [best](const Pair& p) { return p.state == Pair::State::up && p.rank == best; });
  const control::RailName& rail = rail_names_[pair->rail];
  const std::string name = rail.transport + (rail.nearness == 0 ? "" : " (far from the memory)");
  if (best > peer.path_rank) {
    peers_degraded_.add({peer.path, name}, {peer.address});
    log(LogLevel::warning, "peer.degraded",
        {{"peer", peer.address},
         {"code", to_string(Code::unavailable)},
         {"from", peer.path},
         {"to", name},
         {"hint",
          "every path of the better transport is lost; it is tried again. kvlane doctor PEER says "
          "what is wrong there; require= makes transfers fail instead"}});
  } else if (peer.path_rank != INT32_MAX) {
    log(LogLevel::info, "peer.improved",
        {{"peer", peer.address}, {"from", peer.path}, {"to", name}});
  }
  peer.path_rank = best;
  peer.path = name;
  peer.worse_ns = 0;
}

// Creates our Link's peer. The dialer has no remote offer yet; the listener accepts it at once.
void EngineImpl::open_pair(Peer& peer, Pair& pair, std::vector<std::byte> remote_offer) {
  pair.state = Pair::State::opening;
  pair.on_rail = true;
  pair.fenced = false;
  if (peer.dialer) ++pair.incarnation;
  // What an earlier attempt has under way ends on its own and does not count against this one.
  pair.inflight = 0;
  pair.queued = pair.deferred = false;
  pair.still_ns = 0;
  const PairName name = name_of(peer, pair);
  const PeerRole role = peer.dialer ? PeerRole::active : PeerRole::passive;
  ++peer.links_open;
  rails_[pair.rail].rail->run([this, name, role, rail = pair.rail,
                               security = security_of(peer, pair),
                               remote = std::move(remote_offer)](Link& link) {
    Result<PeerId> opened = link.open_peer(role);
    Status status = opened ? Status{} : opened.status();
    Blob offer;
    if (opened) {
      {
        // Before anything of this peer can happen: its messages and events must be found.
        const Lock lock(mutex_);
        rails_[rail].peers[opened->value] = name;
      }
      if (security) status = link.secure_peer(*opened, *security);
      if (status.ok()) {
        Result<Blob> made = link.offer(*opened);
        status = made ? Status{} : made.status();
        if (made) offer = std::move(*made);
      }
      if (status.ok() && role == PeerRole::passive) status = link.accept(*opened, remote);
    }
    on_pair_opened(name, opened ? *opened : PeerId{}, std::move(offer), status);
  });
}

void EngineImpl::on_pair_opened(PairName name, PeerId link_peer, std::vector<std::byte> offer,
                                Status status) {
  const Lock lock(mutex_);
  Peer* const peer = peers_.find(name.peer);
  if (peer == nullptr) return;
  if (link_peer.value == 0) --peer->links_open;
  Pair& pair = peer->pairs[name.pair];
  if (pair.incarnation != name.incarnation) return;
  pair.link_peer = link_peer;
  pair.on_rail = false;
  if (pair.state != Pair::State::opening) return close_pair(*peer, pair, pair.code, pair.reason);
  if (!status.ok()) return close_pair(*peer, pair, status.code(), status.to_string());
  queue_message(
      *peer, control::encode(peer->dialer ? control::Type::rail_offer : control::Type::rail_accept,
                             ref_of(pair), offer));
  if (!peer->dialer) export_all(*peer, pair);
}

void EngineImpl::accept_pair(Peer& peer, Pair& pair, std::vector<std::byte> remote_offer) {
  const PairName name = name_of(peer, pair);
  rails_[pair.rail].rail->run(
      [this, name, link_peer = pair.link_peer, offer = std::move(remote_offer)](Link& link) {
        const Status status = link.accept(link_peer, offer);
        if (status.ok()) return;
        const Lock lock(mutex_);
        Peer* found = nullptr;
        Pair* mine = nullptr;
        if (alive(name, found, mine) && mine->state == Pair::State::opening) {
          close_pair(*found, *mine, status.code(), status.to_string());
        }
      });
  export_all(peer, pair);
}

void EngineImpl::on_rail_message(Peer& peer, control::Type type,
                                 const control::PairMessage& message) {
  using control::Type;
  Pair* const pair = find_pair(peer, message.pair);
  if (pair == nullptr) {
    return refusals_.add(Refusal::out_of_place, peer.address, "message for a pair that is not");
  }
  const std::uint32_t incarnation = message.pair.incarnation;
  std::vector<std::byte> blob(message.blob.begin(), message.blob.end());
  switch (type) {
    case Type::rail_offer:
      // A newer attempt replaces whatever is left of an older one.
      if (peer.dialer || incarnation <= pair->incarnation) {
        return refusals_.add(Refusal::out_of_place, peer.address, "offer of an old attempt");
      }
      if (pair->state != Pair::State::closed) {
        // The old Link peer goes first; the dialer repeats its offer.
        if (pair->state != Pair::State::closing) close_pair(peer, *pair, Code::aborted, "replaced");
        return;
      }
      pair->incarnation = incarnation;
      return open_pair(peer, *pair, std::move(blob));
    case Type::rail_accept:
      if (!peer.dialer || incarnation != pair->incarnation || pair->state != Pair::State::opening ||
          pair->link_peer.value == 0) {
        return;
      }
      return accept_pair(peer, *pair, std::move(blob));
    case Type::rail_close:
    case Type::rail_closed: {
      on_remote_closed(peer, *pair, incarnation);
      if (incarnation != pair->incarnation || type == Type::rail_closed) return;
      const std::string why(reinterpret_cast<const char*>(blob.data()),
                            std::min(blob.size(), kReasonBytesMax));
      if (pair->state == Pair::State::opening || pair->state == Pair::State::up) {
        return close_pair(peer, *pair, Code::peer_lost, "closed by the peer: " + why);
      }
      return;
    }
    case Type::link_message:
      if (incarnation != pair->incarnation || pair->link_peer.value == 0) return;
      rails_[pair->rail].rail->run([link_peer = pair->link_peer, bytes = std::move(blob)](
                                       Link& link) { link.on_control(link_peer, bytes); });
      return;
    default:
      return;
  }
}

// Lets go of our Link's peer. The other side is told once that is done, which the Link says with
// its peer_down: until then bytes of ours may still land there, or theirs here.
void EngineImpl::close_pair(Peer& peer, Pair& pair, Code code, std::string reason) {
  stop_using(peer, pair, code, std::move(reason));
  if (pair.on_rail) return;  // on_pair_opened comes back here
  if (pair.link_peer.value == 0) return on_pair_closed(name_of(peer, pair), Code::ok);
  rails_[pair.rail].rail->run(
      [link_peer = pair.link_peer](Link& link) { link.close_peer(link_peer); });
}

// A Link has lost its peer by itself, or let go of it as it was told.
void EngineImpl::on_link_down(std::size_t index, const Event& event) {
  const auto found = rails_[index].peers.find(event.peer.value);
  if (found == rails_[index].peers.end()) return;
  const PairName name = found->second;
  rails_[index].peers.erase(found);
  Peer* const peer = peers_.find(name.peer);
  if (peer == nullptr) return;
  --peer->links_open;
  Pair& pair = peer->pairs[name.pair];
  pair.link_peer = {};
  if (pair.state != Pair::State::closing) {
    stop_using(*peer, pair, event.code, std::string(to_string(event.code)));
  }
  on_pair_closed(name, event.code);
}

void EngineImpl::stop_using(Peer& peer, Pair& pair, Code code, std::string reason) {
  const bool was_up = pair.state == Pair::State::up;
  const bool refused = pair.state == Pair::State::opening && code != Code::aborted;
  pair.code = code;
  pair.reason = std::move(reason);
  pair.state = Pair::State::closing;
  pair.resolved = true;
  ++peer.version;
  // With a peer that is lost its paths go, too: that is said and counted once, for the peer.
  // A leaving peer closes its Links before its goodbye is read: only its end is worth a warning.
  if (was_up && peer.state == Peer::State::up) {
    count(rails_[pair.rail].pairs_lost, code);
    log(LogLevel::info, "pair.down",
        {{"peer", peer.address},
         {"transport", rail_names_[pair.rail].transport},
         {"device", rail_names_[pair.rail].device},
         {"code", to_string(code)},
         {"why", pair.reason},
         {"hint",
          "transfers go on by another path, if there is one, and this one is tried again; look at "
          "the network between, and at kvlane doctor PEER"}});
  } else if (refused && peer.state != Peer::State::closing) {
    count(rails_[pair.rail].pairs_refused, code);
    log(LogLevel::info, "pair.refused",
        {{"peer", peer.address},
         {"transport", rail_names_[pair.rail].transport},
         {"device", rail_names_[pair.rail].device},
         {"code", to_string(code)},
         {"why", pair.reason},
         {"hint", remedy(code)}});
  }
  say_path(peer);
  const PairName name = name_of(peer, pair);
  for (auto& [handle, memory] : peer.memories) {
    if (name.pair < memory.ways.size()) memory.ways[name.pair] = {};
  }
}

// Our Link cannot be written by the peer through this pair any more (Fence permitting), nor does it
// write there. timed_out: a Link with Fence::process_exit has given up waiting for that.
void EngineImpl::on_pair_closed(PairName name, Code code) {
  Peer* const peer = peers_.find(name.peer);
  if (peer == nullptr || name.pair >= peer->pairs.size()) return;
  Pair& pair = peer->pairs[name.pair];
  if (pair.incarnation == name.incarnation) {
    // Where the device has no fence of its own, only the peer's rail_closed proves anything.
    const bool fences = rails_[pair.rail].rail->device().fence != Fence::none;
    pair.fenced = code == Code::ok || (fences && code != Code::timed_out);
  }
  if (pair.incarnation == name.incarnation && pair.state == Pair::State::closing) {
    const auto bytes = std::as_bytes(std::span(pair.reason));
    queue_message(
        *peer, control::encode(pair.remote_closed >= pair.incarnation ? control::Type::rail_closed
                                                                      : control::Type::rail_close,
                               ref_of(pair), bytes));
    pair.state = Pair::State::closed;
    pair.retry_ns = clock_.now_ns() + pair.backoff_ns;
    pair.backoff_ns = std::min(pair.backoff_ns * 2, kBackoffMaxNs);
    timer_at(pair.retry_ns);
  }
  check_closed(*peer);
  check_up(*peer);
}

void EngineImpl::on_remote_closed(Peer& peer, Pair& pair, std::uint32_t incarnation) {
  if (incarnation > pair.incarnation) return;
  pair.remote_closed = std::max(pair.remote_closed, incarnation);
  prove(peer, static_cast<std::uint16_t>(&pair - peer.pairs.data()), incarnation);
}

void EngineImpl::on_pair_up(PairName name) {
  Peer* peer = nullptr;
  Pair* pair = nullptr;
  if (!alive(name, peer, pair) || pair->state != Pair::State::opening) return;
  pair->state = Pair::State::up;
  pair->resolved = true;
  pair->reason.clear();
  pair->backoff_ns = kPairBackoffNs;
  ++peer->version;
  check_up(*peer);
  say_path(*peer);
  kick(*peer);
}

}  // namespace kvl
