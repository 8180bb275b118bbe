// How close do tcp lanes come to plain sockets? Two processes, one Link each, without the engine;
// rounds of ours and of the raw baseline alternate, and only their ratio means anything.
//
//   tcp_vs_raw [--rounds N] [--megabytes N] [--spin] [--sizes 4096,65536] [--tcp.lanes 2 …]
#include <poll.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <random>
#include <string>

#include "bench/support/raw_socket.h"
#include "bench/support/raw_socket_session.h"
#include "kvl/transport.h"

namespace kvl {
std::unique_ptr<Transport> make_tcp_transport(const Settings&);
std::vector<Setting> tcp_settings();
}  // namespace kvl

namespace kvl::bench {
namespace {

constexpr std::uint64_t kArenaBytes = 1ULL << 30;
constexpr std::size_t kPages = 1024;
constexpr std::size_t kPieceRuns = 256;
constexpr std::uint64_t kPieceBytes = 4 << 20;
constexpr std::size_t kPiecesInflight = 8;

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values.empty() ? 0 : values[values.size() / 2];
}

[[noreturn]] void die(const std::string& why) {
  std::fprintf(stderr, "tcp_vs_raw: %s\n", why.c_str());
  std::_Exit(1);
}

// Datagrams between the two processes: 'L' for the other Link, 'B' a blob, 'C' processor time.
class Wire final : public ControlChannel {
 public:
  explicit Wire(int fd) : fd_(fd) {}
  Status send(PeerId, std::span<const std::byte> bytes) override {
    say('L', bytes);
    return {};
  }
  void say(char kind, std::span<const std::byte> bytes) const {
    std::vector<std::byte> out{static_cast<std::byte>(kind)};
    out.insert(out.end(), bytes.begin(), bytes.end());
    if (::send(fd_, out.data(), out.size(), MSG_NOSIGNAL) < 0) std::_Exit(0);
  }
  // Empty: nothing there. The first byte is the kind.
  std::vector<std::byte> hear(bool wait) const {
    std::vector<std::byte> in(4096);
    const ssize_t n = ::recv(fd_, in.data(), in.size(), wait ? 0 : MSG_DONTWAIT);
    if (n == 0) std::_Exit(0);  // the other process is gone
    in.resize(n < 0 ? 0 : static_cast<std::size_t>(n));
    return in;
  }
  std::vector<std::byte> hear_blob() const {
    auto in = hear(true);
    in.erase(in.begin());
    return in;
  }
  int fd() const { return fd_; }

 private:
  const int fd_;
};

struct Side {
  Side(const Settings& settings, int fd, PeerRole role, bool spinning, std::span<std::byte> memory)
      : wire(fd), spin(spinning), transport(make_tcp_transport(settings)) {
    auto opened = transport->open(transport->devices().at(0), {wire, *memory_ops, clock});
    if (!opened) die(opened.status().to_string());
    link = std::move(*opened);
    peer = *link->open_peer(role);
    wire.say('B', *link->offer(peer));
    if (!link->accept(peer, wire.hear_blob()).ok()) die("offer");
    local = *link->add_memory(
        {memory.data(), memory.size(), MemoryKind::host, 0, Access::remote_all, -1, 0});
    wire.say('B', *link->export_memory(local, peer));
    remote = *link->import_memory(peer, wire.hear_blob());
    while (!up) step([&](const Event& event) { up = event.kind == Event::Kind::peer_up; });
  }
  template <typename F>
  void step(F on_event) {
    std::array<Event, 64> events;
    const std::size_t count = link->poll(events);
    for (std::size_t i = 0; i < count; ++i) on_event(events[i]);
    if (count > 0) return;
    if (spin && ++idle % 1024 != 0) return;
    if (const auto message = wire.hear(false); !message.empty()) {
      if (message[0] == std::byte{'L'}) {
        link->on_control(peer, std::span(message).subspan(1));
      } else if (message[0] == std::byte{'C'}) {
        const double cpu = process_cpu_seconds();
        wire.say('T', std::as_bytes(std::span(&cpu, 1)));
      }
    }
    if (spin || !link->arm()) return;
    std::array<pollfd, 2> waits{{{link->wait_fd(), POLLIN, 0}, {wire.fd(), POLLIN, 0}}};
    ::poll(waits.data(), waits.size(), 100);
  }
  double other_cpu() {
    wire.say('C', {});
    double cpu = 0;
    std::memcpy(&cpu, wire.hear(true).data() + 1, sizeof(cpu));
    return cpu;
  }
  Batch batch(Direction direction, std::span<const PageOp> ops) {
    Batch b;
    b.ticket = Ticket{++tickets};
    b.peer = peer;
    b.direction = direction;
    b.ops = ops;
    b.locals = std::span(&local, 1);
    b.remotes = std::span(&remote, 1);
    return b;
  }

