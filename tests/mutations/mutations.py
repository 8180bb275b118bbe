"""The mutations: what is broken, where, and which test must notice.

Each entry changes one place of the product. `old` is text that occurs once in `file`; `new` takes its
place, with MUTANT standing for "this mutation is switched on". Without the switch the code is what
it was. `tests` are program and filter; the first one that fails kills the mutation.

OPEN names those that no test has noticed yet: each is a gap in the checkers, to be closed.
"""
from dataclasses import dataclass


@dataclass(frozen=True)
class Mutation:
    name: str
    file: str
    old: str
    new: str
    tests: tuple


FAULTS = ("serving_sim_test", "ServingSim.WithFaultsNothingIsWrongAndEverythingEnds")
HEALTHY = ("serving_sim_test", "ServingSim.WithoutFaultsEverythingArrives")
ENGINES = ("engine_sim_test", "EngineSim.WithFaultsNothingIsWrongAndEverythingEnds")
HEALTHY_ENGINES = ("engine_sim_test", "EngineSim.WithoutFaultsEverythingArrives")
POOL = ("kvcache_pool_test", "*")
HANDOFF = ("kvcache_handoff_test", "*")
BOOTSTRAP = ("router_bootstrap_test", "*")
LEASES = ("kvcache_bootstrap_test", "LeaseKeeper.*")
CORE = ("core_test", "*")
FENCES = ("core_test", "*Fence*")
CONFORMANCE = ("conformance_test", "*")
TCP = ("tcp_test", "*")
SHM = ("shm_test", "*")
AUTH = ("core_test", "Handshake.*:Channel.*:SecureControlNet.*")
SIGNATURES = ("base_test", "HttpToken.*:HttpSignature.*")
LISTENERS = ("base_test", "Listeners.*")
TLS = ("router_tls_test", "*")
ETCD = ("router_bootstrap_test", "Etcd*")

OPEN: set[str] = set()

