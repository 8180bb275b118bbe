// Many targets, many sessions.
#include "tools/bench/fleet.h"

#include <sys/epoll.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <fstream>

#include "bench/support/stats.h"
#include "tools/bench/modes.h"
#include "tools/bench/target.h"

namespace kvl::bench {
namespace {

constexpr int kTickMs = 100;
constexpr std::int64_t kIdleMs = 1500;

std::int64_t now_ns() { return SteadyClock().now_ns(); }

// User and system time of another process, in seconds.
double cpu_seconds_of(pid_t pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
  std::string text;
  std::getline(file, text);
  // After the name in parentheses, which may hold blanks: fields 14 and 15.
  std::size_t at = text.rfind(')');
  if (at == std::string::npos) return 0;
  for (int field = 0; field < 12 && at != std::string::npos; ++field) at = text.find(' ', at + 1);
  if (at == std::string::npos) return 0;
  char* end = nullptr;
  const double user = std::strtod(text.c_str() + at, &end);
  const double system = std::strtod(end, nullptr);
  return (user + system) / static_cast<double>(::sysconf(_SC_CLK_TCK));
}

}  // namespace

std::uint64_t raise_file_limit() {
  rlimit limit{};
  ::getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = limit.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &limit);
  return limit.rlim_cur;
}

int serve_fleet(const Settings& settings, std::size_t count) {
  raise_file_limit();
  struct Member {
    std::unique_ptr<Engine> engine;
    std::unique_ptr<Target> target;
  };
  std::vector<Member> members(count);
  const UniqueFd epoll(::epoll_create1(EPOLL_CLOEXEC));
  for (std::size_t i = 0; i < count; ++i) {
    std::string error;
    auto engine = Engine::open(settings, &error);
    if (!engine.ok()) return fail(error.empty() ? engine.status().to_string() : error);
    members[i].engine = std::move(*engine);
    members[i].target = std::make_unique<Target>(*members[i].engine, TargetOptions{});
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.u64 = i;
    ::epoll_ctl(epoll.get(), EPOLL_CTL_ADD, members[i].engine->event_fd(), &event);
    std::printf("%s\n", members[i].engine->address().c_str());
  }
  std::fflush(stdout);
  while (!interrupted()) {
    std::array<epoll_event, 64> ready;
    const int got = ::epoll_wait(epoll.get(), ready.data(), ready.size(), kTickMs);
    for (int i = 0; i < got; ++i) {
      Member& member = members[ready[static_cast<std::size_t>(i)].data.u64];
      while (member.target->step()) {
      }
    }
  }
  return 0;
}

template <typename Done>
Status Fleet::pump(Done done, const char* what) {
  const std::int64_t deadline_ns = now_ns() + timeout_ms_ * 1'000'000;
  while (!done()) {
    const std::size_t count = engine_->poll(events_);
    for (const EngineEvent& event : std::span(events_).first(count)) {
      const auto found = by_handle_.find(event.peer.value);
      switch (event.kind) {
        case EngineEvent::Kind::peer_up:
          if (found != by_handle_.end() && !peers_[found->second].up) {
            peers_[found->second].up = true;
            ++up_;
          }
          break;
        case EngineEvent::Kind::peer_down:
          failed_ = {event.code, "a peer of the fleet was lost"};
          break;
        case EngineEvent::Kind::message: {
          const auto answer = Message::parse(event.data);
          if (found == by_handle_.end() || !answer.ok()) break;
          if (answer->verb() != "ok") failed_ = {Code::unavailable, "a peer has no memory"};
          peers_[found->second].memory[0] = MemoryHandle{answer->number("memory")};
          ++ready_;
          break;
        }
        case EngineEvent::Kind::transfer:
          ++ended_;
          if (event.code != Code::ok) failed_ = {event.code, "a transfer of the fleet failed"};
          break;
        case EngineEvent::Kind::proven:
        case EngineEvent::Kind::note:
          break;
      }
    }
    if (!failed_.ok()) return failed_;
    if (count > 0) continue;
    if (interrupted()) return {Code::aborted, "interrupted"};
    if (!child_->running()) return {Code::peer_lost, "the serving process ended"};
    if (now_ns() >= deadline_ns) return {Code::timed_out, what};
    engine_->wait(20);
  }
  return {};
}

