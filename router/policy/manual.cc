// A session stays with the worker it began at, for as long as that is there; a new one goes to the
// worker with the fewest requests.
#include "router/policy/policy.h"

namespace kvl::router {
namespace {

class ManualPolicy final : public Policy {
 public:
  ManualPolicy(SessionTable& sessions, const Clock& clock)
      : sessions_(sessions), clock_(clock), fallback_(make_least_loaded_policy()) {}

  Choice pick(const Ask& ask, std::span<Worker* const> candidates, Random& random) override {
    if (ask.session.empty()) return fallback_->pick(ask, candidates, random);
    const std::int64_t now_ns = clock_.now_ns();
    const std::uint32_t known = sessions_.find(ask.session, now_ns);
    for (Worker* const worker : candidates) {
      if (worker->id == known) return *worker;
    }
    const Choice choice = fallback_->pick(ask, candidates, random);
    sessions_.assign(ask.session, choice.worker->id, now_ns);
    return choice;
  }

 private:
  SessionTable& sessions_;
  const Clock& clock_;
  const std::unique_ptr<Policy> fallback_;
};

}  // namespace

std::unique_ptr<Policy> make_manual_policy(SessionTable& sessions, const Clock& clock) {
  return std::make_unique<ManualPolicy>(sessions, clock);
}

}  // namespace kvl::router
