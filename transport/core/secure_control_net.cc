// Authentication between the bytes of control connections and the engine.
#include "transport/core/secure_control_net.h"

#include <utility>

namespace kvl {
namespace {

constexpr std::int64_t kMs = 1'000'000;

const Status kNoSecretThere{Code::permission,
                            "the peer has no secret; set secret_file there as well as here"};
const Status kNoSecretHere{Code::permission,
                           "the peer has a secret and this side has none; set secret_file here"};
const Status kOtherProtocol{Code::unsupported,
                            "the peer authenticates in another way; use equal releases"};
const Status kNotAuthenticated{Code::permission,
                               "the peer did not authenticate itself; has it the same secret?"};

}  // namespace

SecureControlNet::SecureControlNet(std::unique_ptr<ControlNet> inner, Options options,
                                   const Clock& clock)
    : inner_(std::move(inner)), options_(std::move(options)), clock_(clock) {}

Result<ConnId> SecureControlNet::connect(std::string_view address) {
  const Result<ConnId> conn = inner_->connect(address);
  if (conn.ok()) {
    Connection& c = connections_[conn->value];
    c = Connection{};
    c.remote = std::string(address);
  }
  return conn;
}

Status SecureControlNet::send(ConnId conn, std::span<const std::byte> message) {
  const auto found = connections_.find(conn.value);
  if (found == connections_.end()) return {Code::not_found, "control connection"};
  Connection& c = found->second;
  if (c.channel != nullptr) return inner_->send(conn, c.channel->seal(message));
  if (secured()) return {Code::unavailable, "control connection not authenticated"};
  return inner_->send(conn, message);
}

void SecureControlNet::limit(ConnId conn, std::size_t message_bytes_max) {
  inner_->limit(conn, message_bytes_max + (secured() ? crypto::kTagBytes : 0));
}

void SecureControlNet::close(ConnId conn) {
  const auto found = connections_.find(conn.value);
  if (found == connections_.end()) return;
  connections_.erase(found);
  inner_->close(conn);
}

const auth::SessionKeys* SecureControlNet::session(ConnId conn) const {
  const auto found = connections_.find(conn.value);
  const bool there = found != connections_.end() && found->second.channel != nullptr;
  return there ? &found->second.keys : nullptr;
}

void SecureControlNet::poll(std::vector<ControlEvent>& events) {
  inner_events_.clear();
  inner_->poll(inner_events_);
  for (ControlEvent& event : inner_events_) on_event(event, events);
  if (!strangers_.empty()) drop_late(events);
}

void SecureControlNet::on_event(ControlEvent& event, std::vector<ControlEvent>& events) {
  using Kind = ControlEvent::Kind;
  if (event.kind == Kind::accepted) {
    Connection& c = connections_[event.conn.value];
    c = Connection{};
    c.accepted = true;
    c.remote = event.remote;
    if (!secured()) return open(c, event.conn, events);
    begin_handshake(c, event.conn);
    strangers_.push_back({event.conn, clock_.now_ns() + options_.handshake_ms * kMs});
    return;
  }
  const auto found = connections_.find(event.conn.value);
  if (found == connections_.end()) return;  // refused a moment ago
  Connection& c = found->second;
  switch (event.kind) {
    case Kind::connected: {
      if (!secured()) return open(c, event.conn, events);
      begin_handshake(c, event.conn);
      // If it does not get out, the connection is as good as closed, and that will be seen.
      [[maybe_unused]] const Status sent = inner_->send(event.conn, c.handshake->start());
      return;
    }
    case Kind::message:
      return on_message(c, event, events);
    case Kind::closed:
      if (!c.accepted || c.open) events.push_back(std::move(event));
      connections_.erase(found);
      return;
    case Kind::accepted:
      return;
  }
}

void SecureControlNet::begin_handshake(Connection& c, ConnId conn) {
  const std::int64_t begin_ns = clock_.now_ns();
  c.handshake = std::make_unique<auth::Handshake>(side_of(c), options_.secrets, options_.encrypt,
                                                  options_.random);
  handshake_ns_.add(static_cast<std::uint64_t>(clock_.now_ns() - begin_ns));
  inner_->limit(conn, auth::kMessageBytesMax);
}

void SecureControlNet::on_message(Connection& c, ControlEvent& event,
                                  std::vector<ControlEvent>& events) {
  const bool first = std::exchange(c.first, false);
  if (c.handshake != nullptr) return on_handshake(c, event, events);
  if (c.channel != nullptr) {
    auto opened = c.channel->open(event.bytes);
    if (!opened) return refuse(event.conn, Refusal::tampered, opened.status(), events);
    event.bytes = std::move(*opened);
  } else if (first && auth::is_auth(event.bytes)) {
    // We have no secret and the other side has, or we dialed one that has.
    const auto refused = auth::decode_refused(event.bytes);
    if (!refused) {
      [[maybe_unused]] const Status told =
          inner_->send(event.conn, auth::encode(auth::Reason::no_secret));
    }
    return refuse(event.conn, Refusal::no_secret, kNoSecretHere, events);
  }
  events.push_back(std::move(event));
}

void SecureControlNet::on_handshake(Connection& c, ControlEvent& event,
                                    std::vector<ControlEvent>& events) {
  const auto tell = [&](std::span<const std::byte> message) {
    if (message.empty()) return;
    [[maybe_unused]] const Status told = inner_->send(event.conn, message);
  };
  if (!auth::is_auth(event.bytes)) {
    tell(auth::encode(auth::Reason::secret_required));
    return refuse(event.conn, Refusal::secret_required, kNoSecretThere, events);
  }
  if (!c.accepted) {
    if (const auto refused = auth::decode_refused(event.bytes); refused.ok()) {
      switch (*refused) {
        case auth::Reason::wrong_secret:
          return refuse(event.conn, Refusal::wrong_secret, auth::kWrongSecret, events);
        case auth::Reason::no_secret:
        case auth::Reason::secret_required:
          return refuse(event.conn, Refusal::secret_required, kNoSecretThere, events);
        case auth::Reason::malformed:
          return refuse(event.conn, Refusal::malformed, kOtherProtocol, events);
      }
    }
  }
  std::vector<std::byte> reply;
  const std::int64_t begin_ns = clock_.now_ns();
  const Status status = c.handshake->on_message(event.bytes, reply);
  handshake_ns_.add(static_cast<std::uint64_t>(clock_.now_ns() - begin_ns));
  tell(reply);
  if (!status.ok()) {
    const bool secret = status.code() == Code::permission;
    return refuse(event.conn, secret ? Refusal::wrong_secret : Refusal::malformed, status, events);
  }
  if (!c.handshake->done()) return;
  c.keys = c.handshake->keys();
  c.channel = std::make_unique<auth::Channel>(side_of(c), c.keys);
  c.handshake.reset();
  authenticated_.add();
  limit(event.conn, kStrangerBytesMax);
  open(c, event.conn, events);
}

void SecureControlNet::open(Connection& c, ConnId conn, std::vector<ControlEvent>& events) {
  using Kind = ControlEvent::Kind;
  c.open = true;
  events.push_back({c.accepted ? Kind::accepted : Kind::connected, conn, {}, {}, c.remote});
}

void SecureControlNet::refuse(ConnId conn, Refusal cause, Status status,
                              std::vector<ControlEvent>& events) {
  const auto found = connections_.find(conn.value);
  if (found == connections_.end()) return;
  refusals_.add(cause, found->second.remote, status.context());
  if (found->second.open || !found->second.accepted) {
    events.push_back({ControlEvent::Kind::closed, conn, status, {}, {}});
  }
  close(conn);
}

void SecureControlNet::drop_late(std::vector<ControlEvent>& events) {
  const auto stranger = [this](ConnId conn) {
    const auto found = connections_.find(conn.value);
    return found != connections_.end() && found->second.accepted && !found->second.open;
  };
  const std::int64_t now_ns = clock_.now_ns();
  while (!strangers_.empty()) {
    const Stranger oldest = strangers_.front();
    if (stranger(oldest.conn)) {
      if (now_ns < oldest.deadline_ns) return;
      refuse(oldest.conn, Refusal::timed_out, kNotAuthenticated, events);
    }
    strangers_.pop_front();
  }
}

void SecureControlNet::count_refusals(Refusals::Counts& counts) const {
  refusals_.add_to(counts);
  inner_->count_refusals(counts);
}

void SecureControlNet::visit_metrics(MetricVisitor& visitor) const {
  visitor.counter("kvlane_control_authenticated_total", "Control connections authenticated.", {},
                  static_cast<double>(authenticated_.value()));
  visitor.counter("kvlane_control_handshake_seconds_total",
                  "Time of the control thread that authentication has taken.", {},
                  static_cast<double>(handshake_ns_.value()) / 1e9);
  inner_->visit_metrics(visitor);
}

}  // namespace kvl
