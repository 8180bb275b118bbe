// The scheduler: decides which request gets pages, what is computed next, and when a handoff opens
// and ends. One thread owns all of it; everything that comes from outside is a task in its inbox.
//
// A request takes one of three ways:
//   local    waiting -> prefilling -> decoding
//   prefill  waiting (for decode's offer and for pages) -> prefilling -> transferring
//   decode   resolving -> waiting (for pages) -> offered -> receiving -> decoding
// and with --kv-only "decoding" is verifying. Whatever way it ends, the client is answered at once
// and the request stays as `ending` until no job and no handoff uses its pages.
//
// Decode reserves first: a prefill takes pages only for a request whose decode has reserved its
// own. A decode that holds pages thus never waits for anything but running work, and two workers
// never wait for each other's pages.
#pragma once

#include <array>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "kvl/clock.h"
#include "kvl/status.h"
#include "kvl/trace.h"
#include "worker/messages.h"
#include "worker/model_config.h"
#include "worker/page_cache.h"
#include "worker/rendezvous.h"
#include "worker/request.h"
#include "worker/room_wire.h"

namespace kvl::worker {

struct SchedulerOptions {
  ModelConfig model;
  ParallelSizes sizes;
  EngineRole role = EngineRole::both;
  std::string host;  // with port: the name of this instance in sessions
  std::int64_t port = -1;
  std::uint32_t page_tokens = 64;
  std::uint32_t page_count = 0;
  bool kv_only = false;
  HandoffMode mode = HandoffMode::best;
  std::int64_t handoff_timeout_ms = 30000;  // of a handoff; of silence from the other worker
  std::uint32_t chunk_tokens = 256;         // of prefill in one forward pass
  std::uint32_t chunk_bytes = 8 << 20;      // --kv-only: filled or verified in one job
  std::uint32_t prefills_max = 4;           // handed off requests that are computed side by side
  bool damage_received = false;             // a control: see WorkerOptions
  std::size_t requests_max = 65536;         // queued and running; beyond: exhausted
};

// A snapshot for /metrics and /get_server_info.
struct SchedulerFigures {
  std::uint32_t pages_free = 0, pages_held = 0, pages_quarantined = 0;
  std::uint64_t pages_cached = 0;
  std::uint64_t requests_queued = 0, requests_running = 0;
  static constexpr std::size_t kCodes = static_cast<std::size_t>(Code::internal) + 1;
  std::uint64_t requests_ok = 0;
  std::array<std::uint64_t, kCodes> requests_failed{};  // by Code
  std::uint64_t prompt_tokens = 0, output_tokens = 0, cached_tokens = 0;
  std::uint64_t handoffs_ok = 0, handoffs_failed = 0;
  std::uint64_t bytes_moved = 0, pages_moved = 0, pages_verified = 0, pages_wrong = 0;
};

class Scheduler {
 public:
  // Hosts and rendezvous (null: no handoffs) outlive the scheduler.
  Scheduler(SchedulerOptions options, Rendezvous* rendezvous);
  ~Scheduler();
  Scheduler(const Scheduler&) = delete;
  Scheduler& operator=(const Scheduler&) = delete;

  // Once, before any request. `lead_address` is rank 0's engine.
  void start(std::vector<RankHost*> hosts, const std::string& lead_address);
  // Ends the thread; requests under way get no further update. Hosts may send events until then
  // and after.
  void stop();

  // Any thread. The sink gets at least one update, the last with done. Returns an id for abort().
  std::uint64_t submit(Request request, UpdateSink sink);
  void abort(std::uint64_t id);
  void abort_rid(const std::string& rid, bool all = false);
  void flush_cache();
  void on_event(RankEvent event);
  SchedulerFigures figures() const;
  bool alive() const;  // every rank answers

 private:
  enum class Way : std::uint8_t { local, prefill, decode };
  enum class State : std::uint8_t {
    resolving,
    waiting,
    offered,
    prefilling,
    transferring,
    receiving,
    verifying,
    decoding,
    ending,
  };
  struct Sequence {
    std::uint64_t id = 0;
    Request request;
    UpdateSink sink;
    Way way = Way::local;
    State state = State::waiting;
    std::uint32_t prompt_tokens = 0;
    std::uint32_t pages_needed = 0;
    std::vector<BlockHash> chain;  // of the prompt's full pages
    PageHold hold;
    bool holds = false;
    std::uint32_t computed = 0;  // tokens with KV in place (verifying: verified)
    std::vector<OutputToken> output;
    bool in_job = false;
    Figures figures;
    std::int64_t arrived_ns = 0;
    // Rooms only.
    Instance source;  // decode: where prefill is
    bool resolved = false;
    PeerHandle peer;                 // prefill: who offered
    bool offered = false;            // prefill: decode has pages
    std::int64_t heard_ns = 0;       // last sign of life of the other worker
    std::int64_t said_ns = 0;        // decode: our last one
    std::uint32_t ranks_open = 0;    // without their terminal event
    std::uint32_t ranks_unsafe = 0;  // failed, pages not released yet
    bool room_failed = false;
    bool room_open = false;           // opened at the ranks: the other side hears of its end there
    std::vector<std::byte> metadata;  // decode: with the first token
  };
  using SequencePtr = std::shared_ptr<Sequence>;  // jobs and the list both hold one
  using RoomKey = std::pair<HandoffSide, std::uint64_t>;

