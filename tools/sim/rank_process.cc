// A rank's life: what an inference engine's connector does around the product, and what it checks.
#include "tools/sim/rank_process.h"

#include <algorithm>
#include <utility>

#include "transport/sim/sim_control_net.h"
#include "transport/sim/sim_transport.h"

namespace kvl::simulation {
namespace {

constexpr std::int64_t kTickNs = 4 * kMs;
constexpr std::int64_t kTryAgainNs = 2 * kMs;
constexpr std::int64_t kGiveUpNs = 300 * kMs;   // a request that cannot even begin
constexpr std::int64_t kSlackNs = 4 * kTickNs;  // a deadline is noticed at the next turn
constexpr std::int64_t kLookupAgeNs = 100 * kMs;

// One gauge or counter of an engine.
class Reading final : public MetricVisitor {
 public:
  explicit Reading(std::string_view name) : name_(name) {}
  void counter(std::string_view name, std::string_view, const MetricLabels&, double v) override {
    if (name == name_) value += v, found = true;
  }
  void gauge(std::string_view name, std::string_view, const MetricLabels&, double v) override {
    if (name == name_) value += v, found = true;
  }
  double value = 0;
  bool found = false;

 private:
  std::string_view name_;
};

PageLayout layout_of(const Scenario& scenario, const Side& side, std::uint32_t rank) {
  return make_layout(scenario.geometry, slice_at(side.tp, side.pp, rank), side.layout).value();
}

}  // namespace

RankProcess::RankProcess(Stage& stage, sim::NodeId node, HandoffSide side, std::uint32_t instance,
                         std::uint32_t rank)
    : stage_(stage),
      node_(node),
      side_(side),
      instance_(instance),
      rank_(rank),
      shape_(side == HandoffSide::prefill ? stage.scenario.prefill : stage.scenario.decode),
      layout_(layout_of(stage.scenario, shape_, rank)),
      clock_(stage.world.clock(), std::int64_t{node} * 777 * kMs,
             std::int64_t{node * 37 % 11} * 100 - 500),
      engine_events_(16),
      handoff_events_(16) {}

RankProcess::~RankProcess() { engine_.reset(); }

std::string RankProcess::name() const {
  return instance_name(side_, instance_) + "/" + std::to_string(rank_);
}

std::string RankProcess::instance_name(HandoffSide side, std::uint32_t instance) const {
  return std::string(kvl::to_string(side)) + "-" + std::to_string(instance);
}

void RankProcess::violate(const std::string& what) {
  stage_.judge.violate(what + " [" + name() + "]");
}

bool RankProcess::start() {
  if (up()) return true;
  if (lives_ > 0) stage_.world.restart(node_);
  EngineWorld world;
  world.clock = &clock_;
  world.control = std::make_unique<sim::SimControlNet>(stage_.world, node_);
  world.transports.push_back(
      std::make_unique<sim::SimTransport>(stage_.world, node_, stage_.scenario.devices));
  world.seed = stage_.world.options().seed * 1000 + std::uint64_t{node_} * 50 + ++lives_;
  world.pid = stage_.world.pid(node_);
  world.open_process = [&sim = stage_.world](std::int32_t pid) { return sim.open_process(pid); };
  auto opened = Engine::open(stage_.settings, std::move(world));
  if (!opened) return false;
  engine_ = std::move(*opened);
  memory_ = std::make_unique<KvMemory>(layout_);
  pool_ = std::make_unique<BlockPool>(shape_.layout.page_count);
  Memory memory;
  memory.data = memory_->data();
  memory.bytes = memory_->size();
  memory.access = Access::remote_all;
  HandoffRank rank;
  rank.layout = layout_;
  rank.regions = {{engine_->register_memory(memory).value(), memory.data, memory.bytes}};
  rank.model = "sim";
  rank.prefill = side_ == HandoffSide::prefill;
  rank.decode = !rank.prefill;
  endpoint_ = HandoffEndpoint::open(*engine_, clock_, rank, stage_.scenario.handoff).value();
  const ParallelSlice slice = slice_at(shape_.tp, shape_.pp, rank_);
  RankRecord record;
  record.cluster = "sim";
  record.instance = instance_name(side_, instance_);
  record.role = rank.prefill ? EngineRole::prefill : EngineRole::decode;
  record.tp_rank = slice.tp_rank;
  record.tp_size = slice.tp_size;
  record.pp_rank = slice.pp_rank;
  record.pp_size = slice.pp_size;
  record.address = engine_->address();
  record.epoch = engine_->epoch();
  record.layout = layout_.encode();
  client_ = std::make_unique<RendezvousClient>(stage_.world, stage_.rendezvous, node_, clock_,
                                               std::move(record), stage_.scenario.lease_ms);
  next_ns_ = stage_.world.now_ns();
  stage_.world.say(lives_, [&] { return name() + " starts, life " + std::to_string(lives_); });
  return true;
}

void RankProcess::crash(sim::Crash kind) {
  if (!up()) return;
  stage_.world.crash(node_, kind);
  client_.reset();
  engine_.reset();
  endpoint_.reset();
  pool_.reset();
  memory_.reset();
  parts_.clear();
  busy_ = 0;
  epochs_.clear();
  next_ns_ = INT64_MAX;
}

void RankProcess::set_state(Part& part, Part::State state) {
  const auto busy = [](Part::State s) { return s < Part::State::unsafe; };
  busy_ -= busy(part.state) ? 1 : 0;
  part.state = state;
  busy_ += busy(part.state) ? 1 : 0;
}

void RankProcess::begin(const Request& request) {
  if (!up()) return;
  Part& part = parts_[request.room];
  part.request = &request;
  ++busy_;
  part.due_ns = stage_.world.now_ns() + kGiveUpNs;
  part.excused_ns = excused_ns_;
  next_ns_ = stage_.world.now_ns();
}

void RankProcess::abort(const Request& request) {
  const auto found = parts_.find(request.room);
  if (!up() || found == parts_.end() || found->second.state != Part::State::open) return;
  stage_.world.say(request.room, [&] {
    return name() + " room " + std::to_string(request.room) + " aborted by its client";
  });
  const Status status = endpoint_->abort(side_, request.room, Code::aborted, "client");
  if (!status.ok() && status.code() != Code::not_found) violate("abort: " + status.to_string());
  next_ns_ = stage_.world.now_ns();
}

bool RankProcess::reserve(Part& part, std::uint64_t first_token) {
  const std::uint64_t tokens = part.request->tokens - first_token;
  const auto count = static_cast<std::uint32_t>((tokens + shape_.layout.page_tokens - 1) /
                                                shape_.layout.page_tokens);
  const auto lease = pool_->allocate(count);
  if (!lease.ok()) return false;
  part.lease = *lease;
  const auto pages = pool_->pages(part.lease).value();
  part.pages.assign(pages.begin(), pages.end());
  part.first_token = first_token;
  const bool sends = side_ == HandoffSide::prefill;
  const std::string wrong = memory_->take(part.pages, *part.request, sends);
  if (!wrong.empty()) violate(wrong);
  return true;
}

void RankProcess::release(Part& part) {
  const Result<QuarantineToken> token = pool_->release(part.lease);
  if (!token.ok() || *token) violate("pool: released pages went to quarantine");
  memory_->free(part.pages);
}

void RankProcess::open_decode(Part& part) {
  const Request& request = *part.request;
  const auto* const sources =
      client_->find(instance_name(HandoffSide::prefill, request.prefill), kLookupAgeNs);
  const auto* const group =
      rank_ == 0 ? nullptr : client_->find(instance_name(side_, instance_), kLookupAgeNs);
  if (sources == nullptr || (rank_ != 0 && group == nullptr)) return;
  const std::uint64_t page_tokens = shape_.layout.page_tokens;
  const std::uint64_t first_token = request.skip_tokens / page_tokens * page_tokens;
  const auto handle_of = [&](const std::vector<RankRecord>& ranks, std::uint32_t flat) {
    const auto found = std::ranges::find_if(ranks, [&](const RankRecord& r) {
      return flat_rank({r.tp_size, r.tp_rank, r.pp_size, r.pp_rank}) == flat;
    });
    return found == ranks.end() ? PeerHandle{} : engine_->connect(found->address).value();
  };
  DecodeOpen open;
  open.room = request.room;
  open.tokens = request.tokens;
  open.skip_tokens = request.skip_tokens;
  open.mode = request.mode;
  open.deadline_ms = request.deadline_ms;
  const ParallelSizes there{sources->front().tp_size, sources->front().pp_size};
  const auto routes =
      handoff_sources(stage_.scenario.geometry, there, {shape_.tp, shape_.pp}, rank_);
  for (const HandoffRoute& route : routes.value()) {
    open.sources.push_back({handle_of(*sources, route.src_rank), route.accepts});
  }
  open.group_rank = rank_;
  open.group_size = shape_.ranks();
  if (rank_ != 0) open.lead = handle_of(*group, 0);
  if (!reserve(part, first_token)) return;
  open.pages.push_back({part.pages, first_token});
  if (!pool_->expose(part.lease).ok()) violate("pool: expose of a fresh lease");
  const Status status = endpoint_->open_decode(std::move(open));
  if (!status.ok()) {
    if (status.code() != Code::unsupported) violate("open: " + status.to_string());
    if (!pool_->settle(part.lease).ok()) violate("pool: settle");
    release(part);
    client_->forget(instance_name(HandoffSide::prefill, request.prefill));
    return;
  }
  set_state(part, Part::State::open);
}

void RankProcess::open_prefill(Part& part) {
  const Request& request = *part.request;
  if (!reserve(part, 0)) return;
  if (!pool_->expose(part.lease).ok()) violate("pool: expose of a fresh lease");
  const Status status =
      endpoint_->open_prefill({request.room, request.tokens, request.deadline_ms});
  if (!status.ok()) return violate("open: " + status.to_string());
  set_state(part, Part::State::open);
}

// A layer of a chunk; the pages of the chunk are named before its first.
void RankProcess::compute(Part& part) {
  const Request& request = *part.request;
  const std::uint64_t end = std::min(request.tokens, part.computed + request.chunk_tokens);
  const std::uint64_t pages = (end + shape_.layout.page_tokens - 1) / shape_.layout.page_tokens;
  const auto gone = [&](const Status& status) {
    if (!status.ok() && status.code() != Code::not_found) violate("ready: " + status.to_string());
    return !status.ok();
  };
  if (pages > part.paged) {
    const auto more = std::span(part.pages).subspan(part.paged, pages - part.paged);
    if (gone(endpoint_->add_pages(request.room, 0, more))) return;
    part.paged = pages;
  }
  memory_->compute(request, part.pages, part.layer, part.computed, end);
  if (gone(endpoint_->ready(request.room, {part.layer, 1}, end))) return;
  if (++part.layer == stage_.scenario.geometry.layers) {
    part.layer = 0;
    part.computed = end;
  }
  if (part.computed == request.tokens) {
    part.all_sent = true;
    (void)gone(endpoint_->finish(request.room, Judge::metadata(request, rank_)));
  }
}

void RankProcess::advance(Part& part) {
  const std::int64_t now_ns = stage_.world.now_ns();
  if (now_ns < part.next_ns) return;
  part.next_ns = INT64_MAX;
  switch (part.state) {
    case Part::State::waiting:
      side_ == HandoffSide::decode ? open_decode(part) : open_prefill(part);
      if (part.state == Part::State::open) {
        stage_.judge.opened(*part.request, side_, rank_);
        const std::int64_t deadline_ns = part.request->deadline_ms * kMs;
        part.due_ns = now_ns + deadline_ns + deadline_ns / 500 + kSlackNs;
        part.excused_ns = excused_ns_;
        part.next_ns = side_ == HandoffSide::prefill ? now_ns : INT64_MAX;
      } else if (now_ns > part.due_ns) {
        stage_.judge.refused(*part.request);
        set_state(part, Part::State::ended);
      } else {
        part.next_ns = now_ns + kTryAgainNs;
      }
      return;
    case Part::State::open:
      if (side_ == HandoffSide::prefill && !part.all_sent) {
        compute(part);
        if (!part.all_sent) part.next_ns = now_ns + part.request->compute_ns;
      }
      return;
    case Part::State::using_pages: {
      const std::string wrong =
          memory_->check(*part.request, part.pages, part.first_token, layout_.groups()[0].layers);
      if (!wrong.empty()) violate("changed after commit: " + wrong);
      release(part);
      set_state(part, Part::State::ended);
      return;
    }
    case Part::State::unsafe:
    case Part::State::ended:
      return;
  }
}

void RankProcess::watch(const EngineEvent& event) {
  if (event.kind == EngineEvent::Kind::peer_up) {
    std::uint64_t& epoch = epochs_[event.peer.value];
    if (event.epoch < epoch) violate("epoch: a peer's epoch went back");
    epoch = event.epoch;
  }
  if (event.kind == EngineEvent::Kind::transfer && event.code == Code::ok &&
      event.physical != Physical::quiescent) {
    violate("unproven: a transfer ended as ok, but may still be written");
  }
}

void RankProcess::end(Part& part, bool safe) {
  if (safe) {
    if (!pool_->settle(part.lease).ok()) violate("pool: settle of a living lease");
    release(part);
    return set_state(part, Part::State::ended);
  }
  const Result<QuarantineToken> token = pool_->release(part.lease);
  if (!token.ok() || !*token) return violate("pool: exposed pages were not quarantined");
  part.quarantine = *token;
  memory_->give_up(part.pages);
  set_state(part, Part::State::unsafe);
}

void RankProcess::take(const HandoffEvent& event) {
  using Kind = HandoffEvent::Kind;
  if (event.kind == Kind::peer_ready || event.kind == Kind::peer_refused) return;
  const auto found = parts_.find(event.room);
  const auto say = [&](const std::string& what) {
    stage_.world.say(event.room * 8 + static_cast<std::uint64_t>(event.kind),
                     [&] { return name() + " room " + std::to_string(event.room) + " " + what; });
  };
  if (found == parts_.end() || event.side != side_) {
    return violate("ended twice: an event of room " + std::to_string(event.room) +
                   ", which is not open");
  }
  Part& part = found->second;
  const bool open = part.state == Part::State::open;
  if (!open && event.kind != Kind::pages_released) {
    return violate("ended twice: an event after the end of room " + std::to_string(event.room));
  }
  const Request& request = *part.request;
  switch (event.kind) {
    case Kind::accepted:
      return say("accepted");
    case Kind::layer_ready: {
      say("has layer " + std::to_string(event.layer));
      const std::string wrong =
          memory_->check(request, part.pages, part.first_token, {event.layer, 1});
      if (!wrong.empty())
        violate("wrong bytes: layer_ready of room " + std::to_string(event.room) + ", but " +
                wrong);
      if (++part.layers_told == layout_.groups()[0].layers.count) {
        stage_.judge.arrived(request, rank_);
      }
      return;
    }
    case Kind::committed: {
      say("committed");
      stage_.judge.committed(request, side_, rank_);
      if (side_ == HandoffSide::prefill) {
        if (!part.all_sent) violate("early commit: prefill committed before it had finished");
        return end(part, true);
      }
      const std::string wrong =
          memory_->check(request, part.pages, part.first_token, layout_.groups()[0].layers);
      if (!wrong.empty()) violate("wrong bytes: committed, but " + wrong);
      const ParallelSizes there{stage_.scenario.prefill.tp, stage_.scenario.prefill.pp};
      const auto routes =
          handoff_sources(stage_.scenario.geometry, there, {shape_.tp, shape_.pp}, rank_);
      for (std::size_t i = 0; i < routes->size(); ++i) {
        if (i >= event.metadata.size() ||
            event.metadata[i] != Judge::metadata(request, (*routes)[i].src_rank)) {
          violate("metadata: not what prefill sent");
        }
      }
      if (!pool_->settle(part.lease).ok()) violate("pool: settle of a living lease");
      memory_->close(part.pages);
      set_state(part, Part::State::using_pages);
      part.next_ns = stage_.world.now_ns() + static_cast<std::int64_t>(request.content % 10) * kMs;
      return;
    }
    case Kind::failed:
      say("failed: " + std::string(kvl::to_string(event.code)) + ", " + event.reason +
          (event.pages_safe ? "" : "; pages in quarantine"));
      stage_.judge.failed(request, side_, rank_, event.pages_safe);
      if (event.code == Code::ok) violate("failed without a code");
      if (event.code == Code::peer_lost || event.code == Code::not_found) {
        client_->forget(instance_name(HandoffSide::prefill, request.prefill));
      }
      return end(part, event.pages_safe);
    case Kind::pages_released:
      say("has its pages back");
      if (part.state != Part::State::unsafe) return violate("released what was safe");
      if (!pool_->release_quarantine(part.quarantine).ok()) violate("pool: quarantine token");
      memory_->free(part.pages);
      return set_state(part, Part::State::ended);
    default:
      return violate("unknown event");
  }
}

void RankProcess::run() {
  if (!up()) return;
  for (int round = 0; round < 4; ++round) {
    const std::size_t count = engine_->poll(engine_events_);
    for (std::size_t i = 0; i < count; ++i) {
      watch(engine_events_[i]);
      endpoint_->on_event(engine_events_[i]);
    }
    if (count < engine_events_.size()) break;
  }
  client_->step();
  for (auto& [room, part] : parts_) advance(part);
  endpoint_->step();
  while (const std::size_t count = endpoint_->poll(handoff_events_)) {
    for (std::size_t i = 0; i < count; ++i) take(handoff_events_[i]);
  }
  const std::int64_t now_ns = stage_.world.now_ns();
  next_ns_ = now_ns + kTickNs;
  for (auto part = parts_.begin(); part != parts_.end();) {
    if (part->second.state == Part::State::ended) {
      part = parts_.erase(part);
      continue;
    }
    if (part->second.state == Part::State::open &&
        now_ns - (excused_ns_ - part->second.excused_ns) > part->second.due_ns) {
      violate("deadline: room " + std::to_string(part->first) + " did not end in time");
    }
    next_ns_ = std::min(next_ns_, part->second.next_ns);
    ++part;
  }
}

std::string RankProcess::touch(sim::Touch touch, const std::byte* data, std::uint64_t bytes,
                               const RankProcess& other) const {
  if (memory_ == nullptr) return "memory of a dead process is touched";
  std::string wrong =
      memory_->touch(touch, data, bytes, other.side_ == HandoffSide::prefill, other.instance_);
  return wrong.empty() ? wrong : wrong + " of " + name() + ", by " + other.name();
}

std::string RankProcess::leftovers() const {
  if (!up()) return name() + " is down";
  if (!parts_.empty()) {
    const auto& [room, part] = *parts_.begin();
    return name() + " still holds room " + std::to_string(room) +
           (part.state == Part::State::unsafe ? ": its pages are in quarantine" : "");
  }
  if (endpoint_->open_rooms() != 0) return name() + ": the endpoint holds rooms";
  const BlockPool::Counts counts = pool_->counts();
  if (counts.free != pool_->page_count() || pool_->lease_count() != 0) {
    return name() + ": the pool is not whole";
  }
  if (!client_->registered()) return name() + " is not registered";
  Reading transfers("kvlane_transfers_inflight");
  engine_->visit_metrics(transfers);
  if (!transfers.found) return "the engine has no gauge of its transfers";
  return transfers.value == 0 ? "" : name() + " has transfers in flight";
}

std::string RankProcess::check_end() const { return memory_->check_free(); }

}  // namespace kvl::simulation
