// RDMA devices in memory behind libibverbs' table of entry points: queue pairs of one process, and
// failures on demand. Strict where real devices are unforgiving: queues that overflow, keys,
// states, objects that are destroyed in the wrong order. One at a time; it must outlive its Links.
// Thread-safe.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "transport/verbs/verbs_api.h"

namespace kvl::test {

struct FakePort {
  ibv_port_state state = IBV_PORT_ACTIVE;
  std::uint8_t link_layer = IBV_LINK_LAYER_ETHERNET;
  std::uint16_t lid = 0;
  ibv_mtu mtu = IBV_MTU_4096;
  std::vector<ibv_gid_entry> gids;
};
// An entry of a GID table, from "fe80::1".
ibv_gid_entry gid_entry(std::uint32_t index, ibv_gid_type type, const char* address,
                        std::uint32_t port = 1);

class FakeDevice {
 public:
  // One port, RoCE, an IPv4 address.
  FakeDevice();
  ~FakeDevice();
  FakeDevice(const FakeDevice&) = delete;
  FakeDevice& operator=(const FakeDevice&) = delete;

  verbs::VerbsApi api() const;

  // What it is; before it is opened.
  std::string name = "fake0";
  ibv_transport_type transport = IBV_TRANSPORT_IB;
  std::vector<FakePort> ports;
  ibv_device_attr limits{};
  std::uint32_t inline_max = 64;
  std::uint32_t message_bytes_max = 1 << 30;
  bool takes_dmabuf = true;
  int open_error = 0;
  int register_error = 0;

  // How many requests are done by each look at a completion queue; 0: all, at once when posted.
  // Whoever is about to sleep finds all done.
  std::uint32_t pace = 0;

  // Failures. Requests are counted over all queue pairs from set_numbers() on, 0 the first.
  std::vector<std::uint64_t> refuse_at;  // ibv_post_send stops before these, once each
  int refuse_error = 0;                  // … with this; ENOMEM
  std::vector<std::uint64_t> fail_at;    // these complete as …
  ibv_wc_status fail_status = IBV_WC_RETRY_EXC_ERR;
  bool flushes = true;  // false: what is under way when a queue pair stops is never reported
  bool silent = false;  // nothing is done any more
  void set_numbers() { requests = 0; }
  void raise(ibv_event_type event, std::uint8_t port = 1);  // at every opened context
  void break_queue_pairs();                                 // as a device does by itself
  void inject(const std::vector<std::byte>& message);       // arrives at every queue pair

  // What has been seen.
  std::uint64_t requests = 0;   // taken
  std::uint64_t chains = 0;     // calls of ibv_post_send
  std::uint64_t signalled = 0;  // requests
  std::uint64_t inlined = 0;
  std::uint64_t dmabufs = 0;
  std::uint64_t largest_chain = 0;
  ibv_qp_attr last_ready{};         // ibv_modify_qp to RTR
  std::vector<std::string> misuse;  // what no program may do; empty at the end of every test
  std::size_t objects() const;      // that are not destroyed
  std::size_t queue_pairs() const;

  struct Context;
  struct Pd;
  struct Mr;
  struct Channel;
  struct Cq;
  struct Srq;
  struct Qp;
  mutable std::mutex mutex;
  std::vector<Context*> contexts;
  std::vector<Qp*> qps;
  std::vector<Mr*> mrs;
  std::uint32_t numbers = 0;
  std::atomic<std::size_t> live{0};
  ibv_device device{};
};

}  // namespace kvl::test
