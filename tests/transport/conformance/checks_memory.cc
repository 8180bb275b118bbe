// Promises about what a peer may touch, what hostile bytes may do, and what the data path may cost.
#include <algorithm>
#include <limits>

#include "tests/transport/conformance/check.h"

namespace kvl::conformance {
namespace {

constexpr std::uint64_t kMax64 = std::numeric_limits<std::uint64_t>::max();

bool is_refusal(Code code) { return code == Code::permission || code == Code::invalid_argument; }

// Names another registration of b's buffer for a; 0 where b does not even export it.
RemoteId name_again(Harness& h, Pipe& pipe, Access access, MemoryId* memory = nullptr) {
  const auto added =
      h.b().add_memory(pipe.b.link, pipe.b.buffer, Harness::kGuard, pipe.bytes, access);
  Harness::require(added.ok(), "add_memory again");
  if (memory != nullptr) *memory = *added;
  const auto blob = h.b().export_memory(pipe.b.link, *added, pipe.b.peer);
  if (!blob) {
    Harness::require(access == Access::local, "export_memory refused");
    return {};
  }
  const auto remote = h.a().import_memory(pipe.a.link, pipe.a.peer, *blob);
  Harness::require(remote.ok(), "import_memory refused");
  return *remote;
}

// Promises 17, 18: runs that may not be, one by one; nothing changes and everybody lives on.
void target_checks_every_run(Harness& h) {
  for (const BufferKind kind : {BufferKind::plain, BufferKind::shared}) {
    Pipe pipe = h.make_pipe({.bytes = 256 << 10, .kind = kind});
    const std::uint64_t bytes = pipe.bytes;
    struct Bad {
      const char* what;
      PageOp op;
      RemoteId remote;
      Direction direction = Direction::write;
    };
    const PageOp good{0, 0, 0, 0, 64, 1, 0, 0};
    std::vector<Bad> bad{
        {"end beyond memory", {0, 0, 0, bytes - 8, 16, 1, 0, 0}, pipe.a.remote},
        {"offset beyond memory", {0, 0, 0, bytes, 1, 1, 0, 0}, pipe.a.remote},
        {"offset overflows", {0, 0, 0, kMax64 - 4, 16, 1, 0, 0}, pipe.a.remote},
        {"offset is huge", {0, 0, 0, 1ULL << 62, 16, 1, 0, 0}, pipe.a.remote},
        {"the last piece is outside", {0, 0, 0, 64, 64, 4, 64, bytes / 3}, pipe.a.remote},
        {"stride overflows", {0, 0, 0, 64, 64, 3, 64, kMax64 / 2 + 1}, pipe.a.remote},
        {"stride goes backwards", {0, 0, 0, 4096, 64, 3, 64, kMax64 - 63}, pipe.a.remote},
        {"write to what may be read", good, name_again(h, pipe, Access::remote_read)},
        {"read from what may be written", good, name_again(h, pipe, Access::remote_write),
         Direction::read},
        {"write to private memory", good, name_again(h, pipe, Access::local)},
        {"read from private memory", good, name_again(h, pipe, Access::local), Direction::read},
    };
    MemoryId gone;
    bad.push_back(
        {"write to removed memory", good, name_again(h, pipe, Access::remote_all, &gone)});
    bad.push_back({"read from removed memory", good, bad.back().remote, Direction::read});
    Harness::require(h.b().remove_memory(pipe.b.link, gone).ok(), "remove_memory refused");
    h.ping(pipe);
    const std::size_t plain = 7;  // the first ones are tried as reads, too
    for (std::size_t i = 0; i < plain; ++i) {
      bad.push_back(bad[i]);
      bad.back().direction = Direction::read;
    }
    for (const Bad& each : bad) {
      if (each.remote.value == 0) continue;
      BatchSpec spec = h.spec(pipe.a, each.direction, {each.op});
      spec.remotes = {each.remote};
      if (each.direction == Direction::write) spec.note = {std::byte{1}};
      const std::string what =
          std::string(each.what) + (each.direction == Direction::read ? " (read)" : " (write)");
      const std::size_t notes = h.count(pipe.b, Event::Kind::note);
      const Status status = pipe.a.side->post(pipe.a.link, spec);
      const Code code = status.ok() ? h.wait_batch(pipe.a, spec.ticket).event.code : status.code();
      Harness::require(is_refusal(code), what + ": " + std::string(to_string(code)));
      h.ping(pipe);
      Harness::require(h.count(pipe.b, Event::Kind::note) == notes + 1, what + ": note shown");
      h.verify(pipe, what);
    }
    // Registered for reading it can be read, for writing it can be written.
    for (const auto direction : {Direction::read, Direction::write}) {
      BatchSpec spec = h.spec(pipe.a, direction, h.random_ops(bytes, 20));
      spec.remotes = {name_again(
          h, pipe, direction == Direction::read ? Access::remote_read : Access::remote_write)};
      h.move(pipe.a, pipe.b, spec);
    }
    h.verify(pipe, "at the end");
  }
}

// Promise 18: good and bad batches under way together.
void a_bad_batch_fails_alone(Harness& h) {
  Pipe pipe = h.make_pipe();
  constexpr std::uint32_t kBatches = 20;
  const auto slot = static_cast<std::uint32_t>(pipe.bytes / kBatches);
  for (int round = 0; round < 4; ++round) {
    std::vector<std::pair<Ticket, bool>> tickets;
    for (std::uint32_t i = 0; i < kBatches; ++i) {
      const std::uint64_t at = std::uint64_t{i} * slot;
      BatchSpec spec = h.spec(pipe.a, i % 4 < 2 ? Direction::write : Direction::read,
                              {{0, 0, at, at, slot, 1, 0, 0}});
      const bool good = i % 2 == 0;
      if (!good) spec.ops[0].remote_offset = pipe.bytes - slot / 2;
      const Status status = pipe.a.side->post(pipe.a.link, spec);
      if (!status.ok() && !good && is_refusal(status.code())) continue;
      Harness::require(status.ok(), "post: " + status.to_string());
      if (good) Harness::apply(pipe.a, pipe.b, spec);
      tickets.emplace_back(spec.ticket, good);
    }
    for (const auto& [ticket, good] : tickets) {
      const Code code = h.wait_batch(pipe.a, ticket).event.code;
      Harness::require(
          good ? code == Code::ok : is_refusal(code),
          std::string(good ? "good" : "bad") + " batch ended with " + std::string(to_string(code)));
    }
    h.verify(pipe, "good batches beside bad ones");
  }
}

void memory_in_use_stays(Harness& h) {
  Pipe pipe = h.make_pipe();
  BatchSpec spec = h.spec(pipe.a, Direction::write,
                          {{0, 0, 0, 0, static_cast<std::uint32_t>(pipe.bytes), 1, 0, 0}});
  h.post(pipe.a, spec);
  Harness::apply(pipe.a, pipe.b, spec);
  Harness::require(pipe.a.side->remove_memory(pipe.a.link, pipe.a.memory).code() == Code::exhausted,
                   "memory of a posted batch could be removed");
  Harness::require(h.wait_batch(pipe.a, spec.ticket).event.code == Code::ok, "batch failed");
  h.verify(pipe, "at the end");
  Harness::require(pipe.a.side->remove_memory(pipe.a.link, pipe.a.memory).ok(),
                   "memory could not be removed after the event");
}

// Promise 17: a name that was made for one peer is of no use to another peer of the same Link.
void names_are_good_for_one_peer(Harness& h) {
  std::vector<Pipe> owners, thieves;
  std::vector<std::pair<std::size_t, Ticket>> posted;
  for (const BufferKind kind : {BufferKind::plain, BufferKind::shared}) {
    Pipe& owner = owners.emplace_back(h.make_pipe({.bytes = 64 << 10, .kind = kind}));
    const std::uint64_t link = h.a().open_link();
    Pipe& thief = thieves.emplace_back(
        h.make_pipe(h.a(), h.b(), {.bytes = 64 << 10, .kind = kind, .a_link = link, .b_link = 0}));
    const auto name = h.b().export_memory(0, owner.b.memory, owner.b.peer);
    Harness::require(name.ok(), "export_memory");
    for (const Direction direction : {Direction::write, Direction::read}) {
      const auto stolen = h.a().import_memory(link, thief.a.peer, *name);
      if (!stolen) {
        Harness::require(is_refusal(stolen.code()), "import: " + stolen.status().to_string());
        continue;
      }
      BatchSpec spec = h.spec(thief.a, direction, {{0, 0, 0, 0, 4096, 1, 0, 0}});
      spec.remotes = {*stolen};
      const Status status = h.a().post(link, spec);
      Harness::require(status.ok() || is_refusal(status.code()), "post: " + status.to_string());
      if (status.ok()) posted.emplace_back(thieves.size() - 1, spec.ticket);
    }
  }
  for (const auto& [thief, ticket] : posted) {
    const Code code = h.wait_batch(thieves[thief].a, ticket).event.code;
    Harness::require(is_refusal(code), "stolen name: " + std::string(to_string(code)));
  }
  for (Pipe& pipe : owners) {
    h.ping(pipe);
    h.verify(pipe, "after another peer used its name");
  }
  for (Pipe& pipe : thieves) h.verify(pipe, "the thief");
}

Blob mutate(Harness& h, Blob blob) {
  switch (h.below(5)) {
    case 0:
      blob.resize(h.below(blob.size() + 1));
      break;
    case 1:
      blob.resize(blob.size() + 1 + h.below(64), std::byte{0xAA});
      break;
    case 2:
      for (std::byte& b : blob) b = static_cast<std::byte>(h.random()());
      break;
    default:
      for (std::uint64_t n = 1 + h.below(8); n > 0 && !blob.empty(); --n) {
        blob[h.below(blob.size())] ^= static_cast<std::byte>(1U << h.below(8));
      }
  }
  return blob;
}

// Promises 10, 17: offers, memory names and messages that nobody honest sends.
void hostile_bytes_do_no_harm(Harness& h) {
  Pipe pipe = h.make_pipe({.bytes = 64 << 10, .kind = BufferKind::shared});
  Side& a = h.a();
  // Mutated offers, taken by a passive side, which dials nobody.
  for (int i = 0; i < 60; ++i) {
    const PeerId theirs = h.b().open_peer(0, PeerRole::active);
    const PeerId mine = a.open_peer(0, PeerRole::passive);
    const auto offer = h.b().offer(0, theirs);
    Harness::require(offer.ok(), "offer");
    const Blob bytes = mutate(h, *offer);
    const Status status = a.accept(0, mine, bytes);
    Harness::require(status.ok() || is_refusal(status.code()) ||
                         status.code() == Code::unavailable || status.code() == Code::unsupported,
                     "accept of a mutated offer: " + status.to_string());
    a.call<&SideServer::on_control>(std::uint64_t{0}, mine, mutate(h, *offer));
    h.pump_times(h.below(4));
    a.close_peer(0, mine);
    h.b().close_peer(0, theirs);
  }
  h.ping(pipe);
  // Mutated names of memory: refused, or useless.
  const auto name = h.b().export_memory(0, pipe.b.memory, pipe.b.peer);
  Harness::require(name.ok(), "export_memory");
  std::vector<std::pair<RemoteId, Ticket>> forged;
  for (int i = 0; i < 150; ++i) {
    const auto remote = a.import_memory(0, pipe.a.peer, mutate(h, *name));
    if (!remote) {
      Harness::require(is_refusal(remote.code()) || remote.code() == Code::unavailable ||
                           remote.code() == Code::not_found,
                       "import_memory of a mutated name: " + remote.status().to_string());
      continue;
    }
    BatchSpec spec = h.spec(pipe.a, Direction::write, {{0, 0, 0, pipe.bytes, 64, 1, 0, 0}});
    spec.remotes = {*remote};
    if (a.post(0, spec).ok()) forged.emplace_back(*remote, spec.ticket);
    h.pump_times(1);
  }
  for (const auto& [remote, ticket] : forged) {
    const Code code = h.wait_batch(pipe.a, ticket).event.code;
    Harness::require(is_refusal(code),
                     "a run behind the end of forged memory: " + std::string(to_string(code)));
    a.call<&SideServer::drop_memory>(std::uint64_t{0}, remote);
  }
  h.ping(pipe);
  h.verify(pipe, "after forged names");
  // Messages of the other Link. The peer that sends nonsense may be dropped, nobody else.
  for (int i = 0; i < 40; ++i) {
    Pipe victim = h.make_pipe({.bytes = 4096});
    for (int k = 0; k < 4; ++k) {
      Blob message(h.below(200));
      message = mutate(h, message);
      if (i % 2 == 0 && !message.empty()) message[0] = static_cast<std::byte>(k + i / 8);
      a.call<&SideServer::on_control>(std::uint64_t{0}, victim.a.peer, message);
      h.pump_times(2);
    }
    a.close_peer(0, victim.a.peer);
  }
  h.ping(pipe);
  h.move(pipe.a, pipe.b, h.spec(pipe.a, Direction::write, h.random_ops(pipe.bytes, 30)));
  h.verify(pipe, "at the end");
}

// Memory that the CPU may not touch, copies that complete late; on either end and on both. A Link
// whose target side does no work itself may refuse, aloud, to export such memory.
void device_memory(Harness& h) {
  constexpr auto kDevice = BufferKind::device;
  const std::pair<BufferKind, BufferKind> ends[] = {
      {kDevice, BufferKind::shared}, {BufferKind::plain, kDevice}, {kDevice, kDevice}};
  for (const auto& [a_kind, b_kind] : ends) {
    Pipe pipe = h.make_pipe({.bytes = 512 << 10, .kind = a_kind, .b_kind = b_kind});
    Harness::require(pipe.a.remote.value != 0 || b_kind == kDevice, "host memory has no name");
    pipe.b.side->call<&SideServer::watch>(pipe.b.link, pipe.b.buffer);
    for (int i = 0; i < 10; ++i) {
      End& from = i % 3 == 0 ? pipe.b : pipe.a;
      End& to = i % 3 == 0 ? pipe.a : pipe.b;
      if (from.remote.value == 0) continue;
      BatchSpec spec = h.spec(from, i % 2 == 0 ? Direction::write : Direction::read,
                              h.random_ops(pipe.bytes, i % 4 == 0 ? 500 : 8));
      h.cut(spec);
      if (spec.direction == Direction::write) spec.note = {static_cast<std::byte>(i)};
      const std::size_t notes = h.count(to, Event::Kind::note);
      h.move(from, to, spec);
      if (spec.direction == Direction::write) {
        h.wait([&] { return h.count(to, Event::Kind::note) > notes; }, "note");
        if (&to == &pipe.b) {
          Harness::require(to.side->seen(to.link).back().watched == hash_bytes(to.model),
                           "a note before its bytes");
        }
      }
      h.verify(pipe, "device memory, batch " + std::to_string(i));
    }
    // Closed with everything under way: no copy may be left that touches memory afterwards.
    End& from = pipe.a.remote.value != 0 ? pipe.a : pipe.b;
    if (from.remote.value == 0) continue;
    constexpr std::uint64_t kBatches = 4;
    const std::uint64_t part = pipe.bytes / kBatches;
    for (std::uint64_t i = 0; i < kBatches; ++i) {
      std::vector<PageOp> ops = h.random_ops(part, 50);
      for (PageOp& op : ops) {
        op.local_offset += i * part;
        op.remote_offset += i * part;
      }
      h.post(from, h.spec(from, i % 2 == 0 ? Direction::write : Direction::read, std::move(ops)));
    }
    h.pump_times(h.below(6));
    from.side->close_peer(from.link, from.peer);
    h.wait_event(pipe.a, Event::Kind::peer_down);
    h.wait_event(pipe.b, Event::Kind::peer_down);
    Harness::require(from.side->remove_memory(from.link, from.memory).ok(),
                     "memory is still in use");
  }
}

// Promise 14: rounds of equal shape, again and again; nothing is allocated on either side.
void post_and_poll_do_not_allocate(Harness& h) {
  Pipe pipe = h.make_pipe();
  Pipe shared = h.make_pipe({.kind = BufferKind::shared});
  const auto round = [&](std::uint64_t seed) {
    std::mt19937_64 shape(seed);
    for (Pipe* const p : {&pipe, &shared}) {
      for (const bool from_a : {true, false}) {
        End& from = from_a ? p->a : p->b;
        std::vector<Ticket> tickets;
        for (std::uint32_t i = 0; i < 12; ++i) {
          std::vector<PageOp> ops;
          for (std::uint64_t k = 0; k < 1 + shape() % 40; ++k) {
            const std::uint64_t at = (std::uint64_t{i} * 40 + k) * 2048;
            ops.push_back({0, 0, at, at, 512, 2, 1024, 1024});
          }
          BatchSpec spec =
              h.spec(from, i % 3 == 1 ? Direction::read : Direction::write, std::move(ops));
          if (i % 3 == 0) spec.note = {std::byte{1}, std::byte{2}};
          tickets.push_back(h.post(from, spec));
        }
        for (const Ticket ticket : tickets) {
          Harness::require(h.wait_batch(from, ticket).event.code == Code::ok, "batch failed");
        }
      }
    }
  };
  // How deep buffers get depends on timing: a warm-up is over when a window passes without any.
  constexpr int kWindows = 8, kRounds = 8;
  std::uint64_t count = 0;
  for (int window = 0; window < kWindows; ++window) {
    h.a().take_stats();
    h.b().take_stats();
    for (std::uint64_t i = 0; i < kRounds; ++i) round(i % 4);
    count = h.a().take_stats().allocations + h.b().take_stats().allocations;
    if (window > 0 && count == 0) return;
  }
  throw Broken{std::to_string(count) + " allocations in post() and poll() after a long warm-up"};
}

// add_memory and remove_memory from another thread, beside post() and poll().
void registration_beside_polls(Harness& h) {
  Pipe pipe = h.make_pipe();
  for (End* const end : {&pipe.a, &pipe.b}) {
    const std::uint64_t extra = end->side->add_buffer(BufferKind::shared, 64 << 10, 5);
    end->side->call<&SideServer::start_churn>(end->link, extra, std::uint32_t{300});
  }
  for (int i = 0; i < 60; ++i) {
    End& from = i % 2 == 0 ? pipe.a : pipe.b;
    End& to = i % 2 == 0 ? pipe.b : pipe.a;
    h.move(from, to,
           h.spec(from, i % 4 < 2 ? Direction::write : Direction::read,
                  h.random_ops(pipe.bytes, 100)));
  }
  for (End* const end : {&pipe.a, &pipe.b}) {
    Harness::require(!end->side->call<&SideServer::churn_failed>(),
                     "registration failed beside polls");
  }
  h.verify(pipe, "at the end");
}

}  // namespace

std::vector<Check> memory_checks() {
  return {
      {"target_checks_every_run", {17, 18}, target_checks_every_run},
      {"a_bad_batch_fails_alone", {18}, a_bad_batch_fails_alone},
      {"memory_in_use_stays", {3}, memory_in_use_stays},
      {"names_are_good_for_one_peer", {17}, names_are_good_for_one_peer},
      {"hostile_bytes_do_no_harm", {10, 17}, hostile_bytes_do_no_harm},
      {"device_memory", {3, 4, 5}, device_memory},
      {"post_and_poll_do_not_allocate", {14}, post_and_poll_do_not_allocate},
      {"registration_beside_polls", {3}, registration_beside_polls},
  };
}

}  // namespace kvl::conformance
