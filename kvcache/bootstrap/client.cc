// The client: calls as they are asked for, and a thread that keeps leases alive.
#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <map>
#include <mutex>
#include <thread>
#include <utility>

#include "kvcache/bootstrap/http_call.h"
#include "kvcache/bootstrap/wire.h"
#include "kvl/bootstrap_client.h"
#include "kvl/log.h"

namespace kvl {
namespace bootstrap {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kFirstPause(10), kLongestPause(500);  // of wait_for_instance()

// Percent-encoded, for a query.
std::string escape(std::string_view text) {
  constexpr std::string_view kHex = "0123456789ABCDEF";
  std::string out;
  for (const char c : text) {
    const auto u = static_cast<unsigned char>(c);
    const bool plain = (u >= '0' && u <= '9') || (u >= 'a' && u <= 'z') || (u >= 'A' && u <= 'Z') ||
                       c == '-' || c == '.' || c == '_' || c == '~' || c == ':';
    if (plain) {
      out += c;
    } else {
      out.append({'%', kHex[u >> 4], kHex[u & 15]});
    }
  }
  return out;
}

// What a refusal means for the caller.
Status refusal(const HttpAnswer& answer) {
  const std::string code = decode_error(answer.body);
  if (code == kRefusedVersion) return {Code::unsupported, "the rendezvous speaks another version"};
  if (code == kRefusedEpoch) {
    return {Code::permission, "the rendezvous knows a newer epoch of this rank"};
  }
  if (code == kRefusedFull) return {Code::exhausted, "the rendezvous is full"};
  if (answer.status == 404) return {Code::not_found, "the rendezvous does not know it"};
  if (answer.status >= 500) return {Code::unavailable, "the rendezvous failed"};
  return {Code::invalid_argument, "the rendezvous refused the request"};
}

class Client final : public BootstrapClient {
 public:
  Client(BootstrapClientOptions options, HttpTarget target)
      : options_(std::move(options)), target_(std::move(target)) {}

  ~Client() override {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_all();
    if (thread_.joinable()) thread_.join();
    for (const auto& [id, registration] : registrations_) {
      [[maybe_unused]] const auto ignored = call("DELETE", lease_path(registration.lease), {});
    }
  }

  Result<std::uint64_t> register_rank(const RankRecord& record) override {
    KVL_TRY(check_record(record));
    Result<Lease> lease = send_register(record);
    if (!lease.ok()) return lease.status();
    const std::lock_guard lock(mutex_);
    const std::uint64_t id = lease->id;
    registrations_.emplace(id, Registration{record, lease->id, next_renewal(*lease)});
    if (!thread_.joinable()) thread_ = std::thread([this] { renew_all(); });
    wake_.notify_all();
    return id;
  }

