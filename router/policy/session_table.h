// Which worker a session went to last, for all loops.
#pragma once

#include <cstdint>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_map>

namespace kvl::router {

// Thread-safe. Bounded: beyond kSessionsMax, and after `idle_ns` without a request, a session is
// forgotten, those first that were silent for longest.
class SessionTable {
 public:
  explicit SessionTable(std::int64_t idle_ns) : idle_ns_(idle_ns) {}

  // The id of its worker; 0: none.
  std::uint32_t find(std::string_view session, std::int64_t now_ns);
  void assign(std::string_view session, std::uint32_t worker, std::int64_t now_ns);
  std::size_t size() const;

  static constexpr std::size_t kSessionsMax = 1 << 20;

 private:
  struct Entry {
    std::uint32_t worker = 0;
    std::int64_t used_ns = 0;
  };
  void sweep(std::int64_t now_ns);

  const std::int64_t idle_ns_;
  mutable std::mutex mutex_;  // guards the rest
  std::unordered_map<std::string, Entry> sessions_;
  std::int64_t swept_ns_ = 0;
};

}  // namespace kvl::router
