// What the interface asks of a Link: memory, batches, the loop.
#include "transport/tcp/tcp_link.h"

#include <sys/epoll.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "transport/base/labelled_metrics.h"
#include "transport/tcp/tcp_socket.h"

namespace kvl::tcp {
namespace {

constexpr std::uint64_t kListenerTag = 0;          // lane ids are never 0 …
constexpr std::uint64_t kCarrierTag = UINT64_MAX;  // … nor this
constexpr std::size_t kLanesPerPoll = 64;
constexpr std::uint64_t kLaneBytesMin = 256 << 10;  // per poll, however many lanes there are
// Given to a lane beyond what it has finished: enough to keep a long fat pipe full, little enough
// that a lane which slows down does not hoard.
constexpr std::uint64_t kLaneLoadMax = 16 << 20;
constexpr std::uint32_t kRecentTurns = 4;         // polls of the recent lane to one of epoll
constexpr std::uint32_t kRecentMissesMax = 4096;  // then epoll alone again
constexpr std::int64_t kTokenPollNs = 50'000;

}  // namespace

TcpLink::TcpLink(const Device& device, const TcpConfig& config, const LinkContext& context)
    : device_(device), config_(config), context_(context), core_(config_, context_) {}

Result<std::unique_ptr<Link>> TcpLink::open(const Device& device, const TcpConfig& config,
                                            const LinkContext& context) {
  std::unique_ptr<TcpLink> link(new TcpLink(device, config, context));
  link->epoll_.reset(::epoll_create1(EPOLL_CLOEXEC));
  if (!link->epoll_) return Status{Code::exhausted, "epoll_create", errno};
  auto listener = listen_data(config, context.same_host, link->bound_);
  if (!listener) return listener.status();
  link->listener_ = std::move(*listener);
  link->host_ = host_identity();
  const auto watch = [&link](int fd, std::uint64_t tag) -> Status {
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.u64 = tag;
    if (::epoll_ctl(link->epoll_.get(), EPOLL_CTL_ADD, fd, &event) == 0) return {};
    return {Code::exhausted, "epoll_ctl", errno};
  };
  KVL_TRY(watch(link->listener_.get(), kListenerTag));
  if (!config.interface.empty()) {
    auto carrier = CarrierWatch::open(config.interface);
    if (!carrier) return carrier.status();
    link->carrier_.emplace(std::move(*carrier));
    KVL_TRY(watch(link->carrier_->fd(), kCarrierTag));
  }
  return std::unique_ptr<Link>(std::move(link));
}

Result<Blob> TcpLink::export_memory(MemoryId id, PeerId peer) {
  if (peers_.find(peer.value) == nullptr) return Status{Code::invalid_argument, "unknown peer"};
  const auto grant = core_.memory.grant(id, peer.value);
  if (!grant) return grant.status();
  const auto lock = core_.memory.lock();
  const Memory* const memory = core_.memory.find(id.value);
  if (memory == nullptr) return Status{Code::invalid_argument, "export unknown memory"};
  return encode(MemoryName{*grant, memory->bytes, memory->access});
}

Result<RemoteId> TcpLink::import_memory(PeerId peer, std::span<const std::byte> blob) {
  if (peers_.find(peer.value) == nullptr) return Status{Code::invalid_argument, "unknown peer"};
  auto name = decode_memory(blob);
  if (!name) return name.status();
  const auto [id, remote] = core_.remotes.insert();
  *remote = {peer.value, *name};
  return RemoteId{id};
}

// Everything but the ids of local memory, which are held already.
Status TcpLink::check(const Batch& batch, std::uint64_t& total_bytes) const {
  for (const RemoteId id : batch.remotes) {
    const LinkCore::Remote* const remote = core_.remotes.find(id.value);
    if (remote == nullptr || remote->peer != batch.peer.value) {
      return {Code::invalid_argument, "batch names unknown remote memory"};
    }
  }
  total_bytes = 0;
  if (batch.ops.empty()) {
    if (batch.begin == 0 && batch.end == 0) return {};
    return {Code::invalid_argument, "batch begins or ends outside of its ops"};
  }
  constexpr Status kBad{Code::invalid_argument, "op outside of its local memory"};
  const PageOp& last = batch.ops.back();
  const std::uint64_t end = batch.end != 0 ? batch.end : last.total_bytes();
  if (batch.begin >= batch.ops.front().total_bytes() || end > last.total_bytes() ||
      (batch.ops.size() == 1 && batch.begin >= end)) {
    return {Code::invalid_argument, "batch begins or ends outside of its ops"};
  }
  std::uint32_t region = ~0U;
  std::uint64_t region_bytes = 0;
  const auto lock = core_.memory.lock();
  for (const PageOp& op : batch.ops) {
    if (op.local_region != region) {
      if (op.local_region >= batch.locals.size()) return kBad;
      region = op.local_region;
      region_bytes = core_.memory.find(batch.locals[region].value)->bytes;
    }
    if (op.remote_region >= batch.remotes.size() ||
        !run_fits(op.local_offset, op.local_stride, op.bytes, op.count, region_bytes) ||
        __builtin_add_overflow(total_bytes, op.total_bytes(), &total_bytes)) {
      return kBad;
    }
  }
  total_bytes -= batch.begin + (last.total_bytes() - end);
  return {};
}

Status TcpLink::post(const Batch& batch) {
  Peer* const peer = peers_.find(batch.peer.value);
  if (peer == nullptr || peer->closing) return {Code::invalid_argument, "post to an unknown peer"};
  if (batch.note.size() > kNoteBytesMax ||
      (!batch.note.empty() && batch.direction != Direction::write)) {
    return {Code::invalid_argument, "a note is at most 32 bytes, of a write"};
  }
  if (core_.inflight >= device_.limits.batches_inflight_max) {
    return {Code::exhausted, "too many batches in flight"};
  }
  KVL_TRY(core_.memory.hold(batch.locals));
  std::uint64_t total_bytes = 0;
  if (Status status = check(batch, total_bytes); !status.ok()) {
    core_.memory.release(batch.locals);
    return status;
  }
  const auto [id, b] = core_.batches.insert();
  *b = OutBatch{};
  b->batch = batch;
  b->batch.note = {};
  b->id = id;
  b->note_bytes = static_cast<std::uint8_t>(batch.note.size());
  std::copy(batch.note.begin(), batch.note.end(), b->note.begin());
  b->total_bytes = total_bytes;
  b->cursor = b->landing = RunCursor(batch.ops, batch.begin, batch.end);
  ++core_.inflight;
  if (batch.after.ready()) {
    peer->fifo.push(*b);
    dispatch(*peer);
  } else {
    waiting_token_.push(*b);
  }
  return {};
}

Status TcpLink::cancel(Ticket ticket) {
  OutBatch* found = nullptr;
  core_.batches.for_each([&](std::uint64_t, OutBatch& b) {
    if (b.batch.ticket == ticket) found = &b;
  });
  if (found == nullptr) return {Code::not_found, "no such batch in flight"};
  Peer* const peer = peers_.find(found->batch.peer.value);
  if (found->list == &waiting_token_ || found->list == &peer->fifo) {
    core_.finish(*found, Code::aborted);
  } else if (found->list == &peer->fenced || peer->closing) {
    found->cancelled = true;
  } else if (Lane* const lane = peer->lanes[found->lane].lane) {
    lane->cancel(*found);
    if (lane->wants_service()) list_lane(*lane);
  }
  return {};
}

void TcpLink::release_tokens() {
  for (OutBatch* b = waiting_token_.first; b != nullptr;) {
    OutBatch* const next = b->next;
    if (b->batch.after.ready()) {
      BatchList::remove(*b);
      Peer& peer = *peers_.find(b->batch.peer.value);
      peer.fifo.push(*b);
      dispatch(peer);
    }
    b = next;
  }
}

// Gives batches to the least loaded lanes.
void TcpLink::dispatch(Peer& peer) {
  if (peer.closing) return;
  while (OutBatch* const b = peer.fifo.first) {
    Lane* best = nullptr;
    for (const LaneSlot& slot : peer.lanes) {
      if (slot.lane == nullptr || slot.lane->phase != Lane::Phase::open) continue;
      if (best == nullptr || slot.lane->load() < best->load()) best = slot.lane;
    }
    if (best == nullptr || (best->load() > 0 && best->load() + b->total_bytes > kLaneLoadMax)) {
      return;
    }
    BatchList::remove(*b);
    b->lane = best->index;
    b->incarnation = best->incarnation;
    best->assign(*b);
    list_lane(*best);
  }
}

void TcpLink::list_lane(Lane& lane) {
  if (lane.listed) return;
  lane.listed = true;
  active_.push(lane.id());
}

void TcpLink::serve_lanes() {
  const std::size_t count = std::min(active_.size(), kLanesPerPoll);
  if (count == 0) return;
  const std::uint64_t bytes_max =
      std::max(static_cast<std::uint64_t>(config_.poll_bytes) / count, kLaneBytesMin);
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint64_t id = active_.front();
    active_.pop();
    std::unique_ptr<Lane>* const held = lanes_.find(id);
    if (held == nullptr) continue;
    Lane& lane = **held;
    lane.listed = false;
    if (lane.phase != Lane::Phase::open) continue;
    const std::uint64_t refused = core_.counters.runs_refused.value();
    Status status = lane.service(bytes_max);
    if (core_.counters.runs_refused.value() != refused) tell_refused_run(lane);
    if (!status.ok()) {
      lane_lost(lane, status, true);
      continue;
    }
    if (lane.wants_service()) list_lane(lane);
    if (Peer* const peer = peers_.find(lane.peer); !peer->fifo.empty()) dispatch(*peer);
  }
}

