// Promises about batches that are stopped: by cancel, close, destruction, death.
#include <algorithm>

#include "tests/transport/conformance/check.h"

namespace kvl::conformance {
namespace {

constexpr std::uint64_t kBytes = 8 << 20;

// Batches that move the whole of a pipe's memory slice by slice, writes and reads in turn.
std::vector<Ticket> post_a_lot(Harness& h, End& from, bool reads) {
  constexpr std::uint32_t kBatches = 8, kOp = 32 << 10;
  constexpr std::uint64_t kSlice = kBytes / kBatches;
  std::vector<Ticket> tickets;
  for (std::uint32_t i = 0; i < kBatches; ++i) {
    std::vector<PageOp> ops;
    for (std::uint64_t at = i * kSlice; at < (i + 1) * kSlice; at += kOp) {
      ops.push_back({0, 0, at, at, kOp, 1, 0, 0});
    }
    std::shuffle(ops.begin(), ops.end(), h.random());
    const auto direction = reads && i % 2 == 1 ? Direction::read : Direction::write;
    BatchSpec spec = h.spec(from, direction, std::move(ops));
    if (direction == Direction::write) spec.note = {static_cast<std::byte>(i)};
    tickets.push_back(h.post(from, spec));
  }
  return tickets;
}

void require_all_ended(Harness& h, const End& end, const std::vector<Ticket>& tickets) {
  for (const Ticket ticket : tickets) {
    h.wait_batch(end, ticket);
    Harness::require(h.count_batches(end, ticket) == 1, "a batch ended twice");
  }
}

// Promises 1, 3: close_peer in the middle: aborted, then peer_down, and our memory is ours again.
void close_in_flight(Harness& h) {
  Pipe other = h.make_pipe({.bytes = 4096});
  for (int round = 0; round < 8; ++round) {
    const auto kind = round % 2 == 0 ? BufferKind::plain : BufferKind::shared;
    Pipe pipe = h.make_pipe({.bytes = kBytes, .kind = kind});
    const std::vector<Ticket> tickets = post_a_lot(h, pipe.a, true);
    h.pump_times(h.below(12));
    pipe.a.side->close_peer(pipe.a.link, pipe.a.peer);
    const Event down = h.wait_event(pipe.a, Event::Kind::peer_down).event;
    Harness::require(down.code == Code::aborted, "peer_down after close_peer is not aborted");
    require_all_ended(h, pipe.a, tickets);
    for (const Ticket ticket : tickets) {
      const Code code = h.find_batch(pipe.a, ticket)->event.code;
      Harness::require(code == Code::aborted || code == Code::ok,
                       "a closed batch ended with " + std::string(to_string(code)));
    }
    const std::uint64_t before = pipe.a.side->hash(pipe.a.buffer);
    h.wait_event(pipe.b, Event::Kind::peer_down);
    h.ping(other);
    Harness::require(pipe.a.side->hash(pipe.a.buffer) == before,
                     "local bytes changed after the last event");
    Harness::require(pipe.a.side->remove_memory(pipe.a.link, pipe.a.memory).ok(),
                     "memory is still in use after the last event");
    pipe.a.side->call<&SideServer::free_buffer>(pipe.a.buffer);
    h.ping(other);
  }
}

// Promise 1: cancel in the middle: one event, and then nothing touches either side.
void cancel_in_flight(Harness& h) {
  Pipe pipe = h.make_pipe({.bytes = kBytes, .kind = BufferKind::shared});
  std::size_t aborted = 0;
  for (int round = 0; round < 6; ++round) {
    const std::vector<Ticket> tickets = post_a_lot(h, pipe.a, true);
    if (round > 0) h.pump_times(h.below(6));
    for (const Ticket ticket : tickets) {
      const Status status = pipe.a.side->cancel(pipe.a.link, ticket);
      Harness::require(status.ok() || status.code() == Code::not_found, "cancel refused");
    }
    require_all_ended(h, pipe.a, tickets);
    for (const Ticket ticket : tickets) {
      const Code code = h.find_batch(pipe.a, ticket)->event.code;
      Harness::require(code == Code::aborted || code == Code::ok,
                       "a cancelled batch ended with " + std::string(to_string(code)));
      aborted += code == Code::aborted;
      Harness::require(pipe.a.side->cancel(pipe.a.link, ticket).code() == Code::not_found,
                       "cancel of an ended batch is not not_found");
    }
    const std::uint64_t here = pipe.a.side->hash(pipe.a.buffer);
    const std::uint64_t there = pipe.b.side->hash(pipe.b.buffer);
    h.ping(pipe);
    Harness::require(pipe.a.side->hash(pipe.a.buffer) == here, "local bytes changed afterwards");
    Harness::require(pipe.b.side->hash(pipe.b.buffer) == there, "remote bytes changed afterwards");
  }
  Harness::require(aborted > 0, "cancel right after post never aborted anything");
}

// Promise 1, its exception: destroying a Link is silent, and quiescent on return.
void destroy_in_flight(Harness& h) {
  for (int round = 0; round < 4; ++round) {
    const std::uint64_t link_a = h.a().open_link();
    const std::uint64_t link_b = h.b().open_link();
    Pipe pipe = h.make_pipe(h.a(), h.b(),
                            {.bytes = kBytes,
                             .kind = round % 2 == 0 ? BufferKind::plain : BufferKind::shared,
                             .a_link = link_a,
                             .b_link = link_b});
    const std::vector<Ticket> there = post_a_lot(h, pipe.b, true);
    post_a_lot(h, pipe.a, true);
    h.pump_times(h.below(8));
    pipe.a.side->close_link(pipe.a.link);
    // Whoever still looked at this memory would crash, here or at the other side.
    pipe.a.side->call<&SideServer::free_buffer>(pipe.a.buffer);
    h.wait_event(pipe.b, Event::Kind::peer_down);
    require_all_ended(h, pipe.b, there);
  }
}

// Promises 1, 13: the other side dies with everything under way.
void peer_dies_in_flight(Harness& h) {
  Pipe pipe = h.make_pipe({.bytes = kBytes, .kind = BufferKind::shared});
  const std::vector<Ticket> tickets = post_a_lot(h, pipe.a, true);
  post_a_lot(h, pipe.b, true);
  h.pump_times(1 + h.below(4));
  h.kill_b();
  const std::int64_t start_ns = h.now_ns();
  const Event down = h.wait_event(pipe.a, Event::Kind::peer_down).event;
  Harness::require(h.now_ns() - start_ns <= patient(2'000'000'000), "peer_down took more than 2 s");
  Harness::require(down.code == Code::peer_lost,
                   "peer_down says " + std::string(to_string(down.code)));
  require_all_ended(h, pipe.a, tickets);
  const std::uint64_t before = pipe.a.side->hash(pipe.a.buffer);
  // The Link lives on.
  const std::uint64_t second = h.a().open_link();
  Pipe next = h.make_pipe(h.a(), h.a(), {.bytes = 4096, .b_link = second});
  h.ping(next);
  Harness::require(pipe.a.side->hash(pipe.a.buffer) == before, "a dead peer wrote our memory");
}

void idle_peer_death_is_noticed(Harness& h) {
  Pipe pipe = h.make_pipe();
  h.ping(pipe);
  h.kill_b();
  const std::int64_t start_ns = h.now_ns();
  const Event down = h.wait_event(pipe.a, Event::Kind::peer_down).event;
  Harness::require(down.code == Code::peer_lost, "not peer_lost");
  Harness::require(h.now_ns() - start_ns <= patient(2'000'000'000), "peer_down took more than 2 s");
}

// Promise 1 where the other side never answers: the connect deadline ends it.
void connecting_has_a_deadline(Harness& h) {
  Pipe pipe = h.make_pipe();
  End a{pipe.a.side, pipe.a.link}, b{pipe.b.side, pipe.b.link};
  h.open_peers(a, b);
  h.share_memory(a, b, {.bytes = 4096});
  const auto offer = b.side->offer(b.link, b.peer);
  Harness::require(offer.ok() && a.side->accept(a.link, a.peer, *offer).ok(), "offer or accept");
  const Ticket ticket = h.post(a, h.spec(a, Direction::write, {{0, 0, 0, 0, 4096, 1, 0, 0}}));
  const Event down = h.wait_event(a, Event::Kind::peer_down).event;
  Harness::require(down.code != Code::ok, "peer_down without a reason");
  Harness::require(h.wait_batch(a, ticket).event.code != Code::ok, "a batch to nobody is ok");
  Harness::require(h.count(a, Event::Kind::peer_up) == 0, "up without the other side's accept");
  h.verify(b, "side b");
  h.ping(pipe);
}

// Promise 13: after our peer_down the peer, which lives and knows nothing yet, writes no more;
// where the device promises no fence, after the peer's own.
void fence_holds(Harness& h) {
  const std::uint64_t link = h.b().open_link();
  h.a().open_link();
  Pipe other = h.make_pipe(h.a(), h.b(), {.bytes = 4096, .b_link = link});
  for (int round = 0; round < 6; ++round) {
    const auto kind = round % 2 == 0 ? BufferKind::plain : BufferKind::shared;
    Pipe pipe = h.make_pipe(h.a(), h.b(), {.bytes = kBytes, .kind = kind, .b_link = link});
    const std::vector<Ticket> tickets = post_a_lot(h, pipe.b, false);
    h.pump_times(1 + h.below(8));
    pipe.a.side->close_peer(pipe.a.link, pipe.a.peer);
    h.wait_event(pipe.a, Event::Kind::peer_down);
    const Fence fence = pipe.a.side->device(pipe.a.link).fence;
    if (fence == Fence::process_exit) h.kill_b();
    // Nothing but the peer's word that it has let go, which the engine waits for.
    if (fence == Fence::none) h.wait_event(pipe.b, Event::Kind::peer_down);
    const std::uint64_t before = pipe.a.side->hash(pipe.a.buffer);
    if (!h.b_alive()) {
      h.pump_times(100);
    } else {
      require_all_ended(h, pipe.b, tickets);
      h.wait_event(pipe.b, Event::Kind::peer_down);
      h.ping(other);
    }
    Harness::require(pipe.a.side->hash(pipe.a.buffer) == before, "a fenced peer wrote our memory");
    if (!h.b_alive()) return;
  }
}

}  // namespace

std::vector<Check> lifetime_checks() {
  return {
      {"close_in_flight", {1, 3}, close_in_flight},
      {"cancel_in_flight", {1}, cancel_in_flight},
      {"destroy_in_flight", {1}, destroy_in_flight},
      {"peer_dies_in_flight", {1, 13}, peer_dies_in_flight},
      {"idle_peer_death_is_noticed", {13}, idle_peer_death_is_noticed},
      {"connecting_has_a_deadline", {1}, connecting_has_a_deadline},
      {"fence_holds", {13}, fence_holds},
  };
}

}  // namespace kvl::conformance
