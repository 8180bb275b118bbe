// One side of a conformance test: its Links, its memory, its loop. Lives in the test's thread, in
// another thread or in another process; the test speaks to all three through Side (harness.h).
#pragma once

#include <poll.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "kvl/memory.h"
#include "kvl/transport.h"
#include "tests/support/deferred_memory_ops.h"
#include "tests/transport/conformance/frame_socket.h"
#include "tests/transport/conformance/rpc.h"
#include "tests/transport/libfabric/fake_provider.h"
#include "transport/fault/fault_plan.h"
#include "transport/sim/sim_world.h"

namespace kvl::conformance {

// The kind of device that every run makes anew.
inline constexpr std::string_view kFakeEfa = "fake_efa";

// How the two sides of a test live together.
enum class Mode : std::uint8_t { one_thread, threads, processes };

// What is judged, and how it is set up.
struct Variant {
  std::string transport;
  bool wrapped = false;  // in a FaultLink
  Mode mode = Mode::one_thread;
  // Applied to every Link; for mutants that the suite must find out.
  std::function<std::unique_ptr<Link>(std::unique_ptr<Link>, const Clock&)> mutate;

  // What the FaultLinks of both sides do; null: nothing. One thread only.
  std::shared_ptr<fault::FaultState> faults;
  bool encrypted = false;  // sessions have a key, and bytes are sealed
  // One transport with several kinds of device: "libfabric" over "tcp", and its settings.
  std::string flavour;
  // … or over the fake EFA, which both sides share.
  std::shared_ptr<test::FakeProvider> fake_efa;
  std::vector<std::pair<std::string, std::string>> flags;

  // Not the registry's: over a device of the test's own.
  std::function<std::unique_ptr<Transport>()> make;

  std::string name() const;
  std::string kind() const { return flavour.empty() ? transport : transport + "(" + flavour + ")"; }
};

// An event as it was seen, with what the watched memory held at that moment.
struct Seen {
  Event event;
  std::uint64_t watched = 0;
};

struct SideStats {
  std::uint64_t polls = 0;
  std::int64_t poll_cpu_max_ns = 0;    // the longest poll(), in CPU time of its thread
  std::uint64_t allocations = 0;       // in post() and poll()
  std::uint64_t sleeps = 0;            // every Link was armed and the owner slept
  std::uint64_t sleeps_timed_out = 0;  // … until its patience ended, not a descriptor or a timer
};

enum class BufferKind : std::uint8_t { plain, shared, device };

// Where a control message goes.
struct Address {
  std::uint8_t side = 0;
  std::uint64_t link = 0;
  PeerId peer;
};
struct ControlMessage {
  Address to;
  std::vector<std::byte> bytes;
};

// Bytes of a repeatable pattern, and a number that stands for bytes.
void fill_pattern(std::span<std::byte> bytes, std::uint64_t seed);
std::uint64_t hash_bytes(std::span<const std::byte> bytes);

// The registry's transport of this variant, with its settings; null: it is not built in.
std::unique_ptr<Transport> make_transport_of(const Variant& variant);

class SideServer {
 public:
  // `world` only for the transport "sim".
  SideServer(const Variant& variant, std::uint8_t side, sim::SimWorld* world);
  ~SideServer();
  SideServer(const SideServer&) = delete;
  SideServer& operator=(const SideServer&) = delete;

