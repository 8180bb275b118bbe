// How peers meet and lanes come up: offers, dialing, greetings.
#include <sys/epoll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "kvl/log.h"
#include "transport/tcp/tcp_greeting.h"
#include "transport/tcp/tcp_link.h"
#include "transport/tcp/tcp_socket.h"

namespace kvl::tcp {
namespace {

constexpr std::size_t kStrangersMax = 256;
constexpr int kAcceptsPerPoll = 64;
constexpr std::int64_t kMs = 1'000'000;
constexpr std::int64_t kPauseMinNs = 20 * kMs;
constexpr std::int64_t kPauseMaxNs = 1000 * kMs;
constexpr std::int64_t kAttemptMinNs = 250 * kMs;
constexpr std::int64_t kAcceptPauseNs = 100 * kMs;

}  // namespace

Result<PeerId> TcpLink::open_peer(PeerRole role) {
  auto token = random_token();
  if (!token) return token.status();
  const auto [id, peer] = peers_.insert();
  *peer = Peer{};
  peer->id = id;
  peer->role = role;
  peer->token = *token;
  peer->deadline_ns = now() + config_.connect_timeout_ms * kMs;
  set_timer(peer->deadline_ns);
  return PeerId{id};
}

Status TcpLink::secure_peer(PeerId id, const PeerSecurity& security) {
  Peer* const peer = peers_.find(id.value);
  if (peer == nullptr || peer->offered) {
    return {Code::invalid_argument, "secure an unknown peer, or after its offer"};
  }
  peer->security = security;
  return {};
}

Result<Blob> TcpLink::offer(PeerId id) {
  Peer* const peer = peers_.find(id.value);
  if (peer == nullptr) return Status{Code::invalid_argument, "offer for an unknown peer"};
  peer->offered = true;
  Offer offer;
  offer.token = peer->token;
  offer.host = host_;
  offer.lanes = static_cast<std::uint16_t>(config_.lanes);
  offer.addresses = bound_.any() ? offered_addresses(config_, bound_.port()) : std::vector{bound_};
  return encode(offer);
}

Status TcpLink::accept(PeerId id, std::span<const std::byte> remote_offer) {
  Peer* const peer = peers_.find(id.value);
  if (peer == nullptr || peer->closing || peer->accepted) {
    return {Code::invalid_argument, "accept for an unknown peer, or twice"};
  }
  auto offer = decode_offer(remote_offer);
  if (!offer) return offer.status();
  std::vector<SocketAddress> addresses = dial_order(*offer, host_);
  if (peer->role == PeerRole::active && addresses.empty()) {
    return {Code::unavailable, "the peer offers no address that can be reached from here"};
  }
  peer->accepted = true;
  peer->remote_token = offer->token;
  peer->same_host = same_token(offer->host, host_);
  peer->addresses = std::move(addresses);
  peer->lanes.resize(std::min<std::size_t>(offer->lanes, static_cast<std::size_t>(config_.lanes)));
  peer->deadline_ns = now() + config_.connect_timeout_ms * kMs;
  set_timer(peer->deadline_ns);
  if (peer->role == PeerRole::active) {
    for (std::uint32_t i = 0; i < peer->lanes.size(); ++i) dial_lane(*peer, i);
  } else {
    // The dialer may have been faster than the control channel.
    lanes_.for_each([&](std::uint64_t, std::unique_ptr<Lane>& lane) {
      if (lane->phase == Lane::Phase::parked && lane->peer == peer->id) welcome_lane(*peer, *lane);
    });
  }
  return {};
}

Lane* TcpLink::new_lane(UniqueFd fd, Lane::Phase phase, std::int64_t deadline_ns) {
  const auto [id, held] = lanes_.insert();
  epoll_event event{};
  event.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET;
  event.data.u64 = id;
  if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd.get(), &event) != 0) {
    lanes_.erase(id);
    return nullptr;
  }
  *held = std::make_unique<Lane>(core_, std::move(fd), id);
  (*held)->phase = phase;
  (*held)->deadline_ns = deadline_ns;
  set_timer(deadline_ns);
  return held->get();
}

