// How two Links find each other, hear each other and part.
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>

#include "kvl/log.h"
#include "transport/shm/shm_link.h"

namespace kvl::shm {
namespace {

constexpr std::size_t kStrangersMax = 64;
constexpr int kAcceptsPerPoll = 16;
constexpr int kMessagesPerPoll = 64;
constexpr std::size_t kPeersMax = 65536;

// Takes as long whatever the first difference is.
bool same_token(const Token& a, const Token& b) {
  std::byte difference{};
  for (std::size_t i = 0; i < a.size(); ++i) difference |= a[i] ^ b[i];
  return difference == std::byte{};
}

std::int64_t ns(std::int64_t ms) { return ms * 1'000'000; }

}  // namespace

Result<std::unique_ptr<ShmLink>> ShmLink::open(const Device& device, const ShmConfig& config,
                                               const HostIdentity& host,
                                               const LinkContext& context) {
  std::unique_ptr<ShmLink> link(new ShmLink(device, config, host, context));
  link->epoll_.reset(::epoll_create1(EPOLL_CLOEXEC));
  if (!link->epoll_) return Status{Code::exhausted, "open an epoll descriptor", errno};
  link->name_ = random_token();
  Result<UniqueFd> listener = listen_on(link->name_);
  if (!listener.ok()) return listener.status();
  link->listener_ = std::move(listener).value();
  link->watch(link->listener_.get(), link->listener_source_);
  return link;
}

void ShmLink::watch(int fd, Source& source) {
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.ptr = &source;
  ::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event);
}

// By hand, before close(): a descriptor that a child inherited would keep the entry alive.
void ShmLink::unwatch(int fd) {
  if (fd >= 0) ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr);
}

void ShmLink::count_unsettled() {
  unsettled_ =
      strangers_.size() +
      static_cast<std::size_t>(std::count_if(order_.begin(), order_.end(), [](const Peer* peer) {
        return peer->state == PeerState::connecting || peer->state == PeerState::draining;
      }));
}

Result<PeerId> ShmLink::open_peer(PeerRole role) {
  if (order_.size() >= kPeersMax) return Status{Code::exhausted, "peers of one shm link"};
  Result<Outbox> outbox = Outbox::open();
  if (!outbox.ok()) return outbox.status();
  auto peer = std::make_unique<Peer>();
  peer->role = role;
  peer->token = random_token();
  peer->own = std::move(outbox).value();
  const std::lock_guard<std::mutex> lock(mutex_);
  auto [id, place] = peers_.insert();
  peer->id = PeerId{id};
  order_.push_back(peer.get());
  *place = std::move(peer);
  return PeerId{id};
}

Result<Blob> ShmLink::offer(PeerId id) {
  const Peer* const peer = find_peer(id);
  if (peer == nullptr) return Status{Code::invalid_argument, "stale peer"};
  Offer mine;
  mine.name = name_;
  mine.token = peer->token;
  mine.pid = ::getpid();
  mine.host = host_;
  return encode(mine);
}

Status ShmLink::accept(PeerId id, std::span<const std::byte> remote_offer) {
  Peer* const peer = find_peer(id);
  if (peer == nullptr || peer->state != PeerState::opened) {
    return {Code::invalid_argument, "accept: stale peer, or accepted before"};
  }
  Result<Offer> offer = decode_offer(remote_offer, host_);
  if (!offer.ok()) return offer.status();
  peer->offer = *offer;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    peer->state = PeerState::connecting;
  }
  peer->deadline_ns = context_.clock.now_ns() + ns(config_.connect_timeout_ms);
  count_unsettled();
  if (peer->role == PeerRole::active) {
    dial(*peer);
    return {};
  }
  // The other side may have been quicker: its hello waits among the strangers.
  for (Stranger& stranger : strangers_) {
    if (stranger.said_hello && same_token(stranger.hello.to, peer->token)) {
      (void)adopt(stranger, *peer);
      forget_stranger(stranger);
      break;
    }
  }
  return {};
}

void ShmLink::close_peer(PeerId id) {
  Peer* const peer = find_peer(id);
  if (peer == nullptr || peer->closed_here) return;
  peer->closed_here = true;
  peer->notes_open = false;
  drain(*peer, Code::aborted);
}

