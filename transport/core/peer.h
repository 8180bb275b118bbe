// What the engine knows of one peer: its control connection, its rails, its memories. Guarded by
// EngineImpl's mutex.
#pragma once

#include <bitset>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "transport/base/unique_fd.h"
#include "transport/core/auth.h"
#include "transport/core/control_net.h"
#include "transport/core/handshake.h"

namespace kvl {

// Pauses between attempts to open a pair, and to dial a peer, double up to the longest.
inline constexpr std::int64_t kPairBackoffNs = 50'000'000;
inline constexpr std::int64_t kBackoffMaxNs = 5'000'000'000;

// One rail of ours joined with one of the peer's.
struct Pair {
  enum class State : std::uint8_t {
    closed,   // nothing; the dialer opens it at retry_ns
    opening,  // offers under way, or waiting for the Link's peer_up
    up,
    closing,  // our Link has closed it; the other side's rail_closed is awaited
  };
  std::uint16_t dialer_rail = 0, listener_rail = 0;
  std::uint16_t rail = 0;  // ours of the two
  int rank = 0;            // of its transport
  State state = State::closed;
  std::uint32_t incarnation = 0;
  std::uint32_t remote_closed = 0;  // newest incarnation that the peer has proven closed
  PeerId link_peer;                 // 0: the Link has none
  std::uint32_t inflight = 0;
  bool queued = false;             // in its rail's ready list
  bool deferred = false;           // left a piece to a rail that would be sooner done with it
  bool resolved = false;           // has been up or refused once
  bool on_rail = false;            // our Link is just opening it
  bool fenced = true;              // our Link has shut the peer out of the last incarnation
  std::uint32_t ended = 0;         // pieces, since it came up
  std::uint32_t ended_before = 0;  // … when it was last looked at
  std::int64_t still_ns = 0;       // since when none has ended though one could; 0: one has
  std::int64_t retry_ns = 0;
  std::int64_t backoff_ns = 0;
  Code code = Code::ok;  // why it is not up
  std::string reason;
};

struct PeerMemory {
  enum class State : std::uint8_t { pending, ready, refused };
  struct Way {
    State state = State::pending;
    RemoteId id;
  };
  std::vector<Way> ways;  // by pair index
};

// Remembers which notes have been shown, so that a note posted twice is shown once. Sequences are
// dense and at most transfers_max apart.
class NoteWindow {
 public:
  bool first_time(std::uint64_t sequence) {
    if (sequence + kSize <= newest_) return false;
    if (seen_ == nullptr) seen_ = std::make_unique<std::bitset<kSize>>();
    while (newest_ < sequence) {
      if (sequence - newest_ > kSize) newest_ = sequence - kSize;
      seen_->reset(++newest_ % kSize);
    }
    if (seen_->test(sequence % kSize)) return false;
    seen_->set(sequence % kSize);
    return true;
  }

 private:
  static constexpr std::uint64_t kSize = 16384;
  std::unique_ptr<std::bitset<kSize>> seen_;  // 2 KiB that most peers never need
  std::uint64_t newest_ = 0;
};

// A posted write that ended without proof that its bytes cannot land any more.
struct Unproven {
  std::uint16_t pair;
  std::uint32_t incarnation;
};

// A transfer that ended quarantined while its peer lived: the proof may still come.
struct LateProof {
  std::uint64_t transfer = 0, user = 0;
  std::vector<Unproven> unproven;
};

struct Peer {
  enum class State : std::uint8_t {
    waiting,     // dialer: until retry_ns
    connecting,  // control connection under way, or hello awaited
    opening,     // pairs of rails under way
    up,
    closing,  // our Links are letting go; then waiting, or gone
  };
  std::uint64_t id = 0;
  std::string address;
  bool dialer = false;
  bool leaving = false;  // disconnect(): forget it when closed
  State state = State::waiting;
  bool announced = false;  // the user has seen peer_up
  Code down_code = Code::peer_lost;
  const char* down_why = "no answer yet";
  ConnId conn;
  control::Hello remote;
  std::optional<auth::SessionKeys> keys;  // of an authenticated connection
  UniqueFd process;                       // pidfd of the peer's process, where we share its host
  std::vector<Pair> pairs;
  std::unordered_map<std::uint64_t, PeerMemory> memories;
  std::vector<std::uint64_t> transfers;  // live ones, oldest first
  std::vector<LateProof> late;
  std::uint64_t version = 1;  // grows when pairs or memories change
  std::uint64_t note_next = 0;
  NoteWindow notes;
  std::int64_t heard_ns = 0, sent_ns = 0;
  std::int64_t deadline_ns = 0;  // of connecting or opening
  std::int64_t retry_ns = 0, backoff_ns = 0;
  std::int64_t notice_ns = INT64_MAX;  // when the user hears that connect() has not worked
  std::uint32_t links_open = 0;        // link peers that exist
  int path_rank = INT32_MAX;           // of the best transport while up, as it was last told
  std::string path;                    // … and its name
  std::int64_t worse_ns = 0;           // since when only worse ones are up; 0: they are not
};

}  // namespace kvl
