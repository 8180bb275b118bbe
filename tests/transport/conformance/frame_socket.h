// Frames over a stream socket that never blocks: u32 length, u8 kind, bytes.
#pragma once

#include <fcntl.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

namespace kvl::conformance {

enum class FrameKind : std::uint8_t { request, reply, event, control };

class FrameSocket {
 public:
  // Does not own the descriptor.
  explicit FrameSocket(int fd) : fd_(fd) { ::fcntl(fd, F_SETFL, O_NONBLOCK); }

  int fd() const { return fd_; }
  bool open() const { return open_; }
  bool wants_write() const { return out_sent_ < out_.size(); }

  void send(FrameKind kind, std::span<const std::byte> bytes) {
    const auto length = static_cast<std::uint32_t>(bytes.size());
    const std::size_t at = out_.size();
    out_.resize(at + sizeof(length) + 1 + bytes.size());
    std::memcpy(out_.data() + at, &length, sizeof(length));
    out_[at + sizeof(length)] = static_cast<std::byte>(kind);
    if (!bytes.empty()) std::memcpy(out_.data() + at + sizeof(length) + 1, bytes.data(), length);
    flush();
  }
  void flush() {
    while (wants_write()) {
      const ssize_t n = ::send(fd_, out_.data() + out_sent_, out_.size() - out_sent_, MSG_NOSIGNAL);
      if (n < 0) {
        if (errno == EINTR) continue;
        if (errno != EAGAIN) open_ = false;
        return;
      }
      out_sent_ += static_cast<std::size_t>(n);
    }
    out_.clear();
    out_sent_ = 0;
  }
  // f(kind, bytes) for every whole frame that has come; true: there was one. f may send().
  template <typename F>
  bool receive(F f) {
    flush();
    while (open_) {
      const std::size_t at = in_.size();
      in_.resize(at + kReadBytes);
      const ssize_t n = ::recv(fd_, in_.data() + at, kReadBytes, 0);
      in_.resize(at + static_cast<std::size_t>(n > 0 ? n : 0));
      if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) open_ = false;
      if (n < static_cast<ssize_t>(kReadBytes)) break;
    }
    bool any = false;
    std::size_t at = 0;
    while (in_.size() - at >= kHeadBytes) {
      std::uint32_t length = 0;
      std::memcpy(&length, in_.data() + at, sizeof(length));
      if (in_.size() - at - kHeadBytes < length) break;
      // f gets a frame of its own.
      const auto kind = static_cast<FrameKind>(in_[at + sizeof(length)]);
      const auto body = in_.begin() + static_cast<std::ptrdiff_t>(at + kHeadBytes);
      f(kind, std::vector<std::byte>(body, body + length));
      at += kHeadBytes + length;
      any = true;
    }
    in_.erase(in_.begin(), in_.begin() + static_cast<std::ptrdiff_t>(at));
    return any;
  }

 private:
  static constexpr std::size_t kReadBytes = 256 << 10;
  static constexpr std::size_t kHeadBytes = sizeof(std::uint32_t) + 1;
  const int fd_;
  bool open_ = true;
  std::vector<std::byte> out_, in_;
  std::size_t out_sent_ = 0;
};

}  // namespace kvl::conformance
