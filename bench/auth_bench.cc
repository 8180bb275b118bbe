// What does security cost? One handshake of both sides together (to reach: 1 ms), and sealing and
// opening records of an encrypted lane beside copying the same bytes. No page pays for the first.
#include <benchmark/benchmark.h>

#include <cstring>
#include <memory>
#include <vector>

#include "transport/core/auth.h"
#include "transport/tcp/tcp_seal.h"

namespace kvl {
namespace {

void handshake(benchmark::State& state) {
  const Secrets secrets = Secrets::parse("a secret for a benchmark, 32 or more").value();
  for (auto _ : state) {
    auth::Handshake dialer(auth::Handshake::Side::dialer, secrets, true, crypto::random);
    auth::Handshake listener(auth::Handshake::Side::listener, secrets, true, crypto::random);
    std::vector<std::byte> answer, proof, none;
    const bool good = listener.on_message(dialer.start(), answer).ok() &&
                      dialer.on_message(answer, proof).ok() &&
                      listener.on_message(proof, none).ok() && listener.done();
    if (!good) state.SkipWithError("the handshake failed");
  }
}

constexpr std::size_t kPageBytes = 64 << 10;

void copy_page(benchmark::State& state) {
  const std::vector<std::byte> from(kPageBytes, std::byte{1});
  std::vector<std::byte> to(kPageBytes);
  for (auto _ : state) {
    std::memcpy(to.data(), from.data(), kPageBytes);
    benchmark::DoNotOptimize(to.data());
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(kPageBytes));
}

void seal_page(benchmark::State& state) {
  const std::vector<std::byte> key(16, std::byte{7});
  std::vector<std::byte> page(kPageBytes, std::byte{1});
  const iovec vector{page.data(), page.size()};
  tcp::Sealer sealer(key);
  const std::unique_ptr<tcp::SealBuffer> buffer(new tcp::SealBuffer);
  for (auto _ : state) benchmark::DoNotOptimize(sealer.seal({&vector, 1}, *buffer));
  state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(kPageBytes));
}

// Seals, then opens and copies to the page: both ends of a lane without the sockets.
void seal_open_copy_page(benchmark::State& state) {
  const std::vector<std::byte> key(16, std::byte{7});
  std::vector<std::byte> page(kPageBytes, std::byte{1}), to(kPageBytes);
  std::vector<std::byte> plain(tcp::kRecordBytesMax);
  const iovec vector{page.data(), page.size()};
  tcp::Sealer sealer(key);
  tcp::Opener opener(key);
  const std::unique_ptr<tcp::SealBuffer> sent(new tcp::SealBuffer), heard(new tcp::SealBuffer);
  for (auto _ : state) {
    sealer.seal({&vector, 1}, *sent);
    const auto records = sealer.pending(*sent);
    std::memcpy(opener.room(*heard).data(), records.data(), records.size());
    opener.received(records.size());
    for (std::size_t at = 0, bytes = 0; opener.ready(*heard); at += bytes) {
      if (!opener.open(*heard, plain.data(), bytes).ok()) {
        state.SkipWithError("a record does not open");
        return;
      }
      std::memcpy(to.data() + at, plain.data(), bytes);
    }
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(kPageBytes));
}

BENCHMARK(handshake)->Unit(benchmark::kMicrosecond);
BENCHMARK(copy_page);
BENCHMARK(seal_page);
BENCHMARK(seal_open_copy_page);

}  // namespace
}  // namespace kvl

BENCHMARK_MAIN();
