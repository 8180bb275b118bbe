// A short benchmark of one path.
#include "tools/doctor/rate.h"

#include <cstdio>

#include "kvl/engine.h"
#include "kvl/failure.h"
#include "tools/bench/contender.h"
#include "tools/bench/session.h"
#include "tools/bench/test_bed.h"

namespace kvl::tools {
namespace {

constexpr std::int64_t kTimeoutMs = 5000;
// Of what the devices could do: less is worth a word.
constexpr double kExpected = 0.7;

Status measure(bench::Session& session, double seconds, double* gb_per_s) {
  bench::WorkloadSpec spec;
  spec.pages = 256;
  spec.page_bytes = 64 << 10;
  spec.arena_bytes = 64 << 20;
  auto bed = bench::TestBed::open(session, spec, false);
  if (!bed.ok()) return bed.status();
  std::vector<std::unique_ptr<bench::Contender>> contenders;
  contenders.push_back(
      bench::make_engine_contender(**bed, {.direction = Direction::write, .depth = 4}));
  const auto series = bench::interleave(session, contenders, {seconds, 4, {}});
  if (!series.ok()) return series.status();
  *gb_per_s = series->front().rate();
  return {};
}

// Of all devices that carry bytes to the peer; 0: one of them does not say.
double nominal_gb_per_s(const Settings& settings, const PeerInfo& peer) {
  const std::vector<TransportInfo> transports = probe_transports(settings);
  double sum = 0;
  for (const PathInfo& path : peer.paths) {
    if (!path.in_use) continue;
    std::uint64_t rate = 0;
    for (const TransportInfo& transport : transports) {
      if (transport.name != path.transport) continue;
      for (const Device& device : transport.devices) {
        if (device.name == path.device) rate = device.bytes_per_second;
      }
    }
    if (rate == 0) return 0;
    sum += static_cast<double>(rate) / 1e9;
  }
  return sum;
}

}  // namespace

Check check_rate(const Settings& settings, const std::string& address, double seconds,
                 double* gb_per_s) {
  Check check{Check::State::ok, "rate", "", ""};
  std::string error;
  auto session =
      bench::Session::open(settings, {.address = address, .timeout_ms = kTimeoutMs}, &error);
  if (!session.ok()) {
    check.found = "not measured";
    check.remedy = "start `kvlane bench --serve` at the peer: " + error;
    return check;
  }
  if (const Status status = measure(**session, seconds, gb_per_s); !status.ok()) {
    check.state = Check::State::problem;
    check.found = "pages do not move: " + (*session)->error();
    check.remedy = std::string(remedy(status.code()));
    return check;
  }
  const auto peer = (*session)->describe();
  const double nominal = peer.ok() ? nominal_gb_per_s(settings, *peer) : 0;
  char text[128];
  if (nominal == 0) {
    std::snprintf(text, sizeof(text), "%.2f GB/s over %s", *gb_per_s,
                  (*session)->transport().c_str());
    check.found = text;
    return check;
  }
  std::snprintf(text, sizeof(text), "%.2f GB/s over %s, %.0f %% of %.2f nominal", *gb_per_s,
                (*session)->transport().c_str(), 100 * *gb_per_s / nominal, nominal);
  check.found = text;
  if (*gb_per_s < kExpected * nominal) {
    check.state = Check::State::note;
    check.remedy =
        "less than the devices can: see MTU, other traffic, NUMA placement (near=), and with tcp "
        "more tcp.lanes";
  }
  return check;
}

}  // namespace kvl::tools
