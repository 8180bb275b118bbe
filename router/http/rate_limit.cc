// Buckets by address.
#include "router/http/rate_limit.h"

#include <algorithm>

namespace kvl::http {

double RateLimit::level(const Bucket& bucket, TimePoint now) const {
  const std::chrono::duration<double> passed = now - bucket.at;
  return std::min(most(), bucket.level + passed.count() * per_second_);
}

bool RateLimit::admit(const asio::ip::address& from, TimePoint now) {
  if (per_second_ <= 0) return true;
  auto at = buckets_.find(from);
  if (at == buckets_.end()) {
    if (buckets_.size() >= kAddressesMax) make_room(now);
    at = buckets_.emplace(from, Bucket{most(), now}).first;
  }
  Bucket& bucket = at->second;
  bucket.level = level(bucket, now);
  bucket.at = now;
  if (bucket.level < 1) return false;
  bucket.level -= 1;
  return true;
}

void RateLimit::make_room(TimePoint now) {
  std::erase_if(buckets_, [&](const auto& entry) { return level(entry.second, now) >= most(); });
  if (buckets_.size() >= kAddressesMax) buckets_.erase(buckets_.begin());
}

}  // namespace kvl::http
