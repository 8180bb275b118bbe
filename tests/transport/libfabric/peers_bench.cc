// How a Link bears many peers: the time to connect one, its memory, and what a page run costs when
// batches go to all of them in turn. Over the fake EFA of the tests (instant) and over verbs' null
// device. One line of JSON for each number of peers; all of it should stay flat.
//
//   peers_bench [SECONDS [PEERS…]]     without PEERS: 1, 10, 100, 1000
#include <malloc.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bench/support/null_rdma.h"
#include "bench/support/output.h"
#include "bench/support/stats.h"
#include "tests/transport/libfabric/fake_provider.h"
#include "transport/libfabric/fabric_transport.h"
#include "transport/verbs/verbs_link.h"

namespace kvl::bench {
namespace {

constexpr std::uint64_t kPageBytes = 64, kRuns = 64;

using OpenLink = std::function<std::unique_ptr<Link>(const LinkContext&)>;

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "peers_bench: %s\n", what);
  std::exit(1);
}
template <typename T>
T must(Result<T> result, const char* what) {
  if (!result.ok()) fail(what);
  return std::move(result).value();
}

double cpu_ns() {
  timespec t{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) * 1e9 + static_cast<double>(t.tv_nsec);
}

struct Control final : ControlChannel {
  Status send(PeerId peer, std::span<const std::byte> bytes) override {
    sent.emplace_back(peer, Blob(bytes.begin(), bytes.end()));
    return {};
  }
  std::vector<std::pair<PeerId, Blob>> sent;
};

struct End {
  explicit End(const OpenLink& open, const Clock& clock)
      : memory_ops(make_host_memory_ops()), memory(2 * kRuns * kPageBytes) {
    link = open({control, *memory_ops, clock});
    id = must(
        link->add_memory({memory.data(), memory.size(), MemoryKind::host, 0, Access::remote_all}),
        "add_memory");
  }
  std::size_t poll(Event::Kind kind) {
    std::array<Event, 64> events;
    const std::size_t count = link->poll(events);
    std::size_t found = 0;
    for (std::size_t i = 0; i < count; ++i) {
      if (events.at(i).code != Code::ok && events.at(i).kind != Event::Kind::peer_down)
        fail("an event that is not ok");
      found += events.at(i).kind == kind ? 1 : 0;
    }
    return found;
  }

  Control control;
  std::unique_ptr<MemoryOps> memory_ops;
  std::vector<std::byte> memory;
  std::unique_ptr<Link> link;
  MemoryId id;
  std::vector<PeerId> peers;
};

// Two Links with so many sessions between them.
class Sessions {
 public:
  Sessions(const OpenLink& open, std::size_t count) : here_(open, clock_), there_(open, clock_) {
    for (std::uint64_t i = 0; i < kRuns; ++i) {
      const std::uint64_t at = i * 2 * kPageBytes;
      ops_.push_back({0, 0, at, at, static_cast<std::uint32_t>(kPageBytes), 1, 0, 0});
    }
    const std::size_t before = ::mallinfo2().uordblks;
    const double begin = cpu_ns();
    connect(count);
    connect_us_ = (cpu_ns() - begin) / 1e3 / static_cast<double>(count);
    peer_bytes_ =
        static_cast<double>(::mallinfo2().uordblks - before) / static_cast<double>(2 * count);
  }
  ~Sessions() {
    for (const PeerId peer : here_.peers) here_.link->close_peer(peer);
    std::size_t left = 2 * here_.peers.size();
    for (int i = 0; i < 1'000'000 && left > 0; ++i) {
      left -= here_.poll(Event::Kind::peer_down) + there_.poll(Event::Kind::peer_down);
      deliver(here_, there_);
      deliver(there_, here_);
    }
    if (left > 0) fail("peers that do not go");
  }
  Sessions(const Sessions&) = delete;
  Sessions& operator=(const Sessions&) = delete;
  double connect_us() const { return connect_us_; }
  double peer_bytes() const { return peer_bytes_; }

  // Median over rounds of batches.
  double ns_per_run(double seconds) {
    std::vector<double> samples;
    const double end = cpu_ns() + seconds * 1e9;
    while (cpu_ns() < end || samples.size() < 5) {
      constexpr std::uint64_t kBatches = 256;
      const double begin = cpu_ns();
      for (std::uint64_t i = 0; i < kBatches; ++i) move_batch();
      samples.push_back((cpu_ns() - begin) / static_cast<double>(kBatches * kRuns));
    }
    return median(samples);
  }

