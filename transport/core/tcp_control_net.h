// Control connections over TCP: u32 length, then the message. One thread owns the object.
#pragma once

#include <list>
#include <memory>
#include <unordered_map>

#include "kvl/clock.h"
#include "kvl/metrics.h"
#include "transport/base/slot_map.h"
#include "transport/base/unique_fd.h"
#include "transport/core/control_net.h"

namespace kvl {

// Of connections that came in and have not said who they are: the only bound of theirs, with a
// secret or without. Deadlines are the layers' above.
struct StrangerLimits {
  std::size_t max = 256;              // beyond: the oldest is closed
  std::size_t per_address_max = 128;  // beyond: the new one is closed
};

class TcpControlNet final : public ControlNet {
 public:
  // unavailable: the port is in use (errno kept). `advertise` replaces the host that others dial.
  static Result<std::unique_ptr<TcpControlNet>> open(const std::string& listen,
                                                     const std::string& advertise,
                                                     const StrangerLimits& strangers = {});

  std::string address() const override { return address_; }
  Result<ConnId> connect(std::string_view address) override;
  Status send(ConnId, std::span<const std::byte> message) override;
  void limit(ConnId, std::size_t message_bytes_max) override;
  void close(ConnId) override;
  void poll(std::vector<ControlEvent>& events) override;
  int wait_fd() const override { return epoll_.get(); }
  void know(ConnId) override;
  void count_refusals(Refusals::Counts& counts) const override { refusals_.add_to(counts); }

 private:
  // A peer that does not read may hold this much of ours; then it is closed.
  static constexpr std::size_t kBacklogBytesMax = 64u << 20;
  static constexpr std::size_t kConnectionsMax = 8192;
  static constexpr std::size_t kReadBytes = 64u << 10;         // of one call
  static constexpr std::int64_t kAcceptPauseNs = 100'000'000;  // when descriptors run out

  struct Connection {
    UniqueFd fd;
    bool connecting = false;
    bool stranger = false;  // accepted, and know() has not come
    std::string remote;
    std::string host;  // stranger: without the port
    std::list<std::uint64_t>::iterator place;
    std::size_t message_bytes_max = kStrangerBytesMax;
    std::vector<std::byte> in;   // a partial message
    std::vector<std::byte> out;  // not yet taken by the kernel
    std::size_t out_begin = 0;
  };

  void accept_all(std::vector<ControlEvent>& events);
  bool admit(const std::string& host, std::vector<ControlEvent>& events);
  void forget_stranger(Connection& c);
  void lose(std::uint64_t id, Status why, std::vector<ControlEvent>& events);
  void listen_again(bool on);
  void on_ready(std::uint64_t id, std::uint32_t ready, std::vector<ControlEvent>& events);
  Status read_some(std::uint64_t id, Connection& c, std::vector<ControlEvent>& events);
  Status take_messages(std::uint64_t id, Connection& c, std::span<const std::byte> bytes,
                       std::size_t& taken, std::vector<ControlEvent>& events);
  Status flush(Connection& c);
  Status watch(std::uint64_t id, Connection& c, bool add);

  UniqueFd listener_, epoll_;
  std::string address_;
  SlotMap<Connection> connections_;
  std::vector<std::byte> received_ = std::vector<std::byte>(kReadBytes);
  StrangerLimits limits_;
  std::list<std::uint64_t> strangers_;  // whose last word is the longest ago comes first
  std::unordered_map<std::string, std::size_t> strangers_of_;
  Refusals refusals_;
  SteadyClock clock_;
  bool stranger_spoke_ = false;    // in this poll()
  std::int64_t accept_at_ns_ = 0;  // out of descriptors until then; 0: accepting
};

}  // namespace kvl
