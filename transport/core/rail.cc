// The loop around one Link: commands, events, posts, sleep.
#include "transport/core/rail.h"

#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <cerrno>

namespace kvl {

Rail::Rail(std::size_t index, RailHost& host, Transport& transport, const Device& device)
    : index_(index), host_(host), transport_(transport), device_(device) {}

Rail::~Rail() { stop_thread(); }

Status Rail::open(ControlChannel& control, std::unique_ptr<MemoryOps> memory_ops,
                  const Clock& clock, bool same_host) {
  clock_ = &clock;
  memory_ops_ = std::move(memory_ops);
  wake_.reset(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
  if (!wake_) return {Code::exhausted, "eventfd", errno};
  auto link = transport_.open(device_, LinkContext{control, *memory_ops_, clock, same_host});
  if (!link) return link.status();
  link_ = std::move(*link);
  return {};
}

void Rail::run(std::function<void(Link&)> command) {
  {
    const std::lock_guard<std::mutex> lock(commands_mutex_);
    commands_.push_back(std::move(command));
    has_commands_.store(true, std::memory_order_release);
  }
  wake();
}

bool Rail::step() {
  bool busy = false;
  if (has_commands_.load(std::memory_order_acquire)) {
    {
      const std::lock_guard<std::mutex> lock(commands_mutex_);
      running_.swap(commands_);
      has_commands_.store(false, std::memory_order_release);
    }
    for (auto& command : running_) command(*link_);
    running_.clear();
    busy = true;
  }
  // Posts first: an answer to what the last poll brought leaves in the same system call as the
  // acknowledgement of it.
  if (host_.has_posts(index_)) busy |= exchange(0);
  const std::size_t events = link_->poll(events_);
  if (events > 0) exchange(events);
  return busy || events > 0;
}

bool Rail::exchange(std::size_t events) {
  bool busy = false;
  const std::size_t posts = host_.exchange(index_, std::span(events_).first(events), posts_);
  for (std::size_t i = 0; i < posts; ++i) {
    const Status status = link_->post(posts_[i].batch);
    if (!status.ok()) {
      host_.post_failed(index_, posts_[i], status);
      // Not "busy" for a full queue: the next event of the Link makes room.
      continue;
    }
    busy = true;
  }
  return busy;
}

bool Rail::arm() {
  sleeping_.store(true, std::memory_order_seq_cst);
  if (has_commands_.load(std::memory_order_seq_cst) || host_.has_work(index_) || !link_->arm()) {
    sleeping_.store(false, std::memory_order_relaxed);
    return false;
  }
  return true;
}

int Rail::sleep_ms(std::int64_t max_ms) const {
  const std::int64_t timer = link_->next_timer_ns();
  if (timer == INT64_MAX) return static_cast<int>(max_ms);
  const std::int64_t left_ns = timer - clock_->now_ns();
  return static_cast<int>(std::clamp<std::int64_t>((left_ns + 999'999) / 1'000'000, 0, max_ms));
}

void Rail::woken() {
  sleeping_.store(false, std::memory_order_relaxed);
  std::uint64_t count = 0;
  [[maybe_unused]] const ssize_t n = ::read(wake_.get(), &count, sizeof(count));
}

void Rail::wake() {
  if (!sleeping_.exchange(false, std::memory_order_seq_cst)) return;
  const std::uint64_t one = 1;
  [[maybe_unused]] const ssize_t n = ::write(wake_.get(), &one, sizeof(one));
}

void Rail::start_thread(const std::string& name, const std::vector<int>& cpus) {
  thread_ = std::thread([this] { loop(); });
  ::pthread_setname_np(thread_.native_handle(), name.substr(0, 15).c_str());
  if (cpus.empty()) return;
  cpu_set_t set;
  CPU_ZERO(&set);
  for (const int cpu : cpus) CPU_SET(static_cast<std::size_t>(cpu), &set);
  // Best effort: a container may forbid it, and the rail works anywhere.
  ::pthread_setaffinity_np(thread_.native_handle(), sizeof(set), &set);
}

void Rail::stop_thread() {
  stopping_.store(true, std::memory_order_seq_cst);
  sleeping_.store(true, std::memory_order_seq_cst);  // so that wake() writes
  if (wake_) wake();
  if (thread_.joinable()) thread_.join();
}

void Rail::loop() {
  while (!stopping_.load(std::memory_order_acquire)) {
    if (step()) continue;
    if (!arm()) continue;
    pollfd waits[2] = {{wait_fd(), POLLIN, 0}, {wake_.get(), POLLIN, 0}};
    // A Link without a descriptor must be polled: nap instead of spinning.
    ::poll(waits, 2, sleep_ms(wait_fd() < 0 ? 1 : 100));
    woken();
  }
}

}  // namespace kvl
