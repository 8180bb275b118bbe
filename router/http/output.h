// Gathered bytes on their way into a socket. Most writes end in the one call that starts them; what
// the socket does not take waits until it is writable.
#pragma once

#include <sys/uio.h>

#include <array>
#include <cstddef>
#include <span>
#include <string_view>

#include "router/http/stream.h"

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

  // Sends what the stream takes now. pending: the bytes must stay as they are until resume() says
  // otherwise, which is worth calling when what it waits_for() has come. One send at a time.
  Outcome send(Stream& stream, Parts& parts);
  Outcome resume(Stream& stream);
  bool pending() const { return pending_; }
  TlsChannel::Want waits_for() const { return waits_for_; }

 private:
  Outcome push(Stream& stream, std::span<iovec> parts);
  Outcome push_secure(TlsChannel& tls, std::span<iovec> parts);
  Outcome keep(std::span<iovec> parts, TlsChannel::Want waits_for);

  std::array<iovec, Parts::kMax> rest_;
  std::size_t count_ = 0;
  bool pending_ = false;
  TlsChannel::Want waits_for_ = TlsChannel::Want::write;
};

}  // namespace kvl::http
