// The objects of the device in memory: libibverbs' structures with what the device knows of them.
#pragma once

#include <array>
#include <cstddef>
#include <deque>
#include <vector>

#include "tests/transport/verbs/fake_device.h"

namespace kvl::test {

// A queue of fixed size: nothing is allocated once it is there.
template <typename T>
class Ring {
 public:
  explicit Ring(std::size_t size) : items_(size) {}
  bool full() const { return count_ == items_.size(); }
  bool empty() const { return count_ == 0; }
  std::size_t count() const { return count_; }
  T& front() { return items_[first_]; }
  void push(const T& item) { items_[(first_ + count_++) % items_.size()] = item; }
  void pop() {
    first_ = (first_ + 1) % items_.size();
    --count_;
  }

 private:
  std::vector<T> items_;
  std::size_t first_ = 0, count_ = 0;
};

struct FakeDevice::Context : ibv_context {
  FakeDevice* fake = nullptr;
  std::deque<ibv_async_event> events;
  std::size_t unacknowledged = 0;
};
struct FakeDevice::Pd : ibv_pd {
  std::size_t users = 0;
};
struct FakeDevice::Mr : ibv_mr {
  std::uint64_t base = 0;
  unsigned int access = 0;
};
struct FakeDevice::Channel : ibv_comp_channel {
  Cq* cq = nullptr;
};
struct FakeDevice::Cq : ibv_cq {
  explicit Cq(std::size_t size) : ibv_cq{}, entries(size) {}
  Ring<ibv_wc> entries;
  std::uint32_t unacknowledged = 0;
  std::size_t users = 0;
  bool armed = false;
};
struct FakeDevice::Srq : ibv_srq {
  explicit Srq(std::size_t size) : ibv_srq{}, buffers(size) {}
  struct Buffer {
    std::uint64_t id = 0;
    ibv_sge range{};
  };
  Ring<Buffer> buffers;
  std::size_t users = 0;
};
struct FakeDevice::Qp : ibv_qp {
  explicit Qp(std::size_t size) : ibv_qp{}, sends(size), ids(size) {}
  struct Send {
    ibv_send_wr request{};
    ibv_sge range{};
    std::array<std::byte, 256> inlined{};
    std::uint64_t number = 0;  // of the device
  };
  Ring<Send> sends;         // not done yet
  Ring<std::uint64_t> ids;  // of those, and of what is done and not known to be by who posted it
  std::uint32_t inline_max = 0;
  std::uint32_t dest = 0;
  std::uint32_t rq_psn = 0, sq_psn = 0;
};

}  // namespace kvl::test
