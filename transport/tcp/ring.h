// A queue in one array that doubles when full: no allocation once it is warm.
#pragma once

#include <cstddef>
#include <utility>
#include <vector>

namespace kvl::tcp {

template <typename T>
class Ring {
 public:
  bool empty() const { return size_ == 0; }
  std::size_t size() const { return size_; }
  T& operator[](std::size_t i) { return slots_[(head_ + i) & (slots_.size() - 1)]; }
  const T& operator[](std::size_t i) const { return slots_[(head_ + i) & (slots_.size() - 1)]; }
  T& front() { return slots_[head_]; }
  T& back() { return (*this)[size_ - 1]; }
  void push(const T& value) {
    if (size_ == slots_.size()) grow();
    (*this)[size_++] = value;
  }
  void pop(std::size_t count = 1) {
    head_ = (head_ + count) & (slots_.size() - 1);
    size_ -= count;
  }
  void clear() { head_ = size_ = 0; }

 private:
  void grow() {
    std::vector<T> larger(slots_.empty() ? 8 : slots_.size() * 2);
    for (std::size_t i = 0; i < size_; ++i) larger[i] = std::move((*this)[i]);
    slots_ = std::move(larger);
    head_ = 0;
  }
  std::vector<T> slots_;
  std::size_t head_ = 0, size_ = 0;
};

}  // namespace kvl::tcp
