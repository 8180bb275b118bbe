// A bucket is one number: the time at which it is full again.
#include "transport/base/log_limiter.h"

#include <algorithm>
#include <utility>

namespace kvl {

std::optional<std::uint64_t> LogLimiter::admit(std::string_view event, std::string_view cause,
                                               std::int64_t now_ns) {
  std::string kind(event);
  kind.append(" ").append(cause);
  if (buckets_.size() >= kKindsMax && !buckets_.contains(kind)) kind.clear();
  const auto [found, is_new] = buckets_.try_emplace(std::move(kind));
  Bucket& bucket = found->second;
  if (is_new) bucket.full_at_ns = now_ns;
  const std::int64_t full_at_ns = std::max(bucket.full_at_ns, now_ns) + kRefillNs;
  if (full_at_ns - now_ns > kBurst * kRefillNs) {
    ++bucket.suppressed;
    return std::nullopt;
  }
  bucket.full_at_ns = full_at_ns;
  return std::exchange(bucket.suppressed, 0);
}

}  // namespace kvl