 private:
  void deliver(End& from, End& to) {
    for (const auto& [peer, bytes] : std::exchange(from.control.sent, {})) {
      for (std::size_t i = 0; i < from.peers.size(); ++i) {
        if (from.peers[i] == peer) to.link->on_control(to.peers[i], bytes);
      }
    }
  }
  void connect(std::size_t count) {
    std::size_t up = 0;
    const std::int64_t until_ns = clock_.now_ns() + 60'000'000'000;
    for (std::size_t i = 0; i < count; ++i) {
      here_.peers.push_back(must(here_.link->open_peer(PeerRole::active), "open_peer"));
      there_.peers.push_back(must(there_.link->open_peer(PeerRole::passive), "open_peer"));
      const PeerId a = here_.peers.back(), b = there_.peers.back();
      const Blob from_a = must(here_.link->offer(a), "offer");
      const Blob from_b = must(there_.link->offer(b), "offer");
      if (!here_.link->accept(a, from_b).ok() || !there_.link->accept(b, from_a).ok()) {
        fail("accept");
      }
      remotes_.push_back(must(
          here_.link->import_memory(a, must(there_.link->export_memory(there_.id, b), "export")),
          "import"));
      // As an engine does it: some are under way at once.
      while (up + 16 < here_.peers.size()) up += turn(until_ns);
    }
    while (up < count) up += turn(until_ns);
    for (int i = 0; i < 10; ++i) turn(until_ns);
  }
  std::size_t turn(std::int64_t until_ns) {
    if (clock_.now_ns() > until_ns) fail("the two ends do not meet");
    const std::size_t up = here_.poll(Event::Kind::peer_up);
    there_.poll(Event::Kind::peer_up);
    deliver(here_, there_);
    deliver(there_, here_);
    return up;
  }
  void move_batch() {
    next_ = (next_ + 1) % here_.peers.size();
    Batch batch;
    batch.ticket = {++tickets_};
    batch.peer = here_.peers[next_];
    batch.ops = ops_;
    batch.locals = {&here_.id, 1};
    batch.remotes = {&remotes_[next_], 1};
    if (!here_.link->post(batch).ok()) fail("post");
    while (here_.poll(Event::Kind::batch) == 0) {
    }
    if (tickets_ % 64 == 0) there_.poll(Event::Kind::batch);  // probes are answered
  }

  SteadyClock clock_;
  End here_, there_;
  std::vector<RemoteId> remotes_;
  std::vector<PageOp> ops_;
  std::uint64_t tickets_ = 0;
  std::size_t next_ = 0;
  double connect_us_ = 0, peer_bytes_ = 0;
};

void measure(const char* transport, const OpenLink& open, const std::vector<std::size_t>& counts,
             double seconds) {
  Report report(stdout, Format::json, {});
  for (const std::size_t count : counts) {
    Sessions sessions(open, count);
    report.add(Row()
                   .set("figure", "peers of one Link")
                   .set("transport", transport)
                   .set("peers", static_cast<std::int64_t>(count))
                   .set("connect_us", sessions.connect_us())
                   .set("bytes_per_peer", sessions.peer_bytes())
                   .set("ns_per_run", sessions.ns_per_run(seconds)));
  }
}

}  // namespace

int run(const std::vector<std::string>& words) {
  const double seconds = words.empty() ? 1 : std::strtod(words[0].c_str(), nullptr);
  std::vector<std::size_t> counts;
  for (std::size_t i = 1; i < words.size(); ++i) {
    counts.push_back(std::strtoull(words[i].c_str(), nullptr, 10));
  }
  if (counts.empty()) counts = {1, 10, 100, 1000};
  test::FakeProvider provider(test::measured());
  const auto fabric = libfabric::make_transport({}, provider.api());
  const Device device = fabric->devices().at(0);
  measure(
      "libfabric, fake EFA",
      [&](const LinkContext& context) { return must(fabric->open(device, context), "open"); },
      counts, seconds);
  measure(
      "verbs, null device",
      [](const LinkContext& context) {
        verbs::FoundPort found;
        found.ibv_name = "null0";
        return must(verbs::VerbsLink::open(null_rdma_api(), found, {}, context), "open");
      },
      counts, seconds);
  return 0;
}

}  // namespace kvl::bench

int main(int argc, char** argv) { return kvl::bench::run({argv + 1, argv + argc}); }
