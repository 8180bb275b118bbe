// Promises about who talks to whom, and about names that mean nothing any more.
#include <algorithm>

#include "tests/transport/conformance/check.h"

namespace kvl::conformance {
namespace {

// A random batch each way in every pipe, all under way at once; everything must be right.
void move_everywhere(Harness& h, std::vector<Pipe>& pipes, const std::string& when) {
  std::vector<std::pair<const End*, Ticket>> tickets;
  for (Pipe& pipe : pipes) {
    // Each side sends from its lower half into the other's upper half.
    const std::uint64_t half = pipe.bytes / 2;
    for (const bool from_a : {true, false}) {
      End& from = from_a ? pipe.a : pipe.b;
      End& to = from_a ? pipe.b : pipe.a;
      std::vector<PageOp> ops = h.random_ops(half, 50);
      for (PageOp& op : ops) op.remote_offset += half;
      BatchSpec spec = h.spec(from, Direction::write, std::move(ops));
      spec.note = {std::byte{1}};
      tickets.emplace_back(&from, h.post(from, spec));
      Harness::apply(from, to, spec);
    }
  }
  for (const auto& [end, ticket] : tickets) {
    Harness::require(h.wait_batch(*end, ticket).event.code == Code::ok, when + ": batch failed");
  }
  for (Pipe& pipe : pipes) h.verify(pipe, when);
}

// Promise 11.
void two_links_of_one_process(Harness& h) {
  const std::uint64_t first = h.a().open_link();
  const std::uint64_t second = h.a().open_link();
  std::vector<Pipe> pipes;
  for (const BufferKind kind : {BufferKind::plain, BufferKind::shared}) {
    pipes.push_back(h.make_pipe(
        h.a(), h.a(), {.bytes = 256 << 10, .kind = kind, .a_link = first, .b_link = second}));
  }
  for (int round = 0; round < 5; ++round) move_everywhere(h, pipes, "two Links of one process");
}

// Promises 12, 18: eight Links on the other side, and two peers of one Link; one leaves, the rest
// does not notice.
void many_peers(Harness& h) {
  constexpr std::uint64_t kLinks = 8;
  const std::uint64_t mine = h.a().open_link();
  std::vector<Pipe> pipes;
  for (std::uint64_t i = 0; i < kLinks; ++i) {
    const std::uint64_t theirs = h.b().open_link();
    const auto kind = i % 2 == 0 ? BufferKind::plain : BufferKind::shared;
    pipes.push_back(h.make_pipe(
        h.a(), h.b(), {.bytes = 128 << 10, .kind = kind, .a_link = mine, .b_link = theirs}));
  }
  pipes.push_back(h.make_pipe(h.a(), h.b(), {.bytes = 128 << 10, .a_link = mine, .b_link = 0}));
  for (int round = 0; round < 3; ++round) move_everywhere(h, pipes, "nine peers");
  h.a().close_peer(mine, pipes[3].a.peer);
  h.b().close_link(pipes[5].b.link);
  pipes.erase(pipes.begin() + 5);
  pipes.erase(pipes.begin() + 3);
  for (int round = 0; round < 3; ++round) move_everywhere(h, pipes, "after two have left");
}

// The same two Links meet again under new names; the old names are dead.
void links_meet_again(Harness& h) {
  std::vector<Pipe> old;
  for (int round = 0; round < 5; ++round) {
    Pipe pipe = h.make_pipe({.bytes = 64 << 10});
    std::vector<Pipe> pipes{pipe};
    move_everywhere(h, pipes, "round " + std::to_string(round));
    for (End* const end : {&pipe.a, &pipe.b}) {
      for (const Pipe& before : old) {
        const End& was = end == &pipe.a ? before.a : before.b;
        Harness::require(!(was.peer == end->peer), "a PeerId was used again");
      }
    }
    (round % 2 == 0 ? pipe.a : pipe.b).side->close_peer(0, (round % 2 == 0 ? pipe.a : pipe.b).peer);
    const Event down_a = h.wait_event(pipe.a, Event::Kind::peer_down).event;
    const Event down_b = h.wait_event(pipe.b, Event::Kind::peer_down).event;
    const Event& far = round % 2 == 0 ? down_b : down_a;
    Harness::require(far.code == Code::peer_lost, "the far side's peer_down is not peer_lost");
    old.push_back(pipe);
  }
}

// Promise 10.
void stale_ids_are_refused(Harness& h) {
  Pipe live = h.make_pipe({.bytes = 64 << 10});
  Pipe dead = h.make_pipe({.bytes = 64 << 10});
  Side& a = h.a();
  const auto blob = h.b().export_memory(0, live.b.memory, live.b.peer);
  const auto offer = h.b().offer(0, h.b().open_peer(0, PeerRole::active));
  Harness::require(blob.ok() && offer.ok(), "export or offer");
  a.close_peer(0, dead.a.peer);
  h.wait_event(dead.a, Event::Kind::peer_down);
  std::vector<std::uint64_t> values{0, 1ULL << 32, ~0ULL, dead.a.peer.value};
  for (int i = 0; i < 20; ++i) values.push_back(h.random()() >> h.below(64));
  std::erase(values, live.a.peer.value);
  const auto refused = [](const char* what, Code code) {
    Harness::require(code == Code::invalid_argument,
                     std::string(what) + " of a stale id answered " + std::string(to_string(code)));
  };
  for (const std::uint64_t value : values) {
    const PeerId peer{value};
    refused("offer", a.offer(0, peer).code());
    refused("accept", a.accept(0, peer, *offer).code());
    refused("export_memory", a.export_memory(0, live.a.memory, peer).code());
    refused("import_memory", a.import_memory(0, peer, *blob).code());
    BatchSpec spec = h.spec(live.a, Direction::write, {});
    spec.note = {std::byte{1}};
    spec.peer = peer;
    refused("post", a.post(0, spec).code());
    a.close_peer(0, peer);
    a.call<&SideServer::on_control>(std::uint64_t{0}, peer, *blob);
    if (value != live.a.memory.value && value != dead.a.memory.value) {
      refused("export_memory", a.export_memory(0, MemoryId{value}, live.a.peer).code());
      refused("remove_memory", a.remove_memory(0, MemoryId{value}).code());
      BatchSpec op = h.spec(live.a, Direction::write, {{0, 0, 0, 0, 8, 1, 0, 0}});
      op.locals = {MemoryId{value}};
      refused("post", a.post(0, op).code());
    }
    if (value != live.a.remote.value && value != dead.a.remote.value) {
      a.call<&SideServer::drop_memory>(std::uint64_t{0}, RemoteId{value});
      BatchSpec op = h.spec(live.a, Direction::write, {{0, 0, 0, 0, 8, 1, 0, 0}});
      op.remotes = {RemoteId{value}};
      refused("post", a.post(0, op).code());
    }
    Harness::require(a.cancel(0, Ticket{value + 1'000'000}).code() == Code::not_found,
                     "cancel of an unknown ticket is not not_found");
  }
  // A name learned from one peer does not work for another, nor once it was dropped.
  BatchSpec crossed = h.spec(live.a, Direction::write, {{0, 0, 0, 0, 8, 1, 0, 0}});
  crossed.remotes = {dead.a.remote};
  refused("post with another peer's memory", a.post(0, crossed).code());
  const auto second = a.import_memory(0, live.a.peer, *blob);
  Harness::require(second.ok(), "second import of the same memory");
  a.call<&SideServer::drop_memory>(std::uint64_t{0}, *second);
  crossed.remotes = {*second};
  refused("post with dropped memory", a.post(0, crossed).code());
  const auto removed = a.add_memory(0, live.a.buffer, 0, 4096, Access::local);
  Harness::require(removed.ok() && a.remove_memory(0, *removed).ok(), "add and remove");
  refused("remove_memory", a.remove_memory(0, *removed).code());
  crossed.remotes = {live.a.remote};
  crossed.locals = {*removed};
  refused("post with removed memory", a.post(0, crossed).code());
  std::vector<Pipe> pipes{live};
  move_everywhere(h, pipes, "after stale ids");
}

}  // namespace

std::vector<Check> peer_checks() {
  return {
      {"two_links_of_one_process", {11}, two_links_of_one_process},
      {"many_peers", {12, 18}, many_peers},
      {"links_meet_again", {10, 12}, links_meet_again},
      {"stale_ids_are_refused", {10}, stale_ids_are_refused},
  };
}

}  // namespace kvl::conformance
