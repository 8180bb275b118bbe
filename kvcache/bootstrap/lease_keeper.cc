// Renewals, a third of the lease apart.
#include "kvcache/bootstrap/lease_keeper.h"

#include <algorithm>

#include "kvl/log.h"

namespace kvl::bootstrap {

std::int64_t LeaseKeeper::renewal_after(std::int64_t now_ns, const Lease& lease) {
  return now_ns + std::int64_t{lease.lease_ms / 3} * 1'000'000;
}

std::uint64_t LeaseKeeper::add(const RankRecord& record, const Lease& lease, std::int64_t now_ns) {
  registrations_.emplace(lease.id, Registration{record, lease, renewal_after(now_ns, lease)});
  return lease.id;
}

std::optional<std::uint64_t> LeaseKeeper::remove(std::uint64_t id) {
  const auto found = registrations_.find(id);
  if (found == registrations_.end()) return {};
  const std::uint64_t lease = found->second.lease.id;
  registrations_.erase(found);
  return lease;
}

std::int64_t LeaseKeeper::next_ns() const {
  std::int64_t next = INT64_MAX;
  for (const auto& [id, registration] : registrations_) {
    next = std::min(next, registration.next_ns);
  }
  return next;
}

std::optional<LeaseKeeper::Step> LeaseKeeper::next(std::int64_t now_ns) {
  for (auto& [id, registration] : registrations_) {
    if (registration.next_ns > now_ns) continue;
    // Of the lease as it was granted: the service may have cut it short.
    registration.next_ns = renewal_after(now_ns, registration.lease);
    return Step{id, registration.lease.id, false, renew_call(registration.lease.id)};
  }
  return {};
}

std::optional<LeaseKeeper::Step> LeaseKeeper::on_answer(const Step& step,
                                                        const Result<HttpAnswer>& answer,
                                                        std::int64_t now_ns) {
  if (step.id == 0) return {};
  const auto entry = registrations_.find(step.id);
  Status why;
  if (step.registering) {
    const Result<Lease> lease = read_lease(answer);
    // Unregistered meanwhile: a registration made in between must not stay.
    if (lease.ok() && entry == registrations_.end()) {
      return Step{0, lease->id, false, revoke_call(lease->id)};
    }
    if (lease.ok()) {
      entry->second.lease = *lease;
      entry->second.next_ns = renewal_after(now_ns, *lease);
    }
    why = lease.status();
  } else {
    why = read_done(answer);
    if (why.code() == Code::not_found && entry != registrations_.end()) {
      return Step{step.id, step.lease, true, register_call(entry->second.record, lease_ms_)};
    }
    if (why.ok() && entry == registrations_.end()) {
      return Step{0, step.lease, false, revoke_call(step.lease)};
    }
  }
  if (why.ok()) return {};
  ++failed_renewals_;
  if (entry != registrations_.end()) {
    log(LogLevel::warning, "bootstrap.renewal_failed",
        {{"instance", entry->second.record.instance},
         {"code", to_string(why.code())},
         {"why", why.to_string()},
         {"hint",
          "see whether the rendezvous service answers; until then routers may drop this rank"}});
  }
  return {};
}

}  // namespace kvl::bootstrap
