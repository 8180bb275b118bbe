// Ranks in this process: their memory, the threads that compute, the connector.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "worker/connector.h"
#include "worker/kv_memory.h"
#include "worker/messages.h"
#include "worker/rank_threads.h"

namespace kvl::worker {

struct HostOptions {
  ModelConfig model;
  ParallelSizes sizes;
  LayoutOptions layout;
  std::uint64_t seed = 0;
  bool kv_only = false;
  bool handoffs = true;  // false: no engine is opened
  bool prefill = true, decode = true;
  const Settings* settings = nullptr;  // used during open only
};

// What two workers must agree on to exchange KV: model, dtype, weights, content.
std::string fingerprint(const HostOptions& options);

class LocalHost final : public RankHost {
 public:
  // `ranks` are flat. `fabric` (one end per rank, null with kv_only) outlives the host. Each rank
  // answers with a RankUp. `error` receives a sentence.
  static Result<std::unique_ptr<LocalHost>> open(const HostOptions& options,
                                                 const std::vector<std::uint32_t>& ranks,
                                                 const std::vector<Collective*>& fabric,
                                                 const RankEventSink& sink, std::string* error);

  void post(const Command& command) override;
  void visit_metrics(MetricVisitor& visitor) const override;

 private:
  LocalHost() = default;
  std::vector<std::unique_ptr<KvMemory>> memory_;
  std::unique_ptr<Connector> connector_;
  std::unique_ptr<RankThreads> threads_;  // last: their callbacks use the connector
};

}  // namespace kvl::worker
