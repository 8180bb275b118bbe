// Two shm Links in one process (or one here and one in a child), driven by the test's thread.
#pragma once

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "kvl/clock.h"
#include "kvl/memory.h"
#include "kvl/transport.h"
#include "transport/base/unique_fd.h"

namespace kvl {
std::unique_ptr<Transport> make_shm_transport(const Settings&);
std::vector<Setting> shm_settings();
}  // namespace kvl

namespace kvl::test {
// So that one program may hold the hosts of both transports.
inline namespace over_shm {

inline constexpr std::int64_t kPatienceNs = 20'000'000'000;

// A ControlChannel that nothing may use: shm has its own socket.
class NoControl final : public ControlChannel {
 public:
  Status send(PeerId, std::span<const std::byte>) override {
    ADD_FAILURE() << "shm used the control channel";
    return {};
  }
};

inline constexpr std::uint64_t kBytes = 1 << 20;
inline constexpr std::uint32_t kPage = 4096;

// Memory of ours (a SharedBuffer) or foreign (anonymous).
struct Buffer {
  explicit Buffer(bool shared, std::uint64_t size = kBytes) : bytes(size) {
    if (shared) {
      owned = std::move(SharedBuffer::open(size)).value();
      data = owned->data();
    } else {
      data = static_cast<std::byte*>(
          ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    }
  }
  ~Buffer() {
    if (!owned) ::munmap(data, bytes);
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  Memory memory(Access access) const {
    if (owned) return owned->memory(access);
    return {data, bytes, MemoryKind::host, 0, access, -1, 0};
  }
  std::unique_ptr<SharedBuffer> owned;
  std::byte* data;
  std::uint64_t bytes;
};

using Flags = std::vector<std::pair<std::string, std::string>>;

// A Link with what it lives on, and the events it has given.
struct Host {
  explicit Host(Flags flags = {}, std::unique_ptr<MemoryOps> memory_ops = make_host_memory_ops())
      : ops(std::move(memory_ops)) {
    Settings::Source source;
    source.environment = false;
    source.flags = std::move(flags);
    std::string error;
    Result<Settings> settings = Settings::load(shm_settings(), source, &error);
    EXPECT_TRUE(settings.ok()) << error;
    transport = make_shm_transport(*settings);
    const std::vector<Device> devices = transport->devices();
    EXPECT_EQ(devices.size(), 1U) << transport->why_unusable();
    Result<std::unique_ptr<Link>> opened =
        transport->open(devices.at(0), LinkContext{control, *ops, clock});
    EXPECT_TRUE(opened.ok());
    link = std::move(opened).value();
  }

  void poll() {
    std::array<Event, 16> got{};
    const std::size_t n = link->poll(got);
    events.insert(events.end(), got.begin(), got.begin() + static_cast<std::ptrdiff_t>(n));
  }
  std::optional<Event> take(Event::Kind kind) {
    for (auto e = events.begin(); e != events.end(); ++e) {
      if (e->kind != kind) continue;
      const Event event = *e;
      events.erase(e);
      return event;
    }
    return std::nullopt;
  }
  MemoryId add(const Memory& memory) {
    Result<MemoryId> id = link->add_memory(memory);
    EXPECT_TRUE(id.ok()) << id.status().to_string();
    return id.ok() ? *id : MemoryId{};
  }

  NoControl control;
  SteadyClock clock;
  std::unique_ptr<MemoryOps> ops;
  std::unique_ptr<Transport> transport;
  std::unique_ptr<Link> link;
  std::deque<Event> events;
};

// Polls every host until `host` has an event of the kind.
template <typename... Others>
Event await(Event::Kind kind, Host& host, Others&... others) {
  const SteadyClock clock;
  const std::int64_t deadline = clock.now_ns() + kPatienceNs;
  for (;;) {
    host.poll();
    (others.poll(), ...);
    if (std::optional<Event> event = host.take(kind)) return *event;
    if (clock.now_ns() > deadline) {
      ADD_FAILURE() << "no event of kind " << static_cast<int>(kind);
      return Event{};
    }
  }
}

// Two connected hosts; `a` dialed.
struct Pair {
  explicit Pair(Flags flags = {}) : a(flags), b(std::move(flags)) { connect(); }
  Pair(std::unique_ptr<MemoryOps> ops_a, std::unique_ptr<MemoryOps> ops_b)
      : a({}, std::move(ops_a)), b({}, std::move(ops_b)) {
    connect();
  }
  void connect() {
    to_b = *a.link->open_peer(PeerRole::active);
    to_a = *b.link->open_peer(PeerRole::passive);
    EXPECT_TRUE(b.link->accept(to_a, *a.link->offer(to_b)).ok());
    EXPECT_TRUE(a.link->accept(to_b, *b.link->offer(to_a)).ok());
    await(Event::Kind::peer_up, a, b);
    await(Event::Kind::peer_up, b, a);
  }
  // b's memory as a names it.
  RemoteId import(MemoryId memory_of_b) {
    Result<Blob> blob = b.link->export_memory(memory_of_b, to_a);
    EXPECT_TRUE(blob.ok()) << blob.status().to_string();
    Result<RemoteId> remote = a.link->import_memory(to_b, *blob);
    EXPECT_TRUE(remote.ok()) << remote.status().to_string();
    return remote.ok() ? *remote : RemoteId{};
  }

  Host a, b;
  PeerId to_b, to_a;  // as a and b name each other
};

inline void fill(std::byte* data, std::uint64_t bytes, std::uint64_t seed) {
  std::uint64_t x = seed * 0x9e3779b97f4a7c15U + 1;
  for (std::uint64_t i = 0; i < bytes; ++i) {
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    data[i] = static_cast<std::byte>(x);
  }
}

inline std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text));
}

}  // namespace over_shm
}  // namespace kvl::test
