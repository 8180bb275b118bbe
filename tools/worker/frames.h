// Frames over the socket between a worker and one of its rank processes:
//   0 length of what follows (u32), 4 channel (u8), 5 body.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

namespace kvl::worker {

enum class Channel : std::uint8_t {
  command = 0,   // worker to rank: rank_wire.h
  event = 1,     // rank to worker: rank_wire.h
  gather = 2,    // rank to worker: its part of a gather, floats
  gathered = 3,  // worker to rank: every part, in rank order, of equal length
  hidden = 4,    // rank to worker to the next stage's rank: hidden states, floats
};

std::vector<std::byte> frame(Channel channel, std::span<const std::byte> body);

// Cuts a stream into frames.
class FrameReader {
 public:
  using Take = std::function<void(Channel, std::span<const std::byte>)>;
  // Reads what the socket has, at most one buffer full, and calls `take` for each whole frame.
  // False: the other end is gone, or sent what no frame is.
  bool read(int fd, const Take& take);

 private:
  std::vector<std::byte> pending_;
};

// Writes all of it; blocks. False: the other end is gone.
bool write_all(int fd, std::span<const std::byte> bytes);

}  // namespace kvl::worker