// An owner that polls instead of sleeping: the next bytes come most likely on the lane that had the
// last ones, and reading from it is one system call instead of epoll's and then that. True: it had
// some, or epoll's turn has not come.
bool TcpLink::serve_recent_lane() {
  if (recent_misses_ >= kRecentMissesMax) return false;
  std::unique_ptr<Lane>* const held = lanes_.find(recent_lane_);
  if (held == nullptr || (*held)->phase != Lane::Phase::open) {
    recent_misses_ = kRecentMissesMax;
    return false;
  }
  const std::uint64_t before = core_.counters.bytes_received.value();
  (*held)->on_ready(true, false, false);
  list_lane(**held);
  serve_lanes();
  if (core_.counters.bytes_received.value() != before) {
    recent_misses_ = 0;
    return true;
  }
  return ++recent_misses_ % kRecentTurns != 0;
}

void TcpLink::take_ready() {
  std::array<epoll_event, 64> ready;
  const int count = ::epoll_wait(epoll_.get(), ready.data(), static_cast<int>(ready.size()), 0);
  for (int i = 0; i < count; ++i) {
    const epoll_event& event = ready[static_cast<std::size_t>(i)];
    if (event.data.u64 == kListenerTag) {
      accept_lanes();
      continue;
    }
    if (event.data.u64 == kCarrierTag) {
      if (carrier_->lost()) carrier_lost();
      continue;
    }
    std::unique_ptr<Lane>* const held = lanes_.find(event.data.u64);
    if (held == nullptr) continue;  // closed by an earlier event of this round
    Lane& lane = **held;
    const bool hung_up = (event.events & (EPOLLRDHUP | EPOLLHUP)) != 0 ||
                         ((event.events & EPOLLERR) != 0 &&
                          !(lane.phase == Lane::Phase::open && lane.take_notices()));
    const bool readable = (event.events & EPOLLIN) != 0;
    const bool writable = (event.events & EPOLLOUT) != 0;
    if (readable) {
      recent_lane_ = event.data.u64;
      recent_misses_ = 0;
    }
    lane.on_ready(readable, writable, hung_up);
    if (lane.phase == Lane::Phase::open) {
      if (lane.wants_service()) list_lane(lane);
    } else if (lane.phase != Lane::Phase::closed) {
      on_greeting_ready(lane);
    }
  }
}

