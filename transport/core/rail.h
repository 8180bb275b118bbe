// A rail: one Link and the loop that drives it. step() is the loop's body; a thread, the caller's
// poll() or a simulator calls it.
#pragma once

#include <array>
#include <atomic>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "kvl/transport.h"
#include "transport/base/unique_fd.h"

namespace kvl {

// A piece that a rail is about to post. Spans point into the transfer, which lives until the event.
struct Post {
  Batch batch;
  std::uint64_t transfer = 0;
  std::uint32_t piece = 0;
};

// What a rail needs of the engine. Called from the rail's loop, without any lock held.
class RailHost {
 public:
  virtual ~RailHost() = default;
  static constexpr std::size_t kPostsMax = 32;
  // Cheap, without a lock: would exchange() have something to post?
  virtual bool has_posts(std::size_t rail) = 0;
  // Handles `events` of the Link, then fills `posts` with what the rail should post now.
  virtual std::size_t exchange(std::size_t rail, std::span<const Event> events,
                               std::span<Post> posts) = 0;
  virtual void post_failed(std::size_t rail, const Post&, Status) = 0;
  virtual bool has_work(std::size_t rail) = 0;
};

class Rail {
 public:
  Rail(std::size_t index, RailHost& host, Transport& transport, const Device& device);
  ~Rail();
  Rail(const Rail&) = delete;
  Rail& operator=(const Rail&) = delete;

  // `control` and `clock` outlive the rail.
  Status open(ControlChannel& control, std::unique_ptr<MemoryOps> memory_ops, const Clock& clock,
              bool same_host);

  Link& link() { return *link_; }
  const Device& device() const { return device_; }
  Transport& transport() { return transport_; }

  // Runs `command` on the rail's loop, in order. Any thread.
  void run(std::function<void(Link&)> command);
  // One bounded round. True: something was done, call again soon.
  bool step();
  // Prepares to sleep: false when there is work. Then wait on wait_fd() and wake_fd().
  bool arm();
  int wait_fd() const { return link_->wait_fd(); }
  int wake_fd() const { return wake_.get(); }
  // Milliseconds until the Link wants poll() by itself, at most `max_ms`.
  int sleep_ms(std::int64_t max_ms) const;
  void woken();
  // Ends a sleep, from any thread.
  void wake();

  // `cpus`: where the thread may run; empty: anywhere.
  void start_thread(const std::string& name, const std::vector<int>& cpus);
  void stop_thread();

 private:
  void loop();
  // Hands `events` to the host and posts what it wants posted. True: something was.
  bool exchange(std::size_t events);

  static constexpr std::size_t kEventsMax = 64;
  const std::size_t index_;
  RailHost& host_;
  Transport& transport_;
  const Device device_;
  const Clock* clock_ = nullptr;
  std::unique_ptr<MemoryOps> memory_ops_;
  std::unique_ptr<Link> link_;
  UniqueFd wake_;
  std::atomic<bool> sleeping_{false};
  std::atomic<bool> stopping_{false};
  std::thread thread_;
  std::mutex commands_mutex_;
  std::vector<std::function<void(Link&)>> commands_;
  std::atomic<bool> has_commands_{false};
  std::vector<std::function<void(Link&)>> running_;
  std::array<Event, kEventsMax> events_;
  std::array<Post, RailHost::kPostsMax> posts_;
};

}  // namespace kvl
