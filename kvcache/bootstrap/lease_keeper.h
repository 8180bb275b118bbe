// Which registration is to be renewed when, and what follows from each answer. No thread, no clock,
// no connection: the client's thread drives it, and the simulator.
#pragma once

#include <cstdint>
#include <map>
#include <optional>

#include "kvcache/bootstrap/calls.h"

namespace kvl::bootstrap {

class LeaseKeeper {
 public:
  // A call that is due. Its answer, or failure, goes to on_answer(), which may name another.
  struct Step {
    std::uint64_t id = 0;  // of the registration; 0: nobody waits for the answer
    std::uint64_t lease = 0;
    bool registering = false;
    Call call;
  };

  // `lease_ms` is what registrations ask for.
  explicit LeaseKeeper(std::uint32_t lease_ms) : lease_ms_(lease_ms) {}

  // A registration that was granted; its id is the lease it was granted first.
  std::uint64_t add(const RankRecord& record, const Lease& lease, std::int64_t now_ns);
  // The lease to revoke; none: no such registration.
  std::optional<std::uint64_t> remove(std::uint64_t id);

  // INT64_MAX: none.
  std::int64_t next_ns() const;
  // A renewal that is due; it counts as tried now, so that one registration has one call under way.
  std::optional<Step> next(std::int64_t now_ns);
  // A service that lost its memory gets the registration again.
  std::optional<Step> on_answer(const Step& step, const Result<HttpAnswer>& answer,
                                std::int64_t now_ns);

  std::uint64_t failed_renewals() const { return failed_renewals_; }
  // The leases held now.
  template <typename F>
  void for_each(F&& f) const {
    for (const auto& [id, registration] : registrations_) f(registration.lease.id);
  }

 private:
  struct Registration {
    RankRecord record;
    Lease lease;
    std::int64_t next_ns = 0;
  };
  static std::int64_t renewal_after(std::int64_t now_ns, const Lease& lease);

  const std::uint32_t lease_ms_;
  std::map<std::uint64_t, Registration> registrations_;
  std::uint64_t failed_renewals_ = 0;
};

}  // namespace kvl::bootstrap
