// A world of engines in one thread, whose every step the test chooses: a message is delivered, one
// run of a transfer lands, a transfer ends. Peers die, connections break, and writes that nobody
// can prove stopped land later, as on a real fabric.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <vector>

#include "kvl/clock.h"
#include "kvl/engine.h"

namespace kvl::test {

class ManualClock final : public Clock {
 public:
  std::int64_t now_ns() const override { return now_ns_; }
  void advance_ms(std::int64_t ms) { now_ns_ += ms * 1'000'000; }

 private:
  std::int64_t now_ns_ = 1'000'000'000;
};

class FakeWorld;

class FakeEngine final : public Engine {
 public:
  FakeEngine(FakeWorld& world, std::size_t index) : world_(world), index_(index) {}

  std::string address() const override { return std::to_string(index_); }
  EngineId id() const override;
  std::uint64_t epoch() const override { return epoch_; }
  Result<MemoryHandle> register_memory(const Memory& memory) override;
  Status deregister_memory(MemoryHandle) override { return {}; }
  Result<PeerHandle> connect(std::string_view address) override;
  Status disconnect(PeerHandle peer) override;
  Result<PeerInfo> describe(PeerHandle) const override {
    PeerInfo info;
    info.paths.push_back({"fake", "a", true, "", caps});
    return info;
  }
  Result<TransferId> submit(const Transfer& transfer) override;
  Status cancel(TransferId transfer, std::int64_t deadline_ms) override;
  Status send(PeerHandle peer, std::span<const std::byte> message) override;
  std::size_t poll(std::span<EngineEvent> events) override;
  bool wait(std::int64_t) override { return !events_.empty(); }
  int event_fd() const override { return -1; }
  std::int64_t arm(std::int64_t most_ms) override { return events_.empty() ? most_ms : 0; }
  void visit_metrics(MetricVisitor&) const override {}
  std::vector<RailInfo> rails() const override { return {{"fake", "a"}, {"fake", "b"}}; }

  std::uint32_t caps = Cap::write | Cap::read;
  int refuse_submits = 0;  // the next so many answer exhausted
  int refuse_sends = 0;
  std::uint64_t submitted = 0;

 private:
  friend class FakeWorld;
  FakeWorld& world_;
  std::size_t index_;
  std::uint64_t epoch_ = 1;
  std::deque<EngineEvent> events_;
};

class FakeWorld {
 public:
  explicit FakeWorld(std::uint64_t seed = 1) : random(seed) {}

  FakeEngine& add_engine();
  FakeEngine& engine(std::size_t index) { return *engines_[index]; }
  std::size_t size() const { return engines_.size(); }

  // The handle by which `from` knows `to`.
  static PeerHandle handle(std::size_t to) { return {to + 1}; }

  void connect(std::size_t a, std::size_t b);
  // `first` sees the peer up and may send; `second` hears it before its own peer_up, which comes
  // with connect().
  void connect_half(std::size_t first, std::size_t second);
  // The process starts again on the same address (its links must be cut): a later epoch.
  void restart(std::size_t index) { ++engines_[index]->epoch_; }
  // Both sides see peer_down. Not fenced: writes in flight may still land, until fence().
  void break_link(std::size_t a, std::size_t b, bool fenced);
  // The process is gone: nobody hears from it again. The test must stop driving its endpoint.
  void kill(std::size_t index, bool fenced);
  // Late proof: nothing of `from` can land at `at` any more.
  void fence(std::size_t at, std::size_t from);
  // The same of an earlier life of it: what its later one writes is its own affair.
  void fence_life(std::size_t at, std::size_t from, std::uint64_t epoch);

  // Lets all unproven writes land now.
  void run_ghosts();

  // One step of the world. False: nothing is left to do.
  bool step_in_order();
  bool step_at_random();

  // How an aborted transfer ends: true = proven, false = quarantined and perhaps landing later.
  std::function<bool()> cancel_is_proven = [] { return true; };
  // Called for each message before it is delivered; false drops it.
  std::function<bool(std::size_t from, std::size_t to, std::vector<std::byte>&)> on_message;
  // Called after each run has landed.
  std::function<void(std::byte* at, std::uint64_t bytes)> on_landed;
  // Called when a run lands, by the rail that carries it (0, or 1 when 0 is to be avoided): may
  // change the bytes.
  std::function<void(std::size_t rail, std::byte* at, std::uint64_t bytes)> corrupt;
  bool hold_transfers = false;  // transfers make no progress
  bool hold_messages = false;

  // Puts a message into the way from one to the other.
  void inject(std::size_t from, std::size_t to, std::vector<std::byte> message);

  ManualClock clock;
  std::mt19937_64 random;

 private:
  friend class FakeEngine;
  struct Flight {
    std::size_t from = 0, to = 0;
    std::uint64_t id = 0, user = 0;
    Direction direction = Direction::write;
    std::span<const PageOp> ops;  // the submitter's: read only while the transfer lives
    std::span<const MemoryHandle> locals, remotes;
    std::size_t next_op = 0;
    std::size_t rail = 0;
    bool cancelled = false;
  };
  // A write that was given up without proof: it may land at any time until the fence.
  struct Ghost {
    std::size_t from = 0, to = 0;
    std::byte* at = nullptr;
    std::vector<std::byte> bytes;
  };
  struct Way {
    bool up = false;
    std::deque<std::vector<std::byte>> messages;
  };

  bool linked(std::size_t a, std::size_t b) { return ways_[{a, b}].up; }
  void end(std::size_t flight, Code code, Physical physical);
  void land(const Flight& flight, const PageOp& op);
  void leave_ghosts(const Flight& flight);
  void progress(std::size_t flight);
  bool deliver(std::size_t from, std::size_t to);
  void cut(std::size_t a, std::size_t b, bool fenced);
  void up_event(std::size_t at, std::size_t of);
  void down_event(std::size_t at, std::size_t of, bool fenced) {
    down_event(at, of, fenced, engines_[of]->epoch_);
  }
  void down_event(std::size_t at, std::size_t of, bool fenced, std::uint64_t epoch);
  std::byte* address(MemoryHandle handle, std::uint64_t offset, std::uint64_t bytes) const;

  std::vector<std::unique_ptr<FakeEngine>> engines_;
  std::set<std::size_t> dead_;
  std::map<std::pair<std::size_t, std::size_t>, Way> ways_;
  std::vector<Flight> flights_;
  std::vector<Ghost> ghosts_;
  std::vector<Memory> memories_;
  std::uint64_t next_transfer_ = 1;
};

}  // namespace kvl::test