  Status unregister_rank(std::uint64_t id) override {
    std::uint64_t lease = 0;
    {
      const std::lock_guard lock(mutex_);
      const auto found = registrations_.find(id);
      if (found == registrations_.end()) return {Code::not_found, "no such registration"};
      lease = found->second.lease;
      registrations_.erase(found);
    }
    const Result<HttpAnswer> answer = call("DELETE", lease_path(lease), {});
    if (!answer.ok()) return answer.status();
    return answer->status == 200 ? Status{} : refusal(*answer);
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

  Status ping() override {
    const Result<HttpAnswer> answer = call("GET", "/health", {});
    if (!answer.ok()) return answer.status();
    return answer->status == 200 ? Status{} : refusal(*answer);
  }

  std::uint64_t failed_renewals() const override {
    const std::lock_guard lock(mutex_);
    return failed_renewals_;
  }

 private:
  struct Registration {
    RankRecord record;
    std::uint64_t lease = 0;  // the key in the map is the first lease, which the caller knows
    Clock::time_point next;
  };

  static std::string lease_path(std::uint64_t lease) {
    return "/kvlane/v1/lease/" + std::to_string(lease);
  }
  static Clock::time_point next_renewal(const Lease& lease) {
    return Clock::now() + std::chrono::milliseconds(lease.lease_ms / 3);
  }
  static bool complete(const std::vector<RankRecord>& records) {
    const RankRecord& first = records.front();
    return records.size() >= std::size_t{first.tp_size} * first.pp_size * first.dp_size;
  }

  Result<HttpAnswer> call(std::string_view method, std::string_view path, std::string_view body) {
    return http_call(target_, method, path, body, options_.timeout_ms);
  }

  Result<Lease> send_register(const RankRecord& record) {
    const Result<HttpAnswer> answer =
        call("POST", "/kvlane/v1/register", encode_register(record, options_.lease_ms));
    if (!answer.ok()) return answer.status();
    if (answer->status != 200) return refusal(*answer);
    const Result<Lease> lease = decode_lease(answer->body);
    if (!lease.ok()) return Status{Code::corrupt, "the rendezvous' answer to a registration"};
    return lease;
  }

  Result<std::vector<RankRecord>> ranks_within(std::string_view cluster, std::string_view instance,
                                               std::uint32_t timeout_ms) {
    const std::string path =
        "/kvlane/v1/ranks?cluster=" + escape(cluster) + "&instance=" + escape(instance);
    const Result<HttpAnswer> answer = http_call(target_, "GET", path, {}, timeout_ms);
    if (!answer.ok()) return answer.status();
    if (answer->status != 200) return refusal(*answer);
    Result<std::vector<RankRecord>> found = decode_ranks(answer->body);
    if (found.code() == Code::unsupported) return found;
    if (!found.ok()) return Status{Code::corrupt, "the rendezvous' list of ranks"};
    if (found->empty()) return Status{Code::not_found, "no rank of this instance is registered"};
    return found;
  }

  void renew_all() {
    std::unique_lock lock(mutex_);
    while (!stopping_) {
      Clock::time_point next = Clock::now() + std::chrono::hours(1);
      std::uint64_t due = 0;
      for (const auto& [id, registration] : registrations_) {
        if (registration.next < next) next = registration.next, due = id;
      }
      if (next > Clock::now()) {
        wake_.wait_until(lock, next);
        continue;
      }
      Registration copy = registrations_.at(due);
      lock.unlock();
      const Status renewed = renew(copy);
      lock.lock();
      if (!renewed.ok()) ++failed_renewals_;
      const auto entry = registrations_.find(due);
      if (entry != registrations_.end()) {
        entry->second.lease = copy.lease;
        entry->second.next = copy.next;
      } else if (renewed.ok()) {
        // Unregistered meanwhile: a registration made in between must not stay.
        lock.unlock();
        [[maybe_unused]] const auto ignored = call("DELETE", lease_path(copy.lease), {});
        lock.lock();
      }
    }
  }

  // Outside the lock. A service that lost its memory gets the registration again.
  Status renew(Registration& registration) {
    const Lease kept{registration.lease, options_.lease_ms};
    registration.next = next_renewal(kept);
    const Result<HttpAnswer> answer = call("PUT", lease_path(registration.lease), {});
    if (answer.ok() && answer->status == 200) return {};
    Status why = answer.ok() ? refusal(*answer) : answer.status();
    if (why.code() == Code::not_found) {
      const Result<Lease> lease = send_register(registration.record);
      if (lease.ok()) {
        registration.lease = lease->id;
        return {};
      }
      why = lease.status();
    }
    log(LogLevel::warning, "bootstrap.renewal_failed",
        {{"instance", registration.record.instance}, {"why", why.to_string()}});
    return why;
  }

  const BootstrapClientOptions options_;
  const HttpTarget target_;
  mutable std::mutex mutex_;  // guards the rest
  std::condition_variable wake_;
  std::map<std::uint64_t, Registration> registrations_;
  std::uint64_t failed_renewals_ = 0;
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
  return std::unique_ptr<BootstrapClient>(
      std::make_unique<bootstrap::Client>(std::move(options), *target));
}

}  // namespace kvl
