// Names and help texts of the router's metrics, one row each.
#include "router/api/metrics.h"

#include <string>
#include <vector>

namespace kvl::router {
namespace {

struct HttpRow {
  const char* name;
  const char* help;
  const Counter http::HttpCounters::*counter;
};
constexpr HttpRow kHttpRows[] = {
    {"connections_total", "client connections accepted", &http::HttpCounters::connections_total},
    {"http_requests_total", "request heads read", &http::HttpCounters::requests_total},
    {"http_timeouts_total", "client connections that ran into a limit of time",
     &http::HttpCounters::timeouts_total},
    {"tls_failed_total", "client connections that did not become secure",
     &http::HttpCounters::tls_failed_total},
    {"received_bytes_total", "bytes read from clients", &http::HttpCounters::bytes_in_total},
    {"sent_bytes_total", "bytes written to clients", &http::HttpCounters::bytes_out_total},
};

struct RouterRow {
  const char* name;
  const char* help;
  const Counter RouterCounters::*counter;
  double scale = 1;
};
constexpr RouterRow kRouterRows[] = {
    {"requests_total", "requests to be relayed", &RouterCounters::requests_total},
    {"bad_requests_total", "of them, refused for their body", &RouterCounters::bad_requests_total},
    {"retries_total", "further attempts with other workers", &RouterCounters::retries_total},
    {"client_gone_total", "clients that left before their answer was complete",
     &RouterCounters::client_gone_total},
    {"timeouts_total", "requests that ran into their limit of time",
     &RouterCounters::timeouts_total},
    {"prefill_failures_total", "prefill legs that failed", &RouterCounters::prefill_failures_total},
    {"decode_failures_total", "answering legs that failed", &RouterCounters::decode_failures_total},
    {"broken_streams_total", "answers cut after their first byte",
     &RouterCounters::broken_streams_total},
    {"aborts_total", "abort requests sent to workers", &RouterCounters::aborts_total},
    {"answers_2xx_total", "answers below 300", &RouterCounters::answers_2xx_total},
    {"answers_4xx_total", "answers of 300 to 499", &RouterCounters::answers_4xx_total},
    {"answers_5xx_total", "answers of 500 and above, and broken streams",
     &RouterCounters::answers_5xx_total},
    {"prompt_tokens_total", "tokens of prompts sent to be computed, estimated",
     &RouterCounters::prompt_tokens_total},
    {"cached_tokens_total", "of them, thought to be in the worker's KV cache",
     &RouterCounters::cached_tokens_total},
    {"duration_seconds_total", "time from request to end of answer, summed",
     &RouterCounters::duration_us_total, 1e-6},
    {"first_byte_seconds_total", "time from request to first byte of the answer, summed",
     &RouterCounters::first_byte_us_total, 1e-6},
};

}  // namespace

void visit_http_metrics(MetricVisitor& visitor, const std::string& prefix,
                        std::span<const http::HttpCounters* const> all) {
  for (const HttpRow& row : kHttpRows) {
    double sum = 0;
    for (const http::HttpCounters* counters : all) {
      sum += static_cast<double>((counters->*row.counter).value());
    }
    visitor.counter(prefix + row.name, row.help, {}, sum);
  }
  for (std::size_t i = 0; i < http::kRefusals; ++i) {
    double sum = 0;
    for (const http::HttpCounters* counters : all) {
      sum += static_cast<double>(counters->refused.counts[i].value());
    }
    visitor.counter(prefix + "http_refused_total",
                    "connections and requests that the server turned away, by cause",
                    {{"cause", std::string(about(static_cast<http::Refusal>(i)).cause)}}, sum);
  }
}

void visit_router_metrics(MetricVisitor& visitor, std::span<const LoopMetrics> loops) {
  std::vector<const http::HttpCounters*> http;
  for (const LoopMetrics& loop : loops) http.push_back(&loop.http);
  visit_http_metrics(visitor, "kvlane_router_", http);
  for (const RouterRow& row : kRouterRows) {
    double sum = 0;
    for (const LoopMetrics& loop : loops) {
      sum += static_cast<double>((loop.router.*row.counter).value()) * row.scale;
    }
    visitor.counter(std::string("kvlane_router_") + row.name, row.help, {}, sum);
  }
  for (std::size_t i = 0; i < RouterCounters::kCodes; ++i) {
    const auto code = static_cast<Code>(i);
    double sum = 0;
    for (const LoopMetrics& loop : loops) {
      sum += static_cast<double>(loop.router.failed[i].value());
    }
    if (sum == 0 && code != Code::unavailable) continue;  // a series appears with its first
    visitor.counter("kvlane_router_requests_failed_total",
                    "requests without an answer of a worker, and answers cut, by cause",
                    {{"cause", std::string(to_string(code))}}, sum);
  }
}

}  // namespace kvl::router
