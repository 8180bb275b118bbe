// One after the other, by id: a worker that is skipped for a while does not shift the others'
// turns.
#include "router/policy/policy.h"

namespace kvl::router {
namespace {

class RoundRobinPolicy final : public Policy {
 public:
  Choice pick(const Ask&, std::span<Worker* const> candidates, Random&) override {
    Worker* next = nullptr;   // the lowest id above the last one
    Worker* first = nullptr;  // the lowest id
    for (Worker* const worker : candidates) {
      if (first == nullptr || worker->id < first->id) first = worker;
      if (worker->id > last_id_ && (next == nullptr || worker->id < next->id)) next = worker;
    }
    Worker& chosen = next != nullptr ? *next : *first;
    last_id_ = chosen.id;
    return chosen;
  }

 private:
  std::uint32_t last_id_ = 0;
};

}  // namespace

std::unique_ptr<Policy> make_round_robin_policy() { return std::make_unique<RoundRobinPolicy>(); }

}  // namespace kvl::router
