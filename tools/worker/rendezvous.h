// Where the ranks of other workers are: the bootstrap client behind a thread of its own, so that
// the scheduler never waits for it.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "kvl/bootstrap_client.h"
#include "kvl/transfer_plan.h"

namespace kvl::worker {

// A prefill instance: its shape and its ranks' engine addresses, by flat rank.
struct Instance {
  ParallelSizes sizes;
  std::vector<std::string> addresses;
};

struct RendezvousOptions {
  // "http://host:port" of the service; "": the one at the session's bootstrap_host and
  // bootstrap_port, as SGLang has it.
  std::string url;
  std::string cluster = "default";
  std::string token;              // kvl/http_token.h, where the services have a secret
  TlsFiles tls;                   // for https; with `ca`, services that sessions name have it
  std::uint32_t wait_ms = 10000;  // for an instance that is not registered yet
};

class Rendezvous {
 public:
  using Found = std::function<void(Result<Instance>)>;

  explicit Rendezvous(RendezvousOptions options);
  ~Rendezvous();  // unregisters
  Rendezvous(const Rendezvous&) = delete;
  Rendezvous& operator=(const Rendezvous&) = delete;

  // Registers a rank at `url`, or at `fallback_url` where none was configured. Blocks, bounded by
  // the client's timeout.
  Status add_rank(RankRecord record, const std::string& fallback_url);
  // Calls `found` once, from this thread or another one. An answer is remembered from
  // trust() to doubt(): the rendezvous knows of a death only when a lease has run out.
  void find(const std::string& host, std::int64_t port, Found found);
  // Somebody at this address of the instance (of its first rank) has answered.
  void trust(const std::string& host, std::int64_t port, const std::string& address);
  // The instance did not answer, or a rank of it (by the address of its engine) was lost: the next
  // find() asks again. Where the rendezvous does not know better, what was known has to do.
  void doubt(const std::string& host, std::int64_t port);
  void doubt(const std::string& address);
  // Leases of our ranks that were not renewed in time, all services together.
  std::uint64_t failed_renewals();

 private:
  using Time = std::chrono::steady_clock::time_point;
  struct Query {
    std::string instance;
    std::string url;
    Found found;
    Time ask_at, give_up_at;
  };
  void serve();
  // The next query that is due, waiting for it; nothing when closing.
  std::optional<Query> next(std::unique_lock<std::mutex>& lock);
  Result<Instance> ask(const Query& query);
  Result<BootstrapClient*> client_of(const std::string& url);

  RendezvousOptions options_;
  std::mutex mutex_;  // guards what follows but the thread
  std::condition_variable asked_;
  std::deque<Query> queries_;
  struct Known {
    Instance instance;
    bool doubtful = true;
  };
  std::map<std::string, Known> known_;
  std::map<std::string, std::unique_ptr<BootstrapClient>> clients_;
  bool closing_ = false;
  std::thread thread_;
};

}  // namespace kvl::worker
