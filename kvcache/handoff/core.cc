// Shared parts of an endpoint: transfers, early messages, outcomes, and small pure helpers.
#include "kvcache/handoff/core.h"

#include <algorithm>
#include <limits>

#include "kvl/log.h"
#include "transport/base/crc32c.h"

namespace kvl::handoff {

Core::Core(Engine& engine_in, const Clock& clock_in, HandoffRank rank_in, HandoffConfig config_in)
    : engine(engine_in),
      clock(clock_in),
      rank(std::move(rank_in)),
      config(std::move(config_in)),
      cpu_readable(std::ranges::all_of(rank.regions,
                                       [](const HandoffRegion& r) { return r.data != nullptr; })),
      crc_cost(static_cast<std::uint32_t>(config.crc_sample), crc32c_has_hardware()),
      all_rails(engine.rails()) {
  for (const HandoffRegion& region : rank.regions) handles.push_back(region.handle);
  publish_crc();
}

std::pair<std::uint64_t, Segment*> Core::new_segment() {
  const auto slot = segments.insert();
  slot.second->again = false;
  slot.second->avoid = slot.second->rails = 0;
  return slot;
}

std::int64_t Core::deadline_from(std::int64_t deadline_ms) const {
  // An engine's day-long deadline must not overflow.
  constexpr std::int64_t kMostMs = std::int64_t{1} << 40;
  const std::int64_t ms = deadline_ms > 0 ? deadline_ms : config.deadline_ms;
  return clock.now_ns() + std::min(ms, kMostMs) * kMs;
}

Status Core::start(std::uint64_t segment_id, Direction direction) {
  Segment* const segment = segments.find(segment_id);
  assert(segment != nullptr);
  const std::int64_t left_ms = (segment->deadline_ns - clock.now_ns()) / kMs;
  Transfer transfer;
  transfer.peer = segment->peer;
  transfer.direction = direction;
  transfer.ops = segment->plan.ops;
  transfer.locals = handles;
  transfer.remotes = segment->remote->handles;
  transfer.timeout_ms = std::max<std::int64_t>(left_ms, 1);
  transfer.user = segment_id;
  transfer.avoid = segment->avoid;
  const Result<TransferId> id = engine.submit(transfer);
  if (id.ok()) {
    segment->transfer = id->value;
    by_transfer[id->value] = segment_id;
    crc_cost.began(clock.now_ns());
    return {};
  }
  if (id.code() != Code::exhausted) return id.status();
  segment->transfer = 0;
  waiting.emplace_back(segment_id, direction);
  return {};
}

bool Core::cancel(std::uint64_t segment_id) {
  Segment* const segment = segments.find(segment_id);
  assert(segment != nullptr);
  if (segment->transfer != 0) {
    // not_found: it has ended and its event is on the way.
    (void)engine.cancel({segment->transfer}, config.abort_ms);
    return true;
  }
  std::erase_if(waiting, [segment_id](const auto& item) { return item.first == segment_id; });
  segments.erase(segment_id);
  return false;
}

void Core::retry_waiting() {
  for (std::size_t left = waiting.size(); left > 0 && !waiting.empty(); --left) {
    const auto [id, direction] = waiting.front();
    waiting.pop_front();
    const std::size_t before = waiting.size();
    const Status status = start(id, direction);
    if (!status.ok()) {
      stillborn.emplace_back(id, status);
    } else if (waiting.size() > before) {  // still full: keep the order
      waiting.push_front(waiting.back());
      waiting.pop_back();
      return;
    }
  }
}

bool Core::keep_early(Part part, PeerHandle peer, const Message& message) {
  if (early.size() >= static_cast<std::size_t>(config.early_max)) {
    metrics.early_dropped.add();
    log(LogLevel::warning, "handoff.early_dropped",
        {{"peer", peer_name(peer)},
         {"room", message.room},
         {"code", kvl::to_string(Code::exhausted)},
         {"hint",
          "messages of rooms that nobody has opened here fill handoff.early_max: see why the "
          "requests do not arrive, or raise it"}});
    return false;
  }
  metrics.early_kept.add();
  const std::int64_t expires_ns = clock.now_ns() + config.early_ms * kMs;
  const RoomKey key{part, message.room};
  early.emplace(key, Early{peer, expires_ns, message});
  early_order.emplace_back(expires_ns, key);
  return true;
}

std::vector<Core::Early> Core::take_early(Part part, std::uint64_t room) {
  std::vector<Early> taken;
  const auto [begin, end] = early.equal_range(RoomKey{part, room});
  for (auto it = begin; it != end; ++it) taken.push_back(std::move(it->second));
  early.erase(begin, end);
  return taken;
}

void Core::drop_early(Part part, PeerHandle peer, std::uint64_t room, std::uint64_t nonce) {
  const auto [begin, end] = early.equal_range(RoomKey{part, room});
  for (auto it = begin; it != end;) {
    const bool of_it = it->second.peer == peer && it->second.message.nonce == nonce;
    it = of_it ? early.erase(it) : std::next(it);
  }
}

void Core::forget_early(PeerHandle peer) {
  std::erase_if(early, [peer](const auto& item) { return item.second.peer == peer; });
}

std::vector<Core::Early> Core::expired_early(std::int64_t now_ns) {
  std::vector<Early> expired;
  while (!early_order.empty() && early_order.front().first <= now_ns) {
    const auto [begin, end] = early.equal_range(early_order.front().second);
    for (auto it = begin; it != end;) {
      if (it->second.expires_ns > now_ns) {
        ++it;
        continue;
      }
      expired.push_back(std::move(it->second));
      it = early.erase(it);
    }
    early_order.pop_front();
  }
  return expired;
}

void Core::remember(Part part, std::uint64_t room, Code code) {
  const RoomKey key{part, room};
  const std::int64_t expires_ns = clock.now_ns() + config.early_ms * kMs;
  outcomes[key] = {code, expires_ns};
  outcome_order.emplace_back(expires_ns, key);
  // A bound on memory, not a promise: whoever asks later is told that the room is unknown.
  while (outcome_order.size() > 4 * static_cast<std::size_t>(config.early_max)) {
    outcomes.erase(outcome_order.front().second);
    outcome_order.pop_front();
  }
}

const Code* Core::outcome(Part part, std::uint64_t room) const {
  const auto found = outcomes.find({part, room});
  return found == outcomes.end() ? nullptr : &found->second.first;
}

void Core::expire_outcomes(std::int64_t now_ns) {
  while (!outcome_order.empty() && outcome_order.front().first <= now_ns) {
    const auto found = outcomes.find(outcome_order.front().second);
    if (found != outcomes.end() && found->second.second <= now_ns) outcomes.erase(found);
    outcome_order.pop_front();
  }
}

void Core::note_unproven(const Segment& segment) {
  constexpr std::size_t kRememberMax = 1u << 16;
  if (unproven_transfers.size() >= kRememberMax) {
    vouch_none = true;
    return;
  }
  const Attempt attempt{segment.side, segment.room, segment.nonce, segment.peer,
                        segment.remote->engine};
  ++unproven[{attempt.nonce, attempt.engine}];
  unproven_transfers.emplace(segment.transfer, attempt);
}

std::optional<Core::Attempt> Core::on_proven(std::uint64_t transfer) {
  const auto found = unproven_transfers.find(transfer);
  if (found == unproven_transfers.end()) return std::nullopt;
  const Attempt attempt = found->second;
  unproven_transfers.erase(found);
  const auto count = unproven.find({attempt.nonce, attempt.engine});
  if (--count->second > 0) return std::nullopt;
  unproven.erase(count);
  return attempt;
}

Range layers_between(const PageLayout& src, const PageLayout& dst, std::size_t group) {
  const LayoutGroup& a = src.groups()[group];
  const LayoutGroup& b = dst.groups()[group];
  return sends(a.kv_heads, src.slice(), dst.slice()) ? intersect(a.layers, b.layers) : Range{};
}

Range layer_span(const PageLayout& layout) {
  std::uint32_t first = std::numeric_limits<std::uint32_t>::max(), end = 0;
  for (const LayoutGroup& group : layout.groups()) {
    if (group.layers.count == 0) continue;
    first = std::min(first, group.layers.first);
    end = std::max(end, group.layers.end());
  }
  return end == 0 ? Range{} : Range{first, end - first};
}

std::uint64_t token_layer_bytes(const PageLayout& layout) {
  std::uint64_t most = 1;
  for (const LayoutGroup& group : layout.groups()) {
    const std::uint64_t parts = group.mla ? 1 : 2;
    most = std::max(most, parts * group.heads.count * group.head_bytes());
  }
  return most;
}

Status check_pages(const LayoutGroup& group, std::span<const std::uint32_t> ids,
                   std::uint64_t first_token, std::uint64_t tokens) {
  if (first_token % group.page_tokens != 0) {
    return {Code::invalid_argument, "first_token is not the start of a page"};
  }
  if (first_token > tokens ||
      (tokens - first_token + group.page_tokens - 1) / group.page_tokens > ids.size()) {
    return {Code::invalid_argument, "too few pages for the tokens"};
  }
  if (std::ranges::any_of(ids, [&group](std::uint32_t id) { return id >= group.page_count; })) {
    return {Code::invalid_argument, "page id out of range"};
  }
  return {};
}

}  // namespace kvl::handoff