  struct Job {
    std::uint64_t id = 0;
    ComputeJob::Kind kind = ComputeJob::Kind::forward;
    struct Part {
      SequencePtr sequence;
      std::uint32_t tokens = 0;
      bool logits = false;
    };
    std::vector<Part> parts;
    std::uint32_t ranks_left = 0;
    Code code = Code::ok;
    Logits logits;
    std::vector<std::uint32_t> wrong_pages;
  };

  // scheduler.cc: the thread, admission, ends.
  void run();
  void post(std::function<void()> task);
  void send(const Command& command);
  void add(const SequencePtr& sequence);
  Status check(Sequence& sequence);
  void admit();
  bool admissible(const Sequence& sequence) const;
  void emit(Sequence& sequence, std::vector<OutputToken> tokens);
  void succeed(const SequencePtr& sequence, bool stopped);
  enum class Blame : std::uint8_t { own, peer };  // the other worker of the pair
  void fail(const SequencePtr& sequence, const Status& status, std::string reason = {},
            Blame blame = Blame::own);
  void tell_failed(const Sequence& sequence, const Status& status);
  void settle_end(const SequencePtr& sequence);
  void publish_figures();

  // scheduler_compute.cc: jobs.
  void start_job();
  bool compose_forward(ComputeJob& job);
  bool compose_kv(ComputeJob& job);
  void on_output(const RankOutput& output);
  void finish_job(Job& job);
  void finish_prefill(const SequencePtr& sequence, const OutputToken& token);
  void advance(const SequencePtr& sequence, const OutputToken& token);
  void finish_verify(const SequencePtr& sequence);

  // scheduler_rooms.cc: what the two workers of a room say, and the handoff.
  void resolve(const SequencePtr& sequence);
  void start_prefill(const SequencePtr& sequence);
  void start_decode(const SequencePtr& sequence);
  void on_room_event(const RoomEvent& event);
  void on_room_committed(const SequencePtr& sequence);
  void on_peer_message(const PeerMessage& message);
  void on_message_to_prefill(PeerHandle peer, const RoomMessage& message);
  void on_message_to_decode(const RoomMessage& message);
  void on_peer_lost(const PeerLost& lost);
  void say(const Sequence& sequence, RoomMessage::Kind kind, Code code = Code::ok);
  void tick();
  SequencePtr room_at(HandoffSide side, std::uint64_t room) const;
  static HandoffSide side_of(const Sequence& sequence);
  static void mark(const Sequence& sequence, Stage stage, const Status& status = {});

  SchedulerOptions options_;
  Rendezvous* rendezvous_;
  std::vector<RankHost*> hosts_;
  SteadyClock clock_;
  std::uint32_t ranks_;

  std::mutex inbox_mutex_;
  std::condition_variable arrived_;
  std::vector<std::function<void()>> inbox_;
  bool closing_ = false;
  std::uint64_t next_id_ = 1;

  // The thread's own.
  PageCache cache_;
  std::list<SequencePtr> sequences_;  // in order of arrival
  std::map<RoomKey, SequencePtr> rooms_;
  std::unique_ptr<Job> job_;
  std::uint64_t next_job_ = 1;
  std::int64_t ticked_ns_ = 0;
  struct EarlyOffer {
    PeerHandle peer;
    bool offered = false;
    std::int64_t heard_ns = 0;
  };
  std::map<std::uint64_t, EarlyOffer> early_;  // rooms whose request has not come yet
  std::map<std::uint64_t, Code> ended_;        // prefill rooms that failed lately
  std::deque<std::uint64_t> ended_order_;
  // A room that ended while a peer could still touch its pages.
  struct Unsafe {
    QuarantineToken token;
    std::uint32_t ranks = 0;
  };
  std::map<RoomKey, Unsafe> unsafe_;
  bool rank_lost_ = false;

  mutable std::mutex figures_mutex_;
  SchedulerFigures figures_;  // the thread's
  SchedulerFigures published_;
  bool published_alive_ = true;
  std::thread thread_;
};

}  // namespace kvl::worker