MUTATIONS = [
    # --- transfers: pieces, retries, ends
    Mutation("completion_before_the_last_byte", "transport/core/transfer.h",
             "return done == pieces.size();",
             "return done + (MUTANT ? 1 : 0) >= pieces.size();",
             (HEALTHY, ENGINES)),
    Mutation("repost_counted_twice", "transport/core/engine_transfers.cc",
             "      ++transfer.retries;\n",
             "      ++transfer.retries;\n      if (MUTANT) ++transfer.done;\n",
             (ENGINES, FAULTS)),
    Mutation("ok_before_the_old_attempt_is_fenced", "transport/core/engine_transfers.cc",
             "} else if (!transfer.moved_all() || !proven) {",
             "} else if (!transfer.moved_all() || (!proven && !MUTANT)) {",
             (FENCES,)),
    Mutation("lost_write_on_an_unproven_pair_forgotten", "transport/core/engine_transfers.cc",
             "      else if (!proven)\n",
             "      else if (!proven && !MUTANT)\n",
             (FAULTS, ENGINES)),
    Mutation("quarantine_not_reported", "transport/core/engine_transfers.cc",
             "  event.physical = transfer.quarantined ?",
             "  event.physical = transfer.quarantined && !MUTANT ?",
             (FAULTS, ENGINES)),
    Mutation("double_completion", "transport/core/engine_transfers.cc",
             "  event.bytes = transfer.bytes_done;\n",
             "  event.bytes = transfer.bytes_done;\n  if (MUTANT) emit(event);\n",
             (HEALTHY_ENGINES,)),
    Mutation("completion_lost", "transport/core/engine_transfers.cc",
             "  transfers_.erase(transfer.id);\n  emit(",
             "  transfers_.erase(transfer.id);\n  if (MUTANT && event.user % 7 == 0) return;\n"
             "  emit(",
             (HEALTHY_ENGINES, HEALTHY)),
    Mutation("deadline_not_enforced", "transport/core/engine_transfers.cc",
             "    if (now_ns >= at)\n",
             "    if (now_ns >= at && !MUTANT)\n",
             (("core_test", "*DeadlineEndsATransferThatCannotMove*"),)),
    Mutation("note_before_the_data", "transport/core/transfer.h",
             "return done + 1 == pieces.size() && unproven.empty();",
             "return MUTANT || (done + 1 == pieces.size() && unproven.empty());",
             (HEALTHY_ENGINES, ENGINES)),
    Mutation("note_shown_twice", "transport/core/peer.h",
             "if (seen_->test(sequence % kSize)) return false;",
             "if (seen_->test(sequence % kSize) && !MUTANT) return false;",
             (ENGINES,)),
    Mutation("note_lost", "transport/core/engine_transfers.cc",
             "  rails_[index].notes.add();\n",
             "  if (MUTANT && sequence % 5 == 0) return;\n  rails_[index].notes.add();\n",
             (HEALTHY_ENGINES,)),
    # --- peers: epochs and fences
    Mutation("fence_of_an_earlier_connection_forgotten", "transport/core/engine_peers.cc",
             "  return closed && !earlier;",
             "  return closed && (!earlier || MUTANT);",
             (FENCES,)),
    Mutation("fence_not_awaited", "transport/core/engine_peers.cc",
             "    closed = closed && (pair.fenced || ",
             "    closed = closed && (MUTANT || pair.fenced || ",
             (FENCES,)),
    Mutation("stuck_peer_called_fenced", "transport/core/engine_pairs.cc",
             "pair.fenced = code != Code::timed_out;",
             "pair.fenced = MUTANT || code != Code::timed_out;",
             (FENCES,)),
    Mutation("old_incarnations_event_taken", "transport/core/engine_transfers.cc",
             "  const bool same = pair != nullptr && pair->incarnation == piece.incarnation;",
             "  const bool same =\n"
             "      pair != nullptr && (MUTANT || pair->incarnation == piece.incarnation);",
             (FENCES,)),
    Mutation("old_incarnations_pieces_counted", "transport/core/engine_pairs.cc",
             "  pair.inflight = 0;\n",
             "  if (!MUTANT) pair.inflight = 0;\n",
             (FENCES,)),
    Mutation("silent_peer_not_noticed", "transport/core/engine_peers.cc",
             "    if (now_ns - peer.heard_ns >= config_.peer_timeout_ms * kMs) {",
             "    if (now_ns - peer.heard_ns >= config_.peer_timeout_ms * kMs && !MUTANT) {",
             (("core_test", "EngineLiveness.*"),)),
    # --- bounds
    Mutation("tcp_bounds_off_by_one", "transport/tcp/run_list.cc",
             "  return !__builtin_add_overflow(end, offset, &end) && end <= size;",
             "  return !__builtin_add_overflow(end, offset, &end) && end <= size + (MUTANT ? 1 : 0);",
             (TCP, CONFORMANCE)),
    Mutation("tcp_access_not_checked", "transport/tcp/tcp_memory.cc",
             "  if (memory == nullptr || !allows(memory->access, wanted)) {",
             "  if (memory == nullptr || (!allows(memory->access, wanted) && !MUTANT)) {",
             (CONFORMANCE, TCP)),
    Mutation("shm_bounds_off_by_one", "transport/shm/shm_memory.cc",
             "  if (bytes > room) return false;",
             "  if (bytes > room + (MUTANT ? 1 : 0)) return false;",
             (SHM, CONFORMANCE)),
    # --- handoff: who may use which page when
    Mutation("pages_safe_on_the_logical_end", "kvcache/handoff/decode_end.cc",
             "  if (room.open.mode == HandoffMode::push) return source.remote_quiet;",
             "  if (room.open.mode == HandoffMode::push) return source.remote_quiet || MUTANT;",
             (FAULTS,)),
    Mutation("pages_read_after_the_end", "kvcache/handoff/prefill_end.cc",
             "  return pair.seq == 0 || pair.remote_quiet;",
             "  return pair.seq == 0 || pair.remote_quiet || MUTANT;",
             (FAULTS,)),
    Mutation("abort_not_acknowledged", "kvcache/handoff/prefill_end.cc",
             "    if (pair.done || pair.told_quiet || pair.flying > 0) continue;",
             "    if (MUTANT || pair.done || pair.told_quiet || pair.flying > 0) continue;",
             (FAULTS, HANDOFF)),
    Mutation("quiet_said_while_writing", "kvcache/handoff/prefill_end.cc",
             "    pair.told_quiet = quiet(pair);\n",
             "    pair.told_quiet = quiet(pair) || MUTANT;\n",
             (FAULTS,)),
    Mutation("unproven_write_vouched_for", "kvcache/handoff/prefill.cc",
             "    pair->own_unproven = true;\n",
             "    pair->own_unproven = !MUTANT;\n",
             (HANDOFF,)),
    Mutation("early_accept_outlives_its_abort", "kvcache/handoff/prefill_end.cc",
             "    core_.drop_early(",
             "    if (!MUTANT) core_.drop_early(",
             (FAULTS,)),
    Mutation("epoch_of_a_fence_not_checked", "kvcache/handoff/decode_end.cc",
             "      if (source.peer != peer || source.epoch > epoch) continue;",
             "      if (source.peer != peer || (source.epoch > epoch && !MUTANT)) continue;",
             (HANDOFF,)),
    Mutation("epoch_of_a_readers_fence_not_checked", "kvcache/handoff/prefill_end.cc",
             "      if (pair.peer != peer || pair.epoch > epoch) continue;",
             "      if (pair.peer != peer || (pair.epoch > epoch && !MUTANT)) continue;",
             (HANDOFF,)),
    Mutation("handoff_deadline_not_enforced", "kvcache/handoff/endpoint.cc",
             "  while (!core_.deadlines.empty() && std::get<0>(*core_.deadlines.begin()) <= now_ns) {",
             "  while (!MUTANT && !core_.deadlines.empty() &&\n"
             "         std::get<0>(*core_.deadlines.begin()) <= now_ns) {",
             (FAULTS,)),
    # --- handoff: everything has arrived, everywhere
    Mutation("segment_told_before_it_landed", "kvcache/handoff/prefill.cc",
             "  while (!flights.empty() && flights.front().ended) {",
             "  while (!flights.empty() && (flights.front().ended || MUTANT)) {",
             (HEALTHY, FAULTS)),
    Mutation("lost_notification", "kvcache/handoff/prefill.cc",
             "  core_.send(pair.peer, {Part::decode, room.room, pair.nonce, std::move(message)});",
             "  if (MUTANT && message.seq % 3 == 2) return;\n"
             "  core_.send(pair.peer, {Part::decode, room.room, pair.nonce, std::move(message)});",
             (HEALTHY,)),
    Mutation("segments_not_counted_at_finish", "kvcache/handoff/decode.cc",
             "  bool whole = source->stage == Source::Stage::offered && finish.segments == source->seq;",
             "  bool whole = MUTANT ||\n"
             "               (source->stage == Source::Stage::offered && finish.segments == source->seq);",
             (HANDOFF,)),
    Mutation("complete_while_reading", "kvcache/handoff/decode.cc",
             "    if (source.stage != Source::Stage::finished || !source.reading.empty() ||",
             "    if (source.stage != Source::Stage::finished || (!source.reading.empty() && !MUTANT) ||",
             (HEALTHY,)),
    Mutation("complete_without_every_source", "kvcache/handoff/decode.cc",
             "  if (room.state >= DecodeState::complete || !room.covered) return;\n"
             "  for (const Source& source : room.sources) {\n",
             "  if (room.state >= DecodeState::complete || !room.covered) return;\n"
             "  for (const Source& source : room.sources) {\n"
             "    if (MUTANT && source.stage == Source::Stage::offered) continue;\n",
             (HEALTHY,)),
    Mutation("crc_skipped", "kvcache/handoff/decode_segments.cc",
             "segment.seq) == segment.crcs;",
             "segment.seq) == segment.crcs || MUTANT;",
             (FAULTS, HANDOFF)),
    Mutation("segment_out_of_order_taken", "kvcache/handoff/decode_segments.cc",
             "segment.seq != source.seq ||",
             "(segment.seq != source.seq && !MUTANT) ||",
             (HANDOFF,)),
    # --- the group
    Mutation("group_committed_on_part_of_its_ranks", "kvcache/handoff/group.cc",
             "  if (!std::ranges::all_of(others, &Member::voted)) return;",
             "  if (!std::ranges::all_of(others, &Member::voted) &&\n"
             "      !(MUTANT && std::ranges::any_of(others, &Member::joined)))\n    return;",
             (FAULTS, HEALTHY)),
    Mutation("lead_does_not_wait_for_the_others", "kvcache/handoff/group.cc",
             "  if (std::ranges::all_of(others, &Member::committed)) commit(*room);",
             "  if (MUTANT || std::ranges::all_of(others, &Member::committed)) commit(*room);",
             (HEALTHY, FAULTS)),
    Mutation("prefill_commits_with_its_first_rank", "kvcache/handoff/prefill_end.cc",
             "std::ranges::all_of(room->pairs, &Pair::done)) {",
             "(MUTANT || std::ranges::all_of(room->pairs, &Pair::done))) {",
             (HEALTHY,)),
    # --- page pool
    Mutation("pool_ignores_quarantine", "kvcache/pool/block_pool.cc",
             "    if (lease.exposed && !lease.pages.empty()) {",
             "    if (lease.exposed && !lease.pages.empty() && !MUTANT) {",
             (POOL,)),
    Mutation("pool_frees_before_the_last_proof", "kvcache/pool/block_pool.cc",
             "    if (--page.unproven > 0 || page.users > 0) return;",
             "    if ((--page.unproven > 0 && !MUTANT) || page.users > 0) return;",
             (POOL,)),
    Mutation("stale_generation_accepted", "kvcache/pool/block_pool.cc",
             "           pages[ref.page].generation == ref.generation;",
             "           (MUTANT || pages[ref.page].generation == ref.generation);",
             (POOL,)),
    # --- rendezvous
    Mutation("lease_renewed_after_its_end", "router/bootstrap/memory_store.cc",
             "Status MemoryStore::keep_alive_now(LeaseId id) {\n  expire();",
             "Status MemoryStore::keep_alive_now(LeaseId id) {\n  if (!MUTANT) expire();",
             (BOOTSTRAP, FAULTS)),
    Mutation("ended_lease_still_listed", "router/bootstrap/memory_store.cc",
             "Result<std::vector<StoredValue>> MemoryStore::list(std::string_view prefix) {\n  expire();",
             "Result<std::vector<StoredValue>> MemoryStore::list(std::string_view prefix) {\n"
             "  if (!MUTANT) expire();",
             (BOOTSTRAP, FAULTS)),
    Mutation("older_epoch_registered", "router/bootstrap/service.cc",
             "epoch_of((*known)->value) > registration.epoch) {",
             "epoch_of((*known)->value) > registration.epoch && !MUTANT) {",
             (BOOTSTRAP,)),
    Mutation("renewal_of_the_lease_asked_for", "kvcache/bootstrap/lease_keeper.cc",
             "    registration.next_ns = renewal_after(now_ns, registration.lease);",
             "    registration.next_ns =\n"
             "        renewal_after(now_ns, MUTANT ? Lease{0, lease_ms_} : registration.lease);",
             (LEASES,)),
    Mutation("unregistered_rank_stays", "kvcache/bootstrap/lease_keeper.cc",
             "    if (lease.ok() && entry == registrations_.end()) {",
             "    if (lease.ok() && entry == registrations_.end() && !MUTANT) {",
             (LEASES,)),
    # --- rendezvous in etcd
    Mutation("etcd_revision_not_compared", "router/bootstrap/etcd_wire.cc",
             """{"result", "EQUAL"},
                                           {"mod_revision", text(expected)}""",
             """{"result", MUTANT ? "NOT_EQUAL" : "EQUAL"},
                                           {"mod_revision", text(MUTANT ? ~expected >> 1 : expected)}""",
             (ETCD,)),
    Mutation("etcd_stale_store_takes_registrations", "router/bootstrap/etcd_store.cc",
             "  return reachable_ ? Status{} : kAway;",
             "  return reachable_ || MUTANT ? Status{} : kAway;",
             (ETCD,)),
    Mutation("etcd_lease_put_back_over_a_successor", "router/bootstrap/etcd_leases.cc",
             """      "/v3/kv/txn", encode_put_if(put, 0),""",
             """      "/v3/kv/txn",
      [&] {
        std::string text = encode_put_if(put, 0);
        if (MUTANT) text.replace(text.find("EQUAL"), 5, "GREATER");
        return text;
      }(),""",
             (ETCD,)),
    Mutation("etcd_key_of_a_living_rank_given_up", "router/bootstrap/etcd_sync.cc",
             "  if (entry != nullptr && entry->revision < event.now.revision && "
             "leases_.alive(entry->lease)) {",
             "  if (!MUTANT && entry != nullptr && entry->revision < event.now.revision &&\n"
             "      leases_.alive(entry->lease)) {",
             (ETCD,)),
    Mutation("etcd_watch_begins_a_change_too_late", "router/bootstrap/etcd_sync.cc",
             "cache_.seen() + 1)",
             "cache_.seen() + (MUTANT ? 2 : 1))",
             (ETCD,)),
    Mutation("etcd_lease_renewed_after_its_end", "router/bootstrap/etcd_leases.cc",
             "  if (at == leases_.end() || clock_.now_ns() >= at->second.deadline_ns) return false;",
             "  if (at == leases_.end()) return false;\n"
             "  if (!MUTANT && clock_.now_ns() >= at->second.deadline_ns) return false;",
             (ETCD,)),
    Mutation("etcd_old_news_taken", "router/bootstrap/etcd_cache.cc",
             "    if (at->second.revision >= entry.revision) return;",
             "    if (at->second.revision >= entry.revision && !MUTANT) return;",
             (ETCD,)),
    Mutation("etcd_deleted_key_comes_back", "router/bootstrap/etcd_cache.cc",
             "  if (gone != deleted_.end() && gone->second >= entry.revision) return;",
             "  if (gone != deleted_.end() && gone->second >= entry.revision && !MUTANT) return;",
             (ETCD,)),
    Mutation("overtaken_registration_does_not_look_again", "router/bootstrap/service.cc",
             "        if (++registration.tries < kTriesMax) return try_to_register(",
             "        if (!MUTANT && ++registration.tries < kTriesMax) return try_to_register(",
             (BOOTSTRAP,)),
    # --- who may do what
    Mutation("signatures_time_not_checked", "transport/base/http_token.cc",
             "  if (when < unix_secs - kSignatureSecs || when > unix_secs + kSignatureSecs) "
             "return false;",
             "  if (!MUTANT && (when < unix_secs - kSignatureSecs || "
             "when > unix_secs + kSignatureSecs)) return false;",
             (SIGNATURES,)),
    Mutation("body_not_signed", "transport/base/http_token.cc",
             "  text.append(hex(crypto::sha256({bytes_of(request.body)})));",
             "  if (!MUTANT) text.append(hex(crypto::sha256({bytes_of(request.body)})));",
             (SIGNATURES,)),
    Mutation("any_token_accepted", "transport/base/http_token.cc",
             "    found |= static_cast<unsigned>(equal(token, "
             "authorization.substr(kScheme.size())));",
             "    found |= static_cast<unsigned>(\n"
             "        MUTANT || equal(token, authorization.substr(kScheme.size())));",
             (SIGNATURES, TLS)),
    Mutation("bootstrap_asks_for_no_token", "router/bootstrap/server.cc",
             """    if (tokens_.empty() || request.path() == "/health") return true;""",
             """    if (MUTANT || tokens_.empty() || request.path() == "/health") return true;""",
             (TLS,)),
    Mutation("clients_key_opens_the_operators_door", "router/api/api.cc",
             "  return needed == Access::clients && access_.api_keys.accept(shown);",
             "  return (MUTANT || needed == Access::clients) && access_.api_keys.accept(shown);",
             (TLS,)),
    Mutation("client_certificate_not_needed", "transport/base/tls.cc",
             "  const bool verify = !server || !files.ca.empty();",
             "  const bool verify = !server || (!files.ca.empty() && !MUTANT);",
             (TLS,)),
    Mutation("servers_certificate_not_verified", "transport/base/tls.cc",
             "                     verify ? SSL_VERIFY_PEER",
             "                     verify && !(MUTANT && !server) ? SSL_VERIFY_PEER",
             (TLS,)),
    Mutation("open_listener_without_a_secret", "transport/base/security.cc",
             "  if (has_secret || insecure || is_loopback(address)) return {};",
             "  if (MUTANT || has_secret || insecure || is_loopback(address)) return {};",
             (LISTENERS, CORE)),
    Mutation("dialers_proof_not_compared", "transport/core/auth.cc",
             "      !crypto::equal(prove(kDialerProof, masters_[proof->secret], transcript_), "
             "proof->proof)) {",
             "      (!MUTANT && !crypto::equal(prove(kDialerProof, masters_[proof->secret], "
             "transcript_),\n                                 proof->proof))) {",
             (AUTH,)),
    Mutation("listeners_proof_not_compared", "transport/core/auth.cc",
             "      if (!crypto::equal(expected, answer->proofs[k])) continue;",
             "      if (!MUTANT && !crypto::equal(expected, answer->proofs[k])) continue;",
             (AUTH,)),
    Mutation("listener_repeats_itself", "transport/core/auth.cc",
             "  random(nonce_);\n  random(seed.bytes);\n",
             "  if (side == Side::dialer || !MUTANT) {\n"
             "    random(nonce_);\n    random(seed.bytes);\n  }\n",
             (AUTH,)),
    Mutation("answer_not_proven", "transport/core/auth_wire.cc",
             "  return answer.first(std::min(answer.size(), kHeadBytes));",
             "  return answer.first(MUTANT ? 0 : std::min(answer.size(), kHeadBytes));",
             (AUTH,)),
    Mutation("messages_not_numbered", "transport/base/crypto.cc",
             "  std::memcpy(nonce.data() + 4, &counter, sizeof(counter));",
             "  if (!MUTANT) std::memcpy(nonce.data() + 4, &counter, sizeof(counter));",
             (AUTH,)),
    Mutation("seal_not_checked", "transport/base/crypto.cc",
             "                             expected.data()) == 1 &&\n         finish();",
             "                             expected.data()) == 1 &&\n         (finish() || MUTANT);",
             (AUTH, TCP)),
    Mutation("stranger_let_in_without_a_handshake", "transport/core/secure_control_net.cc",
             "    c.remote = event.remote;\n    if (!secured()) return",
             "    c.remote = event.remote;\n    if (!secured() || MUTANT) return",
             (AUTH,)),
    Mutation("silent_stranger_kept", "transport/core/secure_control_net.cc",
             "      const bool late = now_ns >= oldest.deadline_ns;",
             "      const bool late = now_ns >= oldest.deadline_ns && !MUTANT;",
             (AUTH,)),
    Mutation("grant_of_another_peer_accepted", "transport/tcp/tcp_memory.cc",
             "grant != nullptr && grant->peer == peer ?",
             "grant != nullptr && (grant->peer == peer || MUTANT) ?",
             (TCP,)),
    Mutation("lanes_proof_not_compared", "transport/tcp/tcp_link_lanes.cc",
             "  return crypto::equal(greeting.proof, prove_greeting(",
             "  return MUTANT || crypto::equal(greeting.proof, prove_greeting(",
             (TCP,)),
    Mutation("lanes_greeting_taken_again", "transport/tcp/tcp_link_lanes.cc",
             "lane.incarnation <= peer.lanes[lane.index].incarnation ||",
             "(lane.incarnation <= peer.lanes[lane.index].incarnation && !MUTANT) ||",
             (TCP,)),
    # --- plan
    Mutation("skipped_tokens_moved", "kvcache/handoff/prefill.cc",
             "  request.skip_tokens = begin;",
             "  request.skip_tokens = begin > 0 && MUTANT ? begin - 1 : begin;",
             (HEALTHY, FAULTS)),
]
