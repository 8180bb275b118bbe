// Links that break one promise each. A suite that lets one of them live has no teeth.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>

#include "kvl/transport.h"

namespace kvl::conformance {

enum class Mutation : std::uint8_t {
  none,  // transparent: must pass
  event_twice,
  event_lost,     // every fifth
  event_early,    // shown before the bytes are in place
  byte_too_many,  // behind the last run
  cuts_ignored,
  note_early,  // sent before the bytes
  note_twice,
  note_lost,         // every fifth
  stale_peer_taken,  // post() says ok
  refused_but_done,  // the note of a refused batch is sent
  exhausted_for_ever,
  early_posts_lost,  // those before peer_up
  token_ignored,
  access_ignored,       // at the target
  cancel_is_too_quick,  // event while bytes still move
  close_is_a_pretence,  // peer_down, but the peer goes on writing
  peer_down_lost,
  poll_without_bound,
};

// Name for test names.
std::string_view name_of(Mutation mutation);

std::unique_ptr<Link> make_mutant(Mutation mutation, std::unique_ptr<Link> inner);

}  // namespace kvl::conformance