void TcpLink::dial_lane(Peer& peer, std::uint32_t index) {
  LaneSlot& slot = peer.lanes[index];
  slot.redial_ns = INT64_MAX;
  slot.incarnation = std::max(slot.incarnation, slot.fenced) + 1;
  const SocketAddress& to = peer.addresses[slot.candidate % peer.addresses.size()];
  auto fd = dial(to, config_);
  if (!fd) {
    const bool refused = fd.status().os_error() == ECONNREFUSED;
    tell_dial_failed(to, refused ? LaneFault::refused : LaneFault::unreachable,
                     fd.status().os_error());
    dial_failed(peer, index, refused);
    return;
  }
  const auto tries = static_cast<std::int64_t>(std::min<std::size_t>(peer.addresses.size(), 4));
  const std::int64_t patience = std::max(config_.connect_timeout_ms * kMs / tries, kAttemptMinNs);
  Lane* const lane = new_lane(std::move(*fd), Lane::Phase::dialing, now() + patience);
  if (lane == nullptr) {
    tell_dial_failed(to, LaneFault::unreachable, errno);
    dial_failed(peer, index, false);
    return;
  }
  lane->dialed = true;
  lane->peer = peer.id;
  lane->index = index;
  lane->incarnation = slot.incarnation;
  slot.lane = lane;
}

// The slot's attempt is over and its lane is gone: another address, or the same ones after a pause.
void TcpLink::dial_failed(Peer& peer, std::uint32_t index, bool refused) {
  LaneSlot& slot = peer.lanes[index];
  slot.lane = nullptr;
  ++slot.candidate;
  slot.refused = refused ? slot.refused + 1 : 0;
  if (peer.up && peer.open_lanes == 0 && slot.refused >= peer.addresses.size()) {
    // Its host answers that nobody listens there any more: the process is gone.
    end_peer(peer, Code::peer_lost, Code::peer_lost, false);
    return;
  }
  std::int64_t pause = 0;
  if (slot.candidate % peer.addresses.size() == 0) {
    slot.pause_ns = std::clamp(slot.pause_ns * 2, kPauseMinNs, kPauseMaxNs);
    pause = slot.pause_ns;
  }
  slot.redial_ns = now() + pause;
  set_timer(slot.redial_ns);
}

void TcpLink::accept_lanes() {
  for (int i = 0; i < kAcceptsPerPoll; ++i) {
    UniqueFd fd(::accept4(listener_.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (!fd) {
      if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS) {
        // The listener would stay readable: look away for a while.
        log(LogLevel::warning, "tcp.accept_paused",
            {{"code", to_string(Code::exhausted)},
             {"why", std::strerror(errno)},
             {"hint", "raise the limit of open files (ulimit -n, LimitNOFILE=)"}});
        pause_accepting(true);
        accept_again_ns_ = now() + kAcceptPauseNs;
        set_timer(accept_again_ns_);
      }
      return;
    }
    if (strangers_ >= kStrangersMax) {
      const LaneFaultInfo& info = about(LaneFault::crowded);
      core_.counters.greetings_refused[static_cast<std::size_t>(LaneFault::crowded)].add();
      log(LogLevel::warning, "tcp.greeting_refused",
          {{"from", remote_text(fd.get())},
           {"code", to_string(info.code)},
           {"cause", info.cause},
           {"hint", info.hint}});
      continue;
    }
    if (Lane* const lane = new_lane(std::move(fd), Lane::Phase::greeting,
                                    now() + config_.connect_timeout_ms * kMs)) {
      ++strangers_;
      on_greeting_ready(*lane);
    }
  }
}

void TcpLink::pause_accepting(bool pause) {
  epoll_event event{};
  event.events = pause ? 0U : static_cast<std::uint32_t>(EPOLLIN);
  ::epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, listener_.get(), &event);
}

