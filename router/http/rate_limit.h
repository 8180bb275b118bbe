// How many requests a second one address may send: a bucket that holds a second's worth.
#pragma once

#include <boost/asio/ip/address.hpp>
#include <cstddef>
#include <map>

#include "router/http/loop.h"

namespace kvl::http {

// Belongs to one loop. Bounded: beyond kAddressesMax addresses the ones that are quiet are
// forgotten, then any.
class RateLimit {
 public:
  static constexpr std::size_t kAddressesMax = 16384;

  // 0: no limit, and nothing is kept.
  explicit RateLimit(double per_second) : per_second_(per_second) {}

  bool admit(const asio::ip::address& from, TimePoint now);
  std::size_t addresses() const { return buckets_.size(); }

 private:
  struct Bucket {
    double level = 0;  // requests that may come at once
    TimePoint at;      // of the level
  };
  double level(const Bucket& bucket, TimePoint now) const;
  double most() const { return per_second_ < 1 ? 1 : per_second_; }
  void make_room(TimePoint now);

  double per_second_;
  std::map<asio::ip::address, Bucket> buckets_;
};

}  // namespace kvl::http
