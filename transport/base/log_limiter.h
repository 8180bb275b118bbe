// How many lines of a kind may be written: what a peer or a stranger can provoke must not fill a
// disk, nor bury what else is said.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>

namespace kvl {

// A token bucket for each kind. Not thread-safe; time comes from the caller.
class LogLimiter {
 public:
  static constexpr std::uint32_t kBurst = 10;               // at once
  static constexpr std::int64_t kRefillNs = 1'000'000'000;  // then one each
  static constexpr std::size_t kKindsMax = 1024;            // beyond, the rest shares a bucket

  // A kind is an event and its cause ("" where it has none), so that many of one cause hide no
  // other. Nothing: not now. Else how many like it were not written since the last that was.
  std::optional<std::uint64_t> admit(std::string_view event, std::string_view cause,
                                     std::int64_t now_ns);
  // Begins anew.
  void clear() { buckets_.clear(); }

 private:
  struct Bucket {
    std::int64_t full_at_ns = 0;  // when all tokens are back
    std::uint64_t suppressed = 0;
  };
  std::map<std::string, Bucket, std::less<>> buckets_;
};

}  // namespace kvl