void TcpLink::on_greeting_ready(Lane& lane) {
  if (lane.phase == Lane::Phase::dialing) {
    int error = 0;
    socklen_t bytes = sizeof(error);
    ::getsockopt(lane.fd(), SOL_SOCKET, SO_ERROR, &error, &bytes);
    sockaddr_storage there{};
    socklen_t there_bytes = sizeof(there);
    if (error == 0 &&
        ::getpeername(lane.fd(), reinterpret_cast<sockaddr*>(&there), &there_bytes) != 0) {
      return;  // still connecting
    }
    Peer& peer = *peers_.find(lane.peer);
    if (error != 0 || !send_greeting(lane, GreetingKind::hello, peer.remote_token)) {
      fail_greeting(lane,
                    error == ECONNREFUSED ? LaneFault::refused
                    : error != 0          ? LaneFault::unreachable
                                          : LaneFault::closed,
                    error);
      return;
    }
    lane.phase = Lane::Phase::greeting;
    lane.deadline_ns = std::min(peer.deadline_ns, now() + config_.connect_timeout_ms * kMs);
    set_timer(lane.deadline_ns);
  }
  if (lane.phase == Lane::Phase::parked) {
    std::byte one{};
    const ssize_t n = ::recv(lane.fd(), &one, 1, MSG_PEEK | MSG_DONTWAIT);
    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) {
      fail_greeting(lane, LaneFault::closed);
    }
    return;  // what it says next is read when it is open
  }
  const std::size_t wanted = lane.greeting.size() - lane.greeting_bytes;
  const ssize_t n =
      ::recv(lane.fd(), lane.greeting.data() + lane.greeting_bytes, wanted, MSG_DONTWAIT);
  if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) {
    fail_greeting(lane, LaneFault::closed);
    return;
  }
  if (n > 0) lane.greeting_bytes += static_cast<std::size_t>(n);
  if (lane.greeting_bytes < lane.greeting.size()) return;
  const auto greeting = read_wire<Greeting>(lane.greeting.data());
  const GreetingKind wanted_kind = lane.dialed ? GreetingKind::welcome : GreetingKind::hello;
  if (greeting.magic != kGreetingMagic || greeting.version != kWireVersion ||
      greeting.kind != wanted_kind || greeting.batches_inflight_max == 0 ||
      greeting.batches_inflight_max > kBatchesInflightMax) {
    fail_greeting(lane, LaneFault::malformed);
    return;
  }
  lane.peer_inflight_max = greeting.batches_inflight_max;
  if (lane.dialed) {
    on_welcome(lane, greeting);
  } else {
    on_hello(lane, greeting);
  }
}

bool TcpLink::proven(const Peer& peer, const Lane& lane, const Greeting& greeting) const {
  if (!peer.security) return true;
  return crypto::equal(greeting.proof, prove_greeting(peer.security->key, greeting, lane.nonce));
}

bool TcpLink::send_greeting(Lane& lane, GreetingKind kind, const Token& token) {
  const Peer& peer = *peers_.find(lane.peer);
  Greeting greeting;
  greeting.kind = kind;
  greeting.token = token;
  greeting.lane = lane.index;
  greeting.lanes = static_cast<std::uint32_t>(peer.lanes.size());
  greeting.incarnation = lane.incarnation;
  greeting.batches_inflight_max = device_.limits.batches_inflight_max;
  if (peer.security) {
    crypto::random(lane.nonce);
    greeting.nonce = lane.nonce;
    // A welcome answers one hello: its proof is about both.
    const Nonce heard = lane.dialed ? Nonce{} : read_wire<Greeting>(lane.greeting.data()).nonce;
    greeting.proof = prove_greeting(peer.security->key, greeting, heard);
  }
  // The first bytes of a connection always fit its buffer.
  return ::send(lane.fd(), &greeting, sizeof(greeting), MSG_NOSIGNAL | MSG_DONTWAIT) ==
         static_cast<ssize_t>(sizeof(greeting));
}

