// One side of a conformance test.
#include "tests/transport/conformance/side_server.h"

#include <poll.h>
#include <sys/mman.h>
#include <time.h>

#include <algorithm>
#include <array>
#include <cstdlib>

#include "tests/transport/conformance/alloc_count.h"
#include "transport/fault/fault_link.h"
#include "transport/sim/sim_transport.h"

namespace kvl::conformance {
namespace {

std::int64_t thread_cpu_ns() {
  timespec t{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return std::int64_t{t.tv_sec} * 1'000'000'000 + t.tv_nsec;
}

std::uint64_t mix(std::uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9U;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBU;
  return x ^ (x >> 31);
}

// The real transports with short connect deadlines, whatever the environment says; in an emulated
// machine a first connection takes seconds.
Settings test_settings(const std::vector<std::pair<std::string, std::string>>& flags) {
  Settings::Source source;
  source.environment = false;
  source.flags = flags;
  const char* const deadline_ms = std::getenv("RDMA_VM") != nullptr ? "10000" : "1500";
  const std::vector<Setting> rows = transport_settings();
  for (const Setting& row : rows) {
    if (row.name.ends_with("connect_timeout_ms")) source.flags.emplace_back(row.name, deadline_ms);
  }
  auto settings = Settings::load(rows, source);
  if (!settings) std::abort();
  return std::move(settings).value();
}

}  // namespace

std::string Variant::name() const {
  static constexpr std::array<const char*, 3> kModes{"one_thread", "threads", "processes"};
  return transport + (flavour.empty() ? "" : "_" + flavour) +
         (wrapped     ? "_wrapped_"
          : encrypted ? "_encrypted_"
                      : "_plain_") +
         kModes.at(static_cast<std::size_t>(mode));
}

void fill_pattern(std::span<std::byte> bytes, std::uint64_t seed) {
  for (std::size_t at = 0; at < bytes.size(); at += sizeof(std::uint64_t)) {
    const std::uint64_t word = mix(seed * 0x9E3779B97F4A7C15U + at + 1);
    std::memcpy(bytes.data() + at, &word, std::min(sizeof(word), bytes.size() - at));
  }
}

std::uint64_t hash_bytes(std::span<const std::byte> bytes) {
  std::uint64_t hash = bytes.size();
  for (std::size_t at = 0; at < bytes.size(); at += sizeof(std::uint64_t)) {
    std::uint64_t word = 0;
    std::memcpy(&word, bytes.data() + at, std::min(sizeof(word), bytes.size() - at));
    hash = (hash ^ word) * 0x9FB21C651E98DF25U;
    hash ^= hash >> 32;
  }
  return hash;
}

std::unique_ptr<Transport> make_transport_of(const Variant& variant) {
  if (variant.make) return variant.make();
  for (auto& transport : make_transports(test_settings(variant.flags))) {
    if (transport->name() == variant.transport) return std::move(transport);
  }
  return nullptr;
}

SideServer::SideServer(const Variant& variant, std::uint8_t side, sim::SimWorld* world)
    : variant_(variant),
      side_(side),
      world_(world),
      clock_(world != nullptr ? &world->clock() : &steady_clock_) {}

SideServer::~SideServer() {
  if (churn_.joinable()) churn_.join();
  links_.clear();
  for (std::uint64_t i = 0; i < buffers_.size(); ++i) free_buffer(i);
}

std::unique_ptr<Transport> SideServer::make_transport() const {
  std::unique_ptr<Transport> found;
  if (variant_.transport == "sim") {
    found = std::make_unique<sim::SimTransport>(*world_, side_);
  } else {
    found = make_transport_of(variant_);
  }
  if (!found || !variant_.wrapped) return found;
  auto state =
      variant_.faults ? variant_.faults : std::make_shared<fault::FaultState>(fault::FaultPlan{});
  return std::make_unique<fault::FaultTransport>(std::move(found), std::move(state));
}

Result<std::uint64_t> SideServer::open_link(bool deferred_copies) {
  const std::uint64_t index = links_.size();
  LinkState& state = links_.emplace_back();
  state.channel = std::make_unique<Channel>(*this, index);
  state.memory_ops =
      deferred_copies ? std::make_unique<test::DeferredMemoryOps>() : make_host_memory_ops();
  state.transport = make_transport();
  const std::vector<Device> devices = state.transport->devices();
  if (devices.empty()) return Status{Code::unavailable, "no device"};
  auto opened =
      state.transport->open(devices.front(), {*state.channel, *state.memory_ops, *clock_});
  if (!opened) return opened.status();
  state.link = std::move(*opened);
  if (variant_.mutate) state.link = variant_.mutate(std::move(state.link), *clock_);
  return index;
}

void SideServer::close_link(std::uint64_t index) {
  LinkState& state = links_.at(index);
  state.link.reset();
  state.batches.clear();
}

Device SideServer::device(std::uint64_t index) { return link(index).device(); }

Result<PeerId> SideServer::open_peer(std::uint64_t index, PeerRole role) {
  const Result<PeerId> peer = link(index).open_peer(role);
  if (!peer.ok() || !variant_.encrypted) return peer;
  PeerSecurity security;
  security.key.fill(std::byte{0x5A});  // what a handshake would have given to both sides
  security.encrypt = true;
  KVL_TRY(link(index).secure_peer(*peer, security));
  return peer;
}

Result<Blob> SideServer::offer(std::uint64_t index, PeerId peer) { return link(index).offer(peer); }

Status SideServer::accept(std::uint64_t index, PeerId peer, Blob remote_offer) {
  return link(index).accept(peer, remote_offer);
}

void SideServer::route(std::uint64_t index, PeerId peer, Address to) {
  routes_[{index, peer.value}] = to;
  for (auto waiting = unrouted_.begin(); waiting != unrouted_.end();) {
    if (waiting->first != index || !(waiting->second.to.peer == peer)) {
      ++waiting;
      continue;
    }
    control_out_.push_back({to, std::move(waiting->second.bytes)});
    waiting = unrouted_.erase(waiting);
  }
}

Status SideServer::Channel::send(PeerId peer, std::span<const std::byte> message) {
  const auto found = server.routes_.find({link, peer.value});
  std::vector<std::byte> copy(message.begin(), message.end());
  if (found == server.routes_.end()) {
    server.unrouted_.push_back({link, {{0, 0, peer}, std::move(copy)}});
  } else {
    server.control_out_.push_back({found->second, std::move(copy)});
  }
  return {};
}

void SideServer::close_peer(std::uint64_t index, PeerId peer) { link(index).close_peer(peer); }

void SideServer::on_control(std::uint64_t index, PeerId peer, Blob message) {
  if (index < links_.size() && links_[index].link) links_[index].link->on_control(peer, message);
}

std::uint64_t SideServer::add_buffer(BufferKind kind, std::uint64_t bytes, std::uint64_t seed) {
  Buffer& buffer = buffers_.emplace_back();
  buffer.bytes = bytes;
  switch (kind) {
    case BufferKind::plain: {
      void* const data =
          ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (data == MAP_FAILED) std::abort();
      buffer.data = buffer.eyes = static_cast<std::byte*>(data);
      buffer.plain = true;
      break;
    }
    case BufferKind::shared: {
      auto opened = SharedBuffer::open(bytes);
      if (!opened) std::abort();
      buffer.shared = std::move(*opened);
      buffer.data = buffer.eyes = buffer.shared->data();
      break;
    }
    case BufferKind::device:
      buffer.device = std::make_unique<test::DeviceMemory>(bytes);
      buffer.data = buffer.device->data();
      buffer.eyes = buffer.device->shadow();
      break;
  }
  fill_pattern(buffer.view(), seed);
  return buffers_.size() - 1;
}

void SideServer::free_buffer(std::uint64_t index) {
  Buffer& buffer = buffers_.at(index);
  if (buffer.plain) ::munmap(buffer.data, buffer.bytes);
  buffer = {};
}

void SideServer::fill(std::uint64_t buffer, std::uint64_t seed) {
  fill_pattern(buffers_.at(buffer).view(), seed);
}

std::uint64_t SideServer::hash(std::uint64_t buffer) {
  return hash_bytes(buffers_.at(buffer).view());
}

std::vector<std::byte> SideServer::read(std::uint64_t buffer) {
  const auto view = buffers_.at(buffer).view();
  return {view.begin(), view.end()};
}

Result<MemoryId> SideServer::add_memory(std::uint64_t index, std::uint64_t buffer_index,
                                        std::uint64_t offset, std::uint64_t bytes, Access access) {
  const Buffer& buffer = buffers_.at(buffer_index);
  Memory memory;
  memory.data = buffer.data + offset;
  memory.bytes = bytes;
  memory.access = access;
  if (buffer.device) {
    memory.kind = MemoryKind::cuda;
    if (variant_.flavour == kFakeEfa) memory.shared_fd = buffer.device->dmabuf();
    memory.shared_offset = offset;
  }
  if (buffer.shared) {
    memory.shared_fd = buffer.shared->memory(access).shared_fd;
    memory.shared_offset = offset;
  }
  return link(index).add_memory(memory);
}

Status SideServer::remove_memory(std::uint64_t index, MemoryId memory) {
  return link(index).remove_memory(memory);
}

void SideServer::start_churn(std::uint64_t index, std::uint64_t buffer, std::uint32_t rounds) {
  churn_ = std::thread([this, index, buffer, rounds] {
    for (std::uint32_t i = 0; i < rounds; ++i) {
      const auto memory =
          add_memory(index, buffer, 0, buffers_.at(buffer).bytes, Access::remote_all);
      if (!memory || !remove_memory(index, *memory).ok()) churn_failed_ = true;
    }
  });
}

bool SideServer::churn_failed() {
  if (churn_.joinable()) churn_.join();
  return churn_failed_;
}

Result<Blob> SideServer::export_memory(std::uint64_t index, MemoryId memory, PeerId peer) {
  return link(index).export_memory(memory, peer);
}

Result<RemoteId> SideServer::import_memory(std::uint64_t index, PeerId peer, Blob blob) {
  return link(index).import_memory(peer, blob);
}

void SideServer::drop_memory(std::uint64_t index, RemoteId remote) {
  link(index).drop_memory(remote);
}

Status SideServer::post(std::uint64_t index, BatchSpec given) {
  LinkState& state = links_.at(index);
  auto spec = std::make_unique<BatchSpec>(std::move(given));
  Batch batch;
  batch.ticket = spec->ticket;
  batch.peer = spec->peer;
  batch.direction = spec->direction;
  batch.ops = spec->ops;
  batch.begin = spec->begin;
  batch.end = spec->end;
  batch.locals = spec->locals;
  batch.remotes = spec->remotes;
  if (spec->flag_at_least > 0) batch.after = {&flag_, spec->flag_at_least};
  // The note is copied by post(): it is gone afterwards.
  std::vector<std::byte> note = spec->note;
  batch.note = note;
  const std::uint64_t before = thread_allocations();
  const Status status = state.link->post(batch);
  stats_.allocations += thread_allocations() - before;
  std::fill(note.begin(), note.end(), std::byte{0xEE});
  if (status.ok()) state.batches[spec->ticket.value] = std::move(spec);
  return status;
}

Status SideServer::cancel(std::uint64_t index, Ticket ticket) { return link(index).cancel(ticket); }

void SideServer::watch(std::uint64_t index, std::uint64_t buffer) {
  links_.at(index).watched = static_cast<std::int64_t>(buffer);
}

bool SideServer::arm_link(std::uint64_t index) { return link(index).arm(); }

int SideServer::wait_fd(std::uint64_t index) { return link(index).wait_fd(); }

Seen SideServer::look(LinkState& state, const Event& event) {
  Seen seen{event, 0};
  if (state.watched >= 0) {
    const auto view = buffers_.at(static_cast<std::uint64_t>(state.watched)).view();
    std::array<std::uint64_t, 2> part{0, view.size()};
    if (event.kind == Event::Kind::note && event.note_bytes >= sizeof(part)) {
      std::memcpy(part.data(), event.note.data(), sizeof(part));
    }
    if (part[0] <= view.size() && part[1] <= view.size() - part[0]) {
      seen.watched = hash_bytes(view.subspan(part[0], part[1]));
    }
  }
  if (event.kind == Event::Kind::batch) {
    // The Link may not look at these any more: gone, so that a sanitizer sees it if it does.
    state.batches.erase(event.ticket.value);
  }
  return seen;
}

bool SideServer::pump(const std::function<void(std::uint64_t, const Seen&)>& show) {
  bool busy = false;
  for (std::uint64_t i = 0; i < links_.size(); ++i) {
    LinkState& state = links_[i];
    if (!state.link) continue;
    std::array<Event, 32> events;
    const std::uint64_t allocations = thread_allocations();
    const std::int64_t start_ns = thread_cpu_ns();
    const std::size_t count = state.link->poll(events);
    stats_.poll_cpu_max_ns = std::max(stats_.poll_cpu_max_ns, thread_cpu_ns() - start_ns);
    stats_.allocations += thread_allocations() - allocations;
    ++stats_.polls;
    for (std::size_t k = 0; k < count; ++k) show(i, look(state, events.at(k)));
    busy = busy || count > 0;
  }
  return busy;
}

bool SideServer::arm(std::vector<pollfd>& fds, std::int64_t& until_ns) {
  bool armed = true;
  for (LinkState& state : links_) {
    if (!state.link) continue;
    armed = state.link->arm() && armed;
    until_ns = std::min(until_ns, state.link->next_timer_ns());
    if (state.link->wait_fd() >= 0) fds.push_back({state.link->wait_fd(), POLLIN, 0});
  }
  return armed;
}

void SideServer::sleep(std::vector<pollfd> fds, std::int64_t patience_ns) {
  const std::int64_t now_ns = clock_->now_ns();
  std::int64_t until_ns = now_ns + patience_ns;
  if (!arm(fds, until_ns)) return;
  const std::int64_t left_ns = std::max<std::int64_t>(until_ns - now_ns, 0);
  const int ready =
      ::poll(fds.data(), fds.size(), static_cast<int>((left_ns + 999'999) / 1'000'000));
  count_sleep(ready == 0 && left_ns == patience_ns);
}

void SideServer::serve(FrameSocket& socket) {
  constexpr std::int64_t kPatienceNs = 60'000'000'000;  // longer than any test waits
  const auto show = [&](std::uint64_t index, const Seen& seen) {
    WireWriter out;
    out.put(index);
    Codec<Seen>::put(out, seen);
    socket.send(FrameKind::event, out.view());
  };
  while (socket.open()) {
    bool busy = pump(show);
    for (const ControlMessage& message : take_control()) {
      WireWriter out;
      Codec<Address>::put(out, message.to);
      out.raw(message.bytes);
      socket.send(FrameKind::control, out.view());
    }
    busy |= socket.receive([&](FrameKind kind, std::vector<std::byte> bytes) {
      if (kind == FrameKind::request) {
        socket.send(FrameKind::reply, run_call(*this, bytes));
      } else {
        WireReader in(bytes);
        const auto to = Codec<Address>::get(in);
        const auto body = in.raw(in.left());
        on_control(to.link, to.peer, Blob(body.begin(), body.end()));
      }
    });
    if (busy || !control_out_.empty()) continue;
    const auto wanted = static_cast<short>(POLLIN | (socket.wants_write() ? POLLOUT : 0));
    sleep({{socket.fd(), wanted, 0}}, kPatienceNs);
  }
}

}  // namespace kvl::conformance
