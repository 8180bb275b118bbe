// Arenas of both sides.
#include "tools/bench/test_bed.h"

#include <algorithm>

#include "tools/bench/target.h"

namespace kvl::bench {
namespace {

constexpr std::uint64_t kLocalSeed = 0x10ca1;
constexpr std::uint64_t kRemoteSeed = 0x4e307e;
constexpr std::array<std::byte, 8> kBatchNote{std::byte{'B'}};

}  // namespace

Result<std::unique_ptr<TestBed>> TestBed::open(Session& session, const WorkloadSpec& spec,
                                               bool foreign) {
  std::unique_ptr<TestBed> bed(new TestBed(session, spec));
  if (const Status status = bed->open_sides(foreign); !status.ok()) return status;
  return bed;
}

Status TestBed::open_sides(bool foreign) {
  auto arena = Arena::open(workload_.local_bytes(), foreign);
  if (!arena.ok()) return session_.fail(arena.code(), arena.status().to_string());
  arena_ = std::move(*arena);
  const SteadyClock clock;
  const std::int64_t start_ns = clock.now_ns();
  const auto memory = session_.engine().register_memory(arena_->memory());
  if (!memory.ok()) {
    return session_.fail(memory.code(), "register memory: " + memory.status().to_string());
  }
  register_ms_ = static_cast<double>(clock.now_ns() - start_ns) / 1e6;
  locals_[0] = *memory;
  registered_ = true;
  const auto answer =
      session_.ask(Message("arena").set(workload_.spec()).set("foreign", std::uint64_t{foreign}));
  if (!answer.ok()) return answer.status();
  remote_open_ = true;
  remotes_[0] = MemoryHandle{answer->number("memory")};
  remote_base_ = answer->number("base");
  register_ms_ = std::max(register_ms_, answer->real("register_us") / 1000);
  return {};
}

TestBed::~TestBed() {
  if (registered_) {
    [[maybe_unused]] const Status status = session_.engine().deregister_memory(locals_[0]);
  }
  if (remote_open_) session_.drop_arena();
}

Status TestBed::start(Direction direction, std::size_t index, std::uint64_t user, bool with_note) {
  Transfer transfer;
  transfer.direction = direction;
  transfer.ops = workload_.ops_of(index);
  transfer.locals = locals_;
  transfer.remotes = remotes_;
  transfer.user = user;
  if (with_note && direction == Direction::write) transfer.note = kBatchNote;
  return session_.start(transfer);
}

Status TestBed::ping(std::size_t index) {
  static constexpr std::array<std::byte, 8> kNote{kPingNote};
  Transfer transfer;
  transfer.ops = workload_.ops_of(index);
  transfer.locals = locals_;
  transfer.remotes = remotes_;
  transfer.note = kNote;
  return session_.start(transfer);
}

Status TestBed::fill() {
  session_.beside([this] { fill_pattern(arena_->bytes(), kLocalSeed, 0); });
  return session_.ask(Message("fill").set("own_seed", kRemoteSeed)).status();
}

Status TestBed::flip(Direction direction) {
  if (direction == Direction::write) return session_.ask(Message("flip")).status();
  arena_->data()[workload_.ops_of(0).front().local_offset] ^= std::byte{1};
  return {};
}

Result<CheckResult> TestBed::verify(Direction direction, std::size_t transfers) {
  CheckResult local;
  session_.beside([&] {
    auto pieces = direction == Direction::read ? workload_.moved(direction, transfers)
                                               : std::vector<MovedPiece>{};
    local = check_arena(arena_->bytes(), kLocalSeed, kRemoteSeed, std::move(pieces));
  });
  const auto answer =
      session_.ask(Message("verify")
                       .set("own_seed", kRemoteSeed)
                       .set("other_seed", kLocalSeed)
                       .set("direction", direction == Direction::write ? "write" : "read")
                       .set("transfers", std::uint64_t{transfers}));
  if (!answer.ok()) return answer.status();
  const CheckResult remote{answer->number("wrong", 1), answer->number("first"),
                           answer->number("inside") != 0};
  CheckResult both = local.wrong_bytes > 0 ? local : remote;
  both.wrong_bytes = local.wrong_bytes + remote.wrong_bytes;
  return both;
}

}  // namespace kvl::bench
