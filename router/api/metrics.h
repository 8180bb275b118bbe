// The router's metrics: the counters of all loops, added up.
#pragma once

#include <span>

#include "kvl/metrics.h"
#include "router/api/context.h"
#include "router/http/session.h"

namespace kvl::router {

struct LoopMetrics {
  const http::HttpCounters& http;
  const RouterCounters& router;
};

void visit_router_metrics(MetricVisitor& visitor, std::span<const LoopMetrics> loops);

// The HTTP counters alone, under another prefix; for the rendezvous.
void visit_http_metrics(MetricVisitor& visitor, const std::string& prefix,
                        std::span<const http::HttpCounters* const> all);

}  // namespace kvl::router
