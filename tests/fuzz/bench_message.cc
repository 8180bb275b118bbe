// Messages of the benchmark: what parses encodes and parses again to the same.
#include "tests/fuzz/fuzz.h"
#include "tools/bench/message.h"

namespace kvl::fuzz {

void fuzz_bench_message(Bytes input) {
  const auto message = bench::Message::parse(input);
  if (!message.ok()) return;
  require(input.size() <= bench::Message::kBytesMax, "messages are bounded");
  const std::string text = message->encode();
  if (text.empty()) return;
  const auto again = bench::Message::parse(std::as_bytes(std::span(text)));
  require(again.ok() && again->encode() == text, "a message survives a trip");
  const bench::WorkloadSpec spec = message->spec();
  bench::Message copy(message->verb());
  copy.set(spec);
  require(copy.spec().pages == spec.pages && copy.spec().page_bytes == spec.page_bytes &&
              copy.spec().seed == spec.seed,
          "a workload survives a trip");
  // What the serving side does with a workload that it is asked for: refuse it, or make it.
  if (!bench::validate(spec).ok() || spec.pages > 512 || spec.arena_bytes > 1 << 20) return;
  const bench::Workload workload(spec);
  for (const PageOp& op : workload.ops_of(workload.transfers() - 1)) {
    require(
        op.remote_offset + op.remote_stride * (op.count - 1) + op.bytes <= workload.remote_bytes(),
        "a workload stays in its arena");
  }
}

Seeds seeds_bench_message() {
  bench::WorkloadSpec spec;
  spec.pages = 16;
  spec.page_bytes = 4096;
  return {seed(bench::Message("prepare").set(spec).encode()),
          seed(bench::Message("verify").set("rate", 1.5).set("name", "a b").encode()),
          seed("done")};
}

}  // namespace kvl::fuzz
