// What do checksums cost? The rate of each implementation, then handoffs of 64 KiB runs between two
// engines with checksums off, sampled, all and auto, taking turns in one run.
//
//   crc_bench [TRANSPORT] [SECONDS] [MiB]     default: tcp 10 64
//
// Aim: the time of a handoff at most 1.05 times that without checksums, by what auto chooses. Each
// end has one thread that drives engine and endpoint (progress = caller), as an inference engine's
// own loop would.
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "bench/support/stats.h"
#include "kvl/engine.h"
#include "kvl/handoff.h"
#include "transport/base/crc32c.h"

namespace kvl::bench {
namespace {

// K and V of a page of 64 tokens with 8 heads of 64 values of 2 bytes: runs of 64 KiB.
constexpr std::uint32_t kLayers = 32, kPageTokens = 64;
const ModelGeometry kGeometry{kLayers, 8, 64, false, Dtype::bf16};
constexpr std::uint64_t kRunBytes = 64 << 10;
constexpr const char* kModes[] = {"off", "sampled", "all", "auto"};
constexpr std::size_t kModeCount = 4;

double seconds(std::int64_t ns) { return static_cast<double>(ns) * 1e-9; }

void bench_kinds() {
  const SteadyClock clock;
  std::vector<std::byte> memory(256 << 20);
  for (std::size_t i = 0; i < memory.size(); ++i)
    memory[i] = static_cast<std::byte>(i * 31 + (i >> 9));
  std::printf("%-12s %14s %14s\n", "CRC-32C", "64 KiB in cache", "from memory");
  for (const Crc32cKind& kind : crc32c_kinds()) {
    std::printf("%-12s", std::string(kind.name).c_str());
    for (const std::size_t set : {kRunBytes, std::uint64_t{memory.size()}}) {
      std::uint64_t bytes = 0;
      volatile std::uint32_t sink = 0;
      const std::int64_t begin_ns = clock.now_ns();
      while (clock.now_ns() - begin_ns < 200'000'000) {
        for (std::size_t at = 0; at < set; at += kRunBytes, bytes += kRunBytes) {
          sink = kind.run(std::span(memory).subspan(at, kRunBytes), sink);
        }
      }
      std::printf(" %9.1f GB/s",
                  static_cast<double>(bytes) * 1e-9 / seconds(clock.now_ns() - begin_ns));
    }
    std::puts("");
  }
}

// One end: a thread that drives an engine and one endpoint per mode (auto learns from its own).
struct End {
  std::unique_ptr<Engine> engine;
  std::unique_ptr<SharedBuffer> buffer;
  PageLayout layout;
  std::vector<std::unique_ptr<HandoffEndpoint>> endpoints;
};

End open_end(const std::string& transport, std::uint32_t pages) {
  std::vector<Setting> rows = engine_settings();
  for (const Setting& row : transport_settings()) rows.push_back(row);
  std::string error;
  const auto settings = Settings::load(
      std::move(rows),
      {.environment = false,
       .flags = {{"listen", "127.0.0.1:0"}, {"require", transport}, {"progress", "caller"}}},
      &error);
  End end;
  auto engine = settings.ok() ? Engine::open(*settings, &error) : settings.status();
  if (!engine.ok()) {
    std::fprintf(stderr, "crc_bench: %s\n", error.c_str());
    std::exit(1);
  }
  end.engine = std::move(*engine);
  end.layout = *make_layout(kGeometry, {}, {.page_tokens = kPageTokens, .page_count = pages});
  end.buffer = std::move(*SharedBuffer::open(end.layout.region_bytes(0)));
  std::memset(end.buffer->data(), 0x5a, end.buffer->bytes());
  return end;
}

void add_endpoint(End& end, const Clock& clock, const char* crc, MemoryHandle handle,
                  bool prefill) {
  HandoffConfig config;
  config.crc = crc;
  HandoffRank rank{.layout = end.layout,
                   .regions = {{handle, end.buffer->data(), end.buffer->bytes()}},
                   .model = "bench",
                   .prefill = prefill,
                   .decode = !prefill};
  end.endpoints.push_back(std::move(*HandoffEndpoint::open(*end.engine, clock, rank, config)));
}

class Bench {
 public:
  Bench(const std::string& transport, std::uint32_t pages) : transport_(transport), pages_(pages) {}

  // One pair of engines per mode, so that an endpoint hears only its own peer.
  void open() {
    for (std::size_t m = 0; m < kModeCount; ++m) {
      End& from = prefill_.emplace_back(open_end(transport_, pages_));
      End& to = decode_.emplace_back(open_end(transport_, pages_));
      const MemoryHandle source =
          *from.engine->register_memory(from.buffer->memory(Access::remote_all));
      const MemoryHandle target =
          *to.engine->register_memory(to.buffer->memory(Access::remote_all));
      add_endpoint(from, clock_, kModes[m], source, true);
      add_endpoint(to, clock_, kModes[m], target, false);
      peers_.push_back(*to.engine->connect(from.engine->address()));
    }
  }

