// The rendezvous without sockets: a request in, an answer out. Two protocols side by side.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "kvl/bootstrap_server.h"
#include "kvl/clock.h"
#include "kvl/metrics.h"
#include "router/bootstrap/refusals.h"
#include "router/bootstrap/sglang.h"
#include "router/bootstrap/store.h"

namespace kvl::bootstrap {

struct ServiceRequest {
  std::string_view method, path, query, body;
};

struct ServiceAnswer {
  int status = 200;
  std::string body;
  std::string_view content_type = "application/json";
};

struct ServiceCounters {
  Counter registrations_total, renewals_total, removals_total, lookups_total;
  RefusalCounters refused;  // well-formed HTTP requests
};

// Belongs to one thread; the counters may be read by any.
class Service {
 public:
  // The clock and the store outlive the service.
  Service(Store& store, const Clock& clock, const BootstrapServerOptions& options);

  using Answered = std::function<void(ServiceAnswer)>;

  // Calls `answered` once: before it returns, or later, within the store's deadlines, from the
  // same thread. The request's views are not kept.
  void handle(const ServiceRequest& request, Answered answered);
  const ServiceCounters& counters() const { return counters_; }

 private:
  struct Registration;
  void route(const ServiceRequest& request, Answered answered);
  bool route_sglang(const ServiceRequest& request, Answered& answered);
  void register_rank(std::string_view body, Answered answered);
  void try_to_register(Registration registration);
  void put_record(Registration registration, LeaseId lease, std::uint64_t expected);
  void lease(const ServiceRequest& request, std::string_view id, Answered answered);
  ServiceAnswer health() const;
  ServiceAnswer ranks(std::string_view query);
  ServiceAnswer instances(std::string_view query);

  Store& store_;
  const BootstrapServerOptions options_;
  SglangTable sglang_;
  ServiceCounters counters_;
};

}  // namespace kvl::bootstrap
