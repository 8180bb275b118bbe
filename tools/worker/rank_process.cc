// One rank process: the main thread reads the socket, everybody writes to it.
#include "worker/rank_process.h"

#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <mutex>

#include "worker/collective.h"
#include "worker/rank_wire.h"

namespace kvl::worker {
namespace {

class SocketFabric final : public Collective {
 public:
  SocketFabric(int fd, std::uint32_t tp_size) : fd_(fd), tp_size_(tp_size) {}

  void send(Channel channel, std::span<const std::byte> body) {
    const std::vector<std::byte> bytes = frame(channel, body);
    const std::lock_guard lock(write_mutex_);
    // The worker is gone: the reader sees it too and ends the process.
    (void)write_all(fd_, bytes);
  }
  void arrived(Channel channel, std::span<const std::byte> body) {
    const std::lock_guard lock(mutex_);
    (channel == Channel::gathered ? gathered_ : hidden_).emplace_back(body.begin(), body.end());
    arrived_.notify_all();
  }
  void close() {
    const std::lock_guard lock(mutex_);
    closed_ = true;
    arrived_.notify_all();
  }

  Result<std::span<const std::span<const float>>> gather(std::span<const float> mine) override {
    send(Channel::gather, std::as_bytes(mine));
    Kept& kept = kept_[calls_++ % 2];
    kept.values.resize(mine.size() * tp_size_);
    KVL_TRY(take(gathered_, kept.values));
    kept.parts.clear();
    for (std::uint32_t r = 0; r < tp_size_; ++r) {
      kept.parts.push_back(std::span(kept.values).subspan(r * mine.size(), mine.size()));
    }
    return std::span<const std::span<const float>>(kept.parts);
  }
  Status send_forward(std::span<const float> hidden) override {
    send(Channel::hidden, std::as_bytes(hidden));
    return {};
  }
  Status receive(std::span<float> hidden) override { return take(hidden_, hidden); }

 private:
  using Messages = std::deque<std::vector<std::byte>>;
  struct Kept {
    std::vector<float> values;
    std::vector<std::span<const float>> parts;
  };

  Status take(Messages& from, std::span<float> to) {
    std::unique_lock lock(mutex_);
    arrived_.wait(lock, [&] { return closed_ || !from.empty(); });
    if (from.empty()) return {Code::aborted, "the worker is gone"};
    const std::vector<std::byte> message = std::move(from.front());
    from.pop_front();
    if (message.size() != to.size_bytes()) return {Code::internal, "ranks disagree about a batch"};
    std::memcpy(to.data(), message.data(), message.size());
    return {};
  }

  int fd_;
  std::uint32_t tp_size_;
  std::mutex write_mutex_;
  std::mutex mutex_;
  std::condition_variable arrived_;
  Messages gathered_, hidden_;
  bool closed_ = false;
  std::uint64_t calls_ = 0;
  Kept kept_[2];
};

}  // namespace

int run_rank_process(int fd, std::uint32_t rank, std::uint32_t tp_size, const OpenRank& open_rank) {
  SocketFabric fabric(fd, tp_size);
  const std::unique_ptr<RankHost> host = open_rank(
      rank, fabric, [&](const RankEvent& event) { fabric.send(Channel::event, encode(event)); });
  if (host == nullptr) return 1;
  FrameReader reader;
  const auto take = [&](Channel channel, std::span<const std::byte> body) {
    if (channel == Channel::command) {
      if (const std::optional<Command> command = decode_command(body)) host->post(*command);
    } else if (channel == Channel::gathered || channel == Channel::hidden) {
      fabric.arrived(channel, body);
    }
  };
  while (reader.read(fd, take)) {
  }
  fabric.close();
  ::close(fd);
  return 0;
}

}  // namespace kvl::worker
