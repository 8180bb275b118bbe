// How much does the engine itself cost? A transfer of page runs from submit() to its event over a
// transport that does nothing: nanoseconds and allocations per run.
//
//   engine_bench [RUNS] [SECONDS]     exit status 1: the engine allocates per run
//
// Aim: at most 150 ns per run, no allocation. Allocations are counted in the calling thread, which
// drives everything (progress = caller).
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#include "bench/support/null_transport.h"
#include "bench/support/output.h"
#include "bench/support/stats.h"
#include "kvl/engine.h"
#include "transport/core/control_net.h"

namespace {
// Of this thread: the other engine's threads have their own.
thread_local std::uint64_t allocations = 0;
}  // namespace

void* operator new(std::size_t bytes) {
  ++allocations;
  if (void* const memory = std::malloc(bytes)) return memory;  // NOLINT: this is operator new
  throw std::bad_alloc();
}
void operator delete(void* memory) noexcept { std::free(memory); }               // NOLINT
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }  // NOLINT

namespace kvl::bench {
namespace {

constexpr std::uint64_t kPageBytes = 4096;
constexpr std::int64_t kTimeoutMs = 10'000;

struct Ends {
  std::unique_ptr<Engine> here, there;
  PeerHandle peer;
  std::vector<std::byte> memory;
  MemoryHandle local, remote;
};

Result<std::unique_ptr<Engine>> open_engine(const char* progress) {
  const auto settings = Settings::load(
      engine_settings(),
      {.environment = false, .flags = {{"listen", "127.0.0.1:0"}, {"progress", progress}}});
  if (!settings.ok()) return settings.status();
  EngineWorld world;
  world.transports.push_back(make_null_transport());
  return Engine::open(*settings, std::move(world));
}

// Drives `engine` until an event of the kind comes.
Result<EngineEvent> await(Engine& engine, EngineEvent::Kind kind) {
  const SteadyClock clock;
  const std::int64_t deadline_ns = clock.now_ns() + kTimeoutMs * 1'000'000;
  EngineEvent event;
  while (clock.now_ns() < deadline_ns) {
    if (engine.poll({&event, 1}) == 0) continue;
    if (event.kind == kind) return event;
    if (event.kind == EngineEvent::Kind::peer_down) return Status{event.code, "peer lost"};
  }
  return Status{Code::timed_out, "no event"};
}

Status open_ends(Ends& ends) {
  auto here = open_engine("caller");
  if (!here.ok()) return here.status();
  auto there = open_engine("thread");
  if (!there.ok()) return there.status();
  ends.here = std::move(*here);
  ends.there = std::move(*there);
  ends.memory.resize(kPageBytes);
  const Memory memory{
      .data = ends.memory.data(), .bytes = std::uint64_t{1} << 40, .access = Access::remote_all};
  const auto local = ends.here->register_memory(memory);  // nothing ever touches it
  const auto remote = ends.there->register_memory(memory);
  if (!local.ok() || !remote.ok()) return {Code::internal, "register"};
  ends.local = *local;
  ends.remote = *remote;
  const auto peer = ends.here->connect(ends.there->address());
  if (!peer.ok()) return peer.status();
  ends.peer = *peer;
  return await(*ends.here, EngineEvent::Kind::peer_up).status();
}

struct Cost {
  double ns_per_run = 0;
  double allocations_per_transfer = 0;
};

Result<Cost> measure(Ends& ends, std::uint64_t runs, double seconds) {
  std::vector<PageOp> ops(runs);
  for (std::uint64_t i = 0; i < runs; ++i) {
    ops[i].local_offset = i * 2 * kPageBytes;
    ops[i].remote_offset = (runs - i) * 2 * kPageBytes;
    ops[i].bytes = kPageBytes;
  }
  Transfer transfer;
  transfer.peer = ends.peer;
  transfer.ops = ops;
  transfer.locals = {&ends.local, 1};
  transfer.remotes = {&ends.remote, 1};
  const SteadyClock clock;
  std::vector<double> samples;
  samples.reserve(1 << 20);
  std::uint64_t allocated = 0;
  const std::int64_t start_ns = clock.now_ns();
  constexpr int kWarmUp = 20;
  for (int i = 0;
       i < kWarmUp + 50 || clock.now_ns() - start_ns < static_cast<std::int64_t>(seconds * 1e9);
       ++i) {
    if (samples.size() == samples.capacity()) break;
    const std::uint64_t before = allocations;
    const std::int64_t begin_ns = clock.now_ns();
    const auto id = ends.here->submit(transfer);
    if (!id.ok()) return id.status();
    const auto event = await(*ends.here, EngineEvent::Kind::transfer);
    if (!event.ok()) return event.status();
    if (event->code != Code::ok || event->bytes != runs * kPageBytes) {
      return Status{Code::internal, "a transfer did not move all bytes"};
    }
    if (i < kWarmUp) continue;
    samples.push_back(static_cast<double>(clock.now_ns() - begin_ns) / static_cast<double>(runs));
    allocated += allocations - before;
  }
  return Cost{median(samples),
              static_cast<double>(allocated) / static_cast<double>(samples.size())};
}

int run(std::uint64_t runs, double seconds) {
  Ends ends;
  if (const Status status = open_ends(ends); !status.ok()) {
    std::fprintf(stderr, "engine_bench: %s\n", status.to_string().c_str());
    return 1;
  }
  Report report(stdout, Format::json, {});
  bool clean = true;
  for (const std::uint64_t count :
       {std::uint64_t{1}, std::uint64_t{64}, std::uint64_t{1024}, runs}) {
    const auto cost = measure(ends, count, seconds);
    if (!cost.ok()) {
      std::fprintf(stderr, "engine_bench: %s\n", cost.status().to_string().c_str());
      return 1;
    }
    // What a transfer may need once in a while (a queue that grows) is no cost per run.
    clean = clean && cost->allocations_per_transfer <= 1 + static_cast<double>(count) / 1000;
    report.add(Row()
                   .set("figure", "engine overhead, null link")
                   .set("runs", static_cast<std::int64_t>(count))
                   .set("ns_per_run", cost->ns_per_run)
                   .set("us_per_transfer", cost->ns_per_run * static_cast<double>(count) / 1e3)
                   .set("allocations_per_transfer", cost->allocations_per_transfer));
  }
  if (!clean) std::fprintf(stderr, "engine_bench: it allocates per run\n");
  return clean ? 0 : 1;
}

}  // namespace
}  // namespace kvl::bench

int main(int argc, char** argv) {
  const std::uint64_t runs = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 100'000;
  const double seconds = argc > 2 ? std::strtod(argv[2], nullptr) : 1;
  if (runs == 0 || runs > 10'000'000 || !(seconds >= 0 && seconds < 3600)) {
    std::fprintf(stderr, "usage: engine_bench [RUNS] [SECONDS]\n");
    return 2;
  }
  return kvl::bench::run(runs, seconds);
}
