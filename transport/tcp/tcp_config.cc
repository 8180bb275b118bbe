// One row per setting of the tcp transport.
#include "transport/tcp/tcp_config.h"

namespace kvl::tcp {

std::vector<Setting> settings_rows() {
  using C = TcpConfig;
  return {
      setting<&C::lanes>("tcp.lanes", "", 1, 64, "connections per peer; the smaller side decides"),
      setting<&C::congestion>("tcp.congestion", "", 0, 0,
                              "TCP_CONGESTION of data lanes: a name such as cubic or bbr; system: "
                              "what the kernel chose; auto: reno between processes of one host, "
                              "the system's elsewhere"),
      setting<&C::send_buffer_bytes>("tcp.send_buffer_bytes", "bytes", 0, 1 << 30,
                                     "SO_SNDBUF of a lane; 0: the kernel tunes it"),
      setting<&C::recv_buffer_bytes>("tcp.recv_buffer_bytes", "bytes", 0, 1 << 30,
                                     "SO_RCVBUF of a lane; 0: the kernel tunes it"),
      setting<&C::bind>("tcp.bind", "", 0, 0,
                        "numeric address to listen on and to offer; empty: every address"),
      setting<&C::interface>("tcp.interface", "", 0, 0,
                             "comma list of network interfaces: each becomes a device of its own, "
                             "with its own connections; empty: one device with all addresses"),
      setting<&C::frame_bytes>("tcp.frame_bytes", "bytes", 4096, 1 << 30,
                               "data of one frame; answers wait behind a frame under way"),
      setting<&C::frame_runs>("tcp.frame_runs", "", 1, 1024, "run headers of one frame"),
      setting<&C::zerocopy_min_bytes>("tcp.zerocopy_min_bytes", "bytes", 0, 1 << 30,
                                      "send with MSG_ZEROCOPY from this size on, never to the same "
                                      "host; 0: never"),
      setting<&C::busy_poll_us>("tcp.busy_poll_us", "us", 0, 10'000,
                                "SO_BUSY_POLL of a lane: let a read poll the NIC's queue; 0: no"),
      setting<&C::keepalive_s>("tcp.keepalive_s", "s", 0, 3600,
                               "idle time before TCP probes a lane; 0: no probes"),
      setting<&C::user_timeout_ms>("tcp.user_timeout_ms", "ms", 0, 3'600'000,
                                   "unacknowledged bytes kill a lane after this; 0: the kernel's"),
      setting<&C::connect_timeout_ms>("tcp.connect_timeout_ms", "ms", 1, 600'000,
                                      "from open_peer to the first lane, and for one greeting"),
      setting<&C::reconnect_timeout_ms>("tcp.reconnect_timeout_ms", "ms", 1, 600'000,
                                        "a peer without any lane is lost after this"),
      setting<&C::poll_bytes>("tcp.poll_bytes", "bytes", 65536, 1 << 30,
                              "about how much one poll() moves in each direction"),
      setting<&C::batches_inflight_max>("tcp.batches_inflight_max", "", 1, 65536,
                                        "post() answers exhausted beyond"),
  };
}

}  // namespace kvl::tcp