  // The seconds of one handoff, from opening it on both sides to decode's commit.
  double run(std::size_t mode, HandoffMode direction) {
    const std::uint64_t room = ++room_;
    const std::uint64_t tokens = std::uint64_t{pages_} * kPageTokens;
    std::vector<std::uint32_t> order(pages_);
    SplitMix random(room);
    for (std::uint32_t i = 0; i < pages_; ++i) order[i] = i;
    std::vector<std::uint32_t> other = order;
    for (std::uint32_t i = pages_; i > 1; --i) {
      std::swap(order[i - 1], order[random.below(i)]);
      std::swap(other[i - 1], other[random.below(i)]);
    }
    std::atomic<int> ended{0};
    std::atomic<bool> bad{false};
    const std::int64_t begin_ns = clock_.now_ns();
    std::thread sender([&] {
      End& end = prefill_[mode];
      HandoffEndpoint& endpoint = *end.endpoints[0];
      bad = !endpoint.open_prefill({room, tokens}).ok() ||
            !endpoint.add_pages(room, 0, order).ok() ||
            !endpoint.ready(room, {0, kLayers}, tokens).ok() || !endpoint.finish(room, {}).ok();
      drive(end, endpoint, ended, bad);
    });
    End& end = decode_[mode];
    DecodeOpen open;
    open.room = room;
    open.tokens = tokens;
    open.mode = direction;
    open.sources = {{peers_[mode], 1}};
    open.pages = {{other, 0}};
    if (!end.endpoints[0]->open_decode(open).ok()) bad = true;
    drive(end, *end.endpoints[0], ended, bad);
    const double took = seconds(clock_.now_ns() - begin_ns);
    // Both sides see the end before the next one begins.
    sender.join();
    if (bad) {
      std::fprintf(stderr, "crc_bench: a handoff failed\n");
      std::exit(1);
    }
    return took;
  }

  std::uint64_t bytes() const { return std::uint64_t{pages_} * kRunBytes * 2 * kLayers; }
  double chosen(std::size_t mode) const {
    struct Find final : MetricVisitor {
      double every = 0;
      void counter(std::string_view, std::string_view, const MetricLabels&, double) override {}
      void gauge(std::string_view name, std::string_view, const MetricLabels&,
                 double value) override {
        if (name == "kvlane_handoff_crc_every") every = value;
      }
    } find;
    prefill_[mode].endpoints[0]->visit_metrics(find);
    return find.every;
  }

 private:
  // Until this side has ended; then it goes on while the other needs it.
  static void drive(End& end, HandoffEndpoint& endpoint, std::atomic<int>& ended,
                    std::atomic<bool>& bad) {
    bool mine = false;
    while (!bad && !mine) {
      EngineEvent events[32];
      const std::size_t count = end.engine->poll(events);
      for (std::size_t i = 0; i < count; ++i) endpoint.on_event(events[i]);
      endpoint.step();
      HandoffEvent told[8];
      for (std::size_t n = endpoint.poll(told); n > 0; n = endpoint.poll(told)) {
        for (std::size_t i = 0; i < n; ++i) {
          mine = mine || told[i].kind == HandoffEvent::Kind::committed;
          if (told[i].kind == HandoffEvent::Kind::failed) {
            std::fprintf(stderr, "crc_bench: %s\n", told[i].reason.c_str());
            bad = true;
          }
        }
      }
      if (count == 0) end.engine->wait(1);
    }
    ++ended;
    // Decode's last message leaves with the next rounds.
    while (!bad && ended < 2) {
      EngineEvent events[32];
      const std::size_t count = end.engine->poll(events);
      for (std::size_t i = 0; i < count; ++i) endpoint.on_event(events[i]);
    }
  }

  const SteadyClock clock_;
  const std::string transport_;
  const std::uint32_t pages_;
  std::vector<End> prefill_, decode_;
  std::vector<PeerHandle> peers_;
  std::uint64_t room_ = 0;
};

int run(const std::string& transport, double limit, std::uint64_t mib) {
  bench_kinds();
  const std::uint64_t page_bytes = kRunBytes * 2 * kLayers;
  Bench bench(transport,
              static_cast<std::uint32_t>(std::max<std::uint64_t>(1, (mib << 20) / page_bytes)));
  bench.open();
  const SteadyClock clock;
  std::printf("\nhandoffs of %.0f MiB in runs of 64 KiB over %s, taking turns\n",
              static_cast<double>(bench.bytes()) / (1 << 20), transport.c_str());
  std::printf("%-6s %-8s %8s %8s  %s\n", "mode", "crc", "checks", "GB/s", "time, off = 1 (95 %)");
  for (const HandoffMode direction : {HandoffMode::push, HandoffMode::pull}) {
    std::vector<double> times[kModeCount];
    for (int warm = 0; warm < 3; ++warm) {
      for (std::size_t m = 0; m < kModeCount; ++m) bench.run(m, direction);
    }
    const std::int64_t end_ns = clock.now_ns() + static_cast<std::int64_t>(limit / 2 * 1e9);
    for (std::size_t round = 0; round < 9 || clock.now_ns() < end_ns; ++round) {
      for (std::size_t i = 0; i < kModeCount; ++i) {
        const std::size_t m = round % 2 == 0 ? i : kModeCount - 1 - i;
        times[m].push_back(bench.run(m, direction));
      }
    }
    for (std::size_t m = 0; m < kModeCount; ++m) {
      const Ratio ratio = paired_ratio(times[m], times[0]);
      const double every = bench.chosen(m);
      const std::string checks = every == 0   ? "none"
                                 : every == 1 ? "all"
                                              : "1 in " + std::to_string(static_cast<int>(every));
      std::printf("%-6s %-8s %8s %8.2f  %.3f (%.3f to %.3f)\n",
                  std::string(to_string(direction)).c_str(), kModes[m], checks.c_str(),
                  static_cast<double>(bench.bytes()) * 1e-9 / median(times[m]), ratio.value,
                  ratio.low, ratio.high);
    }
  }
  return 0;
}

}  // namespace
}  // namespace kvl::bench

int main(int argc, char** argv) {
  const std::string transport = argc > 1 ? argv[1] : "tcp";
  const double limit = argc > 2 ? std::atof(argv[2]) : 10;
  const auto mib = argc > 3 ? std::strtoull(argv[3], nullptr, 10) : 64;
  return kvl::bench::run(transport, limit, mib);
}
