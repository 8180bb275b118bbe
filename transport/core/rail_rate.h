// How fast a rail moves bytes, as it was seen to, and how much it still has to move. Pure; guarded
// by who owns it.
#pragma once

#include <algorithm>
#include <cstdint>

namespace kvl {

class RailRate {
 public:
  // `nominal`: bytes per second to begin with; 0: unknown.
  explicit RailRate(std::uint64_t nominal = 0) : per_ns_(static_cast<double>(nominal) / 1e9) {}

  void posted(std::uint64_t bytes, std::int64_t now_ns) {
    if (loaded_ == 0) since_ns_ = now_ns;
    loaded_ += bytes;
  }
  // A piece of `bytes` is no longer under way; `moved` of them arrived.
  void ended(std::uint64_t bytes, std::uint64_t moved) {
    loaded_ -= std::min(bytes, loaded_);
    moved_ += moved;
  }
  // What has ended by now is one sample: pieces that end together were moved together.
  void settle(std::int64_t now_ns) {
    if (moved_ == 0 || now_ns <= since_ns_) return;
    const double sample = static_cast<double>(moved_) / static_cast<double>(now_ns - since_ns_);
    per_ns_ = measured_ ? per_ns_ + (sample - per_ns_) / 8 : sample;
    measured_ = true;
    moved_ = 0;
    since_ns_ = now_ns;
  }

  double bytes_per_ns() const { return per_ns_; }  // 0: unknown
  std::uint64_t loaded() const { return loaded_; }
  // When `bytes` more would be there, from now. `unknown`: the rate of a rail that has shown none.
  double finish_ns(std::uint64_t bytes, double unknown) const {
    return static_cast<double>(loaded_ + bytes) / (per_ns_ > 0 ? per_ns_ : unknown);
  }

 private:
  double per_ns_;
  bool measured_ = false;
  std::uint64_t loaded_ = 0, moved_ = 0;
  std::int64_t since_ns_ = 0;
};

}  // namespace kvl