  SteadyClock clock;
  std::unique_ptr<MemoryOps> memory_ops = make_host_memory_ops();
  Wire wire;
  const bool spin;
  bool up = false;
  std::uint64_t tickets = 0, idle = 0;
  std::unique_ptr<Transport> transport;
  std::unique_ptr<Link> link;
  PeerId peer;
  MemoryId local;
  RemoteId remote;
};

struct Measure {
  double gb_per_s = 0, cpu_per_gb = 0;
};

// Moves the ops `batches` times, cut as the engine cuts them, with a bounded number under way.
Measure run_ours(Side& side, Direction direction, std::span<const PageOp> ops,
                 std::uint64_t batches) {
  std::vector<std::span<const PageOp>> pieces;
  for (std::size_t begin = 0; begin < ops.size();) {
    std::size_t end = begin;
    for (std::uint64_t bytes = 0; end < ops.size() && end - begin < kPieceRuns; ++end) {
      bytes += ops[end].total_bytes();
      if (bytes > kPieceBytes && end > begin) break;
    }
    pieces.push_back(ops.subspan(begin, end - begin));
    begin = end;
  }
  const double cpu = process_cpu_seconds() + side.other_cpu();
  const std::int64_t start = side.clock.now_ns();
  const std::uint64_t total = batches * pieces.size();
  std::uint64_t posted = 0, done = 0, bytes = 0;
  while (done < total) {
    while (posted < total && posted - done < kPiecesInflight) {
      if (!side.link->post(side.batch(direction, pieces[posted % pieces.size()])).ok()) break;
      ++posted;
    }
    side.step([&](const Event& event) {
      if (event.kind != Event::Kind::batch) return;
      if (event.code != Code::ok) die("batch: " + std::string(to_string(event.code)));
      bytes += event.bytes_done;
      ++done;
    });
  }
  const double seconds = static_cast<double>(side.clock.now_ns() - start) * 1e-9;
  const double gb = static_cast<double>(bytes) * 1e-9;
  return {gb / seconds, (process_cpu_seconds() + side.other_cpu() - cpu) / gb};
}

// The target: serves the Link until the other process is gone; answers a note with a note.
[[noreturn]] void serve(const Settings& settings, int fd, bool spin, std::span<std::byte> memory) {
  Side side(settings, fd, PeerRole::passive, spin, memory);
  const std::byte note{1};
  while (true) {
    side.step([&](const Event& event) {
      if (event.kind != Event::Kind::note) return;
      Batch answer = side.batch(Direction::write, {});
      answer.note = std::span(&note, 1);
      if (!side.link->post(answer).ok()) die("answer");
    });
  }
}

std::vector<double> ping_ours(Side& side, int rounds) {
  std::vector<double> times;
  const std::byte note{1};
  PageOp op;
  op.bytes = 4096;
  for (int i = 0; i < rounds; ++i) {
    const std::int64_t start = side.clock.now_ns();
    Batch batch = side.batch(Direction::write, std::span(&op, 1));
    batch.note = std::span(&note, 1);
    if (!side.link->post(batch).ok()) die("post");
    int left = 2;  // the note and our batch event
    while (left > 0) side.step([&](const Event&) { --left; });
    times.push_back(static_cast<double>(side.clock.now_ns() - start) * 1e-3);
  }
  return times;
}

struct Options {
  int rounds = 5;
  std::uint64_t megabytes = 1024;
  bool spin = false;
  std::vector<std::uint32_t> sizes{4096, 16384, 65536, 262144, 1048576};
  std::vector<std::pair<std::string, std::string>> flags;
};

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    if (name == "--spin") {
      options.spin = true;
      continue;
    }
    if (++i == argc) die(name + " wants a value");
    if (name == "--rounds") {
      options.rounds = std::atoi(argv[i]);
    } else if (name == "--megabytes") {
      options.megabytes = static_cast<std::uint64_t>(std::atoll(argv[i]));
    } else if (name == "--sizes") {
      options.sizes.clear();
      for (const char* at = argv[i]; at != nullptr && *at != '\0'; at = std::strchr(at, ',')) {
        if (*at == ',') ++at;
        options.sizes.push_back(static_cast<std::uint32_t>(std::strtoul(at, nullptr, 10)));
      }
    } else {
      options.flags.emplace_back(name.substr(2), argv[i]);
    }
  }
  return options;
}

