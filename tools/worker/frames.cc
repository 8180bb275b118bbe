// Frames over a socket.
#include "worker/frames.h"

#include <sys/socket.h>
#include <sys/types.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace kvl::worker {
namespace {

constexpr std::size_t kHeadBytes = 5;
constexpr std::size_t kReadBytes = 256 << 10;
constexpr std::uint32_t kBodyBytesMax = 1U << 30;

}  // namespace

std::vector<std::byte> frame(Channel channel, std::span<const std::byte> body) {
  std::vector<std::byte> bytes(kHeadBytes + body.size());
  const auto length = static_cast<std::uint32_t>(body.size() + 1);
  std::memcpy(bytes.data(), &length, sizeof(length));
  bytes[4] = static_cast<std::byte>(channel);
  std::copy(body.begin(), body.end(), bytes.begin() + kHeadBytes);
  return bytes;
}

bool FrameReader::read(int fd, const Take& take) {
  const std::size_t had = pending_.size();
  pending_.resize(had + kReadBytes);
  const ssize_t got = ::recv(fd, pending_.data() + had, kReadBytes, 0);
  pending_.resize(had + (got > 0 ? static_cast<std::size_t>(got) : 0));
  if (got == 0) return false;
  if (got < 0) return errno == EAGAIN || errno == EINTR;
  std::size_t at = 0;
  while (pending_.size() - at >= kHeadBytes) {
    std::uint32_t length = 0;
    std::memcpy(&length, &pending_[at], sizeof(length));
    if (length == 0 || length > kBodyBytesMax) return false;
    if (pending_.size() - at - 4 < length) break;
    const std::span<const std::byte> body(pending_.data() + at + kHeadBytes, length - 1);
    take(static_cast<Channel>(pending_[at + 4]), body);
    at += 4 + length;
  }
  pending_.erase(pending_.begin(), pending_.begin() + static_cast<std::ptrdiff_t>(at));
  return true;
}

bool write_all(int fd, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t sent = ::send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent < 0 && errno != EINTR) return false;
    if (sent > 0) bytes = bytes.subspan(static_cast<std::size_t>(sent));
  }
  return true;
}

}  // namespace kvl::worker
