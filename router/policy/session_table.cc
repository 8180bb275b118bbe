#include "router/policy/session_table.h"

#include <algorithm>

namespace kvl::router {

std::uint32_t SessionTable::find(std::string_view session, std::int64_t now_ns) {
  const std::lock_guard lock(mutex_);
  const auto known = sessions_.find(std::string(session));
  if (known == sessions_.end() || now_ns - known->second.used_ns > idle_ns_) return 0;
  known->second.used_ns = now_ns;
  return known->second.worker;
}

void SessionTable::assign(std::string_view session, std::uint32_t worker, std::int64_t now_ns) {
  const std::lock_guard lock(mutex_);
  if (now_ns - swept_ns_ > idle_ns_ / 4 || sessions_.size() >= kSessionsMax) sweep(now_ns);
  sessions_[std::string(session)] = {worker, now_ns};
}

// Full: the older half goes.
void SessionTable::sweep(std::int64_t now_ns) {
  swept_ns_ = now_ns;
  std::int64_t oldest_ns = now_ns;
  for (const auto& [name, entry] : sessions_) oldest_ns = std::min(oldest_ns, entry.used_ns);
  const std::int64_t limit_ns = sessions_.size() >= kSessionsMax
                                    ? oldest_ns + (now_ns - oldest_ns) / 2
                                    : now_ns - idle_ns_ - 1;
  std::erase_if(sessions_, [&](const auto& session) { return session.second.used_ns <= limit_ns; });
}

std::size_t SessionTable::size() const {
  const std::lock_guard lock(mutex_);
  return sessions_.size();
}

}  // namespace kvl::router
