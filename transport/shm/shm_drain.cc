// The end of a peer, and of the Link: shut first, then wait for the proof that nobody is inside.
#include <sched.h>

#include <algorithm>

#include "kvl/log.h"
#include "transport/shm/shm_link.h"

namespace kvl::shm {
namespace {

constexpr std::int64_t kFarewellNs = 50'000'000;  // ~ShmLink waits this long for peers at most

}  // namespace

// The end of a peer begins: everything of ours is shut to it, and none of its memory is entered
// again. peer_down follows when both are proven.
void ShmLink::drain(Peer& peer, Code code) {
  peer.own.close();
  if (peer.state == PeerState::draining) return;
  if (code == Code::corrupt) {
    peer.notes_open = false;
    log(LogLevel::warning, "shm.peer_corrupt",
        {{"pid", peer.pid},
         {"code", to_string(code)},
         {"why", "the peer broke the protocol and was closed"},
         {"hint", "run one release in both processes; see the peer's log"}});
  }
  peer.down_code = code;
  peer.deadline_ns = context_.clock.now_ns() + config_.close_timeout_ms * 1'000'000;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    peer.state = PeerState::draining;
    peer.outgoing.clear();
  }
  end_batches(peer, code);
  count_unsettled();
}

void ShmLink::step_draining(Peer& peer, Sink& sink) {
  end_batches(peer, peer.down_code);
  if (peer.windows > 0) return;  // our copies into its memory have yet to end
  if (!peer.goodbye_sent && peer.socket) {
    (void)send_message(peer.socket.get(), Message{.type = MessageType::goodbye});
    peer.goodbye_sent = true;
  }
  if (!peer.drained) {
    peer.drained = !peer.view || peer.goodbye || peer.exited || !peer.view.touches_any() ||
                   (peer.pidfd && process_exited(peer.pidfd.get()));
    if (!peer.drained && context_.clock.now_ns() >= peer.deadline_ns) {
      log(LogLevel::warning, "shm.peer_not_fenced",
          {{"pid", peer.pid},
           {"code", to_string(Code::timed_out)},
           {"why", "it may still write here until its process exits; no memory it had is reused"},
           {"hint", "see why that process stands still, and end it"}});
      count(peers_unfenced_, Code::timed_out);
      peer.down_code = Code::timed_out;
      const std::lock_guard<std::mutex> lock(mutex_);
      unwatch(peer.pidfd.get());
      ghosts_.push_back(Ghost{std::move(peer.view), std::move(peer.pidfd)});
      peer.drained = true;
    }
    if (!peer.drained) return;
  }
  if (peer.up_announced) take_notes(peer, sink);
  const bool notes_left =
      peer.view && peer.notes_open && peer.up_announced &&
      peer.view.page().note_head.load(std::memory_order_acquire) != peer.note_tail;
  if (peer.batches_open > 0 || notes_left || sink.full()) return;
  Event& event = sink.next();
  event.kind = Event::Kind::peer_down;
  event.code = peer.down_code;
  event.peer = peer.id;
  destroy(peer);
}

void ShmLink::destroy(Peer& peer) {
  unwatch(peer.socket.get());
  unwatch(peer.pidfd.get());
  remotes_.for_each([&](std::uint64_t id, RemoteName& name) {
    if (name.peer == peer.id) release_name(id, name);
  });
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::erase(order_, &peer);
    const std::uint64_t id = peer.id.value;
    peers_.find(id)->reset();
    peers_.erase(id);
  }
  count_unsettled();
}

ShmLink::~ShmLink() {
  for (Peer* peer : order_) {
    peer->own.close();
    end_batches(*peer, Code::aborted);
  }
  while (windows_used_ > 0) poll_windows();
  for (Peer* peer : order_) {
    if (peer->socket) (void)send_message(peer->socket.get(), Message{.type = MessageType::goodbye});
  }
  // A peer's slice of copying is short; one that is stopped or dead is not waited for.
  const SteadyClock clock;
  const std::int64_t deadline = clock.now_ns() + kFarewellNs;
  const auto touched = [this] {
    return std::any_of(order_.begin(), order_.end(), [](const Peer* peer) {
      return peer->view && !peer->goodbye && peer->view.touches_any() &&
             !(peer->pidfd && process_exited(peer->pidfd.get()));
    });
  };
  while (touched()) {
    if (clock.now_ns() > deadline) {
      log(LogLevel::warning, "shm.not_quiescent",
          {{"code", to_string(Code::timed_out)},
           {"why", "a peer still copies while its target link is destroyed"},
           {"hint", "see why the other process stands still, and end it before memory is reused"}});
      break;
    }
    ::sched_yield();
  }
}

}  // namespace kvl::shm
