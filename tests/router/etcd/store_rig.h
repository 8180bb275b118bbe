// Stores on a loop in a thread of their own, and calls that wait for their end.
#pragma once

#include <gtest/gtest.h>
#include <poll.h>

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/post.hpp>
#include <chrono>
#include <functional>
#include <future>
#include <memory>
#include <optional>
#include <string>
#include <thread>

#include "kvl/clock.h"
#include "router/bootstrap/store.h"
#include "router/http/loop.h"
#include "tests/router/support/stub_worker.h"

namespace kvl::bootstrap::test {

using kvl::test::kPatience;

template <typename Condition>
bool eventually(Condition condition) {
  const auto end = std::chrono::steady_clock::now() + 2 * kPatience;
  while (!condition()) {
    if (std::chrono::steady_clock::now() > end) return false;
    ::poll(nullptr, 0, 5);
  }
  return true;
}

class StoreRig {
 public:
  using Make = std::function<std::unique_ptr<Store>(http::Loop&, const Clock&)>;
  // `stop` is called on the loop before it ends.
  StoreRig(const Make& make, std::function<void(Store&)> stop)
      : stop_(std::move(stop)), store_(make(loop_, clock_)) {
    thread_ = std::thread([this] { loop_.run(); });
  }
  ~StoreRig() {
    boost::asio::post(loop_.io(), [this] {
      stop_(*store_);
      loop_.stop();
    });
    thread_.join();
  }
  StoreRig(const StoreRig&) = delete;
  StoreRig& operator=(const StoreRig&) = delete;

  // Runs `work` on the loop and waits for it.
  template <typename Work>
  auto on_loop(Work work) {
    std::packaged_task<decltype(work())()> task(std::move(work));
    auto future = task.get_future();
    boost::asio::post(loop_.io(), [&task] { task(); });
    return future.get();
  }
  // Keeps the loop's thread in `work` without waiting for it.
  void post(std::function<void()> work) { boost::asio::post(loop_.io(), std::move(work)); }

  Result<LeaseId> grant(std::uint32_t ttl_ms) {
    return await<Result<LeaseId>>([&](auto done) { store_->grant(ttl_ms, done); });
  }
  Status keep_alive(LeaseId lease) {
    return await<Status>([&](auto done) { store_->keep_alive(lease, done); });
  }
  Status revoke(LeaseId lease) {
    return await<Status>([&](auto done) { store_->revoke(lease, done); });
  }
  Status put(const std::string& key, const std::string& value, LeaseId lease = kNoLease,
             std::uint64_t expected = 0) {
    return await<Status>([&](auto done) { store_->put(key, value, lease, expected, done); });
  }
  Status erase(const std::string& key) {
    return await<Status>([&](auto done) { store_->erase(key, done); });
  }
  Result<std::optional<StoredValue>> get(const std::string& key) {
    return on_loop([&] { return store_->get(key); });
  }
  // The value, "" when there is none.
  std::string value(const std::string& key) {
    const auto found = get(key);
    return found.ok() && found->has_value() ? (*found)->value : std::string();
  }
  std::string keys(const std::string& prefix) {
    const auto found = on_loop([&] { return store_->list(prefix); });
    std::string out;
    if (found.ok()) {
      for (const StoredValue& item : *found) out += item.key + " ";
    }
    return out;
  }
  StoreHealth health() {
    return on_loop([&] { return store_->health(); });
  }
  bool wait_current() {
    return eventually([&] { return health().loaded && health().reachable; });
  }
  double metric(const std::string& name) {
    PrometheusText text;
    store_->visit_metrics(text);
    const std::string all = text.text();
    const std::size_t at = all.find("\n" + name + " ");
    return at == std::string::npos ? -1 : std::atof(all.c_str() + at + name.size() + 2);
  }

 private:
  template <typename Answer, typename Start>
  Answer await(Start start) {
    auto answer = std::make_shared<std::promise<Answer>>();
    std::future<Answer> future = answer->get_future();
    boost::asio::post(loop_.io(), [&start, answer] {
      start([answer](const Answer& got) { answer->set_value(got); });
    });
    if (future.wait_for(2 * kPatience) != std::future_status::ready) {
      ADD_FAILURE() << "the store never called back";
      return Status{Code::internal, "never called back"};
    }
    return future.get();
  }

  std::function<void(Store&)> stop_;
  const SteadyClock clock_;
  http::Loop loop_{0};
  std::unique_ptr<Store> store_;
  std::thread thread_;
};

}  // namespace kvl::bootstrap::test