struct Bench {
  const Options& options;
  Side& side;
  RawSocketClient& raw;
  pid_t link_child;
  std::mt19937 random{1};

  std::vector<std::uint32_t> pages(std::uint32_t page_bytes) {
    std::vector<std::uint32_t> all(kArenaBytes / page_bytes);
    std::iota(all.begin(), all.end(), 0U);
    std::shuffle(all.begin(), all.end(), random);
    all.resize(std::min(kPages, all.size()));
    return all;
  }
  std::uint64_t batches(std::uint64_t bytes) const {
    return std::max<std::uint64_t>(1, options.megabytes * 1'000'000 / bytes);
  }

  void sizes(Direction direction) {
    for (const std::uint32_t page_bytes : options.sizes) {
      const RawPlan plan{direction, page_bytes, pages(page_bytes), pages(page_bytes)};
      std::vector<PageOp> ops(plan.client_pages.size());
      for (std::size_t i = 0; i < ops.size(); ++i) {
        ops[i].local_offset = std::uint64_t{plan.client_pages[i]} * page_bytes;
        ops[i].remote_offset = std::uint64_t{plan.server_pages[i]} * page_bytes;
        ops[i].bytes = page_bytes;
      }
      if (!raw.configure(plan).ok()) die("configure");
      const std::uint64_t bytes = std::uint64_t{page_bytes} * ops.size();
      std::vector<double> ours, ours_cpu, theirs, theirs_cpu, ratios, cpu_ratios;
      for (int round = -1; round < options.rounds; ++round) {
        const Measure a = run_ours(side, direction, ops, batches(bytes));
        const auto b = raw.run(batches(bytes), 2);
        if (!b) die(b.status().to_string());
        if (round < 0) continue;  // first touch
        const double gb = static_cast<double>(b->bytes) * 1e-9;
        ours.push_back(a.gb_per_s);
        ours_cpu.push_back(a.cpu_per_gb);
        theirs.push_back(gb / b->seconds);
        theirs_cpu.push_back((b->client_cpu_seconds + b->server_cpu_seconds) / gb);
        ratios.push_back(ours.back() / theirs.back());
        cpu_ratios.push_back(ours_cpu.back() / theirs_cpu.back());
      }
      std::printf("%-5s %8u  ours %5.2f GB/s %.3f cpu-s/GB  raw %5.2f %.3f  ratio %.2f cpu %.2f\n",
                  direction == Direction::write ? "write" : "read", page_bytes, median(ours),
                  median(ours_cpu), median(theirs), median(theirs_cpu), median(ratios),
                  median(cpu_ratios));
      std::fflush(stdout);
    }
  }

  void strided() {
    constexpr std::uint32_t kPiece = 16 << 10, kCount = 128, kRuns = 256;
    constexpr std::uint64_t kStride = 2 * std::uint64_t{kPiece};
    std::vector<PageOp> pieces(kRuns), whole(kRuns);
    for (std::uint64_t i = 0; i < kRuns; ++i) {
      // Runs interleave in pairs, as the heads of two ranks do.
      const std::uint64_t at = i / 2 * kPiece * kCount * 2 + i % 2 * kPiece;
      pieces[i].local_offset = pieces[i].remote_offset = at;
      pieces[i].local_stride = pieces[i].remote_stride = kStride;
      pieces[i].bytes = kPiece;
      pieces[i].count = kCount;
      whole[i].local_offset = whole[i].remote_offset = i * kPiece * kCount;
      whole[i].bytes = kPiece * kCount;
    }
    std::vector<double> strided, contiguous;
    for (int round = -1; round < options.rounds; ++round) {
      const double a = run_ours(side, Direction::write, pieces, 2).gb_per_s;
      const double b = run_ours(side, Direction::write, whole, 2).gb_per_s;
      if (round < 0) continue;
      strided.push_back(a);
      contiguous.push_back(b);
    }
    std::printf("strided %.2f GB/s, contiguous %.2f, ratio %.2f\n", median(strided),
                median(contiguous), median(strided) / median(contiguous));
  }

