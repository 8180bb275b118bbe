// The client: calls as they are asked for, and a thread that keeps leases alive.
#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "kvcache/bootstrap/calls.h"
#include "kvcache/bootstrap/lease_keeper.h"
#include "kvl/bootstrap_client.h"

namespace kvl {
namespace bootstrap {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kFirstPause(10), kLongestPause(500);  // of wait_for_instance()

std::int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now().time_since_epoch())
      .count();
}

class Client final : public BootstrapClient {
 public:
  Client(BootstrapClientOptions options, HttpTarget target, HttpAccess access)
      : options_(std::move(options)),
        target_(std::move(target)),
        access_(std::move(access)),
        keeper_(options_.lease_ms) {}

  ~Client() override {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_all();
    if (thread_.joinable()) thread_.join();
    keeper_.for_each([this](std::uint64_t lease) {
      [[maybe_unused]] const auto ignored = call(revoke_call(lease));
    });
  }

  Result<std::uint64_t> register_rank(const RankRecord& record) override {
    KVL_TRY(check_record(record));
    const Result<Lease> lease = read_lease(call(register_call(record, options_.lease_ms)));
    if (!lease.ok()) return lease.status();
    const std::lock_guard lock(mutex_);
    const std::uint64_t id = keeper_.add(record, *lease, now_ns());
    if (!thread_.joinable()) thread_ = std::thread([this] { renew_all(); });
    wake_.notify_all();
    return id;
  }

  Status unregister_rank(std::uint64_t id) override {
    std::optional<std::uint64_t> lease;
    {
      const std::lock_guard lock(mutex_);
      lease = keeper_.remove(id);
    }
    if (!lease) return {Code::not_found, "no such registration"};
    return read_done(call(revoke_call(*lease)));
  }

  Result<std::vector<RankRecord>> ranks(std::string_view cluster,
                                        std::string_view instance) override {
    return ranks_within(cluster, instance, options_.timeout_ms);
  }

  Result<std::vector<RankRecord>> wait_for_instance(std::string_view cluster,
                                                    std::string_view instance,
                                                    std::uint32_t wait_ms) override {
    const Clock::time_point end = Clock::now() + std::chrono::milliseconds(wait_ms);
    auto pause = kFirstPause;
    while (true) {
      const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(end - Clock::now());
      const auto limit = static_cast<std::uint32_t>(
          std::clamp<std::int64_t>(left.count(), 1, options_.timeout_ms));
      Result<std::vector<RankRecord>> found = ranks_within(cluster, instance, limit);
      if (found.ok() && complete(*found)) return found;
      const bool retry = found.ok() || found.code() == Code::not_found ||
                         found.code() == Code::unavailable || found.code() == Code::timed_out;
      if (!retry) return found;
      if (Clock::now() + pause >= end) {
        return Status{Code::timed_out, "wait for all ranks of an instance to register"};
      }
      std::this_thread::sleep_for(pause);
      pause = std::min(2 * pause, kLongestPause);
    }
  }

  Status ping() override { return read_done(call({"GET", "/health", {}})); }

  std::uint64_t failed_renewals() const override {
    const std::lock_guard lock(mutex_);
    return keeper_.failed_renewals();
  }

 private:
  static bool complete(const std::vector<RankRecord>& records) {
    const RankRecord& first = records.front();
    return records.size() >= std::size_t{first.tp_size} * first.pp_size * first.dp_size;
  }

  Result<HttpAnswer> call(const Call& call) { return call_within(call, options_.timeout_ms); }
  Result<HttpAnswer> call_within(const Call& call, std::uint32_t timeout_ms) {
    return http_call(target_, access_, call.method, call.path, call.body, timeout_ms);
  }
  Result<std::vector<RankRecord>> ranks_within(std::string_view cluster, std::string_view instance,
                                               std::uint32_t timeout_ms) {
    return read_ranks(call_within(ranks_call(cluster, instance), timeout_ms));
  }

  void renew_all() {
    std::unique_lock lock(mutex_);
    while (!stopping_) {
      std::optional<LeaseKeeper::Step> step = keeper_.next(now_ns());
      if (!step) {
        const std::int64_t hour_ns = std::int64_t{3600} * 1'000'000'000;
        const std::int64_t next_ns = std::min(keeper_.next_ns(), now_ns() + hour_ns);
        wake_.wait_until(lock, Clock::time_point(std::chrono::nanoseconds(next_ns)));
      }
      while (step) {
        lock.unlock();
        const Result<HttpAnswer> answer = call(step->call);
        lock.lock();
        step = keeper_.on_answer(*step, answer, now_ns());
      }
    }
  }

  const BootstrapClientOptions options_;
  const HttpTarget target_;
  const HttpAccess access_;
  mutable std::mutex mutex_;  // guards the rest
  std::condition_variable wake_;
  LeaseKeeper keeper_;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace
}  // namespace bootstrap

Result<std::unique_ptr<BootstrapClient>> BootstrapClient::open(BootstrapClientOptions options) {
  const Result<bootstrap::HttpTarget> target = bootstrap::parse_target(options.url);
  if (!target.ok()) return target.status();
  if (options.timeout_ms == 0 || options.lease_ms == 0) {
    return Status{Code::invalid_argument, "timeout_ms and lease_ms must not be 0"};
  }
  bootstrap::HttpAccess access{.token = options.token, .tls = nullptr};
  if (target->tls) {
    Result<std::shared_ptr<TlsContext>> tls = TlsContext::client(options.tls);
    if (!tls.ok()) return tls.status();
    access.tls = *std::move(tls);
  }
  return std::unique_ptr<BootstrapClient>(
      std::make_unique<bootstrap::Client>(std::move(options), *target, std::move(access)));
}

}  // namespace kvl
