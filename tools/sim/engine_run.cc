// The simulated cluster: engines, their memory in slots, random transfers, random faults, checks.
#include <algorithm>
#include <cstring>
#include <deque>
#include <map>
#include <memory>

#include "kvl/engine.h"
#include "tools/sim/run.h"
#include "transport/sim/sim_control_net.h"
#include "transport/sim/sim_transport.h"
#include "transport/sim/sim_world.h"

namespace kvl::simulation {
namespace {

constexpr std::int64_t kMs = 1'000'000;
constexpr std::uint32_t kPieceBytes = 512;       // of a run
constexpr std::uint32_t kSlotBytes = 64 * 1024;  // one transfer's destination
constexpr std::uint32_t kSlots = 24;
constexpr std::uint32_t kGapBytes = 128;  // between pieces: must never change
constexpr std::uint32_t kStride = kPieceBytes + kGapBytes;
constexpr std::uint32_t kPieces = kSlotBytes / kStride;
constexpr std::int64_t kTimeoutMs = 400;
constexpr std::int64_t kGraceMs = 4000;  // deadline, hard stop, proof, peer time-out
constexpr std::byte kGap{0xA5};

std::byte stamp(std::uint64_t tag, std::uint64_t at) {
  std::uint64_t x = tag * 0x9E3779B97F4A7C15U + at * 0xBF58476D1CE4E5B9U;
  x ^= x >> 29;
  return static_cast<std::byte>(x * 0x94D049BB133111EBU >> 56);
}

enum class SlotState : std::uint8_t { free, busy, quarantined };

struct Slot {
  SlotState state = SlotState::free;
  std::uint64_t tag = 0;     // what its pieces hold; checked while free
  std::uint32_t writer = 0;  // quarantined: who may still write it
};

// One process on one node: memory lives as long as the node, the engine as long as the process.
struct Node {
  std::vector<std::byte> memory;
  std::vector<Slot> slots{kSlots};
  std::unique_ptr<Engine> engine;
  MemoryHandle handle;
  std::map<std::uint32_t, PeerHandle> peers;        // dialed, by node
  std::map<std::uint64_t, std::uint32_t> accepted;  // nodes that dialed us, by peer
  std::int64_t restart_ns = INT64_MAX;
  std::uint64_t life = 0;
};

struct Pending {
  std::uint32_t from = 0, to = 0, slot = 0, source = 0;
  std::uint64_t from_life = 0, to_life = 0;
  std::uint64_t tag = 0;
  Direction direction = Direction::write;
  std::vector<PageOp> ops;
  MemoryHandle local, remote;
  std::int64_t due_ns = 0;
  bool cancelled = false;
  std::uint64_t note = 0;  // the user's number, in memory that lives as long as the transfer
};

// A transfer that carries a note: what its target must see, once, after the bytes.
struct Note {
  std::uint32_t to = 0;
  std::uint64_t to_life = 0;
  bool seen = false, ended_ok = false;
};

class Cluster {
 public:
  explicit Cluster(const RunOptions& options)
      : options_(options), world_(world_options(options)), random_(options.seed * 7919 + 1) {
    if (options.transport) make_transport_ = options.transport(world_);
    nodes_.resize(options.engines);
    for (std::uint32_t i = 0; i < options.engines; ++i) {
      nodes_[i].memory.assign(std::size_t{kSlots} * kSlotBytes, kGap);
      for (std::uint32_t s = 0; s < kSlots; ++s) retag(nodes_[i], s);
      start(i);
    }
  }
  ~Cluster() {
    for (std::uint32_t i = 0; i < nodes_.size(); ++i) {
      world_.crash(i, sim::Crash::machine);  // time stands still: nobody waits for an answer
      nodes_[i].engine.reset();
    }
  }

  RunReport run() {
    while (report_.violation.empty() && !finished()) {
      ++report_.steps;
      if (report_.steps > 3'000'000) violate("the run does not end");
      act();
      advance();
      for (std::uint32_t i = 0; i < nodes_.size(); ++i) drain(i);
      if (report_.steps % 64 == 0) check_memory();
      check_deadlines();
    }
    for (std::uint32_t i = 0; i < nodes_.size(); ++i) drain(i);
    if (report_.violation.empty()) check_memory();
    if (report_.violation.empty()) check_notes();
    report_.ok = report_.violation.empty();
    report_.digest = world_.digest();
    report_.virtual_ns = world_.now_ns();
    report_.requests = static_cast<std::uint32_t>(submitted_);
    report_.trace = world_.trace();
    return std::move(report_);
  }

