// What does a transfer plan cost? A 32k-token prompt of Llama-3.1-70B from TP 8 to TP 2 and other
// shapes. The counters say how many runs a plan has and what one costs: planning must not be
// visible beside moving the bytes. To reach: 5 ms, 20 ns per run.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

#include "kvl/transfer_plan.h"

namespace kvl {
namespace {

constexpr std::uint32_t kTokens = 32768;

struct Shape {
  const char* model = "llama-3.1-70b";
  std::uint32_t src_tp = 8;
  std::uint32_t dst_tp = 2;
  LayoutOptions src;
  LayoutOptions dst;
  bool by_layer = true;
  bool fresh = false;  // a new TransferPlan each time, as for an engine's first request
};

std::vector<std::uint32_t> shuffled(std::uint32_t count, std::uint32_t seed) {
  std::vector<std::uint32_t> ids(count);
  std::iota(ids.begin(), ids.end(), 0U);
  std::shuffle(ids.begin(), ids.end(), std::mt19937(seed));
  return ids;
}

// One iteration plans all that the first source rank sends to the first destination rank.
void plan(benchmark::State& state, const Shape& shape) {
  LayoutOptions src_options = shape.src;
  LayoutOptions dst_options = shape.dst;
  src_options.page_count = kTokens / src_options.page_tokens;
  dst_options.page_count = kTokens / dst_options.page_tokens;
  const ModelGeometry geometry = *find_geometry(shape.model);
  const auto src = make_layout(geometry, {.tp_size = shape.src_tp}, src_options);
  const auto dst = make_layout(geometry, {.tp_size = shape.dst_tp}, dst_options);
  if (!src.ok() || !dst.ok()) return state.SkipWithError("layout refused");
  const std::vector<std::uint32_t> from = shuffled(src_options.page_count, 1);
  const std::vector<std::uint32_t> to = shuffled(dst_options.page_count, 2);
  const GroupPages pages{.src = from, .dst = to};
  const PlanRequest request{.groups = {&pages, 1}, .tokens = kTokens, .by_layer = shape.by_layer};

  TransferPlan out;
  for (auto _ : state) {
    if (shape.fresh) out = TransferPlan{};
    if (!plan_transfer(*src, *dst, request, out).ok()) return state.SkipWithError("plan refused");
    benchmark::DoNotOptimize(out.ops.data());
  }
  const auto runs = static_cast<double>(out.ops.size());
  state.counters["runs"] = runs;
  state.counters["per_run"] = benchmark::Counter(
      runs, benchmark::Counter::kIsIterationInvariantRate | benchmark::Counter::kInvert);
  state.counters["MiB"] = static_cast<double>(out.bytes) / (1 << 20);
}

constexpr LayoutOptions kPage64{.page_tokens = 64};
constexpr LayoutOptions kPage16{.page_tokens = 16};
constexpr LayoutOptions kPageFirst{
    .page_tokens = 64, .order = PageOrder::page_first, .kv_joined = true};

BENCHMARK_CAPTURE(plan, tp8_to_tp2_page64, Shape{.src = kPage64, .dst = kPage64})
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(plan, tp8_to_tp2_page64_fresh,
                  Shape{.src = kPage64, .dst = kPage64, .fresh = true})
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(plan, tp8_to_tp2_page16_fresh,
                  Shape{.src = kPage16, .dst = kPage16, .fresh = true})
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(plan, tp8_to_tp2_page16, Shape{.src = kPage16, .dst = kPage16})
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(plan, tp8_to_tp2_page16_to_page64, Shape{.src = kPage16, .dst = kPage64})
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(plan, tp8_to_tp8_page16, Shape{.dst_tp = 8, .src = kPage16, .dst = kPage16})
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(plan, page_first_whole_pages,
                  Shape{.dst_tp = 8, .src = kPageFirst, .dst = kPageFirst, .by_layer = false})
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(plan, mla_page64, Shape{.model = "deepseek-v3", .src = kPage64, .dst = kPage64})
    ->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace kvl

BENCHMARK_MAIN();
