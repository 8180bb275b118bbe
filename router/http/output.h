// Gathered bytes on their way into a socket. Most writes end in the one call that starts them; what
// the socket does not take waits until it is writable.
#pragma once

#include <sys/uio.h>

#include <array>
#include <cstddef>
#include <span>
#include <string_view>

namespace kvl::http {

// A list of byte ranges for one gathering write; the bytes belong to the caller.
class Parts {
 public:
  static constexpr std::size_t kMax = 32;
  void add(std::string_view part) {
    if (part.empty()) return;
    list_[count_++] = {const_cast<char*>(part.data()), part.size()};
  }
  std::span<iovec> all() { return {list_.data(), count_}; }
  std::size_t size() const { return count_; }

 private:
  std::array<iovec, kMax> list_;
  std::size_t count_ = 0;
};

class Output {
 public:
  enum class Outcome { done, pending, failed };

  // Sends what the socket takes now. pending: the bytes must stay as they are until resume() says
  // otherwise. One send at a time.
  Outcome send(int fd, Parts& parts);
  Outcome resume(int fd);
  bool pending() const { return count_ > 0; }

 private:
  Outcome push(int fd, std::span<iovec> parts);

  std::array<iovec, Parts::kMax> rest_;
  std::size_t count_ = 0;
};

}  // namespace kvl::http
