// One row per setting of the UCX transport.
#include "transport/ucx/ucx_config.h"

namespace kvl::ucx {

std::vector<Setting> settings_rows() {
  using C = UcxConfig;
  return {
      setting<&C::library>("ucx.library", "", 0, 0,
                           "file of libucp.so.0, its other libraries beside it; empty: the "
                           "system's"),
      setting<&C::transports>("ucx.transports", "", 0, 0,
                              "comma list of UCX's transports, each a device: tcp, rc, dc, ud, ib, "
                              "or some joined by +, of which the first must carry the pages "
                              "(rc_verbs+tcp); empty: UCX is not used; require=ucx:NAME adds one"),
      setting<&C::net_devices>("ucx.net_devices", "", 0, 0,
                               "what UCX calls UCX_NET_DEVICES: mlx5_0:1, eth0; empty: all"),
      setting<&C::log_level>("ucx.log_level", "", 0, 0,
                             "what UCX itself writes, and that to standard output: fatal, error, "
                             "warn, info, debug"),
      setting<&C::connect_timeout_ms>("ucx.connect_timeout_ms", "ms", 1, 600'000,
                                      "from the exchange of offers to peer_up"),
      setting<&C::close_timeout_ms>("ucx.close_timeout_ms", "ms", 1, 600'000,
                                    "how long what is under way to a closed peer may take before "
                                    "its endpoint is closed by force"),
      setting<&C::probe_ms>("ucx.probe_ms", "ms", 10, 60'000,
                            "a peer from which nothing comes is sent an empty message this often; "
                            "it is lost when that is not out after three times as long"),
      setting<&C::op_bytes>("ucx.op_bytes", "bytes", 4096, 1 << 30, "one put or get at most"),
      setting<&C::inflight_bytes>("ucx.inflight_bytes", "bytes", 65536, 1LL << 40,
                                  "no further put or get is posted while so much is under way"),
      setting<&C::tx_depth>("ucx.tx_depth", "", 16, 16384, "operations under way at most"),
      setting<&C::rx_depth>("ucx.rx_depth", "", 1024, 65536,
                            "messages of peers that may wait for the next poll; UCX is not asked "
                            "for more while half of them do"),
      setting<&C::batches_inflight_max>("ucx.batches_inflight_max", "", 1, 65536,
                                        "post() answers exhausted beyond"),
  };
}

}  // namespace kvl::ucx
