// What a user of the library writes first: two engines in one process, a page written from one into
// the other's memory and read back, over each transport named on the command line. Exit status 0
// when every byte is right. Includes installed headers only.
#include <kvl/engine.h>

#include <cstdio>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

namespace {

constexpr std::uint32_t kPageBytes = 64 << 10;
constexpr std::uint64_t kPages = 4;
constexpr std::int64_t kDeadlineMs = 10'000;

std::unique_ptr<kvl::Engine> open_engine(const std::string& transport) {
  std::vector<kvl::Setting> rows = kvl::engine_settings();
  for (kvl::Setting& row : kvl::transport_settings()) rows.push_back(row);
  std::string error;
  auto settings = kvl::Settings::load(
      std::move(rows),
      {.environment = false, .flags = {{"listen", "127.0.0.1:0"}, {"require", transport}}}, &error);
  if (!settings) {
    std::fprintf(stderr, "settings: %s\n", error.c_str());
    return nullptr;
  }
  auto engine = kvl::Engine::open(*settings, &error);
  if (!engine) {
    std::fprintf(stderr, "%s: %s\n", transport.c_str(), error.c_str());
    return nullptr;
  }
  return *std::move(engine);
}

// The first event of this kind; others are dropped. code timed_out: it did not come.
kvl::EngineEvent await(kvl::Engine& engine, kvl::EngineEvent::Kind kind) {
  const kvl::SteadyClock clock;
  const std::int64_t end_ns = clock.now_ns() + kDeadlineMs * 1'000'000;
  while (clock.now_ns() < end_ns) {
    kvl::EngineEvent event;
    if (engine.poll({&event, 1}) == 0) {
      engine.wait(50);
    } else if (event.kind == kind) {
      return event;
    }
  }
  kvl::EngineEvent late;
  late.code = kvl::Code::timed_out;
  return late;
}

bool move(kvl::Engine& engine, const kvl::Transfer& transfer) {
  const auto submitted = engine.submit(transfer);
  if (!submitted) {
    std::fprintf(stderr, "submit: %s\n", submitted.status().to_string().c_str());
    return false;
  }
  const kvl::EngineEvent done = await(engine, kvl::EngineEvent::Kind::transfer);
  if (done.code == kvl::Code::ok && done.bytes == kPageBytes) return true;
  std::fprintf(stderr, "transfer: %s\n", std::string(kvl::to_string(done.code)).c_str());
  return false;
}

bool move_page(const std::string& transport) {
  // Memory before engines: it has to outlive them.
  const auto here = kvl::SharedBuffer::open(kPages * kPageBytes);
  const auto there = kvl::SharedBuffer::open(kPages * kPageBytes);
  if (!here || !there) return false;
  const auto sender = open_engine(transport);
  const auto receiver = open_engine(transport);
  if (!sender || !receiver) return false;

  const auto local = sender->register_memory((*here)->memory(kvl::Access::local));
  const auto remote = receiver->register_memory((*there)->memory(kvl::Access::remote_all));
  const auto peer = sender->connect(receiver->address());
  if (!local || !remote || !peer) return false;
  if (await(*sender, kvl::EngineEvent::Kind::peer_up).code != kvl::Code::ok) return false;

  std::byte* const page = (*here)->data();
  for (std::uint32_t i = 0; i < kPageBytes; ++i) page[i] = static_cast<std::byte>(i * 31 >> 3);

  // Page 0 here becomes page 2 there, and comes back as page 3.
  const kvl::PageOp write{.remote_offset = 2 * kPageBytes, .bytes = kPageBytes};
  const kvl::PageOp read{
      .local_offset = 3 * kPageBytes, .remote_offset = 2 * kPageBytes, .bytes = kPageBytes};
  kvl::Transfer transfer;
  transfer.peer = *peer;
  transfer.locals = {&*local, 1};
  transfer.remotes = {&*remote, 1};
  transfer.ops = {&write, 1};
  if (!move(*sender, transfer)) return false;
  transfer.direction = kvl::Direction::read;
  transfer.ops = {&read, 1};
  if (!move(*sender, transfer)) return false;

  const bool equal = std::memcmp((*there)->data() + 2 * kPageBytes, page, kPageBytes) == 0 &&
                     std::memcmp(page + 3 * kPageBytes, page, kPageBytes) == 0;
  std::printf("%s: one page there and back, %s\n", transport.c_str(), equal ? "equal" : "WRONG");
  return equal;
}

}  // namespace

int main(int argc, char** argv) {
  bool ok = argc > 1;
  for (int i = 1; i < argc; ++i) ok &= move_page(argv[i]);
  return ok ? 0 : 1;
}
