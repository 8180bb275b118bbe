// One row per setting of the libfabric transport.
#include "transport/libfabric/fabric_config.h"

#include "transport/libfabric/fabric_wire.h"

namespace kvl::libfabric {

std::vector<Setting> settings_rows() {
  using C = FabricConfig;
  return {
      setting<&C::library>("libfabric.library", "", 0, 0,
                           "file of libfabric.so.1; empty: that of the EFA installer, then the "
                           "system's"),
      setting<&C::providers>("libfabric.providers", "", 0, 0,
                             "comma list of providers that may be used: efa, and tcp and verbs for "
                             "tests; require=libfabric:NAME adds one"),
      setting<&C::hmem>("libfabric.hmem", "", 0, 0,
                        "register memory of GPUs with the NIC (FI_HMEM)"),
      setting<&C::emulated>("libfabric.emulated", "", 0, 0,
                            "use EFA devices without RDMA, too: CPUs copy the bytes, and tcp may "
                            "be as fast"),
      setting<&C::connect_timeout_ms>("libfabric.connect_timeout_ms", "ms", 1, 600'000,
                                      "from the exchange of offers to peer_up"),
      setting<&C::close_timeout_ms>("libfabric.close_timeout_ms", "ms", 1, 600'000,
                                    "how long messages to a closed peer may be under way"),
      setting<&C::give_up_ms>("libfabric.give_up_ms", "ms", 100, 600'000,
                              "operations to a lost peer that have not ended by then are stopped "
                              "with the endpoint; other peers move to a new one"),
      setting<&C::probe_ms>("libfabric.probe_ms", "ms", 10, 60'000,
                            "a peer from which nothing comes is sent an empty message this often; "
                            "it is lost when the provider takes none for twice as long"),
      setting<&C::op_bytes>("libfabric.op_bytes", "bytes", 4096, 1 << 30,
                            "one read or write at most, where the provider allows as much"),
      setting<&C::inflight_bytes>("libfabric.inflight_bytes", "bytes", 65536, 1LL << 40,
                                  "no further read or write is posted while so much is under way"),
      setting<&C::tx_depth>("libfabric.tx_depth", "", 16, 16384,
                            "operations under way at most, where the provider allows as many"),
      setting<&C::rx_depth>("libfabric.rx_depth", "", 16, 4096,
                            "receive buffers for messages of peers"),
      setting<&C::counted_ops>("libfabric.counted_ops", "", 0, kCountMax,
                               "the note of a batch of so many writes at most does not wait for "
                               "them: the target counts the immediates that they carry"),
      setting<&C::immediates>("libfabric.immediates", "", 0, 65536,
                              "room in the completion queue for immediates of peers, 128 for each "
                              "while there is any; 0: none are used"),
      setting<&C::mr_bytes>("libfabric.mr_bytes", "bytes", 0, 1LL << 44,
                            "longer memory is registered in parts; 0: only when the device does "
                            "not take it whole"),
      setting<&C::batches_inflight_max>("libfabric.batches_inflight_max", "", 1, 65536,
                                        "post() answers exhausted beyond"),
  };
}

}  // namespace kvl::libfabric
