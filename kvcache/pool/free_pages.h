// The set of free page ids: one bit each, taken upward from where the last search ended. Requests
// so get rising, mostly neighbouring ids, and a freed id rests as long as possible.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace kvl {

class FreePages {
 public:
  explicit FreePages(std::uint32_t pages)
      : words_((std::uint64_t{pages} + 63) / 64), count_(pages) {
    for (std::uint32_t page = 0; page < pages; ++page) set(page);
  }

  std::uint32_t count() const { return count_; }

  void put(std::uint32_t page) {
    set(page);
    ++count_;
  }

  // Appends `pages` ids; count() must be enough. Rising, but for at most one step back to the
  // start.
  void take(std::uint32_t pages, std::vector<std::uint32_t>& out) {
    count_ -= pages;
    while (pages > 0) {
      std::uint64_t& word = words_[cursor_];
      while (word != 0 && pages > 0) {
        const int bit = std::countr_zero(word);
        word &= word - 1;
        out.push_back(static_cast<std::uint32_t>(cursor_ * 64 + static_cast<std::size_t>(bit)));
        --pages;
      }
      if (word == 0) cursor_ = cursor_ + 1 == words_.size() ? 0 : cursor_ + 1;
    }
  }

 private:
  void set(std::uint32_t page) { words_[page / 64] |= std::uint64_t{1} << (page % 64); }

  std::vector<std::uint64_t> words_;
  std::size_t cursor_ = 0;
  std::uint32_t count_;
};

}  // namespace kvl
