// A ControlNet that lets nobody through without the secret. It lies between the bytes of another
// ControlNet and the engine: the engine hears of a connection once it is authenticated, and every
// message is sealed. Without a secret it passes everything on, and tells those who have one.
#pragma once

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
  void know(ConnId conn) override { inner_->know(conn); }
  void count_refusals(Refusals::Counts& counts) const override;
  const auth::SessionKeys* session(ConnId) const override;
  void visit_metrics(MetricVisitor& visitor) const override;

 private:
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
  void refuse(ConnId conn, Refusal cause, Status status, std::vector<ControlEvent>& events);
  void drop_late(std::vector<ControlEvent>& events);

  const std::unique_ptr<ControlNet> inner_;
  const Options options_;
  const Clock& clock_;
  std::unordered_map<std::uint64_t, Connection> connections_;
  std::deque<Stranger> strangers_;  // accepted, oldest first; some are strangers no more
  std::vector<ControlEvent> inner_events_;
  Refusals refusals_;
  Counter authenticated_, handshake_ns_;
};

}  // namespace kvl