 private:
  static sim::SimOptions world_options(const RunOptions& options) {
    sim::SimOptions world;
    world.seed = options.seed;
    world.trace = options.trace || options.trace_packets;
    world.packet_bytes_max = 4096;
    if (options.faults && options.noise) {
      std::mt19937_64 random(options.seed);
      world.drop = static_cast<double>(random() % 4) * 0.01;
      world.reorder = static_cast<double>(random() % 30) * 0.01;
      world.delay_mean_ns = 2000 + static_cast<std::int64_t>(random() % 100'000);
    }
    return world;
  }

  std::uint32_t devices() const { return options_.devices.value_or(2); }
  std::uint64_t below(std::uint64_t bound) { return random_() % bound; }
  void violate(const std::string& what) {
    if (report_.violation.empty()) {
      report_.violation = "at " + std::to_string(world_.now_ns() / 1000) + " us: " + what;
    }
  }

  void start(std::uint32_t index) {
    Node& node = nodes_[index];
    std::vector<Setting> rows = engine_settings();
    Settings::Source source;
    source.environment = false;
    source.flags = {
        {"progress", "caller"},         {"piece_bytes", "8192"}, {"piece_runs", "8"},
        {"pieces_inflight", "4"},       {"heartbeat_ms", "100"}, {"peer_timeout_ms", "500"},
        {"connect_timeout_ms", "1000"}, {"reconnect_ms", "20"}};
    const Settings settings = Settings::load(std::move(rows), source).value();
    EngineWorld world;
    world.clock = &world_.clock();
    world.control = std::make_unique<sim::SimControlNet>(world_, index);
    world.transports.push_back(make_transport_
                                   ? make_transport_(index, devices())
                                   : std::make_unique<sim::SimTransport>(world_, index, devices()));
    world.seed = options_.seed * 1000 + std::uint64_t{index} * 100 + ++node.life;
    world.pid = world_.pid(index);
    world.open_process = [this](std::int32_t pid) { return world_.open_process(pid); };
    auto opened = Engine::open(settings, std::move(world));
    if (!opened) {  // every device of the node is dead just now
      node.restart_ns = world_.now_ns() + 20 * kMs;
      return;
    }
    node.engine = std::move(*opened);
    Memory memory;
    memory.data = node.memory.data();
    memory.bytes = node.memory.size();
    memory.access = Access::remote_all;
    node.handle = node.engine->register_memory(memory).value();
    node.restart_ns = INT64_MAX;
    node.peers.clear();
    node.accepted.clear();
    for (std::uint32_t other = 0; other < nodes_.size(); ++other) {
      if (other == index) continue;
      node.peers[other] = node.engine->connect(sim::SimControlNet::address_of(other)).value();
    }
  }

  void crash(std::uint32_t index) {
    Node& node = nodes_[index];
    world_.crash(index, below(2) == 0 ? sim::Crash::process : sim::Crash::machine);
    node.engine.reset();
    ++report_.crashes;
    // The process is gone: what it had under way has no event, and what was written to it is its
    // successor's to reuse, since no rail of the old life can write.
    std::erase_if(pending_, [&](const auto& entry) {
      const Pending& p = *entry.second;
      if (p.from != index) return false;
      // Writes of a dead process may still be on their way to the others.
      if (p.direction == Direction::write)
        quarantine(p.to, p.slot, index);
      else
        release(p.from, p.slot);
      return true;
    });
    node.restart_ns = world_.now_ns() + static_cast<std::int64_t>(below(300)) * kMs;
  }

  // Fills a free slot with fresh content, so that a late write shows.
  void retag(Node& node, std::uint32_t slot) {
    node.slots[slot].tag = ++tags_;
    for (std::uint32_t i = 0; i < kPieces; ++i) {
      for (std::uint32_t b = 0; b < kPieceBytes; ++b) {
        node.memory[piece_at(slot, i) + b] = stamp(tags_, i * kPieceBytes + b);
      }
    }
  }
  void quarantine(std::uint32_t index, std::uint32_t slot, std::uint32_t writer) {
    nodes_[index].slots[slot].state = SlotState::quarantined;
    nodes_[index].slots[slot].writer = writer;
  }
  void release(std::uint32_t index, std::uint32_t slot) {
    nodes_[index].slots[slot].state = SlotState::free;
    retag(nodes_[index], slot);
  }
  static std::size_t piece_at(std::uint32_t slot, std::uint32_t piece) {
    return std::size_t{slot} * kSlotBytes + std::size_t{piece} * kStride;
  }
  // "" or where the slot differs from the tag.
  std::string differs(const Node& node, std::uint32_t slot, std::uint64_t tag) const {
    for (std::uint32_t i = 0; i < kPieces; ++i) {
      for (std::uint32_t b = 0; b < kPieceBytes; ++b) {
        if (node.memory[piece_at(slot, i) + b] != stamp(tag, i * kPieceBytes + b)) {
          return "piece " + std::to_string(i) + " byte " + std::to_string(b);
        }
      }
    }
    return "";
  }
  int free_slot(Node& node) {
    const auto begin = static_cast<std::uint32_t>(below(kSlots));
    for (std::uint32_t i = 0; i < kSlots; ++i) {
      const std::uint32_t slot = (begin + i) % kSlots;
      if (node.slots[slot].state == SlotState::free) return static_cast<int>(slot);
    }
    return -1;
  }

  bool finished() const { return submitted_ >= options_.transfers && pending_.empty(); }

  void act() {
    for (std::uint32_t i = 0; i < nodes_.size(); ++i) {
      if (world_.now_ns() >= nodes_[i].restart_ns) {
        world_.restart(i);
        start(i);
      }
    }
    if (submitted_ < options_.transfers && below(8) == 0) submit();
    if (!pending_.empty() && below(400) == 0) cancel();
    if (options_.faults && below(600) == 0) fault();
  }

  void submit() {
    const auto from = static_cast<std::uint32_t>(below(nodes_.size()));
    auto to = static_cast<std::uint32_t>(below(nodes_.size() - 1));
    if (to >= from) ++to;
    Node& a = nodes_[from];
    Node& b = nodes_[to];
    if (!a.engine || !b.engine) return;
    auto p = std::make_unique<Pending>();
    p->direction = below(3) == 0 ? Direction::read : Direction::write;
    Node& target = p->direction == Direction::write ? b : a;
    Node& origin = p->direction == Direction::write ? a : b;
    const int slot = free_slot(target);
    if (slot < 0) return;
    target.slots[static_cast<std::uint32_t>(slot)].state = SlotState::busy;
    const int source = free_slot(origin);
    if (source < 0) {
      target.slots[static_cast<std::uint32_t>(slot)].state = SlotState::free;
      return;
    }
    // The source is kept as it is for the time of the transfer.
    origin.slots[static_cast<std::uint32_t>(source)].state = SlotState::busy;
    p->from = from;
    p->to = to;
    p->slot = static_cast<std::uint32_t>(slot);
    p->source = static_cast<std::uint32_t>(source);
    p->tag = origin.slots[p->source].tag;
    p->from_life = a.life;
    p->to_life = b.life;
    PageOp op;
    op.bytes = kPieceBytes;
    for (std::uint32_t i = 0; i < kPieces;) {
      op.count = std::min<std::uint32_t>(kPieces - i, 1 + static_cast<std::uint32_t>(below(5)));
      op.local_stride = op.remote_stride = kStride;
      op.local_offset = piece_at(p->direction == Direction::write ? p->source : p->slot, i);
      op.remote_offset = piece_at(p->direction == Direction::write ? p->slot : p->source, i);
      p->ops.push_back(op);
      i += op.count;
    }
    p->local = a.handle;
    p->remote = b.handle;
    Transfer t;
    t.peer = a.peers[to];
    t.direction = p->direction;
    t.ops = p->ops;
    t.locals = {&p->local, 1};
    t.remotes = {&p->remote, 1};
    t.timeout_ms = kTimeoutMs;
    t.user = ++submitted_;
    p->note = t.user;
    if (p->direction == Direction::write && below(2) == 0) {
      t.note = std::as_bytes(std::span(&p->note, 1));
      notes_[t.user] = {to, b.life, false, false};
    }
    const auto id = a.engine->submit(t);
    if (!id) {
      target.slots[p->slot].state = SlotState::free;
      origin.slots[p->source].state = SlotState::free;
      notes_.erase(t.user);
      return;
    }
    p->due_ns = world_.now_ns() + (kTimeoutMs + kGraceMs) * kMs;
    ids_[t.user] = *id;
    pending_[t.user] = std::move(p);
  }

  void cancel() {
    auto entry = pending_.begin();
    std::advance(entry, static_cast<std::ptrdiff_t>(below(pending_.size())));
    Node& node = nodes_[entry->second->from];
    if (!node.engine) return;
    const Status status = node.engine->cancel(ids_[entry->first], 200);
    if (!status.ok()) violate("cancel of a live transfer: " + status.to_string());
    entry->second->cancelled = true;
  }

  void fault() {
    const auto a = static_cast<std::uint32_t>(below(nodes_.size()));
    auto b = static_cast<std::uint32_t>(below(nodes_.size() - 1));
    if (b >= a) ++b;
    const auto heal_ns = static_cast<std::int64_t>(1 + below(800)) * kMs;
    switch (below(6)) {
      case 0:
        world_.partition(a, b);
        break;
      case 1:
        world_.partition_one_way(a, b);
        break;
      case 2:
        world_.clog(a, b, heal_ns);
        return;
      case 3: {
        const auto device = static_cast<std::uint32_t>(below(devices()));
        world_.kill_device(a, device);
        world_.after(heal_ns, [this, a, device] { world_.revive_device(a, device); });
        return;
      }
      case 4:
        if (nodes_[a].engine) crash(a);
        return;
      default:
        return world_.break_lanes(a, b);
    }
    world_.after(heal_ns, [this, a, b] { world_.heal(a, b); });
  }

  void advance() {
    const std::int64_t next = world_.next_event_ns();
    // Timers of the engines have their turn at least every millisecond.
    if (next <= world_.now_ns() + kMs)
      world_.step();
    else
      world_.advance(kMs);
  }

  void drain(std::uint32_t index) {
    Node& node = nodes_[index];
    if (!node.engine) return;
    EngineEvent events[32];
    const std::size_t count = node.engine->poll(events);
    for (std::size_t i = 0; i < count; ++i) {
      if (events[i].kind == EngineEvent::Kind::transfer) on_transfer(index, events[i]);
      if (events[i].kind == EngineEvent::Kind::note) on_note(index, events[i]);
      if (events[i].kind == EngineEvent::Kind::peer_up) on_peer_up(index, events[i].peer);
      if (events[i].kind == EngineEvent::Kind::peer_down && events[i].fenced) {
        unquarantine(index, events[i].peer);
      }
    }
  }

  // A peer of this node is fenced: what it might still have written is free again. Only what was in
  // quarantine before: a later connection of the same life may have written the rest.
  void unquarantine(std::uint32_t index, PeerHandle peer) {
    Node& node = nodes_[index];
    const auto writer = node.accepted.find(peer.value);
    if (writer == node.accepted.end()) return;
    for (std::uint32_t slot = 0; slot < kSlots; ++slot) {
      if (node.slots[slot].state == SlotState::quarantined &&
          node.slots[slot].writer == writer->second) {
        release(index, slot);
      }
    }
  }
  // Writes come over connections that the writer has dialed.
  void on_peer_up(std::uint32_t index, PeerHandle peer) {
    Node& node = nodes_[index];
    const bool dialed =
        std::ranges::any_of(node.peers, [peer](const auto& entry) { return entry.second == peer; });
    const auto info = node.engine->describe(peer);
    if (dialed || !info.ok()) return;
    for (std::uint32_t other = 0; other < nodes_.size(); ++other) {
      if (info->address == sim::SimControlNet::address_of(other)) node.accepted[peer.value] = other;
    }
  }

  void on_note(std::uint32_t index, const EngineEvent& event) {
    std::uint64_t user = 0;
    if (event.data.size() != sizeof(user)) return violate("note: not what was sent");
    std::memcpy(&user, event.data.data(), sizeof(user));
    const auto found = notes_.find(user);
    if (found == notes_.end() || found->second.to != index) {
      return violate("note: of no transfer to this process");
    }
    if (found->second.seen) return violate("note: " + std::to_string(user) + " was shown twice");
    found->second.seen = true;
    const auto entry = pending_.find(user);
    if (entry == pending_.end()) return;  // its pages may have another user by now
    const std::string where = differs(nodes_[index], entry->second->slot, entry->second->tag);
    if (!where.empty()) {
      violate("note: " + std::to_string(user) + " was shown before the data: " + where);
    }
  }
  // ok says that the target has it: whoever lives on must have been shown it.
  void check_notes() {
    for (const auto& [user, note] : notes_) {
      if (note.ended_ok && !note.seen && note.to_life == nodes_[note.to].life &&
          nodes_[note.to].engine != nullptr) {
        return violate("note: " + std::to_string(user) + " was lost");
      }
    }
  }

  void on_transfer(std::uint32_t index, const EngineEvent& event) {
    const auto entry = pending_.find(event.user);
    if (entry == pending_.end()) {
      return violate("transfer " + std::to_string(event.user) + " ended twice or was never begun");
    }
    const Pending p = std::move(*entry->second);
    pending_.erase(entry);
    if (p.from != index) return violate("a transfer ended at another engine");
    Node& target = nodes_[p.direction == Direction::write ? p.to : p.from];
    Node& origin = nodes_[p.direction == Direction::write ? p.from : p.to];
    const std::uint32_t target_index = p.direction == Direction::write ? p.to : p.from;
    origin.slots[p.source].state = SlotState::free;
    if (event.code == Code::ok) {
      ++report_.done;
      if (const auto note = notes_.find(event.user); note != notes_.end()) {
        note->second.ended_ok = true;
      }
      const std::string where = differs(target, p.slot, p.tag);
      if (!where.empty()) {
        return violate("transfer " + std::to_string(event.user) + " ended as ok, but " + where +
                       " is wrong");
      }
      if (event.physical != Physical::quiescent) return violate("ok, but quarantined");
      target.slots[p.slot].tag = p.tag;
      target.slots[p.slot].state = SlotState::free;
      if (below(2) == 0) retag(target, p.slot);
      return;
    }
    ++report_.failed;
    if (event.physical == Physical::quarantined) {
      ++report_.quarantined;
      if (p.direction == Direction::read) return violate("a read left local pages in quarantine");
      quarantine(target_index, p.slot, index);
      return;
    }
    release(target_index, p.slot);
  }

  void check_memory() {
    for (std::uint32_t n = 0; n < nodes_.size(); ++n) {
      const Node& node = nodes_[n];
      for (std::uint32_t slot = 0; slot < kSlots; ++slot) {
        for (std::uint32_t i = 0; i < kPieces; ++i) {
          const std::byte* const gap = &node.memory[piece_at(slot, i) + kPieceBytes];
          if (!std::all_of(gap, gap + kGapBytes, [](std::byte b) { return b == kGap; })) {
            return violate("bytes between the pieces of slot " + std::to_string(slot) +
                           " of node " + std::to_string(n) + " changed");
          }
        }
        if (node.slots[slot].state != SlotState::free) continue;
        const std::string where = differs(node, slot, node.slots[slot].tag);
        if (!where.empty()) {
          return violate("slot " + std::to_string(slot) + " of node " + std::to_string(n) +
                         " is free, but something wrote " + where);
        }
      }
    }
  }

  void check_deadlines() {
    for (const auto& [user, p] : pending_) {
      if (world_.now_ns() > p->due_ns) {
        return violate("transfer " + std::to_string(user) + " did not end in time");
      }
    }
  }

  const RunOptions options_;
  sim::SimWorld world_;
  std::mt19937_64 random_;
  MakeTransport make_transport_;
  std::deque<Node> nodes_;
  std::map<std::uint64_t, std::unique_ptr<Pending>> pending_;
  std::map<std::uint64_t, TransferId> ids_;
  std::map<std::uint64_t, Note> notes_;
  std::uint64_t submitted_ = 0;
  std::uint64_t tags_ = 0;
  RunReport report_;
};

}  // namespace

RunReport run_engines(const RunOptions& options) { return Cluster(options).run(); }

}  // namespace kvl::simulation