std::size_t TcpLink::hand_out(std::span<Event> events) {
  const std::size_t count = std::min(events.size(), core_.events.size());
  for (std::size_t i = 0; i < count; ++i) {
    events[i] = core_.events[i];
    if (events[i].kind == Event::Kind::batch) --core_.inflight;
  }
  core_.events.pop(count);
  return count;
}

std::size_t TcpLink::poll(std::span<Event> events) {
  if (core_.copies > 0) context_.memory_ops.poll();
  if (!waiting_token_.empty()) release_tokens();
  // What the owner has posted leaves before we ask what has arrived; with nothing to do, what has
  // arrived is served and handed out by this very call.
  const bool idle = active_.empty();
  serve_lanes();
  if (!idle || !serve_recent_lane()) {
    take_ready();
    if (idle) serve_lanes();
  }
  if (!settling_.empty()) settle_lanes();
  if (timer_ns_ != INT64_MAX && now() >= timer_ns_) run_timers();
  return hand_out(events);
}

bool TcpLink::arm() {
  if (!core_.events.empty() || !active_.empty() || !settling_.empty()) return false;
  for (const OutBatch* b = waiting_token_.first; b != nullptr; b = b->next) {
    if (b->batch.after.ready()) return false;
  }
  return true;
}

std::int64_t TcpLink::next_timer_ns() const {
  // A flag in memory wakes nobody.
  return waiting_token_.empty() ? timer_ns_ : std::min(timer_ns_, now() + kTokenPollNs);
}

