// Batches: taken, checked, run in turns, delivered; and when the owner may sleep.
#include "transport/ucx/ucx_link.h"

#include <algorithm>

#include "kvl/log.h"

namespace kvl::ucx {
namespace {

constexpr std::uint32_t kPostsPerPoll = 32;
// What waits in UCX is copied by whichever poll() finds room for it: that must stay little.
constexpr std::int64_t kCopiesInflight = 1 << 20;
constexpr std::int64_t kWatchNs = 1'000'000;      // what wakes nobody is looked at this often
constexpr std::int64_t kProgressNs = 10'000'000;  // UCX progresses in our calls
constexpr std::size_t kAlign = 64;

}  // namespace

UcxLink::UcxLink(const FoundDevice& found, const UcxConfig& config, const LinkContext& context,
                 std::unique_ptr<Worker> worker)
    : found_(found),
      config_(config),
      context_(context),
      copies_(found.lanes.emulated),
      inflight_bytes_max_(static_cast<std::uint64_t>(
          copies_ ? std::min(kCopiesInflight, config.inflight_bytes) : config.inflight_bytes)),
      worker_(std::move(worker)),
      operations_(static_cast<std::uint32_t>(config.tx_depth)),
      batches_(static_cast<std::uint32_t>(config.batches_inflight_max)),
      peers_up_("kvlane_ucx_peers_up_total",
                "Peers that came up, by what UCX chose for their pages", {"emulated"}, {"chosen"}) {
}

Result<std::unique_ptr<Link>> UcxLink::open(const UcxApi& api, const FoundDevice& found,
                                            const UcxConfig& config, const LinkContext& context) {
  auto worker =
      Worker::open(api, found.transports, net_devices_of(found, config, context), config.log_level,
                   found.lanes.emulated ? Use::messages : Use::remote_memory);
  if (!worker.ok()) return worker.status();
  std::unique_ptr<UcxLink> link(new UcxLink(found, config, context, std::move(*worker)));
  KVL_TRY(link->prepare());
  return std::unique_ptr<Link>(std::move(link));
}

Status UcxLink::prepare() {
  // UCX wants its part of a request before the address that it is given.
  request_stride_ = (worker_->request_bytes() + kAlign - 1) / kAlign * kAlign;
  requests_.resize(request_stride_ * operations_.size() + kAlign);
  const auto address = reinterpret_cast<std::uintptr_t>(requests_.data());
  first_request_ = requests_.data() + (kAlign - address % kAlign) % kAlign + request_stride_;
  messages_.resize(operations_.size());
  headers_.resize(operations_.size());
  arrived_.resize(static_cast<std::size_t>(config_.rx_depth));
  ucp_am_handler_param_t params{};
  params.field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_CB |
                      UCP_AM_HANDLER_PARAM_FIELD_ARG;
  params.id = kMessageId;
  params.cb = on_message;
  params.arg = this;
  ucs_status_t status = api().worker_set_am_recv_handler(worker_->worker(), &params);
  if (status == UCS_OK && copies_) {
    params.id = kRunId;
    params.cb = on_run;
    status = api().worker_set_am_recv_handler(worker_->worker(), &params);
  }
  if (status != UCS_OK) return {Code::unavailable, "receive messages with UCX"};
  const std::uint32_t version = api().version();
  if (found_.lanes.emulated) {
    log(LogLevel::warning, "ucx.emulated",
        {{"device", found_.device.name},
         {"chosen", found_.lanes.pages},
         {"code", to_string(Code::unsupported)},
         {"hint",
          "UCX has no remote memory access there: CPUs copy, and kvlane's own tcp may be as fast; "
          "who reaches UCX's tcp port can write this process's memory: only among trusted hosts"}});
  }
  log(LogLevel::info, "ucx.opened",
      {{"device", found_.device.name},
       {"chosen", found_.lanes.pages},
       {"version", std::to_string(version >> UCP_VERSION_MAJOR_SHIFT) + "." +
                       std::to_string((version >> UCP_VERSION_MINOR_SHIFT) & 0xFF)},
       {"operations", operations_.size()},
       {"wakes", wait_fd() >= 0 ? "yes" : "no"}});
  return {};
}

Peer* UcxLink::find_peer(PeerId id) {
  std::unique_ptr<Peer>* const peer = peers_.find(id.value);
  return peer == nullptr ? nullptr : peer->get();
}

Status UcxLink::post(const Batch& batch) {
  Peer* const peer = find_peer(batch.peer);
  if (peer == nullptr || peer->closed_here) return {Code::invalid_argument, "stale peer"};
  if (batches_.full()) return {Code::exhausted, "batches in flight"};
  const bool moves = !batch.ops.empty();
  if (moves) KVL_TRY(memory_.hold(batch.locals));
  if (const Status status = remotes_.check(batch, memory_, peer->owner()); !status.ok()) {
    if (moves) memory_.release(batch.locals);
    return status;
  }
  if (moves) remotes_.hold(batch.remotes);
  const std::uint32_t index = batches_.take(batch, peer->queue);
  batches_[index].cookie = ++cookies_ << kSlotBits | index;
  ++peer->batches_open;
  if (peer->state == PeerState::closing) finish(*peer, index, peer->down_code);
  return {};
}

Status UcxLink::cancel(Ticket ticket) {
  const std::uint32_t i = batches_.find(ticket);
  if (i == kNoSlot) return {Code::not_found, "no such batch in flight"};
  BatchSlot& slot = batches_[i];
  Peer* const peer = find_peer(slot.batch.peer);
  if (peer == nullptr || slot.ending) return {};            // its event is on its way
  if (slot.all_posted() && slot.operations > 0) return {};  // … as soon as UCX is done
  fail_batch(*peer, slot, Code::aborted);
  if (slot.quiet()) finish(*peer, i, slot.code);
  return {};
}

// Nothing touches the batch's memory any more: only its event is left.
void UcxLink::finish(Peer& peer, std::uint32_t index, Code code) {
  batches_.finish(index, peer.queue, code);
  BatchSlot& slot = batches_[index];
  slot.finished = true;
  if (slot.batch.ops.empty()) return;
  remotes_.release(slot.batch.remotes);
  memory_.release(slot.batch.locals);
}

bool UcxLink::runnable(const Peer& peer, BatchSlot& slot) {
  if (peer.state != PeerState::up) return false;
  if (slot.ending) return slot.quiet() || slot.wants_flush();
  slot.started = slot.started || slot.batch.after.ready();
  if (!slot.started) return false;
  if (slot.cursor.done()) return slot.quiet() || slot.wants_flush();
  return !full(peer, slot);
}

void UcxLink::run_peers(EventSink& sink) {
  const std::int64_t now_ns = context_.clock.now_ns();
  std::uint32_t budget = kPostsPerPoll, answers = kPostsPerPoll;
  for (std::size_t i = 0; i < order_.size(); ++i) {
    Peer& peer = *order_[(turn_ + i) % order_.size()];
    if (peer.failure != UCS_OK) lose(peer, classify(peer.failure), peer.failure);
    if (peer.flooded) lose(peer, Fault::flooded, UCS_ERR_NO_RESOURCE);
    if (peer.state == PeerState::up && !peer.up_announced) announce_up(peer, sink);
    if (peer.accepted && peer.hello_ns <= now_ns) greet(peer, now_ns);
    while (peer.state == PeerState::up && !peer.owed.empty() &&
           post_message(peer, peer.owed.front().type, peer.owed.front().value) == Posted::yes) {
      peer.owed.pop_front();
    }
    if (peer.state == PeerState::up && !peer.answers.empty()) answer(peer, answers);
    if (peer.state == PeerState::up && peer.up_announced && !peer.queue.empty()) {
      run_batches(peer, budget);
    }
    if (peer.state == PeerState::up && peer.probe_ns <= now_ns) probe(peer, now_ns);
    if (peer.state == PeerState::connecting && peer.deadline_ns <= now_ns) {
      log(LogLevel::info, "ucx.no_hello",
          {{"device", found_.device.name},
           {"code", to_string(Code::timed_out)},
           {"hint",
            "the peer's process does not poll, or no packet passes between the two devices: "
            "kvlane doctor PEER"}});
      begin_close(peer, Code::timed_out);
    }
  }
  if (!order_.empty()) turn_ = (turn_ + 1) % order_.size();
}

void UcxLink::deliver_batches(EventSink& sink) {
  batches_.deliver(sink, [this](PeerId id) {
    if (Peer* const peer = find_peer(id)) --peer->batches_open;
  });
}

std::size_t UcxLink::poll(std::span<Event> events) {
  EventSink sink{events};
  stalled_ = false;
  progress();
  drain_completions();
  take_messages(sink);
  if (memory_.has_forgotten()) queue_forgotten();
  run_peers(sink);
  deliver_batches(sink);
  if (unsettled_ > 0) {
    const std::int64_t now_ns = context_.clock.now_ns();
    for (std::size_t i = order_.size(); i-- > 0;) {
      if (order_[i]->state == PeerState::closing) step_closing(*order_[i], now_ns, sink);
    }
  }
  return sink.count;
}

bool UcxLink::arm() {
  if (batches_.any_finished() || arrived_count_ > 0 || !completed_.empty() ||
      memory_.has_forgotten()) {
    return false;
  }
  for (Peer* const peer : order_) {
    if ((peer->failure != UCS_OK || peer->flooded) && peer->state != PeerState::closing) {
      return false;
    }
    if (peer->state == PeerState::up && !peer->up_announced) return false;
    if (peer->state == PeerState::closing && peer->ep == nullptr && peer->operations == 0) {
      return false;
    }
    if (stalled_) continue;  // next_timer_ns() sees to it
    if (peer->state == PeerState::up && (!peer->owed.empty() || answerable(*peer))) return false;
    for (std::uint32_t b = peer->queue.head; b != kNoSlot; b = batches_[b].next) {
      if (runnable(*peer, batches_[b])) return false;
    }
  }
  return !busy_ && (wait_fd() < 0 || worker_->may_wait());
}

std::int64_t UcxLink::next_timer_ns() const {
  const std::int64_t now_ns = context_.clock.now_ns();
  // A ReadyToken is a word in memory that wakes nobody; nor does every transport of UCX.
  if (wait_fd() < 0 || stalled_) return now_ns + kWatchNs;
  std::int64_t next = batches_.queued() > 0 ? now_ns + kWatchNs : INT64_MAX;
  if (under_way_ > 0) next = std::min(next, now_ns + kProgressNs);
  for (const Peer* peer : order_) {
    next = std::min({next, peer->deadline_ns, peer->hello_ns, peer->probe_ns});
    if (peer->state == PeerState::closing) next = std::min(next, now_ns + kWatchNs);
  }
  return next;
}

}  // namespace kvl::ucx
