// Preallocated slots and lists of them: nothing is allocated once the pool is there.
#pragma once

#include <cstdint>
#include <memory>

namespace kvl {

inline constexpr std::uint32_t kNoSlot = UINT32_MAX;

struct SlotList {
  std::uint32_t head = kNoSlot, tail = kNoSlot;
  bool empty() const { return head == kNoSlot; }
};

// All slots of one Link. Slot has `previous`, `next` and `used`.
template <typename Slot>
class SlotPool {
 public:
  explicit SlotPool(std::uint32_t size) : size_(size), slots_(new Slot[size]) {
    for (std::uint32_t i = 0; i < size; ++i) push(free_, i);
  }
  Slot& operator[](std::uint32_t i) { return slots_[i]; }
  std::uint32_t size() const { return size_; }
  bool full() const { return free_.empty(); }

  std::uint32_t take() {
    const std::uint32_t i = free_.head;
    erase(free_, i);
    slots_[i] = Slot{};
    slots_[i].used = true;
    return i;
  }
  void give(std::uint32_t i) {
    slots_[i].used = false;
    push(free_, i);
  }
  void push(SlotList& list, std::uint32_t i) {
    slots_[i].previous = list.tail;
    slots_[i].next = kNoSlot;
    (list.tail == kNoSlot ? list.head : slots_[list.tail].next) = i;
    list.tail = i;
  }
  void erase(SlotList& list, std::uint32_t i) {
    Slot& s = slots_[i];
    (s.previous == kNoSlot ? list.head : slots_[s.previous].next) = s.next;
    (s.next == kNoSlot ? list.tail : slots_[s.next].previous) = s.previous;
  }

 private:
  std::uint32_t size_;
  std::unique_ptr<Slot[]> slots_;
  SlotList free_;
};

}  // namespace kvl