  void latency() {
    std::vector<double> ours, theirs;
    for (int round = 0; round < options.rounds; ++round) {
      const std::vector<double> a = ping_ours(side, 5000);
      ::kill(link_child, SIGSTOP);  // a spinning process would take a core from the other pair
      const auto b = raw.ping_pong(5000, 4096, 32);
      ::kill(link_child, SIGCONT);
      if (!b) die(b.status().to_string());
      ours.insert(ours.end(), a.begin(), a.end());
      theirs.insert(theirs.end(), b->batch_us.begin(), b->batch_us.end());
    }
    std::sort(ours.begin(), ours.end());
    std::sort(theirs.begin(), theirs.end());
    const auto at = [](const std::vector<double>& v, double q) {
      return v[static_cast<std::size_t>(q * static_cast<double>(v.size() - 1))];
    };
    std::printf("4 KiB + note, answered: ours p50 %.1f p99 %.1f us, raw %.1f %.1f, ratio %.2f\n",
                at(ours, .5), at(ours, .99), at(theirs, .5), at(theirs, .99),
                at(ours, .5) / at(theirs, .5));
  }
};

int run(int argc, char** argv) {
  const Options options = parse(argc, argv);
  std::string error;
  Settings::Source source;
  source.flags = options.flags;
  auto settings = Settings::load(tcp_settings(), source, &error);
  if (!settings) die(error);
  RawSocketOptions raw_options;
  raw_options.connections = std::atoi(settings->value("tcp.lanes").text.c_str());
  raw_options.congestion = settings->value("tcp.congestion").text;
  raw_options.send_buffer_bytes = std::atoi(settings->value("tcp.send_buffer_bytes").text.c_str());
  raw_options.recv_buffer_bytes = std::atoi(settings->value("tcp.recv_buffer_bytes").text.c_str());
  raw_options.spin = options.spin;
  auto buffer = SharedBuffer::open(kArenaBytes);
  auto other = SharedBuffer::open(kArenaBytes);
  if (!buffer || !other) die("memory");
  const std::span<std::byte> here((*buffer)->data(), kArenaBytes);
  const std::span<std::byte> there((*other)->data(), kArenaBytes);
  std::memset(here.data(), 1, here.size());
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ends) != 0) die("socketpair");
  auto server = RawSocketServer::open(raw_options, there);
  if (!server) die(server.status().to_string());
  // One process serves the Link and another one the raw baseline, so that neither waits for the
  // other's loop; only one of them has anything to do at a time.
  const pid_t link_child = ::fork();
  if (link_child == 0) {
    ::close(ends[0]);
    serve(*settings, ends[1], options.spin, there);
  }
  const pid_t raw_child = ::fork();
  if (raw_child == 0) {
    ::close(ends[0]);
    ::close(ends[1]);
    std::_Exit((*server)->serve().ok() ? 0 : 1);
  }
  ::close(ends[1]);
  {
    Side side(*settings, ends[0], PeerRole::active, options.spin, here);
    auto client = RawSocketClient::open(raw_options, here, "127.0.0.1", (*server)->port());
    if (!client) die(client.status().to_string());
    std::printf("raw sockets use %s\n", (*client)->congestion().c_str());
    Bench bench{options, side, **client, link_child};
    if (!options.spin) {
      bench.sizes(Direction::write);
      bench.sizes(Direction::read);
      bench.strided();
    }
    bench.latency();
  }
  ::close(ends[0]);
  ::waitpid(raw_child, nullptr, 0);
  ::waitpid(link_child, nullptr, 0);
  return 0;
}

}  // namespace
}  // namespace kvl::bench

int main(int argc, char** argv) { return kvl::bench::run(argc, argv); }