Result<std::unique_ptr<Fleet>> Fleet::open(const Bench& bench, const Flags& flags,
                                           std::size_t peers, std::string* error) {
  std::unique_ptr<Fleet> fleet(new Fleet(bench.options.timeout_ms));
  std::vector<std::string> arguments{"bench", "--serve-fleet", std::to_string(peers)};
  Flags both = flags;
  both.emplace_back("peer_timeout_ms", "20000");
  both.emplace_back("connect_timeout_ms", std::to_string(bench.options.timeout_ms));
  both.emplace_back("listen", "127.0.0.1:0");
  for (const auto& [name, value] : both) arguments.push_back("--" + name + "=" + value);
  auto child = ChildProcess::start(arguments);
  if (!child.ok()) return child.status();
  fleet->child_ = std::move(*child);
  for (std::size_t i = 0; i < peers; ++i) {
    auto line = fleet->child_->read_line(bench.options.timeout_ms);
    if (!line.ok()) {
      *error = fleet->child_->running()
                   ? "the serving process: " + line.status().to_string()
                   : "the serving process has ended; what it said stands above";
      return line.status();
    }
    fleet->addresses_.push_back(std::move(*line));
  }
  const auto settings = bench.settings(both);
  if (!settings.ok()) return settings.status();
  auto engine = Engine::open(*settings, error);
  if (!engine.ok()) return engine.status();
  fleet->engine_ = std::move(*engine);
  if (const Status status = fleet->connect(error); !status.ok()) {
    if (error->empty()) *error = status.to_string();
    return status;
  }
  return fleet;
}

Fleet::~Fleet() = default;

Status Fleet::connect(std::string* error) {
  const std::uint64_t rss = process_rss_bytes();
  const std::int64_t start_ns = now_ns();
  for (const std::string& address : addresses_) {
    const auto peer = engine_->connect(address);
    if (!peer.ok()) return peer.status();
    by_handle_[peer->value] = peers_.size();
    peers_.push_back({*peer, {}, false, false});
  }
  KVL_TRY(pump([this] { return up_ == peers_.size(); }, "connecting the fleet"));
  connect_ms_ = static_cast<double>(now_ns() - start_ns) / 1e6;
  KVL_TRY(measure_idle());
  const std::uint64_t grown = process_rss_bytes();
  rss_bytes_per_peer_ =
      static_cast<double>(grown > rss ? grown - rss : 0) / static_cast<double>(peers_.size());
  return open_memory(error);
}

Status Fleet::measure_idle() {
  const double own = cpu_seconds_used();
  const double other = cpu_seconds_of(child_->pid());
  const std::int64_t start_ns = now_ns();
  KVL_TRY(pump([&] { return now_ns() - start_ns > kIdleMs * 1'000'000; }, "idle fleet"));
  const double seconds = static_cast<double>(now_ns() - start_ns) / 1e9;
  const double used = cpu_seconds_used() - own + cpu_seconds_of(child_->pid()) - other;
  idle_cpu_percent_ = used / seconds * 100;
  return {};
}

Status Fleet::open_memory(std::string* error) {
  WorkloadSpec spec;
  spec.pages = kPages;
  spec.arena_bytes = 0;
  workload_ = std::make_unique<Workload>(spec);
  auto arena = Arena::open(workload_->local_bytes(), false);
  if (!arena.ok()) return arena.status();
  arena_ = std::move(*arena);
  const auto memory = engine_->register_memory(arena_->memory());
  if (!memory.ok()) {
    *error = memory.status().to_string();
    return memory.status();
  }
  local_[0] = *memory;
  const std::string question = Message("arena").set(spec).set("id", std::uint64_t{1}).encode();
  for (const Peer& peer : peers_) {
    KVL_TRY(engine_->send(peer.handle, std::as_bytes(std::span(question))));
  }
  return pump([this] { return ready_ == peers_.size(); }, "memory of the fleet");
}

Status Fleet::transfers(double seconds, std::vector<double>& microseconds) {
  // Every peer once before the clock counts.
  SplitMix random(peers_.size());
  const std::size_t warm = peers_.size();
  const std::int64_t start_ns = now_ns();
  for (std::size_t i = 0;; ++i) {
    const Peer& peer = i < warm ? peers_[i] : peers_[random.below(peers_.size())];
    Transfer transfer;
    transfer.peer = peer.handle;
    transfer.ops = workload_->ops_of(0);
    transfer.locals = local_;
    transfer.remotes = peer.memory;
    transfer.timeout_ms = timeout_ms_;
    const std::int64_t begin_ns = now_ns();
    const std::size_t before = ended_;
    const auto id = engine_->submit(transfer);
    if (!id.ok()) return id.status();
    KVL_TRY(pump([&] { return ended_ > before; }, "a transfer of the fleet"));
    if (i >= warm) microseconds.push_back(static_cast<double>(now_ns() - begin_ns) / 1000);
    const bool late = static_cast<double>(now_ns() - start_ns) / 1e9 > seconds;
    if (late && microseconds.size() >= 100) return {};
  }
}

}  // namespace kvl::bench