Message ShmLink::greeting(MessageType type, const Peer& peer) const {
  Message message;
  message.type = type;
  message.to = peer.offer.token;
  message.from = peer.token;
  message.probe_address = reinterpret_cast<std::uintptr_t>(peer.token.data());
  return message;
}

// Active side. Called until there is a socket.
void ShmLink::dial(Peer& peer) {
  Result<UniqueFd> socket = connect_to(peer.offer.name);
  if (!socket.ok()) {
    if (socket.code() != Code::exhausted) drain(peer, socket.code());
    return;
  }
  const Result<PeerProcess> process = peer_process(socket->get());
  if (!process.ok() || process->uid != host_.uid) {
    return drain(peer, process.ok() ? Code::permission : process.code());
  }
  const Status sent =
      send_message(socket->get(), greeting(MessageType::hello, peer), peer.own.fd());
  if (!sent.ok()) return drain(peer, sent.code());
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    peer.socket = std::move(socket).value();
  }
  watch(peer.socket.get(), peer.socket_source);
}

void ShmLink::take_strangers() {
  for (int i = 0; i < kAcceptsPerPoll; ++i) {
    UniqueFd socket(::accept4(listener_.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (!socket) return;
    const Result<PeerProcess> process = peer_process(socket.get());
    const bool crowded = strangers_.size() >= kStrangersMax;
    if (!process.ok() || process->uid != host_.uid || crowded) {
      const bool ours = process.ok() && process->uid == host_.uid;
      refusals_.add(ours ? Refusal::crowded : Refusal::other_user, process.ok() ? process->pid : 0,
                    process.ok() ? process->uid : 0);
      continue;
    }
    Stranger& stranger = strangers_.emplace_back();
    stranger.socket = std::move(socket);
    stranger.deadline_ns = context_.clock.now_ns() + ns(config_.connect_timeout_ms);
    watch(stranger.socket.get(), stranger.source);
    hear_stranger(stranger);
  }
}

void ShmLink::refuse(const Stranger& stranger, Refusal refusal) {
  const Result<PeerProcess> process = peer_process(stranger.socket.get());
  refusals_.add(refusal, process.ok() ? process->pid : 0, process.ok() ? process->uid : 0);
}

void ShmLink::forget_stranger(Stranger& stranger) {
  unwatch(stranger.socket.get());
  strangers_.remove_if([&stranger](const Stranger& s) { return &s == &stranger; });
  count_unsettled();
}

void ShmLink::hear_stranger(Stranger& stranger) {
  Received received = receive_message(stranger.socket.get());
  if (received.kind == Received::Kind::nothing) return count_unsettled();
  const bool hello = received.kind == Received::Kind::message && !stranger.said_hello &&
                     received.message.type == MessageType::hello && received.fd;
  Peer* wanted = nullptr;
  for (Peer* peer : order_) {
    const bool waits = peer->role == PeerRole::passive && !peer->socket &&
                       (peer->state == PeerState::opened || peer->state == PeerState::connecting);
    if (hello && waits && same_token(peer->token, received.message.to)) wanted = peer;
  }
  if (wanted == nullptr) {
    refuse(stranger, hello ? Refusal::unknown_token : Refusal::malformed);
    return forget_stranger(stranger);
  }
  stranger.said_hello = true;
  stranger.hello = received.message;
  stranger.outbox = std::move(received.fd);
  if (wanted->state == PeerState::opened) return count_unsettled();  // until accept()
  (void)adopt(stranger, *wanted);
  forget_stranger(stranger);
}

// Passive side: the stranger has named our token; it must also be whom the offer announced.
bool ShmLink::adopt(Stranger& stranger, Peer& peer) {
  if (!same_token(stranger.hello.from, peer.offer.token)) {
    refuse(stranger, Refusal::unknown_token);
    return false;
  }
  unwatch(stranger.socket.get());
  const Status sent =
      send_message(stranger.socket.get(), greeting(MessageType::welcome, peer), peer.own.fd());
  if (!sent.ok()) return false;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    peer.socket = std::move(stranger.socket);
  }
  watch(peer.socket.get(), peer.socket_source);
  return come_up(peer, stranger.hello, stranger.outbox.get());
}

bool ShmLink::come_up(Peer& peer, const Message& message, int outbox_fd) {
  Result<OutboxView> view = OutboxView::open(outbox_fd);
  const Result<PeerProcess> process = peer_process(peer.socket.get());
  if (!view.ok() || !process.ok()) {
    drain(peer, view.ok() ? Code::peer_lost : Code::corrupt);
    return false;
  }
  peer.pid = process->pid;
  peer.probe_address = message.probe_address;
  peer.deadline_ns = INT64_MAX;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    // Not of ourselves: two Links of one process part by closing.
    if (peer.pid != ::getpid()) peer.pidfd = open_pidfd(peer.socket.get(), peer.pid);
    peer.view = std::move(view).value();
    peer.state = PeerState::up;
    flush_cards(peer);
  }
  if (peer.pidfd) watch(peer.pidfd.get(), peer.process_source);
  peer.own.drop_fd();
  count_unsettled();
  return true;
}

