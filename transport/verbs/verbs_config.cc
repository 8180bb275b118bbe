// One row per setting of the verbs transport.
#include "transport/verbs/verbs_config.h"

namespace kvl::verbs {

std::vector<Setting> settings_rows() {
  using C = VerbsConfig;
  return {
      setting<&C::library>("verbs.library", "", 0, 0,
                           "file of libibverbs.so.1; empty: the system's"),
      setting<&C::devices>("verbs.devices", "", 0, 0,
                           "comma list of RDMA devices that may be used (mlx5_0); empty: all"),
      setting<&C::gid_index>("verbs.gid_index", "", -1, 255,
                             "entry of the port's GID table; -1: RoCE v2, IPv4 first"),
      setting<&C::pkey_index>("verbs.pkey_index", "", 0, 65535,
                              "entry of the port's partition table"),
      setting<&C::traffic_class>("verbs.traffic_class", "", 0, 255,
                                 "of RoCE packets: DSCP * 4, as the switches expect it"),
      setting<&C::service_level>("verbs.service_level", "", 0, 15,
                                 "of InfiniBand packets; RoCE: their priority"),
      setting<&C::ack_timeout>("verbs.ack_timeout", "", 8, 20,
                               "4.096 us * 2^N until an unanswered packet is sent again; devices "
                               "may take four times as long"),
      setting<&C::retries>("verbs.retries", "", 1, 6,
                           "how often it is sent again before the peer is lost"),
      setting<&C::relaxed_ordering>("verbs.relaxed_ordering", "", 0, 0,
                                    "let PCIe reorder what arrives, where the device can"),
      setting<&C::connect_timeout_ms>("verbs.connect_timeout_ms", "ms", 1, 600'000,
                                      "from the exchange of offers to peer_up"),
      setting<&C::close_timeout_ms>("verbs.close_timeout_ms", "ms", 1, 600'000,
                                    "how long a closed queue pair may take to flush before it is "
                                    "destroyed as it is"),
      setting<&C::probe_ms>("verbs.probe_ms", "ms", 10, 60'000,
                            "a peer to which nothing is under way is sent an empty write this "
                            "often"),
      setting<&C::op_bytes>("verbs.op_bytes", "bytes", 4096, 1 << 30,
                            "one read or write at most, where the port allows as much"),
      setting<&C::inflight_bytes>("verbs.inflight_bytes", "bytes", 65536, 1LL << 40,
                                  "no further read or write is posted while so much is under way"),
      setting<&C::inline_bytes>("verbs.inline_bytes", "bytes", 0, 1024,
                                "writes and messages up to this are copied into the send queue, "
                                "where the device can"),
      setting<&C::sq_depth>("verbs.sq_depth", "", 16, 16384,
                            "work requests under way to one peer, where the device allows as many"),
      setting<&C::rq_depth>("verbs.rq_depth", "", 16, 16384,
                            "receive buffers for messages of all peers of a port"),
      setting<&C::cq_depth>("verbs.cq_depth", "", 64, 1 << 22,
                            "completions of one port, where the device allows as many: bounds what "
                            "is under way to all peers"),
      setting<&C::batches_inflight_max>("verbs.batches_inflight_max", "", 1, 65536,
                                        "post() answers exhausted beyond"),
  };
}

}  // namespace kvl::verbs