void TcpLink::on_hello(Lane& lane, const Greeting& hello) {
  Peer* found = nullptr;
  peers_.for_each([&](std::uint64_t, Peer& peer) {
    if (peer.role == PeerRole::passive && peer.offered && !peer.closing &&
        same_token(peer.token, hello.token)) {
      found = &peer;
    }
  });
  if (found == nullptr) return fail_greeting(lane, LaneFault::unknown_token);
  if (hello.lane >= kLanesMax) return fail_greeting(lane, LaneFault::malformed);
  if (!proven(*found, lane, hello)) return fail_greeting(lane, LaneFault::wrong_proof);
  lane.peer = found->id;
  lane.index = hello.lane;
  lane.incarnation = hello.incarnation;
  if (found->accepted) {
    welcome_lane(*found, lane);
  } else {
    lane.phase = Lane::Phase::parked;
  }
}

void TcpLink::welcome_lane(Peer& peer, Lane& lane) {
  if (lane.index >= peer.lanes.size() || lane.incarnation <= peer.lanes[lane.index].incarnation ||
      lane.incarnation <= peer.lanes[lane.index].fenced) {
    fail_greeting(lane, LaneFault::stale);
    return;
  }
  LaneSlot& slot = peer.lanes[lane.index];
  if (slot.lane != nullptr) {
    lane_lost(*slot.lane, {Code::peer_lost, "the peer has dialed this lane again"}, true);
  }
  if (!send_greeting(lane, GreetingKind::welcome, peer.remote_token)) {
    fail_greeting(lane, LaneFault::closed);
    return;
  }
  --strangers_;
  slot.incarnation = lane.incarnation;
  open_lane(peer, lane);
}

void TcpLink::on_welcome(Lane& lane, const Greeting& welcome) {
  Peer& peer = *peers_.find(lane.peer);
  if (!same_token(welcome.token, peer.token) || welcome.lane != lane.index ||
      welcome.incarnation != lane.incarnation) {
    return fail_greeting(lane, LaneFault::malformed);
  }
  if (!proven(peer, lane, welcome)) return fail_greeting(lane, LaneFault::wrong_proof);
  open_lane(peer, lane);
}

void TcpLink::open_lane(Peer& peer, Lane& lane) {
  if (const Status status = tune_lane(lane.fd(), config_, peer.same_host); !status.ok()) {
    log(LogLevel::warning, "tcp.lane_options",
        {{"peer", remote_text(lane.fd())},
         {"code", to_string(status.code())},
         {"why", status.to_string()},
         {"hint", "the lane works without; kvlane doctor shows what the kernel offers"}});
  }
  if (peer.security && peer.security->encrypt) {
    const Nonce theirs = read_wire<Greeting>(lane.greeting.data()).nonce;
    const LaneKeys keys = lane_keys(peer.security->key, lane.dialed ? lane.nonce : theirs,
                                    lane.dialed ? theirs : lane.nonce);
    const auto out = crypto::Bytes(lane.dialed ? keys.from_dialer : keys.from_listener);
    const auto in = crypto::Bytes(lane.dialed ? keys.from_listener : keys.from_dialer);
    lane.encrypt(out.first(kLaneKeyBytes), in.first(kLaneKeyBytes));
  } else if (config_.zerocopy_min_bytes > 0 && !peer.same_host) {
    lane.enable_zerocopy(static_cast<std::uint64_t>(config_.zerocopy_min_bytes));
  }
  LaneSlot& slot = peer.lanes[lane.index];
  slot.lane = &lane;
  slot.pause_ns = 0;
  slot.refused = 0;
  lane.phase = Lane::Phase::open;
  lane.deadline_ns = INT64_MAX;
  ++peer.open_lanes;
  ++peer.lanes_alive;
  peer.deadline_ns = INT64_MAX;
  core_.counters.lanes_opened.add();
  if (!peer.up) {
    peer.up = true;
    Event event;
    event.kind = Event::Kind::peer_up;
    event.peer = PeerId{peer.id};
    core_.push_event(event);
  }
  lane.on_ready(true, true, false);  // edges seen while greeting are gone
  list_lane(lane);
  dispatch(peer);
}

}  // namespace kvl::tcp
