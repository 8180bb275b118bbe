"""Mutations of the rendezvous: leases, epochs, and its records in etcd."""
from mutation import Mutation, FAULTS, BOOTSTRAP, LEASES, ETCD

MUTATIONS = [
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
]
