// What a check of a promise works with: two sides, pipes between their Links, models of what memory
// must hold, and waits with a deadline. The same body serves one thread, two threads, two processes
// and mutants.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "tests/support/peer_group.h"
#include "tests/transport/conformance/side_server.h"

namespace kvl::conformance {

// Thrown by a check; its text is the verdict.
struct Broken {
  std::string why;
};

class Harness;

// In the machine of tests/rdma-vm.sh: a CPU that is a program, and does what a NIC does, too. What
// it takes says nothing.
bool emulated();
inline std::int64_t patient(std::int64_t ns) { return emulated() ? 5 * ns : ns; }

// A side, wherever it lives.
class Side {
 public:
  template <auto M, typename... A>
  auto call(const A&... arguments) {
    using Return = typename Method<decltype(M)>::Return;
    const std::vector<std::byte> reply = exchange(encode_call<M>(arguments...));
    if constexpr (!std::is_void_v<Return>) {
      WireReader in(reply);
      return Codec<Return>::get(in);
    }
  }
  // Results that must be there.
  std::uint64_t open_link(bool deferred_copies = false);
  PeerId open_peer(std::uint64_t link, PeerRole role);

  Device device(std::uint64_t link) { return call<&SideServer::device>(link); }
  void close_link(std::uint64_t link);
  Result<Blob> offer(std::uint64_t link, PeerId peer) {
    return call<&SideServer::offer>(link, peer);
  }
  Status accept(std::uint64_t link, PeerId peer, const Blob& blob) {
    return call<&SideServer::accept>(link, peer, blob);
  }
  void close_peer(std::uint64_t link, PeerId peer) { call<&SideServer::close_peer>(link, peer); }
  std::uint64_t add_buffer(BufferKind kind, std::uint64_t bytes, std::uint64_t seed) {
    return call<&SideServer::add_buffer>(kind, bytes, seed);
  }
  std::uint64_t hash(std::uint64_t buffer) { return call<&SideServer::hash>(buffer); }
  Result<MemoryId> add_memory(std::uint64_t link, std::uint64_t buffer, std::uint64_t offset,
                              std::uint64_t bytes, Access access) {
    return call<&SideServer::add_memory>(link, buffer, offset, bytes, access);
  }
  Status remove_memory(std::uint64_t link, MemoryId id) {
    return call<&SideServer::remove_memory>(link, id);
  }
  Result<Blob> export_memory(std::uint64_t link, MemoryId id, PeerId peer) {
    return call<&SideServer::export_memory>(link, id, peer);
  }
  Result<RemoteId> import_memory(std::uint64_t link, PeerId peer, const Blob& blob) {
    return call<&SideServer::import_memory>(link, peer, blob);
  }
  Status post(std::uint64_t link, const BatchSpec& spec);
  Status cancel(std::uint64_t link, Ticket ticket) {
    return call<&SideServer::cancel>(link, ticket);
  }
  void set_flag(std::uint32_t value) { call<&SideServer::set_flag>(value); }
  SideStats take_stats() { return call<&SideServer::take_stats>(); }

  // Everything a Link has shown so far.
  const std::vector<Seen>& seen(std::uint64_t link) { return seen_[link]; }

 private:
  friend class Harness;
  std::vector<std::byte> exchange(const std::vector<std::byte>& request);

  Harness* harness_ = nullptr;
  std::uint8_t index_ = 0;
  std::unique_ptr<SideServer> local_;
  std::unique_ptr<test::PeerGroup> group_;  // … or elsewhere
  std::unique_ptr<FrameSocket> socket_;
  std::optional<std::vector<std::byte>> reply_;
  std::map<std::uint64_t, std::vector<Seen>> seen_;
  std::map<std::uint64_t, std::set<std::uint64_t>> accepted_;  // by link: tickets
  std::set<std::uint64_t> closed_links_;
};

// One end of a pipe: a Link's peer, memory of ours that the other end may use, and what it must
// hold.
struct End {
  Side* side = nullptr;
  std::uint64_t link = 0;
  PeerId peer;
  std::uint64_t buffer = 0;
  MemoryId memory;
  RemoteId remote;               // our name for the other end's memory
  std::vector<std::byte> model;  // the whole buffer, guards too
};
struct Pipe {
  End a, b;
  std::uint64_t bytes = 0;  // registered on each end
};
struct PipeOptions {
  std::uint64_t bytes = 1 << 20;
  BufferKind kind = BufferKind::plain;
  std::optional<BufferKind> b_kind;  // when the other end's differs
  Access access = Access::remote_all;
  std::uint64_t a_link = 0, b_link = 0;
};

class Harness {
 public:
  // Registered memory lies between two guard pages.
  static constexpr std::uint64_t kGuard = 4096;
  static constexpr std::int64_t kDeadlineNs = 10'000'000'000;

