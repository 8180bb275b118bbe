// Control connections over the simulated network: ordered and reliable like TCP, and like TCP they
// notice a silent peer only when they have something to say.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "transport/core/control_net.h"
#include "transport/sim/sim_world.h"

namespace kvl::sim {

// One per node and life. Same thread as its world, which outlives it.
class SimControlNet final : public ControlNet {
 public:
  SimControlNet(SimWorld& world, NodeId node);
  ~SimControlNet() override;

  static std::string address_of(NodeId node) { return "sim:" + std::to_string(node); }
  std::string address() const override { return address_of(port_.node); }
  Result<ConnId> connect(std::string_view address) override;
  Status send(ConnId, std::span<const std::byte> message) override;
  void close(ConnId) override;
  void poll(std::vector<ControlEvent>& events) override;
  int wait_fd() const override { return -1; }

  // The world's, on crash: tells every other end, as a kernel does for a dead process.
  void close_all();

 private:
  using Messages = std::vector<std::vector<std::byte>>;
  // One end of a connection.
  struct End {
    Port remote;
    std::uint64_t remote_id = 0;  // 0: not known yet
    Messages queue;               // not on its way yet
    std::size_t queued_bytes = 0;
    bool sending = false;  // one burst is under way; the next follows it, in order
    std::uint64_t bursts_sent = 0, bursts_received = 0;
    bool ending = false;           // the peer has closed, but a burst of its is still under way
    std::uint64_t ends_after = 0;  // bursts received
    Messages last;                 // the peer's last messages, which came with its close
  };

  void on_connect(const Port& from, std::uint64_t from_id);
  void on_accepted(std::uint64_t id, std::uint64_t remote_id);
  void on_messages(std::uint64_t id, const Port& from, std::uint64_t from_id, Messages messages);
  void on_sent(std::uint64_t id);
  void on_close(std::uint64_t id, std::uint64_t bursts_before, Messages last);
  void finish_close(std::uint64_t id, End& end);
  void deliver(std::uint64_t id, Messages messages);
  void lose(std::uint64_t id, Status status);
  void flush(std::uint64_t id, End& end);
  void tell_closed(const Port& to, std::uint64_t remote_id);
  // Runs f on the net of `to` if that life of the node still has one.
  template <typename F>
  void at_remote(const Port& to, std::uint64_t bytes, F f, SimWorld::Action lost);
  static SimControlNet* find(SimWorld& world, const Port& port);

  SimWorld& world_;
  const Port port_;
  std::map<std::uint64_t, End> ends_;
  std::uint64_t ids_ = 0;
  std::vector<ControlEvent> events_;
};

}  // namespace kvl::sim
