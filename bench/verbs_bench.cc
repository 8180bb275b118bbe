// What does a page run cost the verbs transport: to post it, to see it complete, to tell of it?
// Over a device that moves nothing. Nanoseconds per run; the CPU's instructions are counted by
//
//   valgrind --tool=callgrind --toggle-collect='kvl::bench::move_batch*' verbs_bench RUNS 0
//
//   verbs_bench [RUNS] [SECONDS]     RUNS: of a batch; none: 1, 64, 256, 1024
//
// Aim: at most 300 ns per run in batches of 64 and more.
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <utility>
#include <vector>

#include "bench/support/null_rdma.h"
#include "bench/support/output.h"
#include "bench/support/stats.h"
#include "transport/verbs/verbs_link.h"

namespace kvl::bench {
namespace {

constexpr std::uint64_t kPageBytes = 4096;
constexpr int kPollsMax = 1'000'000;

struct Control final : ControlChannel {
  Status send(PeerId, std::span<const std::byte> bytes) override {
    sent.emplace_back(bytes.begin(), bytes.end());
    return {};
  }
  std::vector<Blob> sent;
};

struct End {
  Control control;
  std::unique_ptr<Link> link;
  PeerId peer;
  MemoryId memory;
  std::vector<Event> seen;

  void poll(std::vector<Event>& events) {
    events.resize(16);
    events.resize(link->poll(events));
  }
};

struct Ends {
  SteadyClock clock;
  std::unique_ptr<MemoryOps> memory_ops = make_host_memory_ops();
  std::vector<std::byte> memory = std::vector<std::byte>(kPageBytes);
  End here, there;
  RemoteId remote;
};

Status open_end(Ends& ends, End& end, PeerRole role) {
  verbs::FoundPort found;
  found.ibv_name = "null0";
  auto link = verbs::VerbsLink::open(null_rdma_api(), found, {},
                                     {end.control, *ends.memory_ops, ends.clock});
  if (!link.ok()) return link.status();
  end.link = std::move(*link);
  const auto peer = end.link->open_peer(role);
  // Nothing ever touches it.
  const auto memory = end.link->add_memory(
      {.data = ends.memory.data(), .bytes = std::uint64_t{1} << 40, .access = Access::remote_all});
  if (!peer.ok() || !memory.ok()) return {Code::internal, "peer or memory"};
  end.peer = *peer;
  end.memory = *memory;
  return {};
}

Status open_ends(Ends& ends) {
  KVL_TRY(open_end(ends, ends.here, PeerRole::active));
  KVL_TRY(open_end(ends, ends.there, PeerRole::passive));
  const auto here = ends.here.link->offer(ends.here.peer);
  const auto there = ends.there.link->offer(ends.there.peer);
  if (!here.ok() || !there.ok()) return {Code::internal, "offer"};
  KVL_TRY(ends.here.link->accept(ends.here.peer, *there));
  KVL_TRY(ends.there.link->accept(ends.there.peer, *here));
  const auto name = ends.there.link->export_memory(ends.there.memory, ends.there.peer);
  if (!name.ok()) return name.status();
  const auto remote = ends.here.link->import_memory(ends.here.peer, *name);
  if (!remote.ok()) return remote.status();
  ends.remote = *remote;
  std::vector<Event> events;
  for (int i = 0; i < 100; ++i) {
    for (const auto& [from, to] :
         {std::pair{&ends.here, &ends.there}, std::pair{&ends.there, &ends.here}}) {
      from->poll(events);
      for (const Blob& bytes : from->control.sent) to->link->on_control(to->peer, bytes);
      from->control.sent.clear();
      if (from != &ends.here) continue;
      for (const Event& event : events) {
        if (event.kind == Event::Kind::peer_up) return {};
      }
    }
  }
  return {Code::timed_out, "the two ends do not meet"};
}

// From post() to the event. False: it did not end as ok.
[[gnu::noinline]] bool move_batch(Link& link, const Batch& batch, std::vector<Event>& events) {
  if (!link.post(batch).ok()) return false;
  for (int i = 0; i < kPollsMax; ++i) {
    events.resize(16);
    events.resize(link.poll(events));
    for (const Event& event : events) {
      if (event.ticket == batch.ticket) return event.code == Code::ok;
    }
  }
  return false;
}

// Median over batches; < 0: a batch failed.
double ns_per_run(Ends& ends, std::uint64_t runs, double seconds) {
  std::vector<PageOp> ops(runs);
  for (std::uint64_t i = 0; i < runs; ++i) {
    ops[i].local_offset = i * 2 * kPageBytes;
    ops[i].remote_offset = (runs - i) * 2 * kPageBytes;
    ops[i].bytes = kPageBytes;
  }
  Batch batch;
  batch.peer = ends.here.peer;
  batch.ops = ops;
  batch.locals = {&ends.here.memory, 1};
  batch.remotes = {&ends.remote, 1};
  std::vector<Event> events(16);
  std::vector<double> samples;
  samples.reserve(1 << 20);
  const std::int64_t start_ns = ends.clock.now_ns();
  constexpr int kWarmUp = 20;
  for (int i = 0; i < kWarmUp + 50 ||
                  ends.clock.now_ns() - start_ns < static_cast<std::int64_t>(seconds * 1e9);
       ++i) {
    if (samples.size() == samples.capacity()) break;
    ++batch.ticket.value;
    const std::int64_t begin_ns = ends.clock.now_ns();
    if (!move_batch(*ends.here.link, batch, events)) return -1;
    const std::int64_t took_ns = ends.clock.now_ns() - begin_ns;
    if (i >= kWarmUp) samples.push_back(static_cast<double>(took_ns) / static_cast<double>(runs));
  }
  return median(samples);
}

int run(const std::vector<std::uint64_t>& counts, double seconds) {
  Ends ends;
  if (const Status status = open_ends(ends); !status.ok()) {
    std::fprintf(stderr, "verbs_bench: %s\n", status.to_string().c_str());
    return 1;
  }
  Report report(stdout, Format::json, {});
  for (const std::uint64_t count : counts) {
    const double ns = ns_per_run(ends, count, seconds);
    if (ns < 0) {
      std::fprintf(stderr, "verbs_bench: a batch failed\n");
      return 1;
    }
    report.add(Row()
                   .set("figure", "verbs, post and complete, null device")
                   .set("runs", static_cast<std::int64_t>(count))
                   .set("ns_per_run", ns));
  }
  return 0;
}

}  // namespace
}  // namespace kvl::bench

int main(int argc, char** argv) {
  const std::uint64_t runs = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 0;
  const double seconds = argc > 2 ? std::strtod(argv[2], nullptr) : 1;
  if (runs > 1'000'000 || !(seconds >= 0 && seconds < 3600)) {
    std::fprintf(stderr, "usage: verbs_bench [RUNS] [SECONDS]\n");
    return 2;
  }
  if (runs > 0) return kvl::bench::run({runs}, seconds);
  return kvl::bench::run({1, 64, 256, 1024}, seconds);
}
