// The scheduler's thread, admission, and how requests end.
#include "worker/scheduler.h"

#include <algorithm>

#include "kvl/failure.h"
#include "kvl/log.h"
#include "worker/kv_only.h"

namespace kvl::worker {
namespace {

constexpr std::chrono::milliseconds kTick{100};

Result<std::vector<BlockHash>> chain_of(const Request& request, std::uint32_t page_tokens) {
  if (request.content) {
    return page_keys(*request.content, request.content_tokens, page_tokens);
  }
  const std::vector<std::uint32_t> tokens(request.tokens.begin(), request.tokens.end());
  return hash_blocks({.block_tokens = page_tokens}, tokens);
}

}  // namespace

Scheduler::Scheduler(SchedulerOptions options, Rendezvous* rendezvous)
    : options_(std::move(options)),
      rendezvous_(rendezvous),
      ranks_(options_.sizes.tp_size * options_.sizes.pp_size),
      cache_(options_.page_count) {}

Scheduler::~Scheduler() { stop(); }

void Scheduler::start(std::vector<RankHost*> hosts, const std::string& lead_address) {
  hosts_ = std::move(hosts);
  if (!lead_address.empty()) send(SetLead{lead_address});
  publish_figures();
  thread_ = std::thread([this] { run(); });
}

void Scheduler::stop() {
  {
    const std::lock_guard lock(inbox_mutex_);
    closing_ = true;
  }
  arrived_.notify_all();
  if (thread_.joinable()) thread_.join();
  // Sinks belong to fronts that go away next.
  sequences_.clear();
  rooms_.clear();
  job_.reset();
  inbox_.clear();
}

void Scheduler::post(std::function<void()> task) {
  const std::lock_guard lock(inbox_mutex_);
  if (closing_) return;
  inbox_.push_back(std::move(task));
  if (inbox_.size() == 1) arrived_.notify_one();
}

void Scheduler::run() {
  std::vector<std::function<void()>> tasks;
  for (;;) {
    {
      std::unique_lock lock(inbox_mutex_);
      arrived_.wait_for(lock, kTick, [&] { return closing_ || !inbox_.empty(); });
      if (closing_) return;
      tasks.clear();
      tasks.swap(inbox_);
    }
    for (const std::function<void()>& task : tasks) task();
    tick();
    admit();
    start_job();
    publish_figures();
  }
}

void Scheduler::send(const Command& command) {
  for (RankHost* const host : hosts_) host->post(command);
}

std::uint64_t Scheduler::submit(Request request, UpdateSink sink) {
  auto sequence = std::make_shared<Sequence>();
  sequence->request = std::move(request);
  sequence->sink = std::move(sink);
  sequence->arrived_ns = sequence->heard_ns = clock_.now_ns();
  std::uint64_t id = 0;
  {
    const std::lock_guard lock(inbox_mutex_);
    id = sequence->id = next_id_++;
  }
  post([this, sequence] { add(sequence); });
  return id;
}

void Scheduler::abort(std::uint64_t id) {
  post([this, id] {
    for (const SequencePtr& sequence : std::list(sequences_)) {
      if (sequence->id == id) fail(sequence, {Code::aborted, "the client left"});
    }
  });
}

void Scheduler::abort_rid(const std::string& rid, bool all) {
  post([this, rid, all] {
    for (const SequencePtr& sequence : std::list(sequences_)) {
      if (all || sequence->request.rid == rid) {
        fail(sequence, {Code::aborted, "aborted by request"});
      }
    }
  });
}

void Scheduler::flush_cache() {
  post([this] { cache_.flush(); });
}

void Scheduler::on_event(RankEvent event) {
  post([this, event = std::move(event)] {
    if (const auto* const output = std::get_if<RankOutput>(&event)) on_output(*output);
    if (const auto* const room = std::get_if<RoomEvent>(&event)) on_room_event(*room);
    if (const auto* const message = std::get_if<PeerMessage>(&event)) on_peer_message(*message);
    if (const auto* const lost = std::get_if<PeerLost>(&event)) on_peer_lost(*lost);
    if (const auto* const lost = std::get_if<RankLost>(&event)) {
      log(LogLevel::error, "worker.rank_lost",
          {{"rank", lost->rank},
           {"code", to_string(Code::peer_lost)},
           {"hint",
            "see why its process ended: the kernel's log (out of memory); restart this worker, "
            "which serves nothing until then"}});
      rank_lost_ = true;
      for (const SequencePtr& sequence : std::list(sequences_)) {
        fail(sequence, {Code::unavailable, "a rank of this worker is gone"});
      }
    }
  });
}

// Sets what follows from the request; says no to what can never run.
Status Scheduler::check(Sequence& sequence) {
  Request& request = sequence.request;
  if (rank_lost_) return {Code::unavailable, "a rank of this worker is gone"};
  if (sequences_.size() >= options_.requests_max) {
    return {Code::exhausted, "too many requests are queued"};
  }
  if (options_.kv_only && !request.content) {
    request.content = content_of_tokens(request.tokens);
    request.content_tokens = static_cast<std::uint32_t>(request.tokens.size());
  }
  if (!options_.kv_only && request.content) {
    return {Code::invalid_argument, "this worker computes: it needs tokens, not kv_only"};
  }
  const std::size_t tokens = request.content ? request.content_tokens : request.tokens.size();
  if (tokens == 0) return {Code::invalid_argument, "the prompt is empty"};
  for (const std::int32_t token : request.tokens) {
    if (!options_.kv_only &&
        (token < 0 || static_cast<std::uint32_t>(token) >= options_.model.vocab)) {
      return {Code::invalid_argument, "a token is outside the vocabulary"};
    }
  }
  // Nothing is computed from output tokens with kv_only, and prefill makes one without its KV.
  const bool grows = !options_.kv_only && sequence.way != Way::prefill;
  const std::uint64_t all = tokens + (grows ? request.sampling.max_new_tokens : 0);
  const std::uint64_t pages = (all + options_.page_tokens - 1) / options_.page_tokens;
  // Where one pool serves both sides of rooms, reservations must leave room for prefills.
  const bool shared = options_.role == EngineRole::both && sequence.way != Way::local;
  if (pages > options_.page_count / (shared ? 2 : 1)) {
    return {Code::invalid_argument, "prompt and output need more KV pages than this worker has"};
  }
  sequence.prompt_tokens = static_cast<std::uint32_t>(tokens);
  sequence.pages_needed = static_cast<std::uint32_t>(pages);
  sequence.figures.prompt_tokens = sequence.prompt_tokens;
  Result<std::vector<BlockHash>> chain = chain_of(request, options_.page_tokens);
  if (!chain) return chain.status();
  sequence.chain = *std::move(chain);
  if (sequence.way == Way::local) return {};
  if (rendezvous_ == nullptr) return {Code::unsupported, "this worker has no handoffs configured"};
  if (rooms_.contains({side_of(sequence), request.session->room}) ||
      unsafe_.contains({side_of(sequence), request.session->room})) {
    return {Code::invalid_argument, "this bootstrap_room is in use"};
  }
  return {};
}

void Scheduler::add(const SequencePtr& sequence) {
  if (const std::optional<Session>& session = sequence->request.session) {
    const bool ours = session->host == options_.host && session->port == options_.port;
    const bool prefill =
        options_.role == EngineRole::prefill || (options_.role == EngineRole::both && ours);
    sequence->way = prefill ? Way::prefill : Way::decode;
  }
  mark(*sequence, Stage::queued);
  const Status status = check(*sequence);
  sequences_.push_back(sequence);
  if (!status.ok()) return fail(sequence, status);
  if (sequence->way == Way::local) return;
  const std::uint64_t room = sequence->request.session->room;
  rooms_[{side_of(*sequence), room}] = sequence;
  if (sequence->way == Way::decode) return resolve(sequence);
  if (const auto early = early_.find(room); early != early_.end()) {
    sequence->peer = early->second.peer;
    sequence->offered = early->second.offered;
    early_.erase(early);
  }
}

bool Scheduler::admissible(const Sequence& sequence) const {
  if (sequence.state != State::waiting) return false;
  if (sequence.way != Way::prefill) return true;
  const auto computing = [](const SequencePtr& s) {
    return s->way == Way::prefill && s->state == State::prefilling;
  };
  return sequence.offered &&
         std::count_if(sequences_.begin(), sequences_.end(), computing) < options_.prefills_max;
}

// In order of arrival; a request that does not fit holds up those behind it that go the same way,
// so that a long one is not overtaken for ever.
void Scheduler::admit() {
  bool blocked[3] = {};
  std::uint64_t reserved = 0;  // pages of decodes whose prefill has not begun
  for (const SequencePtr& sequence : sequences_) {
    if (sequence->state == State::offered) reserved += sequence->hold.pages.size();
  }
  for (const SequencePtr& sequence : std::list(sequences_)) {
    bool& full = blocked[static_cast<std::size_t>(sequence->way)];
    if (full || !admissible(*sequence)) continue;
    if (sequence->way == Way::decode && options_.role == EngineRole::both &&
        reserved + sequence->pages_needed > options_.page_count / 2) {
      full = true;
      continue;
    }
    // The last token is always computed, or moved: its logits are needed.
    const std::size_t reuse_max = (sequence->prompt_tokens - 1) / options_.page_tokens;
    Result<PageHold> hold = cache_.acquire(sequence->chain, reuse_max, sequence->pages_needed);
    if (!hold) {
      full = true;
      continue;
    }
    sequence->hold = *std::move(hold);
    sequence->holds = true;
    sequence->computed = sequence->hold.reused * options_.page_tokens;
    sequence->figures.cached_tokens = sequence->computed;
    sequence->figures.waited_ns = clock_.now_ns() - sequence->arrived_ns;
    figures_.cached_tokens += sequence->computed;
    figures_.prompt_tokens += sequence->prompt_tokens;
    if (sequence->way == Way::decode) {
      reserved += sequence->hold.pages.size();
      sequence->state = State::offered;
      mark(*sequence, Stage::reserved);
      say(*sequence, RoomMessage::Kind::offer);
      sequence->said_ns = clock_.now_ns();
      continue;
    }
    sequence->state = State::prefilling;
    mark(*sequence, Stage::prefill_started);
    if (sequence->way == Way::prefill) start_prefill(sequence);
  }
}

// Before whatever tells others of it: a fault that a test places there strikes between the two.
void Scheduler::mark(const Sequence& sequence, Stage stage, const Status& status) {
  constexpr std::string_view kSides[] = {"local", "prefill", "decode"};  // by Way
  trace({.stage = stage,
         .room = sequence.request.session ? sequence.request.session->room : 0,
         .rid = sequence.request.rid,
         .side = kSides[static_cast<std::size_t>(sequence.way)],
         .code = status.code(),
         .what = status.context()});
}

void Scheduler::emit(Sequence& sequence, std::vector<OutputToken> tokens) {
  figures_.output_tokens += tokens.size();
  Update update;
  update.tokens = std::move(tokens);
  sequence.sink(std::move(update));
}

void Scheduler::succeed(const SequencePtr& sequence, bool stopped) {
  ++figures_.requests_ok;
  mark(*sequence, Stage::ended);
  Update update;
  update.done = true;
  update.stopped = stopped;
  update.figures = sequence->figures;
  sequence->sink(std::move(update));
  sequence->state = State::ending;
  settle_end(sequence);
}

// A client that leaves, or asks for what cannot be, is no failure of ours; of a handoff that has
// failed its endpoint has told.
void Scheduler::tell_failed(const Sequence& sequence, const Status& status) {
  const bool theirs = status.code() == Code::aborted || status.code() == Code::invalid_argument;
  const auto& session = sequence.request.session;
  log(theirs || sequence.room_failed ? LogLevel::info : LogLevel::warning, "worker.request_failed",
      {{"rid", sequence.request.rid},
       {"room", session ? session->room : 0},
       {"code", to_string(status.code())},
       {"why", status.context()},
       {"hint", remedy(status.code())}});
}

void Scheduler::fail(const SequencePtr& sequence, const Status& status, std::string reason,
                     Blame blame) {
  if (sequence->state == State::ending) return;
  const auto cause =
      std::min(static_cast<std::size_t>(status.code()), SchedulerFigures::kCodes - 1);
  ++figures_.requests_failed[cause];
  tell_failed(*sequence, status);
  mark(*sequence, Stage::ended, status);
  Update update;
  update.status = status;
  update.reason = std::move(reason);
  update.of_peer = blame == Blame::peer;
  update.done = true;
  update.figures = sequence->figures;
  sequence->sink(std::move(update));
  if (sequence->way != Way::local && sequence->request.session) {
    const std::uint64_t room = sequence->request.session->room;
    if (sequence->ranks_open > 0) {
      send(AbortRoom{side_of(*sequence), room, status.code(), status.context()});
    }
    if (sequence->way == Way::prefill) {
      ended_[room] = status.code();
      ended_order_.push_back(room);
      if (ended_order_.size() > 1024) {
        ended_.erase(ended_order_.front());
        ended_order_.pop_front();
      }
      say(*sequence, RoomMessage::Kind::ended, status.code());
    } else {
      say(*sequence, RoomMessage::Kind::gone, status.code());
    }
  }
  sequence->state = State::ending;
  settle_end(sequence);
}

// Lets go of an ended request once no job and no rank uses it.
void Scheduler::settle_end(const SequencePtr& sequence) {
  if (sequence->state != State::ending || sequence->in_job) return;
  if (sequence->ranks_open > 0 && !rank_lost_) return;
  if (sequence->holds) {
    if (sequence->ranks_unsafe == 0) cache_.settle(sequence->hold);
    const QuarantineToken token = cache_.release(sequence->hold);
    if (token) {
      const RoomKey key{side_of(*sequence), sequence->request.session->room};
      unsafe_[key] = {token, sequence->ranks_unsafe};
    }
    sequence->holds = false;
    mark(*sequence, Stage::released);
  }
  if (sequence->way != Way::local && sequence->request.session) {
    const auto room = rooms_.find({side_of(*sequence), sequence->request.session->room});
    if (room != rooms_.end() && room->second == sequence) rooms_.erase(room);
  }
  sequences_.remove(sequence);
}

void Scheduler::publish_figures() {
  const BlockPool::Counts counts = cache_.counts();
  figures_.pages_free = counts.free;
  figures_.pages_held = counts.held;
  figures_.pages_quarantined = counts.quarantined;
  figures_.pages_cached = cache_.cached_pages();
  const auto queued = std::count_if(sequences_.begin(), sequences_.end(), [](const SequencePtr& s) {
    return !s->holds && s->state != State::ending;
  });
  figures_.requests_queued = static_cast<std::uint64_t>(queued);
  figures_.requests_running = sequences_.size() - figures_.requests_queued;
  const std::lock_guard lock(figures_mutex_);
  published_ = figures_;
  published_alive_ = !rank_lost_;
}

SchedulerFigures Scheduler::figures() const {
  const std::lock_guard lock(figures_mutex_);
  return published_;
}

bool Scheduler::alive() const {
  const std::lock_guard lock(figures_mutex_);
  return published_alive_;
}

}  // namespace kvl::worker
