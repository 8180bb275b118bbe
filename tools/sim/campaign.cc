// Threads over seeds, and a greedy shrinker.
#include "tools/sim/campaign.h"

#include <algorithm>
#include <atomic>
#include <mutex>
#include <thread>
#include <vector>

#include "tools/sim/scenario.h"

namespace kvl::simulation {
namespace {

void add(Totals& totals, const RunReport& report) {
  ++totals.runs;
  totals.requests += report.requests;
  totals.done += report.done;
  totals.failed += report.failed;
  totals.refused += report.refused;
  totals.quarantined += report.quarantined;
  totals.crashes += report.crashes;
  totals.faults += report.faults;
  totals.steps += report.steps;
  totals.virtual_ns += report.virtual_ns;
  totals.digest += report.digest;
}

std::string check_of(const RunReport& report) {
  return report.violation.substr(0, report.violation.find(':'));
}

class Shrinker {
 public:
  Shrinker(const Failure& failure, int tries) : best_(failure), tries_(tries) {}

  Failure run() {
    // Whatever is smaller makes the next round cheaper and may make more possible.
    for (bool smaller = true; smaller && tries_ > 0;) {
      smaller = best_.options.noise && attempt([](RunOptions& o) { o.noise = false; });
      smaller |= best_.options.world == World::serving ? shrink_serving() : shrink_engines();
    }
    return best_;
  }

 private:
  template <typename Change>
  bool attempt(Change&& change) {
    if (tries_-- <= 0) return false;
    RunOptions options = best_.options;
    change(options);
    RunReport report = simulation::run(options);
    if (report.ok || check_of(report) != check_of(best_.report)) return false;
    best_ = {options, std::move(report)};
    return true;
  }

  bool shrink_engines() {
    const RunOptions& now = best_.options;
    bool smaller = false;
    while (now.transfers > 1 && attempt([](RunOptions& o) { o.transfers /= 2; })) smaller = true;
    while (now.engines > 2 && attempt([](RunOptions& o) { --o.engines; })) smaller = true;
    if (now.devices != 1 && attempt([](RunOptions& o) { o.devices = 1; })) smaller = true;
    return smaller;
  }

  bool shrink_serving() {
    bool smaller = shrink_set(&RunOptions::keep_faults);
    smaller |= shrink_set(&RunOptions::keep_requests);
    const Scenario now = make_scenario(best_.options);
    const auto fewer = [&](std::optional<std::uint32_t> RunOptions::*field, std::uint32_t value) {
      for (std::uint32_t less = 1; less < value; less *= 2) {
        if (attempt([&](RunOptions& o) { o.*field = less; })) return true;
      }
      return false;
    };
    smaller |= fewer(&RunOptions::prefills, now.prefill.instances);
    smaller |= fewer(&RunOptions::decodes, now.decode.instances);
    smaller |= fewer(&RunOptions::prefill_tp, now.prefill.tp);
    smaller |= fewer(&RunOptions::decode_tp, now.decode.tp);
    smaller |= fewer(&RunOptions::devices, now.devices);
    return smaller;
  }

  // Leaves out ever smaller parts of what is kept.
  bool shrink_set(std::optional<std::set<std::uint32_t>> RunOptions::*field) {
    std::set<std::uint32_t> kept;
    const Scenario now = make_scenario(best_.options);
    if (field == &RunOptions::keep_faults) {
      for (const Fault& fault : now.faults) kept.insert(fault.number);
    } else {
      for (const Request& request : now.requests) kept.insert(request.number);
    }
    bool smaller = false;
    for (std::size_t part = (kept.size() + 1) / 2; part > 0 && tries_ > 0; part /= 2) {
      for (std::size_t begin = 0; begin < kept.size() && tries_ > 0;) {
        std::set<std::uint32_t> less = kept;
        const auto first = std::next(less.begin(), static_cast<std::ptrdiff_t>(begin));
        const std::size_t end = std::min(begin + part, kept.size());
        less.erase(first, std::next(less.begin(), static_cast<std::ptrdiff_t>(end)));
        if (attempt([&](RunOptions& o) { o.*field = less; })) {
          kept = less;
          smaller = true;
        } else {
          begin += part;
        }
      }
    }
    return smaller;
  }

  Failure best_;
  int tries_;
};

void list(std::string& out, const char* option, const std::set<std::uint32_t>& numbers) {
  out += option;
  if (numbers.empty()) out += " none";
  char before = ' ';
  for (const std::uint32_t number : numbers) {
    out += before + std::to_string(number);
    before = ',';
  }
}

}  // namespace

RunReport run(const RunOptions& options) {
  return options.world == World::serving ? run_serving(options) : run_engines(options);
}

std::string command_of(const RunOptions& o) {
  const RunOptions usual;
  std::string out = "kvlane sim --seed " + std::to_string(o.seed);
  const auto number = [&](const char* option, std::optional<std::uint32_t> value) {
    if (value) out += std::string(" ") + option + " " + std::to_string(*value);
  };
  if (o.world == World::engines) {
    out += " --world engines";
    if (o.engines != usual.engines) number("--engines", o.engines);
    if (o.transfers != usual.transfers) number("--transfers", o.transfers);
  } else if (o.requests != usual.requests) {
    number("--requests", o.requests);
  }
  number("--prefills", o.prefills);
  number("--decodes", o.decodes);
  number("--prefill-tp", o.prefill_tp);
  number("--decode-tp", o.decode_tp);
  number("--devices", o.devices);
  if (o.keep_requests) list(out, " --keep-requests", *o.keep_requests);
  if (o.keep_faults) list(out, " --keep-faults", *o.keep_faults);
  if (!o.faults) out += " --no-faults";
  if (!o.noise) out += " --no-noise";
  return out;
}

Totals run_many(const RunOptions& options, std::uint64_t runs, unsigned threads,
                const std::function<void(const Totals&)>& told) {
  Totals totals;
  std::mutex mutex;
  std::atomic<std::uint64_t> next{0};
  std::atomic<bool> failed{false};
  const auto work = [&] {
    while (!failed.load()) {
      const std::uint64_t index = next.fetch_add(1);
      if (index >= runs) return;
      RunOptions mine = options;
      mine.seed += index;
      RunReport report = run(mine);
      const std::lock_guard<std::mutex> lock(mutex);
      add(totals, report);
      if (!report.ok) {
        failed.store(true);
        if (!totals.failure || mine.seed < totals.failure->options.seed) {
          totals.failure = Failure{mine, std::move(report)};
        }
      }
      told(totals);
    }
  };
  std::vector<std::thread> others;
  for (unsigned i = 1; i < threads; ++i) others.emplace_back(work);
  work();
  for (std::thread& other : others) other.join();
  return totals;
}

Failure shrink(const Failure& failure, int tries) { return Shrinker(failure, tries).run(); }

}  // namespace kvl::simulation
