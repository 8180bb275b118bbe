// What the engine remembers of one transfer. Guarded by EngineImpl's mutex.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "kvl/engine.h"
#include "transport/core/peer.h"
#include "transport/core/stripe.h"

namespace kvl {

constexpr RailSet rail_bit(std::size_t rail) { return rail < 64 ? RailSet{1} << rail : 0; }

// queued -> posted -> done; back to queued when a rail was lost.
struct Piece {
  enum class State : std::uint8_t { queued, posted, done };
  PieceRange range;
  State state = State::queued;
  std::uint16_t pair = 0;         // where it is posted: index into Peer::pairs
  std::uint32_t incarnation = 0;  // of that pair
};

// Ids of the regions on one pair of rails, filled when the pair takes its first piece.
struct RegionTable {
  std::vector<MemoryId> locals;
  std::vector<RemoteId> remotes;
  std::uint32_t incarnation = 0;
  bool filled = false;
};

// A slot that is reused: reset() keeps the capacity of the vectors, so that a steady load does not
// allocate.
struct TransferState {
  std::uint64_t id = 0;
  Transfer request;  // spans are the user's until the event
  std::uint8_t note_bytes = 0;
  std::array<std::byte, kNoteBytesMax> note{};
  std::int64_t deadline_ns = 0;
  std::int64_t give_up_ns = 0;  // when ending: after this the pair is closed and we answer
  Code code = Code::ok;         // first error
  bool ending = false;          // nothing more is posted
  bool note_apart = false;      // the note is a piece of its own: the last of `pieces`
  bool pairs_closed = false;    // the hard stop has been used
  bool quarantined = false;
  bool proof_late = false;  // quarantined, for nothing but time
  bool peer_gone = false;   // nobody is left to prove anything
  std::uint32_t done = 0, posted = 0;
  std::uint32_t next = 0;            // first piece never posted
  std::vector<std::uint32_t> again;  // pieces to post again
  std::uint32_t retries = 0;
  std::uint64_t bytes_done = 0;
  std::uint64_t unposted_bytes = 0;  // of the pieces that no rail has
  std::vector<PieceRange> ranges;    // scratch of cut()
  std::vector<Piece> pieces;
  std::vector<RegionTable> tables;  // by pair index
  std::vector<Unproven> unproven;
  std::vector<MemoryHandle> locals, remotes;  // copies: small, and looked up often
  std::uint64_t rank_version = 0;             // of the peer when `rank` was computed
  int rank = -1;                              // transport rank in use; -1: none yet
  RailSet avoid = 0;                          // of the request, while another rail can do it
  RailSet rails = 0;                          // that were given a piece

  void reset() {
    request = Transfer{};
    note_bytes = 0;
    deadline_ns = give_up_ns = 0;
    code = Code::ok;
    ending = note_apart = pairs_closed = quarantined = proof_late = peer_gone = false;
    done = posted = next = retries = 0;
    bytes_done = unposted_bytes = 0;
    rank_version = 0;
    rank = -1;
    avoid = rails = 0;
    again.clear();
    ranges.clear();
    pieces.clear();
    unproven.clear();
    for (RegionTable& table : tables) table.filled = false;
  }
  // Data pieces only wait for nothing; the note waits for all of them and for every proof.
  bool has_work() const {
    if (ending) return false;
    if (!again.empty()) return again.back() != note_index() || note_ready();
    if (next >= pieces.size()) return false;
    return next != note_index() || note_ready();
  }
  bool note_ready() const { return done + 1 == pieces.size() && unproven.empty(); }
  std::uint32_t note_index() const {
    return note_apart ? static_cast<std::uint32_t>(pieces.size()) - 1U : UINT32_MAX;
  }
  bool moved_all() const { return done == pieces.size(); }
};

}  // namespace kvl
