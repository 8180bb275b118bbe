// Promises about order: notes behind bytes, nothing before its token, sleepers woken.
#include <cstring>

#include "tests/transport/conformance/check.h"

namespace kvl::conformance {
namespace {

std::vector<std::byte> part_note(std::uint64_t offset, std::uint64_t bytes, std::uint64_t tag) {
  const std::uint64_t words[3] = {offset, bytes, tag};
  const auto raw = std::as_bytes(std::span(words));
  return {raw.begin(), raw.end()};
}

// Promise 5: several batches under way at once, each with a note that names its part; the receiver
// hashes that part at the moment it sees the note.
void notes_come_after_bytes(Harness& h) {
  std::uint64_t tag = 0;
  for (const BufferKind kind : {BufferKind::plain, BufferKind::shared}) {
    constexpr std::uint64_t kParts = 8, kPart = 128 << 10;
    Pipe pipe = h.make_pipe({.bytes = kParts * kPart, .kind = kind});
    pipe.b.side->call<&SideServer::watch>(pipe.b.link, pipe.b.buffer);
    for (int round = 0; round < 8; ++round) {
      const std::uint64_t seed = h.random()();
      pipe.a.side->call<&SideServer::fill>(pipe.a.buffer, seed);
      fill_pattern(pipe.a.model, seed);
      std::vector<std::pair<std::vector<std::byte>, std::uint64_t>> expected;  // note, hash
      std::vector<Ticket> tickets;
      for (std::uint64_t part = 0; part < kParts; ++part) {
        std::vector<PageOp> ops = h.random_ops(kPart, round % 2 == 0 ? 3 : 400);
        for (PageOp& op : ops) {
          op.local_offset += part * kPart;
          op.remote_offset += part * kPart;
        }
        BatchSpec spec = h.spec(pipe.a, Direction::write, std::move(ops));
        const std::uint64_t offset = Harness::kGuard + part * kPart;
        spec.note = part_note(offset, kPart, ++tag);
        tickets.push_back(h.post(pipe.a, spec));
        Harness::apply(pipe.a, pipe.b, spec);
        expected.emplace_back(spec.note,
                              hash_bytes(std::span(pipe.b.model).subspan(offset, kPart)));
      }
      for (const auto& [note, hash] : expected) {
        const auto find = [&, &wanted = note] {
          std::vector<const Seen*> found;
          for (const Seen& seen : pipe.b.side->seen(pipe.b.link)) {
            if (seen.event.kind == Event::Kind::note && seen.event.note_bytes == wanted.size() &&
                std::memcmp(seen.event.note.data(), wanted.data(), wanted.size()) == 0) {
              found.push_back(&seen);
            }
          }
          return found;
        };
        h.wait([&] { return !find().empty(); }, "note");
        Harness::require(find().front()->watched == hash, "a note was shown before its bytes");
        Harness::require(find().front()->event.peer == pipe.b.peer, "a note names another peer");
      }
      for (const Ticket ticket : tickets) {
        Harness::require(h.wait_batch(pipe.a, ticket).event.code == Code::ok, "batch failed");
      }
    }
    h.ping(pipe);
    Harness::require(h.count(pipe.b, Event::Kind::note) == 8 * kParts + 1, "notes lost or doubled");
    h.verify(pipe, "at the end");
  }
}

// Notes of every length, alone, both ways at once.
void notes_carry_their_bytes(Harness& h) {
  Pipe pipe = h.make_pipe({.bytes = 4096});
  for (std::size_t length = 1; length <= kNoteBytesMax; ++length) {
    for (End* const from : {&pipe.a, &pipe.b}) {
      BatchSpec spec = h.spec(*from, Direction::write, {});
      spec.note.assign(length, static_cast<std::byte>(length));
      h.post(*from, spec);
    }
  }
  for (const End* const to : {&pipe.a, &pipe.b}) {
    h.wait([&] { return h.count(*to, Event::Kind::note) == kNoteBytesMax; }, "notes");
    std::array<int, kNoteBytesMax + 1> seen_length{};
    for (const Seen& seen : to->side->seen(to->link)) {
      if (seen.event.kind != Event::Kind::note) continue;
      const std::size_t length = seen.event.note_bytes;
      Harness::require(length >= 1 && length <= kNoteBytesMax, "length of a note");
      ++seen_length.at(length);
      for (std::size_t i = 0; i < length; ++i) {
        Harness::require(seen.event.note.at(i) == static_cast<std::byte>(length), "note changed");
      }
    }
    for (std::size_t length = 1; length <= kNoteBytesMax; ++length) {
      Harness::require(seen_length.at(length) == 1, "a note was lost or doubled");
    }
  }
  h.verify(pipe, "notes alone move no bytes");
}

// Promise 16.
void token_is_respected(Harness& h) {
  Pipe pipe = h.make_pipe();
  const auto half = static_cast<std::uint32_t>(pipe.bytes / 2);
  BatchSpec waiting = h.spec(pipe.a, Direction::write, {{0, 0, 0, 0, half, 1, 0, 0}});
  waiting.flag_at_least = 3;
  waiting.note = {std::byte{3}};
  h.post(pipe.a, waiting);
  BatchSpec free = h.spec(pipe.a, Direction::write, {{0, 0, half, half, half, 1, 0, 0}});
  h.move(pipe.a, pipe.b, free);
  for (std::uint32_t value = 0; value < 3; ++value) {
    pipe.a.side->set_flag(value);
    h.ping(pipe);
    Harness::require(h.find_batch(pipe.a, waiting.ticket) == nullptr, "ended before its token");
    h.verify(pipe, "before the token");
  }
  Harness::require(h.count(pipe.b, Event::Kind::note) == 3, "a note before its token");
  Harness::require(pipe.a.side->remove_memory(pipe.a.link, pipe.a.memory).code() == Code::exhausted,
                   "memory of a waiting batch could be removed");
  // The bytes are taken after the token, not before.
  pipe.a.side->call<&SideServer::fill>(pipe.a.buffer, std::uint64_t{77});
  fill_pattern(pipe.a.model, 77);
  Harness::apply(pipe.a, pipe.b, waiting);
  pipe.a.side->set_flag(3);
  Harness::require(h.wait_batch(pipe.a, waiting.ticket).event.code == Code::ok, "batch failed");
  h.verify(pipe, "after the token");
  h.wait([&] { return h.count(pipe.b, Event::Kind::note) == 4; }, "note");

  // A token that never comes: cancel and close end the batch all the same.
  for (const bool cancel : {true, false}) {
    BatchSpec never = h.spec(pipe.a, Direction::write, {{0, 0, 0, half, half, 1, 0, 0}});
    never.flag_at_least = 100;
    h.post(pipe.a, never);
    h.pump_times(3);
    if (cancel) {
      Harness::require(pipe.a.side->cancel(pipe.a.link, never.ticket).ok(), "cancel refused");
    } else {
      pipe.a.side->close_peer(pipe.a.link, pipe.a.peer);
    }
    Harness::require(h.wait_batch(pipe.a, never.ticket).event.code == Code::aborted,
                     "a batch without token did not end as aborted");
    h.verify(pipe.b, "without token");
  }
}

// Promise 15.
void arrivals_wake_sleepers(Harness& h) {
  Pipe pipe = h.make_pipe({.bytes = 64 << 10});
  for (int round = 0; round < 30; ++round) {
    h.ping(pipe);
    const std::size_t notes = h.count(pipe.b, Event::Kind::note);
    BatchSpec spec = h.spec(pipe.a, Direction::write, h.random_ops(pipe.bytes, 20));
    spec.note = {std::byte{1}};
    if (h.variant().mode == Mode::one_thread) {
      h.wait([&] { return h.b().call<&SideServer::arm_link>(pipe.b.link); },
             "arm() that lets its owner sleep");
      h.freeze_b(true);
      h.post(pipe.a, spec);
      h.expect_wake_b(pipe.b.link);
      h.freeze_b(false);
    } else {
      // The other side's loop sleeps on its Link whenever arm() lets it, for longer than we wait.
      h.post(pipe.a, spec);
    }
    Harness::apply(pipe.a, pipe.b, spec);
    h.wait([&] { return h.count(pipe.b, Event::Kind::note) > notes; }, "note to a sleeper");
    Harness::require(h.wait_batch(pipe.a, spec.ticket).event.code == Code::ok, "batch failed");
  }
  if (h.variant().mode != Mode::one_thread) {
    const SideStats stats = pipe.b.side->take_stats();
    Harness::require(stats.sleeps > 0, "arm() never lets its owner sleep");
    Harness::require(stats.sleeps_timed_out == 0, "a sleeper was not woken");
  }
  h.verify(pipe, "at the end");
}

}  // namespace

std::vector<Check> note_checks() {
  return {
      {"notes_come_after_bytes", {5}, notes_come_after_bytes},
      {"notes_carry_their_bytes", {5}, notes_carry_their_bytes},
      {"token_is_respected", {16}, token_is_respected},
      {"arrivals_wake_sleepers", {15}, arrivals_wake_sleepers},
  };
}

}  // namespace kvl::conformance
