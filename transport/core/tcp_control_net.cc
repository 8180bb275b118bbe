// Control connections over TCP with one epoll set; every descriptor is non-blocking.
#include "transport/core/tcp_control_net.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "transport/base/address.h"

namespace kvl {
namespace {

constexpr std::uint64_t kListenerKey = 0;

void set_options(int fd) {
  const int on = 1;
  ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
  ::setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
}

// What others should dial when we listen on all addresses: the first that is not loopback.
std::string dialable(const SocketAddress& bound, const std::string& advertise) {
  const std::string port = ":" + std::to_string(bound.port());
  if (!advertise.empty()) {
    const bool has_port = advertise.find("]:") != std::string::npos ||
                          (advertise.find(':') != std::string::npos && advertise.back() != ']' &&
                           advertise.find(':') == advertise.rfind(':'));
    return has_port ? advertise : advertise + port;
  }
  if (!bound.any()) return bound.text();
  for (const SocketAddress& local : local_addresses()) {
    if (bound.family() != AF_INET6 && local.family() != bound.family()) continue;
    const std::string text = local.text();
    return text.substr(0, text.rfind(':')) + port;
  }
  return "127.0.0.1" + port;
}

}  // namespace

Result<std::unique_ptr<TcpControlNet>> TcpControlNet::open(const std::string& listen,
                                                           const std::string& advertise,
                                                           const StrangerLimits& strangers) {
  auto address = parse_address(listen);
  if (!address) return address.status();
  auto net = std::make_unique<TcpControlNet>();
  net->limits_ = strangers;
  net->epoll_.reset(::epoll_create1(EPOLL_CLOEXEC));
  net->listener_.reset(::socket(address->family(), SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!net->epoll_ || !net->listener_) return Status{Code::exhausted, "control socket", errno};
  const int on = 1;
  ::setsockopt(net->listener_.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  if (::bind(net->listener_.get(), address->raw(), address->bytes) != 0 ||
      ::listen(net->listener_.get(), 512) != 0) {
    return Status{Code::unavailable,
                  "listen for control connections; choose another listen address", errno};
  }
  SocketAddress bound;
  bound.bytes = sizeof(bound.storage);
  ::getsockname(net->listener_.get(), bound.raw(), &bound.bytes);
  net->address_ = dialable(bound, advertise);
  epoll_event event{EPOLLIN, {.u64 = kListenerKey}};
  if (::epoll_ctl(net->epoll_.get(), EPOLL_CTL_ADD, net->listener_.get(), &event) != 0) {
    return Status{Code::exhausted, "watch control socket", errno};
  }
  return net;
}

Result<ConnId> TcpControlNet::connect(std::string_view text) {
  auto address = parse_address(text);
  if (!address) return address.status();
  UniqueFd fd(::socket(address->family(), SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd) return Status{Code::exhausted, "control socket", errno};
  set_options(fd.get());
  if (::connect(fd.get(), address->raw(), address->bytes) != 0 && errno != EINPROGRESS) {
    return Status{Code::unavailable, "connect control connection", errno};
  }
  const auto [id, c] = connections_.insert();
  *c = Connection{};
  c->fd = std::move(fd);
  c->connecting = true;
  c->remote = std::string(text);
  if (Status status = watch(id, *c, true); !status.ok()) {
    close({id});
    return status;
  }
  return ConnId{id};
}

Status TcpControlNet::watch(std::uint64_t id, Connection& c, bool add) {
  const bool writing = c.connecting || c.out_begin < c.out.size();
  epoll_event event{EPOLLIN | EPOLLRDHUP | (writing ? EPOLLOUT : 0U), {.u64 = id}};
  if (::epoll_ctl(epoll_.get(), add ? EPOLL_CTL_ADD : EPOLL_CTL_MOD, c.fd.get(), &event) != 0) {
    return {Code::exhausted, "watch control connection", errno};
  }
  return {};
}

Status TcpControlNet::send(ConnId conn, std::span<const std::byte> message) {
  Connection* const c = connections_.find(conn.value);
  if (c == nullptr) return {Code::not_found, "control connection"};
  if (message.size() > kMessageBytesMax) return {Code::invalid_argument, "control message size"};
  if (c->out.size() - c->out_begin + message.size() > kBacklogBytesMax) {
    return {Code::exhausted, "the peer does not read its control connection"};
  }
  const auto bytes = static_cast<std::uint32_t>(message.size());
  const auto* const head = reinterpret_cast<const std::byte*>(&bytes);
  const bool was_idle = c->out_begin == c->out.size();
  if (was_idle) {
    c->out.clear();
    c->out_begin = 0;
  }
  c->out.insert(c->out.end(), head, head + sizeof(bytes));
  c->out.insert(c->out.end(), message.begin(), message.end());
  if (c->connecting || !was_idle) return {};
  // An error shows at the next poll(), as `closed`.
  if (flush(*c).ok() && c->out_begin < c->out.size()) return watch(conn.value, *c, false);
  return {};
}

Status TcpControlNet::flush(Connection& c) {
  while (c.out_begin < c.out.size()) {
    const ssize_t n = ::send(c.fd.get(), c.out.data() + c.out_begin, c.out.size() - c.out_begin,
                             MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n > 0) {
      c.out_begin += static_cast<std::size_t>(n);
    } else if (errno == EAGAIN) {
      return {};
    } else if (errno != EINTR) {
      return {Code::peer_lost, "write control connection", errno};
    }
  }
  return {};
}

void TcpControlNet::limit(ConnId conn, std::size_t message_bytes_max) {
  Connection* const c = connections_.find(conn.value);
  if (c != nullptr) c->message_bytes_max = std::min(message_bytes_max, kMessageBytesMax);
}

void TcpControlNet::close(ConnId conn) {
  Connection* const c = connections_.find(conn.value);
  if (c == nullptr) return;
  forget_stranger(*c);
  *c = Connection{};
  connections_.erase(conn.value);
}

void TcpControlNet::know(ConnId conn) {
  Connection* const c = connections_.find(conn.value);
  if (c != nullptr) forget_stranger(*c);
}

// It is known, or closed.
void TcpControlNet::forget_stranger(Connection& c) {
  if (!c.stranger) return;
  c.stranger = false;
  strangers_.erase(c.place);
  const auto of = strangers_of_.find(c.host);
  if (--of->second == 0) strangers_of_.erase(of);
}

void TcpControlNet::lose(std::uint64_t id, Status why, std::vector<ControlEvent>& events) {
  events.push_back({ControlEvent::Kind::closed, {id}, why, {}, {}});
  close({id});
}

// Room for one more stranger. A flood from one address harms that address; a flood from many makes
// the one go that has been silent longest, so that who says at once who it is still gets in.
bool TcpControlNet::admit(const std::string& host, std::vector<ControlEvent>& events) {
  const auto of = strangers_of_.find(host);
  if (of != strangers_of_.end() && of->second >= limits_.per_address_max) {
    refusals_.add(Refusal::address, host);
    return false;
  }
  if (strangers_.size() >= limits_.max) {
    const std::uint64_t silent = strangers_.front();
    refusals_.add(Refusal::strangers, connections_.find(silent)->remote);
    lose(silent, {Code::exhausted, "too many connections without a hello"}, events);
  }
  return true;
}

void TcpControlNet::listen_again(bool on) {
  epoll_event event{on ? static_cast<std::uint32_t>(EPOLLIN) : 0U, {.u64 = kListenerKey}};
  ::epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, listener_.get(), &event);
}

void TcpControlNet::accept_all(std::vector<ControlEvent>& events) {
  for (int burst = 0; burst < 64; ++burst) {
    SocketAddress from;
    from.bytes = sizeof(from.storage);
    UniqueFd fd(::accept4(listener_.get(), from.raw(), &from.bytes, SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (!fd) {
      if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS) {
        // The listener would stay readable and poll() would never rest: look away for a while.
        refusals_.add(Refusal::descriptors, "", std::strerror(errno));
        listen_again(false);
        accept_at_ns_ = clock_.now_ns() + kAcceptPauseNs;
      }
      return;
    }
    const std::string remote = from.text();
    std::string host = remote.substr(0, remote.rfind(':'));
    if (connections_.size() >= kConnectionsMax) {  // closed at once
      refusals_.add(Refusal::connections, remote);
      continue;
    }
    if (!admit(host, events)) continue;
    set_options(fd.get());
    const auto [id, c] = connections_.insert();
    *c = Connection{};
    c->fd = std::move(fd);
    c->remote = remote;
    c->host = std::move(host);
    c->stranger = true;
    c->place = strangers_.insert(strangers_.end(), id);
    ++strangers_of_[c->host];
    if (watch(id, *c, true).ok()) {
      events.push_back({ControlEvent::Kind::accepted, {id}, {}, {}, c->remote});
    } else {
      close({id});
    }
  }
}

// One buffer for all connections: what a connection keeps is the beginning of a message.
Status TcpControlNet::read_some(std::uint64_t id, Connection& c,
                                std::vector<ControlEvent>& events) {
  for (int burst = 0; burst < 16; ++burst) {
    const ssize_t n = ::recv(c.fd.get(), received_.data(), received_.size(), MSG_DONTWAIT);
    if (n == 0) return {Code::peer_lost, "control connection closed by the peer"};
    if (n < 0 && errno == EAGAIN) break;
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return {Code::peer_lost, "read control connection", errno};
    const std::span<const std::byte> received(received_.data(), static_cast<std::size_t>(n));
    std::size_t taken = 0;
    if (c.in.empty()) {
      KVL_TRY(take_messages(id, c, received, taken, events));
      const std::span<const std::byte> left = received.subspan(taken);
      c.in.assign(left.begin(), left.end());
    } else {
      c.in.insert(c.in.end(), received.begin(), received.end());
      KVL_TRY(take_messages(id, c, c.in, taken, events));
      c.in.erase(c.in.begin(), c.in.begin() + static_cast<std::ptrdiff_t>(taken));
      if (c.in.empty()) c.in.shrink_to_fit();
    }
    if (received.size() < received_.size()) break;
  }
  return {};
}

// Every whole message at the beginning of `bytes`; `taken` is how much that was.
Status TcpControlNet::take_messages(std::uint64_t id, Connection& c,
                                    std::span<const std::byte> bytes, std::size_t& taken,
                                    std::vector<ControlEvent>& events) {
  std::uint32_t length = 0;
  for (taken = 0; bytes.size() - taken >= sizeof(length); taken += sizeof(length) + length) {
    std::memcpy(&length, bytes.data() + taken, sizeof(length));
    if (length > c.message_bytes_max) {
      // Later ones show as a peer that was lost.
      if (c.stranger) refusals_.add(Refusal::too_long, c.remote);
      return {Code::invalid_argument, "control message too long"};
    }
    if (bytes.size() - taken - sizeof(length) < length) break;
    if (c.stranger) {
      strangers_.splice(strangers_.end(), strangers_, c.place);
      stranger_spoke_ = true;
    }
    const std::byte* const begin = bytes.data() + taken + sizeof(length);
    events.push_back({ControlEvent::Kind::message, {id}, {}, {begin, begin + length}, {}});
  }
  return {};
}

void TcpControlNet::on_ready(std::uint64_t id, std::uint32_t ready,
                             std::vector<ControlEvent>& events) {
  Connection* const c = connections_.find(id);
  if (c == nullptr) return;
  Status status;
  if (c->connecting) {
    int error = 0;
    socklen_t bytes = sizeof(error);
    ::getsockopt(c->fd.get(), SOL_SOCKET, SO_ERROR, &error, &bytes);
    if (error != 0) {
      status = {Code::unavailable, "connect control connection", error};
    } else if ((ready & EPOLLOUT) != 0) {
      c->connecting = false;
      events.push_back({ControlEvent::Kind::connected, {id}, {}, {}, c->remote});
    }
  }
  if (status.ok() && !c->connecting && (ready & EPOLLOUT) != 0) {
    status = flush(*c);
    if (status.ok()) status = watch(id, *c, false);
  }
  if (status.ok() && (ready & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0) {
    status = read_some(id, *c, events);
  }
  if (!status.ok()) lose(id, status, events);
}

void TcpControlNet::poll(std::vector<ControlEvent>& events) {
  if (accept_at_ns_ != 0 && clock_.now_ns() >= accept_at_ns_) {
    accept_at_ns_ = 0;
    listen_again(true);
  }
  epoll_event ready[64];
  const int count = ::epoll_wait(epoll_.get(), ready, 64, 0);
  bool waiting = false;
  stranger_spoke_ = false;
  for (int i = 0; i < count; ++i) {
    if (ready[i].data.u64 == kListenerKey) {
      waiting = true;
    } else {
      on_ready(ready[i].data.u64, ready[i].events, events);
    }
  }
  // Who has just said its hello is known before the next call, and makes room for a stranger.
  if (waiting && !stranger_spoke_) accept_all(events);
}

}  // namespace kvl
