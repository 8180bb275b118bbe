// The two sides of a check, and its waits.
#include "tests/transport/conformance/harness.h"

#include <poll.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "transport/libfabric/fabric_transport.h"

namespace kvl::conformance {

bool emulated() { return std::getenv("RDMA_VM") != nullptr; }

std::vector<std::byte> Side::exchange(const std::vector<std::byte>& request) {
  if (local_) return run_call(*local_, request);
  if (!socket_ || !socket_->open()) throw Broken{"the other side has died"};
  reply_.reset();
  socket_->send(FrameKind::request, request);
  harness_->pump_until_reply(*this);
  return *std::exchange(reply_, std::nullopt);
}

std::uint64_t Side::open_link(bool deferred_copies) {
  const auto link = call<&SideServer::open_link>(deferred_copies);
  if (!link) throw Broken{"cannot open a Link: " + link.status().to_string()};
  return *link;
}

PeerId Side::open_peer(std::uint64_t link, PeerRole role) {
  const auto peer = call<&SideServer::open_peer>(link, role);
  if (!peer) throw Broken{"open_peer: " + peer.status().to_string()};
  return *peer;
}

void Side::close_link(std::uint64_t link) {
  call<&SideServer::close_link>(link);
  closed_links_.insert(link);
}

Status Side::post(std::uint64_t link, const BatchSpec& spec) {
  const Status status = call<&SideServer::post>(link, spec);
  if (status.ok()) accepted_[link].insert(spec.ticket.value);
  return status;
}

namespace {

// The fake EFA belongs to one run, as a simulated world does.
Variant with_fabric(Variant variant, std::uint64_t seed) {
  if (variant.flavour == kFakeEfa) {
    test::FakeOptions options;
    options.seed = seed;
    variant.fake_efa = std::make_shared<test::FakeProvider>(options);
    variant.make = [fake = variant.fake_efa] {
      libfabric::FabricConfig config;
      config.connect_timeout_ms = 1500;
      config.hmem = true;
      return libfabric::make_transport(config, fake->api());
    };
  }
  return variant;
}

}  // namespace

Harness::Harness(const Variant& variant, std::uint64_t seed)
    : variant_(with_fabric(variant, seed)), random_(seed) {
  if (variant.transport == "sim") {
    sim::SimOptions options;
    options.seed = seed;
    world_ = std::make_unique<sim::SimWorld>(options);
  }
  for (std::uint8_t i = 0; i < 2; ++i) {
    sides_[i].harness_ = this;
    sides_[i].index_ = i;
  }
  // The other side first: a child process inherits nothing of ours.
  if (variant.mode == Mode::one_thread) {
    sides_[1].local_ = std::make_unique<SideServer>(variant_, 1, world_.get());
  } else {
    const auto mode = variant.mode == Mode::threads ? test::PeerGroup::Mode::threads
                                                    : test::PeerGroup::Mode::processes;
    sides_[1].group_ = std::make_unique<test::PeerGroup>(mode, [variant = variant_](UniqueFd fd) {
      FrameSocket socket(fd.get());
      SideServer(variant, 1, nullptr).serve(socket);
      return 0;
    });
    sides_[1].socket_ = std::make_unique<FrameSocket>(sides_[1].group_->socket());
  }
  sides_[0].local_ = std::make_unique<SideServer>(variant_, 0, world_.get());
  a_clock_ = &sides_[0].local_->clock();
}

Harness::~Harness() = default;

std::function<std::string()> Harness::violations() const {
  return [fabric = variant_.fake_efa] {
    const std::vector<std::string> all = fabric ? fabric->violations() : std::vector<std::string>{};
    return all.empty() ? "" : "the fake EFA: " + all.front();
  };
}

void Harness::record(Side& side, std::uint64_t link, const Seen& seen) {
  side.seen_[link].push_back(seen);
}

void Harness::deliver(const ControlMessage& message) {
  Side& side = sides_[message.to.side];
  if (side.local_) {
    side.local_->on_control(message.to.link, message.to.peer, message.bytes);
  } else if (side.socket_ && side.socket_->open()) {
    WireWriter out;
    Codec<Address>::put(out, message.to);
    out.raw(message.bytes);
    side.socket_->send(FrameKind::control, out.view());
  }
}

bool Harness::pump() {
  bool busy = false;
  for (Side& side : sides_) {
    if (b_frozen_ && &side == &sides_[1]) continue;
    std::vector<ControlMessage> control;
    if (side.local_) {
      busy |= side.local_->pump(
          [&](std::uint64_t link, const Seen& seen) { record(side, link, seen); });
      control = side.local_->take_control();
    } else if (side.socket_) {
      busy |= side.socket_->receive([&](FrameKind kind, std::vector<std::byte> bytes) {
        WireReader in(bytes);
        if (kind == FrameKind::reply) {
          side.reply_ = std::move(bytes);
        } else if (kind == FrameKind::event) {
          const auto link = in.get<std::uint64_t>();
          record(side, link, Codec<Seen>::get(in));
        } else {
          const auto to = Codec<Address>::get(in);
          const auto body = in.raw(in.left());
          control.push_back({to, {body.begin(), body.end()}});
        }
      });
    }
    for (const ControlMessage& message : control) deliver(message);
    busy |= !control.empty();
  }
  return busy;
}

void Harness::sleep(std::int64_t until_ns) {
  std::vector<pollfd> fds;
  bool armed = true;
  for (Side& side : sides_) {
    if (b_frozen_ && &side == &sides_[1]) continue;
    if (side.local_) {
      armed = side.local_->arm(fds, until_ns) && armed;
    } else if (side.socket_ && side.socket_->open()) {
      const auto wanted = static_cast<short>(POLLIN | (side.socket_->wants_write() ? POLLOUT : 0));
      fds.push_back({side.socket_->fd(), wanted, 0});
    }
  }
  if (!armed) return;
  if (world_ != nullptr) {
    if (world_->next_event_ns() <= until_ns) {
      world_->step();
    } else {
      world_->run_until(std::max(until_ns, now_ns() + 1));
    }
    return;
  }
  const std::int64_t left_ns = std::max<std::int64_t>(until_ns - now_ns(), 0);
  const int ready =
      ::poll(fds.data(), fds.size(), static_cast<int>((left_ns + 999'999) / 1'000'000));
  for (Side& side : sides_) {
    if (side.local_) side.local_->count_sleep(ready == 0);
  }
}

bool Harness::wait_for(const std::function<bool()>& done, std::int64_t limit_ns) {
  const std::int64_t end_ns = now_ns() + limit_ns;
  while (!done()) {
    if (pump()) continue;
    if (done()) break;
    if (now_ns() >= end_ns) return false;
    sleep(end_ns);
  }
  return true;
}

void Harness::wait(const std::function<bool()>& done, const std::string& what) {
  require(wait_for(done, patient(kDeadlineNs)), "did not come in time: " + what);
}

void Harness::pump_until_reply(Side& side) {
  wait([&] { return side.reply_.has_value() || !side.socket_->open(); },
       "answer of the other side");
  require(side.reply_.has_value(), "the other side has died");
}

const Seen* Harness::find_event(const End& end, Event::Kind kind) {
  for (const Seen& seen : end.side->seen(end.link)) {
    if (seen.event.kind == kind && seen.event.peer == end.peer) return &seen;
  }
  return nullptr;
}

const Seen* Harness::find_batch(const End& end, Ticket ticket) {
  for (const Seen& seen : end.side->seen(end.link)) {
    if (seen.event.kind == Event::Kind::batch && seen.event.ticket == ticket) return &seen;
  }
  return nullptr;
}

Seen Harness::wait_event(const End& end, Event::Kind kind) {
  static constexpr const char* kNames[] = {"batch event", "note", "peer_up", "peer_down"};
  wait([&] { return find_event(end, kind) != nullptr; }, kNames[static_cast<std::size_t>(kind)]);
  return *find_event(end, kind);
}

Seen Harness::wait_batch(const End& end, Ticket ticket) {
  wait([&] { return find_batch(end, ticket) != nullptr; },
       "event of batch " + std::to_string(ticket.value));
  return *find_batch(end, ticket);
}

std::size_t Harness::count(const End& end, Event::Kind kind) {
  const auto& all = end.side->seen(end.link);
  return static_cast<std::size_t>(std::count_if(all.begin(), all.end(), [&](const Seen& seen) {
    return seen.event.kind == kind && seen.event.peer == end.peer;
  }));
}

std::size_t Harness::count_batches(const End& end, Ticket ticket) {
  const auto& all = end.side->seen(end.link);
  return static_cast<std::size_t>(std::count_if(all.begin(), all.end(), [&](const Seen& seen) {
    return seen.event.kind == Event::Kind::batch && seen.event.ticket == ticket;
  }));
}

void Harness::kill_b() {
  b_alive_ = false;
  Side& side = sides_[1];
  if (side.group_ && variant_.mode == Mode::processes) {
    side.socket_.reset();
    side.group_->kill();
    return;
  }
  if (world_ != nullptr) {
    world_->crash(1);
    return;
  }
  for (const auto& [link, seen] : side.seen_) {
    if (!side.closed_links_.contains(link)) side.close_link(link);
  }
}

void Harness::pump_times(std::uint64_t times) {
  for (std::uint64_t i = 0; i < times; ++i) {
    if (!pump() && world_ != nullptr) world_->step();
  }
}

void Harness::expect_wake_b(std::uint64_t link) {
  SideServer& server = *sides_[1].local_;
  const int fd = server.wait_fd(link);
  const std::int64_t end_ns = now_ns() + patient(kDeadlineNs);
  for (pollfd b{fd, POLLIN, 0}; ::poll(&b, 1, 0) == 0;) {
    require(now_ns() < end_ns, "an arrival did not wake the sleeping owner");
    if (pump()) continue;
    std::vector<pollfd> fds{b};
    std::int64_t until_ns = end_ns;
    if (!sides_[0].local_->arm(fds, until_ns)) continue;
    const std::int64_t left_ns = std::max<std::int64_t>(until_ns - now_ns(), 0);
    ::poll(fds.data(), fds.size(), static_cast<int>((left_ns + 999'999) / 1'000'000));
  }
}

void Harness::finish() {
  for (Side& side : sides_) {
    if (&side == &sides_[1] && !b_alive_) continue;
    for (auto& entry : side.seen_) {
      const auto link = entry.first;
      const auto& all = entry.second;
      if (side.closed_links_.contains(link)) continue;
      std::map<std::uint64_t, int> ups, downs;
      const auto open = [&] {
        std::set<std::uint64_t> peers;
        for (const Seen& seen : all) {
          if (seen.event.kind == Event::Kind::peer_up) peers.insert(seen.event.peer.value);
        }
        for (const Seen& seen : all) {
          if (seen.event.kind == Event::Kind::peer_down) peers.erase(seen.event.peer.value);
        }
        return peers;
      };
      for (const std::uint64_t peer : open()) side.close_peer(link, PeerId{peer});
      wait([&] { return open().empty(); }, "peer_down after close_peer");
      const auto ended = [&](std::uint64_t ticket) {
        return std::count_if(all.begin(), all.end(), [&](const Seen& seen) {
          return seen.event.kind == Event::Kind::batch && seen.event.ticket.value == ticket;
        });
      };
      for (const std::uint64_t ticket : side.accepted_[link]) {
        wait([&] { return ended(ticket) > 0; },
             "event of batch " + std::to_string(ticket) + " after its peer was closed");
      }
      for (int i = 0; i < 3; ++i) pump();
      for (const std::uint64_t ticket : side.accepted_[link]) {
        require(ended(ticket) == 1, "batch " + std::to_string(ticket) + " has two events");
      }
      for (const Seen& seen : all) {
        const std::uint64_t peer = seen.event.peer.value;
        if (seen.event.kind == Event::Kind::batch) {
          require(side.accepted_[link].contains(seen.event.ticket.value),
                  "an event of a batch that was never accepted");
        } else if (seen.event.kind == Event::Kind::peer_up) {
          require(++ups[peer] == 1 && downs[peer] == 0, "peer_up twice, or after peer_down");
        } else if (seen.event.kind == Event::Kind::peer_down) {
          require(++downs[peer] == 1, "peer_down twice");
        } else {
          require(ups[peer] == 1 && downs[peer] == 0, "a note before peer_up or after peer_down");
        }
      }
    }
  }
}

}  // namespace kvl::conformance