int TcpLink::lane_fd(PeerId id, std::size_t index) {
  const Peer* const peer = peers_.find(id.value);
  if (peer == nullptr || index >= peer->lanes.size()) return -1;
  const Lane* const lane = peer->lanes[index].lane;
  return lane != nullptr && lane->phase == Lane::Phase::open ? lane->fd() : -1;
}

void TcpLink::visit_metrics(MetricVisitor& visitor, const MetricLabels& labels) const {
  const Counters& c = core_.counters;
  LabelledMetrics metrics(visitor, labels);
  const auto by_fault = [&](std::string_view name, std::string_view help,
                            const CountByFault& counters) {
    for (std::size_t i = 0; i < counters.size(); ++i) {
      metrics.by_cause(name, help, about(static_cast<LaneFault>(i)).cause, counters[i]);
    }
  };
  metrics.count("kvlane_tcp_sent_bytes_total", "Bytes handed to data lanes", c.bytes_sent);
  metrics.count("kvlane_tcp_received_bytes_total", "Bytes taken from data lanes", c.bytes_received);
  metrics.count("kvlane_tcp_send_calls_total", "sendmsg calls", c.send_calls);
  metrics.count("kvlane_tcp_receive_calls_total", "recv and readv calls", c.receive_calls);
  metrics.count("kvlane_tcp_sent_frames_total", "Frames sent", c.frames_sent);
  metrics.count("kvlane_tcp_received_frames_total", "Frames received", c.frames_received);
  metrics.count("kvlane_tcp_batches_ok_total", "Batches that were done", c.batches_ok);
  metrics.by_code("kvlane_tcp_batches_failed_total", "Batches that failed, by cause",
                  Code::unavailable, c.batches_failed);
  metrics.count("kvlane_tcp_refused_runs_total",
                "Runs of peers that named memory not theirs to touch", c.runs_refused);
  metrics.count("kvlane_tcp_malformed_frames_total", "Lanes closed because of what arrived on them",
                c.frames_malformed);
  by_fault("kvlane_tcp_refused_greetings_total",
           "Connections to the data port that did not become a lane, by cause",
           c.greetings_refused);
  by_fault("kvlane_tcp_failed_dials_total", "Attempts to open a lane that failed, by cause",
           c.dials_failed);
  metrics.count("kvlane_tcp_refused_records_total",
                "Encrypted lanes closed because a record was changed, repeated or lost",
                c.records_refused);
  metrics.count("kvlane_tcp_opened_lanes_total", "Lanes that came up", c.lanes_opened);
  metrics.by_code("kvlane_tcp_lost_lanes_total", "Lanes that died, by cause", Code::peer_lost,
                  c.lanes_lost);
  metrics.count("kvlane_tcp_staging_copies_total", "Copies through bounce buffers", c.copies);
  metrics.count("kvlane_tcp_zerocopy_notices_total", "MSG_ZEROCOPY sends that are over",
                c.zerocopy_notices);
}

}  // namespace kvl::tcp