  // Every random choice of the check follows from `seed`.
  Harness(const Variant& variant, std::uint64_t seed);
  ~Harness();

  Side& a() { return sides_[0]; }
  Side& b() { return sides_[1]; }
  const Variant& variant() const { return variant_; }
  bool simulated() const { return world_ != nullptr; }
  // What the fake EFA has to say against its user, also of how it was closed.
  std::function<std::string()> violations() const;
  std::mt19937_64& random() { return random_; }
  std::uint64_t below(std::uint64_t bound) { return random_() % bound; }

  // Opens peers on both Links, exchanges offers, memory and its names.
  Pipe make_pipe(PipeOptions options = {});
  Pipe make_pipe(Side& from, Side& to, PipeOptions options);
  void route(End& a, End& b);  // their Links' control messages to each other
  void open_peers(End& a, End& b);
  void exchange_offers(End& a, End& b);
  void share_memory(End& a, End& b, const PipeOptions& options);

  Ticket next_ticket() { return {++tickets_}; }
  // One contiguous or strided op from `from` to the other end, offsets within registered memory.
  BatchSpec spec(const End& from, Direction direction, std::vector<PageOp> ops);
  // Posts; refused is broken.
  Ticket post(End& from, const BatchSpec& spec);
  // What must be in memory once it is done: the naive copier.
  static void apply(End& from, End& to, const BatchSpec& spec);
  // post, apply, wait for ok.
  void move(End& from, End& to, const BatchSpec& spec);
  // Both buffers hold what their models say, guards too.
  void verify(End& end, const std::string& when);
  void verify(Pipe& pipe, const std::string& when) {
    verify(pipe.a, when + ", side a");
    verify(pipe.b, when + ", side b");
  }
  // Ops on disjoint destinations, local and remote inside `bytes`, with gaps.
  std::vector<PageOp> random_ops(std::uint64_t bytes, std::size_t count_max);
  // Random cuts of such a batch.
  void cut(BatchSpec& spec);

  // Waits are until the deadline, then broken with `what`.
  void wait(const std::function<bool()>& done, const std::string& what);
  bool wait_for(const std::function<bool()>& done, std::int64_t limit_ns);
  Seen wait_batch(const End& end, Ticket ticket);
  Seen wait_event(const End& end, Event::Kind kind);
  const Seen* find_batch(const End& end, Ticket ticket);
  const Seen* find_event(const End& end, Event::Kind kind);
  std::size_t count(const End& end, Event::Kind kind);
  std::size_t count_batches(const End& end, Ticket ticket);
  // A few rounds of progress, whatever comes of them.
  void pump_times(std::uint64_t times);
  // Leaves the other side alone: it gets no time until it is thawed. One thread only.
  void freeze_b(bool frozen) { b_frozen_ = frozen; }
  // Side b's Link sleeps; only what arrives there may end that. Broken if nothing does in time.
  void expect_wake_b(std::uint64_t link);
  // A note there and back: whatever was under way before has had its chance.
  void ping(Pipe& pipe);
  // Side b dies: kill -9 for a process, a crash in the simulator, else its Links go away.
  void kill_b();
  bool b_alive() const { return b_alive_; }

  static void require(bool condition, const std::string& why) {
    if (!condition) throw Broken{why};
  }
  // Closes what is open and checks what holds for every run: each accepted batch ended once, each
  // peer came up and went down at most once.
  void finish();

  std::int64_t now_ns() const { return a_clock_->now_ns(); }
  void pump_until_reply(Side& side);

 private:
  bool pump();
  void deliver(const ControlMessage& message);
  void sleep(std::int64_t until_ns);
  void record(Side& side, std::uint64_t link, const Seen& seen);

  const Variant variant_;
  std::mt19937_64 random_;
  std::unique_ptr<sim::SimWorld> world_;
  const Clock* a_clock_ = nullptr;
  Side sides_[2];
  std::uint64_t tickets_ = 0, buffers_ = 0;
  bool b_alive_ = true;
  bool b_frozen_ = false;
};

}  // namespace kvl::conformance
