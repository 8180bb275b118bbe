// The rounds.
#include "router/fleet/caretaker.h"

#include <algorithm>
#include <charconv>

#include "router/http/one_shot.h"

namespace kvl::router {
namespace {

constexpr double kUnwellIntervalSecs = 1;
// What a worker may claim: the router keeps some 40 bytes for each 1,000 tokens.
constexpr std::uint64_t kCapacityMax = 1ull << 30;

// "max_total_num_tokens": N, wherever it stands; 0: it is not there.
std::uint64_t capacity_in(std::string_view body) {
  constexpr std::string_view kName = "\"max_total_num_tokens\":";
  std::size_t at = body.find(kName);
  if (at == std::string_view::npos) return 0;
  at = body.find_first_not_of(' ', at + kName.size());
  if (at == std::string_view::npos) return 0;
  std::uint64_t tokens = 0;
  std::from_chars(body.data() + at, body.data() + body.size(), tokens);
  return std::min(tokens, kCapacityMax);
}

}  // namespace

Caretaker::Caretaker(http::Loop& loop, Fleet& fleet, HealthOptions options, PoolOf pool_of)
    : loop_(loop), fleet_(fleet), options_(std::move(options)), pool_of_(std::move(pool_of)) {
  loop.watch(*this);
}

void Caretaker::start() { set_deadline(http::LoopClock::now()); }

void Caretaker::on_deadline() {
  const http::TimePoint now = http::LoopClock::now();
  set_deadline(now + http::kTick);
  fleet_.sweep();
  if (!options_.ask) return;
  const std::shared_ptr<const WorkerSet> workers = fleet_.workers();
  for (const WorkerPtr& worker : workers->all) {
    if (worker->state == WorkerState::draining) continue;
    Check& check = checks_[worker->id];
    if (!check.asking && check.next <= now) ask(worker, check);
  }
  if (checks_.size() > workers->all.size()) {
    std::erase_if(checks_, [&](const auto& entry) {
      return std::none_of(workers->all.begin(), workers->all.end(),
                          [&](const WorkerPtr& worker) { return worker->id == entry.first; });
    });
  }
}

void Caretaker::ask(const WorkerPtr& worker, Check& check) {
  check.asking = true;
  http::call_once(loop_, pool_of_(*worker),
                  {.path = options_.path, .timeout_secs = options_.timeout_secs},
                  [this, worker](int status, std::string_view, const Status& why) {
                    answered(worker, status, why);
                  });
}

// SGLang's and kvlane's workers say it; others are taken for what the settings say.
void Caretaker::ask_capacity(const WorkerPtr& worker) {
  http::call_once(loop_, pool_of_(*worker),
                  {.path = "/get_server_info", .timeout_secs = options_.timeout_secs},
                  [this, worker](int status, std::string_view body, const Status&) {
                    if (status == 200) fleet_.told_capacity(*worker, capacity_in(body));
                  });
}

void Caretaker::answered(const WorkerPtr& worker, int status, const Status& why) {
  const bool good = status >= 200 && status < 300;
  const std::string reason = status != 0 ? "health check answers " + std::to_string(status)
                                         : "health check: " + why.to_string();
  fleet_.checked(*worker, good, options_.interval_secs, reason);
  const auto check = checks_.find(worker->id);
  if (check == checks_.end()) return;
  if (good && !check->second.knows_capacity && options_.ask_capacity) ask_capacity(worker);
  check->second.knows_capacity = good;
  const double interval =
      good ? options_.interval_secs : std::min(options_.interval_secs, kUnwellIntervalSecs);
  check->second.asking = false;
  check->second.next = http::after_seconds(interval);
}

}  // namespace kvl::router
