// Choosing workers and keeping their connection pools, for one loop.
#include "router/api/context.h"

#include <algorithm>
#include <random>

#include "transport/base/word_list.h"

namespace kvl::router {

LoopContext::LoopContext(http::Loop& loop, Fleet& fleet, RoomAllocator& rooms,
                         const RouterOptions& options, RolePolicies policies,
                         std::shared_ptr<TlsContext> tls)
    : loop_(loop),
      fleet_(fleet),
      rooms_(rooms),
      options_(options),
      policies_(std::move(policies)),
      session_headers_(words_of(options.session_headers)),
      random_(std::random_device{}()),
      workers_(fleet.workers()),
      tls_(std::move(tls)) {}

const WorkerSet& LoopContext::workers() {
  if (workers_->version != fleet_.version()) {
    workers_ = fleet_.workers();
    std::erase_if(pools_, [this](const auto& entry) {
      return std::none_of(workers_->all.begin(), workers_->all.end(),
                          [&](const WorkerPtr& worker) { return worker->id == entry.first; });
    });
  }
  return *workers_;
}

LoopContext::Picked LoopContext::pick(WorkerRole role, std::span<const std::uint32_t> avoid,
                                      const Ask& ask) {
  const std::vector<WorkerPtr>& all = workers().of(role);
  candidates_.clear();
  for (const WorkerPtr& worker : all) {
    const bool tried = std::find(avoid.begin(), avoid.end(), worker->id) != avoid.end();
    if (worker->usable() && !tried) candidates_.push_back(worker.get());
  }
  if (candidates_.empty()) return {};
  const Choice chosen =
      policies_.policies[static_cast<std::size_t>(role)]->pick(ask, candidates_, random_);
  return {*std::find_if(all.begin(), all.end(),
                        [&](const WorkerPtr& worker) { return worker.get() == chosen.worker; }),
          chosen.cached_tokens};
}

std::string LoopContext::session_of(const http::RequestHead& head) const {
  if (!policies_.want_sessions) return {};
  for (const std::string& name : session_headers_) {
    const std::string_view value = head.headers.find(name);
    if (!value.empty()) return std::string(value);
  }
  return {};
}

http::UpstreamPool& LoopContext::pool(const Worker& worker) {
  std::unique_ptr<http::UpstreamPool>& pool = pools_[worker.id];
  if (pool == nullptr) pool = std::make_unique<http::UpstreamPool>(loop_, worker.url, tls_);
  return *pool;
}

}  // namespace kvl::router
