// Control connections over TCP: u32 length, then the message. One thread owns the object.
#pragma once

#include <deque>
#include <memory>

#include "transport/base/slot_map.h"
#include "transport/base/unique_fd.h"
#include "transport/core/control_net.h"

namespace kvl {

class TcpControlNet final : public ControlNet {
 public:
  // unavailable: the port is in use (errno kept). `advertise` replaces the host that others dial.
  static Result<std::unique_ptr<TcpControlNet>> open(const std::string& listen,
                                                     const std::string& advertise);

  std::string address() const override { return address_; }
  Result<ConnId> connect(std::string_view address) override;
  Status send(ConnId, std::span<const std::byte> message) override;
  void close(ConnId) override;
  void poll(std::vector<ControlEvent>& events) override;
  int wait_fd() const override { return epoll_.get(); }

 private:
  // A peer that does not read may hold this much of ours; then it is closed.
  static constexpr std::size_t kBacklogBytesMax = 64u << 20;
  static constexpr std::size_t kConnectionsMax = 8192;

  struct Connection {
    UniqueFd fd;
    bool connecting = false;
    std::string remote;
    std::vector<std::byte> in;   // a partial message
    std::vector<std::byte> out;  // not yet taken by the kernel
    std::size_t out_begin = 0;
  };

  void accept_all(std::vector<ControlEvent>& events);
  void on_ready(std::uint64_t id, std::uint32_t ready, std::vector<ControlEvent>& events);
  Status read_some(std::uint64_t id, Connection& c, std::vector<ControlEvent>& events);
  Status flush(Connection& c);
  Status watch(std::uint64_t id, Connection& c, bool add);

  UniqueFd listener_, epoll_;
  std::string address_;
  SlotMap<Connection> connections_;
};

}  // namespace kvl
