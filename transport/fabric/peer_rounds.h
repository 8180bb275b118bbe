// Which peers a poll looks at: all of them when something happened or a timer is due, else those
// that have batches. With a thousand peers most polls then look at a few.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace kvl {

// One Link's; its owner's thread. Peer has `queue`, a SlotList, and `in_rounds`, which is ours.
template <typename Peer>
class PeerRounds {
 public:
  const std::vector<Peer*>& peers() const { return peers_; }  // the oldest first
  void add(Peer& peer) {
    peers_.push_back(&peer);
    busy_.reserve(peers_.capacity());
  }
  void remove(Peer& peer) {
    std::erase(peers_, &peer);
    std::erase(busy_, &peer);
  }
  // Anything may have changed: the next round is one over all.
  void all() { next_ns_ = 0; }
  // It has a batch.
  void work(Peer& peer) {
    if (peer.in_rounds) return;
    peer.in_rounds = true;
    busy_.push_back(&peer);
  }

  // look(peer) at each in turn; due(peer) says when it wants to be looked at again though it has no
  // batch: 0 at once. Neither adds nor removes peers.
  template <typename Look, typename Due>
  void run(std::int64_t now_ns, Look look, Due due) {
    const bool everyone = next_ns_ <= now_ns;
    if (everyone) next_ns_ = INT64_MAX;
    const std::vector<Peer*>& round = everyone ? peers_ : busy_;
    const std::size_t first = round.empty() ? 0 : turn_++ % round.size();
    for (std::size_t i = 0; i < round.size(); ++i) {
      Peer& peer = *round[first + i < round.size() ? first + i : first + i - round.size()];
      look(peer);
      next_ns_ = std::min(next_ns_, due(peer));
    }
    std::erase_if(busy_, [](Peer* peer) {
      if (!peer->queue.empty()) return false;
      peer->in_rounds = false;
      return true;
    });
  }

 private:
  std::vector<Peer*> peers_, busy_;
  std::int64_t next_ns_ = 0;
  std::size_t turn_ = 0;
};

}  // namespace kvl