  // Calls: everything here can be called by frame. Links and buffers are named by index.
  Result<std::uint64_t> open_link(bool deferred_copies);
  void close_link(std::uint64_t link);
  Device device(std::uint64_t link);
  Result<PeerId> open_peer(std::uint64_t link, PeerRole role);
  Result<Blob> offer(std::uint64_t link, PeerId peer);
  Status accept(std::uint64_t link, PeerId peer, Blob remote_offer);
  void route(std::uint64_t link, PeerId peer, Address to);
  void close_peer(std::uint64_t link, PeerId peer);
  void on_control(std::uint64_t link, PeerId peer, Blob message);
  // Filled with the pattern of `seed`; page-aligned.
  std::uint64_t add_buffer(BufferKind kind, std::uint64_t bytes, std::uint64_t seed);
  void free_buffer(std::uint64_t buffer);
  void fill(std::uint64_t buffer, std::uint64_t seed);
  std::uint64_t hash(std::uint64_t buffer);
  std::vector<std::byte> read(std::uint64_t buffer);
  Result<MemoryId> add_memory(std::uint64_t link, std::uint64_t buffer, std::uint64_t offset,
                              std::uint64_t bytes, Access access);
  Status remove_memory(std::uint64_t link, MemoryId memory);
  // add_memory and remove_memory, again and again, in a thread of its own beside the owner's.
  void start_churn(std::uint64_t link, std::uint64_t buffer, std::uint32_t rounds);
  bool churn_failed();  // waits for its end
  Result<Blob> export_memory(std::uint64_t link, MemoryId memory, PeerId peer);
  Result<RemoteId> import_memory(std::uint64_t link, PeerId peer, Blob blob);
  void drop_memory(std::uint64_t link, RemoteId remote);
  Status post(std::uint64_t link, BatchSpec spec);
  Status cancel(std::uint64_t link, Ticket ticket);
  void set_flag(std::uint32_t value) { flag_.store(value, std::memory_order_release); }
  // From now on a note that begins with two u64, offset and length, is shown with the hash of that
  // part of the buffer at that moment, and a batch event with the hash of the whole.
  void watch(std::uint64_t link, std::uint64_t buffer);
  SideStats take_stats() { return std::exchange(stats_, {}); }
  bool arm_link(std::uint64_t link);
  int wait_fd(std::uint64_t link);

  // The loop. pump() is true when anything happened.
  bool pump(const std::function<void(std::uint64_t link, const Seen&)>& show);
  std::vector<ControlMessage> take_control() { return std::exchange(control_out_, {}); }
  // Sleeps on every Link and on `extra` until something may be there, for at most that long.
  void sleep(std::vector<pollfd> extra, std::int64_t patience_ns);
  // Adds what to sleep on; false: something is pending, do not sleep. The earliest timer goes
  // down into until_ns.
  bool arm(std::vector<pollfd>& fds, std::int64_t& until_ns);
  void count_sleep(bool timed_out) {
    ++stats_.sleeps;
    stats_.sleeps_timed_out += timed_out ? 1 : 0;
  }
  const Clock& clock() const { return *clock_; }
  // Serves calls from the socket until it is closed. The body of a PeerGroup.
  void serve(FrameSocket& socket);

 private:
  struct Channel final : ControlChannel {
    Channel(SideServer& owner, std::uint64_t own_link) : server(owner), link(own_link) {}
    Status send(PeerId peer, std::span<const std::byte> message) override;
    SideServer& server;
    const std::uint64_t link;
  };
  struct LinkState {
    // What batches point to: until their event, and never shorter than the Link.
    std::map<std::uint64_t, std::unique_ptr<BatchSpec>> batches;
    std::unique_ptr<Channel> channel;
    std::unique_ptr<MemoryOps> memory_ops;
    std::unique_ptr<Transport> transport;
    std::unique_ptr<Link> link;  // null: closed
    std::int64_t watched = -1;   // buffer
  };
  struct Buffer {
    std::byte* data = nullptr;  // what is registered
    std::byte* eyes = nullptr;  // where the test may look
    std::uint64_t bytes = 0;
    std::unique_ptr<SharedBuffer> shared;
    std::unique_ptr<test::DeviceMemory> device;
    bool plain = false;
    std::span<std::byte> view() const { return {eyes, bytes}; }
  };

  Link& link(std::uint64_t index) { return *links_.at(index).link; }
  std::unique_ptr<Transport> make_transport() const;
  Seen look(LinkState& state, const Event& event);

  const Variant variant_;
  const std::uint8_t side_;
  sim::SimWorld* const world_;
  SteadyClock steady_clock_;
  const Clock* clock_;
  std::deque<LinkState> links_;
  std::deque<Buffer> buffers_;
  std::map<std::pair<std::uint64_t, std::uint64_t>, Address> routes_;  // by link, peer
  std::vector<ControlMessage> control_out_;
  std::vector<std::pair<std::uint64_t, ControlMessage>> unrouted_;  // link; peer in `to`
  std::atomic<std::uint32_t> flag_{0};
  std::thread churn_;
  std::atomic<bool> churn_failed_{false};
  SideStats stats_;
};

}  // namespace kvl::conformance
