// The two state machines of a handoff: states, and which may follow which.
#pragma once

#include <cassert>
#include <cstdint>
#include <string_view>

namespace kvl::handoff {

// One rank's part in sending a room.
enum class PrefillState : std::uint8_t {
  opened,     // not every decode rank has named its pages
  accepted,   // all have; nothing has moved
  moving,     // at least one segment is on its way
  committed,  // every decode rank has said that it committed. Terminal
  failed,     // terminal; the room stays until nothing can touch its pages
};

// One rank's part in receiving a room.
enum class DecodeState : std::uint8_t {
  opened,     // not every source has offered
  accepted,   // all have; nothing has arrived
  moving,     // at least one segment was announced
  complete,   // everything of every source is here and checked: voted
  deciding,   // lead only: the group was told to commit and is saying that it did
  committed,  // terminal
  failed,     // terminal; the room stays until nothing can touch its pages
};

constexpr bool may_follow(PrefillState from, PrefillState to) {
  using S = PrefillState;
  switch (from) {
    case S::opened:
      return to == S::accepted || to == S::moving || to == S::failed;
    case S::accepted:
      return to == S::moving || to == S::committed || to == S::failed;
    case S::moving:
      return to == S::committed || to == S::failed;
    case S::committed:
    case S::failed:
      return false;
  }
  return false;
}

constexpr bool may_follow(DecodeState from, DecodeState to) {
  using S = DecodeState;
  switch (from) {
    case S::opened:
      return to == S::accepted || to == S::moving || to == S::complete || to == S::failed;
    case S::accepted:
      return to == S::moving || to == S::complete || to == S::failed;
    case S::moving:
      return to == S::complete || to == S::failed;
    case S::complete:
      return to == S::deciding || to == S::committed || to == S::failed;
    case S::deciding:
      return to == S::committed || to == S::failed;
    case S::committed:
    case S::failed:
      return false;
  }
  return false;
}

template <typename State>
constexpr bool ended(State state) {
  return state == State::committed || state == State::failed;
}

template <typename State>
void advance(State& state, State to) {
  assert(may_follow(state, to));
  state = to;
}

constexpr std::string_view to_string(PrefillState state) {
  switch (state) {
    case PrefillState::opened:
      return "opened";
    case PrefillState::accepted:
      return "accepted";
    case PrefillState::moving:
      return "moving";
    case PrefillState::committed:
      return "committed";
    case PrefillState::failed:
      return "failed";
  }
  return "unknown";
}

constexpr std::string_view to_string(DecodeState state) {
  switch (state) {
    case DecodeState::opened:
      return "opened";
    case DecodeState::accepted:
      return "accepted";
    case DecodeState::moving:
      return "moving";
    case DecodeState::complete:
      return "complete";
    case DecodeState::deciding:
      return "deciding";
    case DecodeState::committed:
      return "committed";
    case DecodeState::failed:
      return "failed";
  }
  return "unknown";
}

}  // namespace kvl::handoff
