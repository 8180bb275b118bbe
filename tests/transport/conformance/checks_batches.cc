// Promises about batches that end well, and about those that are not taken.
#include <algorithm>
#include <limits>
#include <numeric>

#include "tests/transport/conformance/check.h"

namespace kvl::conformance {
namespace {

constexpr std::uint64_t kMax64 = std::numeric_limits<std::uint64_t>::max();

PageOp plain(std::uint64_t local, std::uint64_t remote, std::uint32_t bytes) {
  return {0, 0, local, remote, bytes, 1, 0, 0};
}

// Promises 1, 2: many batches of every sort, each with one event, none before poll().
void each_batch_ends_once(Harness& h) {
  Pipe pipe = h.make_pipe();
  constexpr std::uint32_t kSlots = 24;
  const auto slot = static_cast<std::uint32_t>(pipe.bytes / kSlots);
  std::vector<Ticket> tickets;
  for (std::uint32_t i = 0; i < kSlots; ++i) {
    BatchSpec spec = h.spec(pipe.a, i % 3 == 1 ? Direction::read : Direction::write,
                            {plain(std::uint64_t{i} * slot, std::uint64_t{i} * slot, slot)});
    if (i % 3 == 2) spec.note = {std::byte{1}};
    if (i % 5 == 4) spec.ops.clear();
    tickets.push_back(h.post(pipe.a, spec));
    Harness::apply(pipe.a, pipe.b, spec);
  }
  for (const Ticket ticket : tickets) {
    Harness::require(h.find_batch(pipe.a, ticket) == nullptr, "an event before poll()");
  }
  for (const Ticket ticket : tickets) {
    const Event event = h.wait_batch(pipe.a, ticket).event;
    Harness::require(event.code == Code::ok, "batch failed");
    Harness::require(event.peer == pipe.a.peer, "event names another peer");
  }
  h.ping(pipe);
  for (const Ticket ticket : tickets) {
    Harness::require(h.count_batches(pipe.a, ticket) == 1, "not exactly one event of a batch");
  }
  h.verify(pipe, "after 24 batches");
}

// Promises 3, 4: random strided runs with cuts, both directions, from both sides, against the naive
// copier; guards and gaps included.
void bytes_are_right(Harness& h) {
  for (const BufferKind kind : {BufferKind::plain, BufferKind::shared}) {
    Pipe pipe = h.make_pipe({.bytes = 256 << 10, .kind = kind});
    for (int round = 0; round < 40; ++round) {
      const bool from_a = h.below(2) == 0;
      End& from = from_a ? pipe.a : pipe.b;
      End& to = from_a ? pipe.b : pipe.a;
      const std::size_t count_max = round % 8 == 0 ? 2000 : round % 4 == 0 ? 200 : 5;
      BatchSpec spec = h.spec(from, h.below(2) == 0 ? Direction::write : Direction::read,
                              h.random_ops(pipe.bytes, count_max));
      h.cut(spec);
      std::uint64_t bytes = 0;
      for (const PageOp& op : spec.ops) bytes += op.total_bytes();
      bytes -= spec.begin;
      if (spec.end != 0) bytes -= spec.ops.back().total_bytes() - spec.end;
      h.move(from, to, spec);
      Harness::require(h.find_batch(from, spec.ticket)->event.bytes_done == bytes,
                       "bytes_done is not what the batch moved");
      h.verify(pipe, "round " + std::to_string(round));
    }
  }
}

// Promise 3: what the event says is true when it is shown: judged by the side that got it at that
// moment (read), and by the target right after (write).
void event_means_in_place(Harness& h) {
  for (const BufferKind kind : {BufferKind::plain, BufferKind::shared}) {
    Pipe pipe = h.make_pipe({.bytes = 1 << 20, .kind = kind});
    pipe.a.side->call<&SideServer::watch>(pipe.a.link, pipe.a.buffer);
    for (int round = 0; round < 12; ++round) {
      const auto direction = round % 2 == 0 ? Direction::write : Direction::read;
      const BatchSpec spec = h.spec(pipe.a, direction, h.random_ops(pipe.bytes, 300));
      h.move(pipe.a, pipe.b, spec);
      const bool in_place = h.find_batch(pipe.a, spec.ticket)->watched == hash_bytes(pipe.a.model);
      Harness::require(in_place, "local bytes were not in place when the event was shown");
      h.verify(pipe.b, "right after the event");
      // Done with: changing the source now changes nothing there.
      const std::uint64_t seed = h.random()();
      pipe.a.side->call<&SideServer::fill>(pipe.a.buffer, seed);
      fill_pattern(pipe.a.model, seed);
    }
    h.ping(pipe);
    h.verify(pipe, "at the end");
  }
}

// One post of 100,000 runs, in random order, and a note behind it.
void hundred_thousand_runs(Harness& h) {
  constexpr std::uint32_t kBytes = 64, kSlot = 80;
  const std::uint32_t runs = emulated() ? 20'000 : 100'000;
  Pipe pipe = h.make_pipe({.bytes = std::uint64_t{runs} * kSlot, .kind = BufferKind::shared});
  std::vector<std::uint32_t> order(runs);
  std::iota(order.begin(), order.end(), 0U);
  std::shuffle(order.begin(), order.end(), h.random());
  std::vector<PageOp> ops;
  for (std::uint32_t i = 0; i < runs; ++i) {
    ops.push_back(plain(std::uint64_t{i} * kSlot, std::uint64_t{order[i]} * kSlot, kBytes));
  }
  for (const Direction direction : {Direction::write, Direction::read}) {
    BatchSpec spec = h.spec(pipe.a, direction, ops);
    if (direction == Direction::write) spec.note = {std::byte{7}};
    h.move(pipe.a, pipe.b, spec);
    h.verify(pipe, direction == Direction::write ? "write" : "read");
    pipe.a.side->call<&SideServer::fill>(pipe.a.buffer, std::uint64_t{99});
    fill_pattern(pipe.a.model, 99);
  }
  Harness::require(h.count(pipe.b, Event::Kind::note) == 1, "the note did not come once");
}

// Promise 6: what post() refuses leaves no trace: no event, no byte, no note.
void refused_batches_have_no_effect(Harness& h) {
  Pipe pipe = h.make_pipe();
  const std::uint64_t bytes = pipe.bytes;
  const PageOp good = plain(0, 0, 4096);
  std::vector<std::pair<const char*, BatchSpec>> bad;
  const auto add = [&](const char* what, std::vector<PageOp> ops) -> BatchSpec& {
    bad.emplace_back(what, h.spec(pipe.a, Direction::write, std::move(ops)));
    return bad.back().second;
  };
  add("stale peer", {good}).peer.value += std::uint64_t{1} << 32;
  add("peer 0", {good}).peer.value = 0;
  add("local region beyond the table", {good, {1, 0, 0, 0, 8, 1, 0, 0}});
  add("remote region beyond the table", {good, {0, 1, 0, 0, 8, 1, 0, 0}});
  add("no tables at all", {good}).locals.clear();
  add("stale memory", {good}).locals[0].value += std::uint64_t{1} << 32;
  add("stale remote", {good}).remotes[0].value += std::uint64_t{1} << 32;
  add("local end beyond memory", {good, plain(bytes - 8, 0, 16)});
  add("local offset beyond memory", {plain(bytes, 0, 1)});
  add("local offset overflows", {plain(kMax64 - 4, 0, 16)});
  add("local stride leaves memory", {{0, 0, 0, 0, 64, 3, bytes / 2, 64}});
  add("local stride overflows", {{0, 0, 64, 0, 64, 3, kMax64 / 2 + 1, 64}});
  add("pieces of no bytes", {good, plain(0, 0, 0)});
  add("no pieces", {good, {0, 0, 0, 0, 64, 0, 64, 64}});
  add("begin beyond the first op", {good, good}).begin = 4096;
  add("end beyond the last op", {good}).end = 4097;
  BatchSpec& crossed = add("begin behind end", {good});
  crossed.begin = 100;
  crossed.end = 100;
  add("cuts without ops", {}).begin = 1;
  add("note too long", {good}).note.assign(kNoteBytesMax + 1, std::byte{1});
  BatchSpec& read = add("note of a read", {good});
  read.direction = Direction::read;
  read.note = {std::byte{1}};
  for (const auto& [what, spec] : bad) {
    const Status status = pipe.a.side->post(pipe.a.link, spec);
    Harness::require(status.code() == Code::invalid_argument,
                     std::string(what) + ": answered " + std::string(to_string(status.code())));
  }
  h.ping(pipe);
  for (const auto& [what, spec] : bad) {
    Harness::require(h.count_batches(pipe.a, spec.ticket) == 0,
                     std::string(what) + ": refused, and an event came");
  }
  Harness::require(h.count(pipe.b, Event::Kind::note) == 1, "a note of a refused batch came");
  h.verify(pipe, "after refused batches");
  Harness::require(pipe.a.side->remove_memory(pipe.a.link, pipe.a.memory).ok(),
                   "a refused batch still holds its memory");
}

// Promise 7.
void exhausted_clears(Harness& h) {
  Pipe pipe = h.make_pipe({.bytes = 4 << 20});
  const std::uint32_t limit = pipe.a.side->device(pipe.a.link).limits.batches_inflight_max;
  constexpr std::uint32_t kBytes = 512;
  const auto slots = static_cast<std::uint32_t>(pipe.bytes / kBytes);
  std::vector<Ticket> tickets;
  for (int round = 0; round < 3; ++round) {
    Status status;
    while (tickets.size() <= limit) {
      const std::uint64_t at = std::uint64_t{kBytes} * (tickets.size() % slots);
      const BatchSpec spec = h.spec(pipe.a, Direction::write, {plain(at, at, kBytes)});
      status = pipe.a.side->post(pipe.a.link, spec);
      if (!status.ok()) break;
      tickets.push_back(spec.ticket);
      Harness::apply(pipe.a, pipe.b, spec);
    }
    Harness::require(status.code() == Code::exhausted, "post() took more than its limit");
    Harness::require(!tickets.empty(), "exhausted from the start");
    for (const Ticket ticket : tickets) {
      Harness::require(h.wait_batch(pipe.a, ticket).event.code == Code::ok, "batch failed");
    }
    tickets.clear();
  }
  h.verify(pipe, "after exhaustion");
}

// Promise 8: taken before the peer is up, and all of it happens once it is.
void batches_before_peer_up_are_kept(Harness& h) {
  Pipe pipe = h.make_pipe();
  End a{pipe.a.side, pipe.a.link}, b{pipe.b.side, pipe.b.link};
  h.open_peers(a, b);
  h.share_memory(a, b, {.bytes = 1 << 20});
  std::vector<Ticket> tickets;
  constexpr std::uint32_t kBatches = 8;
  constexpr std::uint32_t kSlot = (1 << 20) / kBatches;
  for (std::uint32_t i = 0; i < kBatches; ++i) {
    const std::uint64_t at = std::uint64_t{i} * kSlot;
    BatchSpec spec = h.spec(a, i == 3 ? Direction::read : Direction::write, {plain(at, at, kSlot)});
    if (i % 2 == 0) spec.note = {static_cast<std::byte>(i)};
    tickets.push_back(h.post(a, spec));
    Harness::apply(a, b, spec);
  }
  h.ping(pipe);
  for (const Ticket ticket : tickets) {
    Harness::require(h.find_batch(a, ticket) == nullptr, "ended before the peer was up");
  }
  h.exchange_offers(a, b);
  for (const Ticket ticket : tickets) {
    Harness::require(h.wait_batch(a, ticket).event.code == Code::ok, "batch failed");
  }
  Harness::require(h.find_event(a, Event::Kind::peer_up) != nullptr, "no peer_up");
  h.wait([&] { return h.count(b, Event::Kind::note) == kBatches / 2; }, "notes");
  h.verify(a, "side a");
  h.verify(b, "side b");
}

// Promise 9: a lot to do does not make one poll() long.
void poll_is_bounded(Harness& h) {
  constexpr std::uint32_t kOp = 64 << 10, kOps = 512;
  const std::uint32_t batches = emulated() ? 2 : 6;
  Pipe pipe = h.make_pipe({.bytes = std::uint64_t{kOp} * kOps, .kind = BufferKind::shared});
  std::vector<PageOp> ops;
  for (std::uint32_t i = 0; i < kOps; ++i) {
    ops.push_back(plain(std::uint64_t{i} * kOp, std::uint64_t{kOps - 1 - i} * kOp, kOp));
  }
  pipe.a.side->take_stats();
  pipe.b.side->take_stats();
  std::vector<Ticket> tickets;
  for (std::uint32_t i = 0; i < batches; ++i) {
    const BatchSpec spec = h.spec(pipe.a, Direction::write, ops);
    tickets.push_back(h.post(pipe.a, spec));
    if (i == 0) Harness::apply(pipe.a, pipe.b, spec);
  }
  for (const Ticket ticket : tickets) {
    Harness::require(h.wait_batch(pipe.a, ticket).event.code == Code::ok, "batch failed");
  }
#if defined(NDEBUG) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  constexpr std::int64_t kLimitNs = 20'000'000;
#else
  constexpr std::int64_t kLimitNs = 400'000'000;
#endif
  for (const End* const end : {&pipe.a, &pipe.b}) {
    const SideStats stats = end->side->take_stats();
    Harness::require(end == &pipe.b || stats.polls >= batches, "all was done in a few polls");
    Harness::require(emulated() || stats.poll_cpu_max_ns < kLimitNs,
                     "one poll() took " + std::to_string(stats.poll_cpu_max_ns) + " ns of CPU");
  }
  h.verify(pipe, "after all batches");
}

}  // namespace

std::vector<Check> batch_checks() {
  return {
      {"each_batch_ends_once", {1, 2}, each_batch_ends_once},
      {"bytes_are_right", {3, 4}, bytes_are_right},
      {"event_means_in_place", {3}, event_means_in_place},
      {"hundred_thousand_runs", {3, 4}, hundred_thousand_runs},
      {"refused_batches_have_no_effect", {6}, refused_batches_have_no_effect},
      {"exhausted_clears", {7}, exhausted_clears},
      {"batches_before_peer_up_are_kept", {8}, batches_before_peer_up_are_kept},
      {"poll_is_bounded", {9}, poll_is_bounded},
  };
}

}  // namespace kvl::conformance
