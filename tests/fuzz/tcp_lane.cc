// A whole lane of tcp: whatever a peer that has been let in says after its hello, only memory that
// was registered for it changes, and the link lives on.
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>

#include "tests/fuzz/fuzz.h"
#include "tests/transport/tcp/fake_peer.h"

namespace kvl::fuzz {
namespace {

constexpr std::size_t kMemoryBytes = 1 << 16;

// One passive host for all inputs: a writable memory, one to read, and one that is not for peers.
struct Victim {
  Victim() : host(test::Flags{{"tcp.connect_timeout_ms", "2000"}}) {
    writable = test::random_bytes(kMemoryBytes, 1);
    readable = secret = test::random_bytes(kMemoryBytes, 2);
    before = readable;
    host.add(test::memory_of(writable, Access::remote_all));
    host.add(test::memory_of(readable, Access::remote_read));
    host.add(test::memory_of(secret, Access::local));
  }
  void poll_until(auto done) {
    const SteadyClock clock;
    const std::int64_t deadline = clock.now_ns() + test::kPatienceNs;
    while (!done()) {
      host.poll();
      require(clock.now_ns() < deadline, "the link goes on");
    }
  }
  test::Host host;
  std::vector<std::byte> writable, readable, secret, before;
};

// Nothing of what was sent waits in the lane's socket any more, or the lane is closed.
bool consumed(Victim& victim, test::FakePeer& peer) {
  std::byte answer[4096];
  while (::recv(peer.lane.get(), answer, sizeof(answer), MSG_DONTWAIT) > 0) continue;
  const int fd = victim.host.tcp().lane_fd(peer.peer, 0);
  int waiting = 0, unsent = 0;
  if (fd < 0 || ::ioctl(fd, FIONREAD, &waiting) != 0) return true;
  return ::ioctl(peer.lane.get(), TIOCOUTQ, &unsent) == 0 && waiting == 0 && unsent == 0;
}

}  // namespace

void fuzz_tcp_lane(Bytes input) {
  static Victim victim;
  {
    test::FakePeer peer(victim.host, 4);
    const linger reset{1, 0};  // no TIME_WAIT: there are many of these connections
    ::setsockopt(peer.lane.get(), SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
    Input parts(input);
    while (!parts.empty()) {
      test::say(peer.lane, parts.piece());
      victim.poll_until([&] { return consumed(victim, peer); });
    }
    for (int i = 0; i < 4; ++i) victim.host.poll();
    peer.lane.reset();
    victim.host.link->close_peer(peer.peer);
  }
  victim.poll_until([] { return victim.host.take(Event::Kind::peer_down).has_value(); });
  victim.host.events.clear();
  victim.host.control.held.clear();
  require(victim.readable == victim.before, "memory that may only be read is as it was");
  require(victim.secret == victim.before, "memory that is not for peers is as it was");
}

Seeds seeds_tcp_lane() {
  using test::FakePeer;
  Victim victim;
  test::Host probe;
  std::vector<std::byte> memory(4096);
  const std::uint64_t id = probe.add(test::memory_of(memory, Access::remote_all)).value;
  const std::vector<std::byte> data = test::random_bytes(96, 3);
  const tcp::WireRun runs[] = {{id, 0, 64, 16, 2}, {id, 4096, 0, 64, 1}};
  const auto write = FakePeer::write_frame(1, runs, data);
  const tcp::WireRun bad[] = {{id + 1, 0, 0, 96, 1}};
  const auto refused = FakePeer::write_frame(2, bad, data);
  auto header = tcp::read_wire<tcp::FrameHeader>(write.data());
  header.type = tcp::FrameType::read_request;
  header.flags = 0;
  header.batch = 3;
  const auto ask = join({test::raw_bytes(header), std::as_bytes(std::span(runs))});
  header = {};
  header.flags = tcp::kFlagEnd;
  header.note_bytes = 4;
  header.batch = 4;
  const auto note = join({test::raw_bytes(header), seed("note")});
  header.flags = tcp::kFlagEnd | tcp::kFlagAbandoned;
  header.note_bytes = 0;
  const auto abandoned = join({test::raw_bytes(header)});
  return {piece(write), join({piece(refused), piece(ask)}), join({piece(note), piece(abandoned)}),
          join({piece(Bytes(write).first(70)), piece(Bytes(write).subspan(70)), piece(ask)})};
}

}  // namespace kvl::fuzz
