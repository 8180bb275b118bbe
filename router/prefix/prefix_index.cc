#include "router/prefix/prefix_index.h"

#include <algorithm>
#include <cassert>

namespace kvl::router {
namespace {

constexpr std::size_t kFirstPlaces = 1024;
constexpr std::size_t kSlotsMax = 65535;

std::uint64_t tokens_of_prefix(const PromptKeys& prompt, std::size_t i) {
  const std::uint64_t all = prompt.cached_tokens(i + 1) - prompt.cached_tokens(i);
  return std::clamp<std::uint64_t>(all, 1, UINT16_MAX);
}

}  // namespace

PrefixIndex::PrefixIndex(std::uint64_t default_capacity_tokens)
    : default_capacity_(default_capacity_tokens),
      keys_(kFirstPlaces),
      heads_(kFirstPlaces, kNone) {}

std::size_t PrefixIndex::find(std::uint64_t key) const {
  std::size_t place = home(key);
  while (heads_[place] != kNone && keys_[place] != key) place = (place + 1) & (heads_.size() - 1);
  return place;
}

PrefixIndex::Index PrefixIndex::holding_of(std::size_t place, std::uint16_t slot) const {
  Index at = heads_[place];
  while (at != kNone && holdings_[at].slot != slot) at = holdings_[at].next_holder;
  return at;
}

void PrefixIndex::match(const PromptKeys& prompt, std::vector<PrefixMatch>& out) const {
  const std::lock_guard lock(mutex_);
  found_.clear();
  for (const std::uint64_t key : prompt.keys) {
    const Index head = heads_[find(key)];
    if (head == kNone) break;
    found_.push_back(head);
  }
  seen_.resize(slots_.size());
  ++round_;
  for (std::size_t depth = found_.size(); depth > 0; --depth) {
    std::size_t looked = 0;
    for (Index at = found_[depth - 1]; at != kNone && looked < kHoldersMax;
         at = holdings_[at].next_holder, ++looked) {
      const std::uint16_t slot = holdings_[at].slot;
      if (seen_[slot] == round_) continue;
      seen_[slot] = round_;
      out.push_back({slots_[slot].worker, static_cast<std::uint32_t>(depth)});
    }
  }
}

std::uint16_t PrefixIndex::slot_for(std::uint32_t worker) {
  const auto known = slot_of_.find(worker);
  if (known != slot_of_.end()) return known->second;
  std::size_t slot = 0;
  while (slot < slots_.size() && slots_[slot].used) ++slot;
  if (slot == slots_.size()) {
    if (slot == kSlotsMax) return kSlotsMax;
    slots_.emplace_back();
  }
  slots_[slot] = {.worker = worker, .used = true, .capacity = default_capacity_};
  slot_of_.emplace(worker, static_cast<std::uint16_t>(slot));
  return static_cast<std::uint16_t>(slot);
}

void PrefixIndex::unlink(Slot& slot, Index at) {
  const Holding& holding = holdings_[at];
  (holding.newer == kNone ? slot.newest : holdings_[holding.newer].older) = holding.older;
  (holding.older == kNone ? slot.oldest : holdings_[holding.older].newer) = holding.newer;
}

void PrefixIndex::push_newest(Slot& slot, Index at) {
  Holding& holding = holdings_[at];
  holding.newer = kNone;
  holding.older = slot.newest;
  (slot.newest == kNone ? slot.oldest : holdings_[slot.newest].newer) = at;
  slot.newest = at;
}

PrefixIndex::Index PrefixIndex::take_holding() {
  if (free_ != kNone) {
    const Index at = free_;
    free_ = holdings_[at].next_holder;
    return at;
  }
  holdings_.emplace_back();
  return static_cast<Index>(holdings_.size() - 1);
}

void PrefixIndex::add(std::uint64_t key, std::uint16_t slot, std::uint64_t tokens) {
  if ((prefixes_ + 1) * 8 > heads_.size() * 7) grow();
  const std::size_t place = find(key);
  const Index at = take_holding();
  holdings_[at] = {.key = key,
                   .next_holder = heads_[place],
                   .older = kNone,
                   .newer = kNone,
                   .slot = slot,
                   .tokens = static_cast<std::uint16_t>(tokens)};
  if (heads_[place] == kNone) ++prefixes_;
  keys_[place] = key;
  heads_[place] = at;
  ++held_;
  slots_[slot].tokens += tokens;
  push_newest(slots_[slot], at);
}

// From the end to the beginning, so that the beginning is the newest: it is in use as long as
// anything behind it is.
void PrefixIndex::insert(const PromptKeys& prompt, std::uint32_t worker) {
  const std::lock_guard lock(mutex_);
  const std::uint16_t slot_index = slot_for(worker);
  if (slot_index == kSlotsMax) return;
  for (std::size_t i = prompt.keys.size(); i > 0; --i) {
    const std::uint64_t key = prompt.keys[i - 1];
    const Index at = holding_of(find(key), slot_index);
    if (at == kNone) {
      add(key, slot_index, tokens_of_prefix(prompt, i - 1));
    } else {
      unlink(slots_[slot_index], at);
      push_newest(slots_[slot_index], at);
    }
  }
  trim(slots_[slot_index]);
}

void PrefixIndex::trim(const Slot& slot) {
  while (slot.tokens > slot.capacity) drop(slot.oldest);
}

void PrefixIndex::drop(Index at) {
  const Holding holding = holdings_[at];
  Slot& slot = slots_[holding.slot];
  unlink(slot, at);
  slot.tokens -= holding.tokens;
  --held_;
  const std::size_t place = find(holding.key);
  Index* link = &heads_[place];
  while (*link != at) link = &holdings_[*link].next_holder;
  *link = holding.next_holder;
  holdings_[at].next_holder = free_;
  free_ = at;
  if (heads_[place] == kNone) erase(place);
}

// Closes the gap, so that no probe stops too early.
void PrefixIndex::erase(std::size_t place) {
  --prefixes_;
  const std::size_t mask = heads_.size() - 1;
  for (std::size_t next = (place + 1) & mask; heads_[next] != kNone; next = (next + 1) & mask) {
    // What is at `next` may move back unless its home lies behind the gap.
    if (((next - home(keys_[next])) & mask) < ((next - place) & mask)) continue;
    keys_[place] = keys_[next];
    heads_[place] = heads_[next];
    place = next;
  }
  heads_[place] = kNone;
}

void PrefixIndex::grow() {
  std::vector<std::uint64_t> keys(2 * keys_.size());
  std::vector<Index> heads(2 * heads_.size(), kNone);
  keys.swap(keys_);
  heads.swap(heads_);
  for (std::size_t i = 0; i < heads.size(); ++i) {
    if (heads[i] == kNone) continue;
    const std::size_t place = find(keys[i]);
    keys_[place] = keys[i];
    heads_[place] = heads[i];
  }
}

void PrefixIndex::forget(std::uint32_t worker) {
  const std::lock_guard lock(mutex_);
  const auto known = slot_of_.find(worker);
  if (known != slot_of_.end()) empty(slots_[known->second]);
}

void PrefixIndex::remove(std::uint32_t worker) {
  const std::lock_guard lock(mutex_);
  const auto known = slot_of_.find(worker);
  if (known == slot_of_.end()) return;
  empty(slots_[known->second]);
  slots_[known->second] = {};
  slot_of_.erase(known);
}

void PrefixIndex::empty(Slot& slot) {
  while (slot.oldest != kNone) drop(slot.oldest);
}

void PrefixIndex::set_capacity(std::uint32_t worker, std::uint64_t tokens) {
  const std::lock_guard lock(mutex_);
  const std::uint16_t index = slot_for(worker);
  if (index == kSlotsMax) return;
  Slot& slot = slots_[index];
  slot.capacity = tokens == 0 ? default_capacity_ : tokens;
  trim(slot);
}

PrefixIndex::Size PrefixIndex::size() const {
  const std::lock_guard lock(mutex_);
  return {.prefixes = prefixes_,
          .holdings = held_,
          .memory_bytes =
              keys_.capacity() * sizeof(keys_[0]) + heads_.capacity() * sizeof(heads_[0]) +
              holdings_.size() * sizeof(holdings_[0]) + slots_.capacity() * sizeof(slots_[0])};
}

std::uint64_t PrefixIndex::tokens(std::uint32_t worker) const {
  const std::lock_guard lock(mutex_);
  const auto known = slot_of_.find(worker);
  return known == slot_of_.end() ? 0 : slots_[known->second].tokens;
}

}  // namespace kvl::router
