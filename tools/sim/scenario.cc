// From a seed to a scenario.
#include "tools/sim/scenario.h"

#include <algorithm>
#include <array>

namespace kvl::simulation {
namespace {

// A stream of numbers for one thing: the seed, what it is, its number.
class Dice {
 public:
  Dice(std::uint64_t seed, std::uint64_t what, std::uint64_t number)
      : state_(seed * 0x9E3779B97F4A7C15U ^ what * 0xD1B54A32D192ED03U ^
               number * 0x8CB92BA72F3D8DD7U) {}
  std::uint64_t next() {
    state_ += 0x9E3779B97F4A7C15U;
    std::uint64_t z = state_;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9U;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBU;
    return z ^ (z >> 31);
  }
  std::uint64_t below(std::uint64_t bound) { return next() % bound; }
  std::int64_t between(std::int64_t low, std::int64_t high) {  // inclusive
    return low + static_cast<std::int64_t>(below(static_cast<std::uint64_t>(high - low + 1)));
  }
  bool one_in(std::uint64_t n) { return below(n) == 0; }
  template <typename T, std::size_t N>
  T of(const std::array<T, N>& values) {
    return values[below(N)];
  }

 private:
  std::uint64_t state_;
};

constexpr std::int64_t kFirstRequestNs = 30 * kMs;  // the cluster has met by then, as a rule
constexpr std::int64_t kRequestEveryNs = 4 * kMs;

Side make_side(Dice& dice, bool sends) {
  Side side;
  side.instances = static_cast<std::uint32_t>(dice.of<int, 3>({1, 1, 2}));
  side.tp = static_cast<std::uint32_t>(dice.of<int, 8>({1, 1, 1, 2, 2, 2, 2, 4}));
  side.pp = static_cast<std::uint32_t>(side.tp < 4 && dice.one_in(5) ? 2 : 1);
  side.layout.page_tokens = static_cast<std::uint32_t>(dice.of<int, 3>({2, 4, 8}));
  // A request has up to 32 tokens: between one request's worth of pages and plenty.
  const std::uint32_t per_request = 32 / side.layout.page_tokens;
  side.layout.page_count = per_request * static_cast<std::uint32_t>(dice.between(1, 8));
  side.layout.order = dice.one_in(2) ? PageOrder::layer_first : PageOrder::page_first;
  side.layout.kv_joined = dice.one_in(2);
  if (!sends) side.layout.token_order = dice.one_in(3) ? TokenOrder::hnd : TokenOrder::nhd;
  return side;
}

void make_engine(Dice& dice, Scenario& scenario) {
  const auto flag = [&](const char* name, std::int64_t value) {
    scenario.engine_flags.emplace_back(name, std::to_string(value));
  };
  scenario.engine_flags.emplace_back("progress", "caller");
  flag("piece_bytes", 4096);
  flag("piece_runs", dice.between(4, 32));
  flag("pieces_inflight", dice.between(1, 6));
  flag("heartbeat_ms", 50);
  flag("peer_timeout_ms", 250);
  flag("connect_timeout_ms", 300);
  flag("reconnect_ms", 20);
  // Memory pressure: an engine, a link and a control connection that are full.
  if (dice.one_in(4)) flag("transfers_max", dice.between(1, 6));
  if (dice.one_in(4)) {
    scenario.network.batches_inflight_max = static_cast<std::uint32_t>(dice.between(1, 4));
  }
  if (dice.one_in(8)) scenario.network.control_queue_bytes_max = 16 << 10;
}

void make_network(Dice& dice, const RunOptions& options, Scenario& scenario) {
  sim::SimOptions& net = scenario.network;
  net.seed = options.seed;
  net.trace = options.trace || options.trace_packets;
  net.trace_packets = options.trace_packets;
  net.packet_bytes_max = static_cast<std::uint64_t>(dice.of<int, 3>({512, 2048, 8192}));
  net.connect_timeout_ns = 200 * kMs;
  net.tries_max = 7;
  const auto drop = static_cast<double>(dice.of<int, 6>({0, 0, 0, 1, 2, 5})) * 0.01;
  const auto reorder = static_cast<double>(dice.below(30)) * 0.01;
  const std::int64_t delay_ns = dice.of<std::int64_t, 3>({0, 20'000, 150'000});
  const bool repeat = dice.one_in(3), corrupt = dice.one_in(4), slow = dice.one_in(4);
  scenario.latency_ns = dice.of<std::int64_t, 4>({0, 2'000, 20'000, 100'000});
  if (dice.one_in(5)) net.fence = Fence::process_exit;
  if (!options.noise) return;
  net.drop = drop;
  net.reorder = reorder;
  net.delay_mean_ns += delay_ns;
  if (repeat) net.duplicate = 0.02;
  if (slow) net.bytes_per_second = 200'000'000;
  if (corrupt && options.faults && scenario.handoff.crc == "all") net.corrupt = 0.001;
}

Request make_request(const RunOptions& options, const Scenario& scenario, std::uint32_t number) {
  Dice dice(options.seed, 2, number);
  Request r;
  r.number = number;
  r.room = number + 1;
  r.content = dice.next();
  r.at_ns = kFirstRequestNs + number * kRequestEveryNs + dice.between(0, 2 * kRequestEveryNs);
  r.prefill = static_cast<std::uint32_t>(dice.next() % scenario.prefill.instances);
  r.decode = static_cast<std::uint32_t>(dice.next() % scenario.decode.instances);
  r.tokens = static_cast<std::uint64_t>(dice.between(1, 32));
  r.skip_tokens = dice.one_in(2) ? 0 : dice.below(r.tokens);
  r.mode = dice.one_in(3) ? HandoffMode::pull : HandoffMode::push;
  r.deadline_ms = dice.of<int, 4>({40, 150, 400, 1500});
  if (!options.faults) r.deadline_ms = 20'000;
  r.chunk_tokens = dice.one_in(3) ? 8 : 32;
  r.compute_ns = dice.of<std::int64_t, 4>({0, 50'000, 300'000, 2 * kMs});
  return r;
}

Fault make_fault(const RunOptions& options, std::uint32_t number, std::int64_t horizon_ns) {
  Dice dice(options.seed, 3, number);
  Fault f;
  f.number = number;
  f.kind = static_cast<FaultKind>(dice.below(kFaultKinds));
  f.at_ns = dice.between(kFirstRequestNs / 2, horizon_ns);
  f.duration_ns = dice.of<std::int64_t, 4>({2 * kMs, 20 * kMs, 120 * kMs, 600 * kMs});
  f.duration_ns += dice.between(0, f.duration_ns);
  f.a = dice.next();
  f.b = dice.next();
  f.c = dice.next();
  return f;
}

// Without faults everything must arrive: room for all, and time.
void be_gentle(const RunOptions& options, Scenario& scenario) {
  for (Side* const side : {&scenario.prefill, &scenario.decode}) {
    side->layout.page_count = 32 / side->layout.page_tokens * options.requests;
  }
  scenario.handoff.early_max = 1024;
  scenario.handoff.early_ms = 20'000;
  scenario.network.control_queue_bytes_max = 64 << 20;
}

}  // namespace

std::string_view to_string(FaultKind kind) {
  constexpr std::array<std::string_view, kFaultKinds> kNames{
      "partition", "one way partition", "clog", "dead NIC",     "broken lanes", "crash",
      "power off", "SIGSTOP",           "slow", "client abort", "rendezvous"};
  return kNames[static_cast<std::size_t>(kind)];
}

Scenario make_scenario(const RunOptions& options) {
  Scenario scenario;
  Dice shape(options.seed, 1, 0);
  scenario.prefill = make_side(shape, true);
  scenario.decode = make_side(shape, false);
  scenario.devices = static_cast<std::uint32_t>(shape.of<int, 4>({1, 1, 2, 3}));
  scenario.handoff.crc = shape.of<const char*, 4>({"off", "sampled", "all", "all"});
  scenario.handoff.crc_sample = 3;
  scenario.handoff.abort_ms = shape.of<int, 2>({20, 200});
  scenario.handoff.early_ms = 800;
  scenario.handoff.early_max = shape.of<int, 3>({2, 64, 1024});
  scenario.handoff.segment_bytes = shape.of<int, 2>({4096, 1 << 20});
  make_engine(shape, scenario);
  make_network(shape, options, scenario);
  scenario.lease_ms = 240;
  scenario.lease_max_ms = static_cast<std::uint32_t>(shape.of<int, 3>({60, 240, 600}));
  const auto fault_count = static_cast<std::uint32_t>(shape.below(2 + options.requests / 2));

  if (!options.faults) be_gentle(options, scenario);
  if (options.prefills) scenario.prefill.instances = *options.prefills;
  if (options.decodes) scenario.decode.instances = *options.decodes;
  if (options.prefill_tp) scenario.prefill.tp = *options.prefill_tp;
  if (options.decode_tp) scenario.decode.tp = *options.decode_tp;
  if (options.devices) scenario.devices = *options.devices;

  for (std::uint32_t i = 0; i < options.requests; ++i) {
    if (options.keep_requests && !options.keep_requests->contains(i)) continue;
    scenario.requests.push_back(make_request(options, scenario, i));
  }
  const std::int64_t horizon_ns = kFirstRequestNs + options.requests * kRequestEveryNs + 20 * kMs;
  for (std::uint32_t i = 0; options.faults && i < fault_count; ++i) {
    if (options.keep_faults && !options.keep_faults->contains(i)) continue;
    scenario.faults.push_back(make_fault(options, i, horizon_ns));
  }
  std::ranges::stable_sort(scenario.requests, {}, &Request::at_ns);
  std::ranges::stable_sort(scenario.faults, {}, &Fault::at_ns);
  return scenario;
}

}  // namespace kvl::simulation
