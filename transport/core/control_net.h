// Where control connections come from: TCP in the product, a simulated network in tests.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kvl/metrics.h"
#include "kvl/status.h"
#include "transport/core/refusals.h"

namespace kvl {

namespace auth {
struct SessionKeys;
}  // namespace auth

struct ConnId {
  std::uint64_t value = 0;
  friend bool operator==(ConnId, ConnId) = default;
};

struct ControlEvent {
  enum class Kind : std::uint8_t { accepted, connected, message, closed };
  Kind kind = Kind::closed;
  ConnId conn;
  Status status;                 // closed: why
  std::vector<std::byte> bytes;  // message
  std::string remote;            // accepted, connected: the other end's address, for logs
};

// Message-oriented, reliable, ordered connections. Owned by one thread. Nothing blocks.
class ControlNet {
 public:
  static constexpr std::size_t kMessageBytesMax = 16u << 20;
  // Until limit() says otherwise: nobody knows yet who is there. The largest hello fits.
  static constexpr std::size_t kStrangerBytesMax = 256u << 10;
  virtual ~ControlNet() = default;
  // The address others dial: "10.0.0.1:4711", "[::1]:4711"; port resolved.
  virtual std::string address() const = 0;
  // `connected` or `closed` follows. invalid_argument: not an address.
  virtual Result<ConnId> connect(std::string_view address) = 0;
  // Queues one message. exhausted: the peer does not read (bounded queue); close it or wait.
  virtual Status send(ConnId, std::span<const std::byte> message) = 0;
  // A longer message than this ends the connection.
  virtual void limit(ConnId, [[maybe_unused]] std::size_t message_bytes_max) {}
  // It has said who it is. Until then an accepted connection is a stranger: of these only so many
  // are borne.
  virtual void know(ConnId) {}
  // No event follows.
  virtual void close(ConnId) = 0;
  virtual void poll(std::vector<ControlEvent>& events) = 0;
  // Readable when poll() has something to do; -1 in the simulator.
  virtual int wait_fd() const = 0;
  // Adds whom this layer has turned away, and why. Any thread.
  virtual void count_refusals(Refusals::Counts&) const {}
  // What an authenticated connection is protected by; null: it is not.
  virtual const auth::SessionKeys* session(ConnId) const { return nullptr; }
  virtual void visit_metrics(MetricVisitor&) const {}
};

}  // namespace kvl
