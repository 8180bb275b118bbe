// Ranks in this process.
#include "worker/local_host.h"

#include "kvl/transfer_plan.h"

namespace kvl::worker {

std::string fingerprint(const HostOptions& options) {
  const std::string dtype(to_string(options.model.kv.dtype));
  const std::string content = options.kv_only ? "kv-only" : "seed-" + std::to_string(options.seed);
  return options.model.name + "/" + dtype + "/" + content;
}

Result<std::unique_ptr<LocalHost>> LocalHost::open(const HostOptions& options,
                                                   const std::vector<std::uint32_t>& ranks,
                                                   const std::vector<Collective*>& fabric,
                                                   const RankEventSink& sink, std::string* error) {
  std::unique_ptr<LocalHost> host(new LocalHost);
  std::vector<ConnectorRank> ports;
  std::vector<RankPlace> places;
  for (std::size_t i = 0; i < ranks.size(); ++i) {
    const ParallelSlice slice = slice_at(options.sizes.tp_size, options.sizes.pp_size, ranks[i]);
    Result<PageLayout> layout = make_layout(options.model.kv, slice, options.layout);
    if (!layout) return layout.status();
    Result<std::unique_ptr<KvMemory>> memory = KvMemory::open(*std::move(layout));
    if (!memory) return memory.status();
    host->memory_.push_back(*std::move(memory));
    ports.push_back({ranks[i], host->memory_.back().get()});
    places.push_back({ranks[i], host->memory_.back()->kv(), options.kv_only ? nullptr : fabric[i]});
  }
  RankThreadsOptions threads;
  threads.model = options.model;
  threads.seed = options.seed;
  threads.kv_only = options.kv_only;
  threads.on_output = sink;
  if (options.handoffs) {
    threads.on_layer = [self = host.get()](std::uint32_t rank, std::uint64_t room,
                                           std::uint32_t layer, std::uint64_t tokens) {
      self->connector_->ready(rank, room, layer, tokens);
    };
  }
  // Weights first: a rank is up when it can compute.
  Result<std::unique_ptr<RankThreads>> opened =
      RankThreads::open(std::move(threads), std::move(places));
  if (!opened) return opened.status();
  host->threads_ = *std::move(opened);
  if (!options.handoffs) {
    for (std::size_t i = 0; i < ranks.size(); ++i) {
      sink(RankUp{ranks[i], "", 0, host->memory_[i]->kv().layout().encode()});
    }
    return host;
  }
  const ConnectorOptions connector{options.settings, fingerprint(options), options.prefill,
                                   options.decode};
  Result<std::unique_ptr<Connector>> connected = Connector::open(connector, ports, sink, error);
  if (!connected) return connected.status();
  host->connector_ = *std::move(connected);
  return host;
}

void LocalHost::post(const Command& command) {
  if (const auto* const job = std::get_if<ComputeJob>(&command)) {
    threads_->post(*job);
  } else if (connector_ != nullptr) {
    connector_->post(command);
  }
}

void LocalHost::visit_metrics(MetricVisitor& visitor) const {
  if (connector_ != nullptr) connector_->visit_metrics(visitor);
}

}  // namespace kvl::worker
