// Objects named by slot and generation: a stale name is refused, never dereferenced.
#pragma once

#include <cstdint>
#include <deque>
#include <utility>
#include <vector>

namespace kvl {

// Ids are (generation << 32 | slot + 1), so 0 is never an id. Pointers stay valid until erase().
// Slots are reused, last freed first; T must be default-constructible and is reused as it is, so
// that its buffers keep their capacity: reset what must be reset on insert.
template <typename T>
class SlotMap {
 public:
  // A slot and its id; the T may carry the capacity (and values) of an earlier life.
  std::pair<std::uint64_t, T*> insert() {
    std::uint32_t slot = 0;
    if (free_.empty()) {
      slot = static_cast<std::uint32_t>(slots_.size());
      slots_.emplace_back();
    } else {
      slot = free_.back();
      free_.pop_back();
    }
    Slot& s = slots_[slot];
    s.live = true;
    ++live_;
    return {(std::uint64_t{s.generation} << 32) | (slot + 1U), &s.value};
  }
  T* find(std::uint64_t id) {
    const auto slot = static_cast<std::uint32_t>(id) - 1U;
    if (slot >= slots_.size()) return nullptr;
    Slot& s = slots_[slot];
    return s.live && s.generation == id >> 32 ? &s.value : nullptr;
  }
  const T* find(std::uint64_t id) const { return const_cast<SlotMap*>(this)->find(id); }
  bool erase(std::uint64_t id) {
    if (find(id) == nullptr) return false;
    const auto slot = static_cast<std::uint32_t>(id) - 1U;
    slots_[slot].live = false;
    ++slots_[slot].generation;
    free_.push_back(slot);
    --live_;
    return true;
  }
  std::size_t size() const { return live_; }
  // f(id, T&) for every live object; f may erase the one it is shown.
  template <typename F>
  void for_each(F&& f) {
    for (std::uint32_t slot = 0; slot < slots_.size(); ++slot) {
      Slot& s = slots_[slot];
      if (s.live) f((std::uint64_t{s.generation} << 32) | (slot + 1U), s.value);
    }
  }
  template <typename F>
  void for_each(F&& f) const {
    const_cast<SlotMap*>(this)->for_each([&f](std::uint64_t id, const T& value) { f(id, value); });
  }

 private:
  struct Slot {
    T value{};
    std::uint32_t generation = 1;
    bool live = false;
  };
  std::deque<Slot> slots_;
  std::vector<std::uint32_t> free_;
  std::size_t live_ = 0;
};

}  // namespace kvl
