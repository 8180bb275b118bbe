// A ControlNet that lets nobody through without the secret. It lies between the bytes of another
// ControlNet and the engine: the engine hears of a connection once it is authenticated, and every
// message is sealed. Without a secret it passes everything on, and tells those who have one.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <unordered_map>

#include "kvl/clock.h"
#include "kvl/security.h"
#include "transport/core/auth.h"
#include "transport/core/control_net.h"

namespace kvl {

class SecureControlNet final : public ControlNet {
 public:
  struct Options {
    Secrets secrets;
    bool encrypt = false;
    std::int64_t handshake_ms = 5000;  // an accepted connection has this long
    std::size_t strangers_max = 256;   // accepted and not authenticated; beyond, the oldest goes
    auth::Random random = crypto::random;
  };
  // `clock` outlives it.
  SecureControlNet(std::unique_ptr<ControlNet> inner, Options options, const Clock& clock);

  std::string address() const override { return inner_->address(); }
  Result<ConnId> connect(std::string_view address) override;
  // unavailable: not authenticated yet.
  Status send(ConnId, std::span<const std::byte> message) override;
  void limit(ConnId, std::size_t message_bytes_max) override;
  void close(ConnId) override;
  // `closed` with permission: the secrets do not agree; the context says on which side to look.
  void poll(std::vector<ControlEvent>& events) override;
  int wait_fd() const override { return inner_->wait_fd(); }
  std::uint64_t refused() const override { return inner_->refused(); }
  const auth::SessionKeys* session(ConnId) const override;
  void visit_metrics(MetricVisitor& visitor) const override;

 private:
  // Why a connection was refused; one counter and one rate-limited log line each.
  enum class Cause : std::uint8_t {
    wrong_secret,
    secret_required,
    no_secret,
    malformed,
    timed_out,
    crowded,
    tampered,
  };
  static constexpr std::size_t kCauses = 7;
  static const char* name(Cause cause);
  static const char* hint(Cause cause);

  struct Connection {
    bool accepted = false;
    bool open = false;  // the engine knows it
    bool first = true;  // no message has come yet
    std::string remote;
    std::unique_ptr<auth::Handshake> handshake;  // until it is done
    std::unique_ptr<auth::Channel> channel;      // from then on; null: in plain
    auth::SessionKeys keys;
  };
  struct Stranger {
    ConnId conn;
    std::int64_t deadline_ns = 0;
  };
  struct Refusals {
    Counter count;
    std::int64_t log_again_ns = 0;
    std::uint64_t unlogged = 0;
  };

  bool secured() const { return !options_.secrets.empty(); }
  void on_event(ControlEvent& event, std::vector<ControlEvent>& events);
  static auth::Handshake::Side side_of(const Connection& c) {
    return c.accepted ? auth::Handshake::Side::listener : auth::Handshake::Side::dialer;
  }
  void begin_handshake(Connection& c, ConnId conn);
  void on_message(Connection& c, ControlEvent& event, std::vector<ControlEvent>& events);
  void on_handshake(Connection& c, ControlEvent& event, std::vector<ControlEvent>& events);
  void open(Connection& c, ConnId conn, std::vector<ControlEvent>& events);
  // The end of a connection that did not deserve better. `status` is what a dialer is told.
  void refuse(ConnId conn, Cause cause, Status status, std::vector<ControlEvent>& events);
  void drop_strangers(std::vector<ControlEvent>& events);

  const std::unique_ptr<ControlNet> inner_;
  const Options options_;
  const Clock& clock_;
  std::unordered_map<std::uint64_t, Connection> connections_;
  std::deque<Stranger> strangers_;  // oldest first; some are strangers no more
  std::size_t strangers_alive_ = 0;
  std::vector<ControlEvent> inner_events_;
  std::array<Refusals, kCauses> refused_;
  Counter authenticated_, handshake_ns_;
};

}  // namespace kvl