void ShmLink::hear_peer(Peer& peer) {
  for (int i = 0; i < kMessagesPerPoll && peer.socket; ++i) {
    Received received = receive_message(peer.socket.get());
    switch (received.kind) {
      case Received::Kind::nothing:
        return;
      case Received::Kind::closed:
        unwatch(peer.socket.get());
        return drain(peer, Code::peer_lost);
      case Received::Kind::garbage:
        return drain(peer, Code::corrupt);
      case Received::Kind::message:
        on_message(peer, received.message, std::move(received.fd));
    }
  }
}

void ShmLink::on_message(Peer& peer, Message& message, UniqueFd fd) {
  switch (message.type) {
    case MessageType::doorbell:
      return;
    case MessageType::goodbye: {
      peer.goodbye = true;
      return drain(peer, Code::peer_lost);
    }
    case MessageType::memory:
      if (peer.state == PeerState::up) on_card(peer, message.card, std::move(fd));
      return;
    case MessageType::forget:
      return on_forget(peer, message.card);
    case MessageType::welcome:
      if (peer.role == PeerRole::active && peer.state == PeerState::connecting && fd &&
          same_token(message.from, peer.offer.token) && same_token(message.to, peer.token)) {
        (void)come_up(peer, message, fd.get());
        return;
      }
      break;
    case MessageType::hello:
      break;
  }
  drain(peer, Code::corrupt);
}

void ShmLink::run_io() {
  polls_since_io_ = 0;
  bytes_since_io_ = 0;
  std::array<epoll_event, 32> ready{};
  const int count = ::epoll_wait(epoll_.get(), ready.data(), static_cast<int>(ready.size()), 0);
  for (int i = 0; i < count; ++i) {
    Source& source = *static_cast<Source*>(ready[static_cast<std::size_t>(i)].data.ptr);
    switch (source.kind) {
      case Source::Kind::listener:
        take_strangers();
        break;
      case Source::Kind::stranger:
        hear_stranger(*static_cast<Stranger*>(source.owner));
        break;
      case Source::Kind::socket:
        hear_peer(*static_cast<Peer*>(source.owner));
        break;
      case Source::Kind::process: {
        Peer& peer = *static_cast<Peer*>(source.owner);
        peer.exited = true;
        unwatch(peer.pidfd.get());
        hear_peer(peer);  // what it said before it died
        drain(peer, Code::peer_lost);
        break;
      }
    }
  }
}

void ShmLink::run_timers() {
  const std::int64_t now = context_.clock.now_ns();
  for (auto stranger = strangers_.begin(); stranger != strangers_.end();) {
    Stranger& s = *stranger++;
    if (now < s.deadline_ns) continue;
    refuse(s, Refusal::timed_out);
    forget_stranger(s);
  }
  for (Peer* peer : order_) {
    if (peer->state != PeerState::connecting) continue;
    if (now >= peer->deadline_ns) {
      drain(*peer, Code::timed_out);
    } else if (peer->role == PeerRole::active && !peer->socket) {
      dial(*peer);
    }
  }
}

}  // namespace kvl::shm
