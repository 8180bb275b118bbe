// epoll or io_uring for a data lane's receiving side? Two loopback connections carry pages that are
// scattered into random places; one thread receives with epoll and readv, or with io_uring and the
// same vectors. Rounds of the two alternate, and only their ratio means anything.
//
//   receive_bench [SECONDS] [PAGE_BYTES]
#include <liburing.h>
#include <netinet/in.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <thread>
#include <vector>

#include "bench/support/stats.h"
#include "kvl/clock.h"
#include "transport/base/unique_fd.h"

namespace kvl::bench {
namespace {

constexpr std::size_t kConnections = 2;
constexpr std::size_t kPagesPerCall = 64;
constexpr std::uint64_t kArenaBytes = 256u << 20;
constexpr std::uint64_t kRoundBytes = 1u << 30;  // of each connection

[[noreturn]] void die(const char* why) {
  std::perror(why);
  std::exit(1);
}

double thread_cpu_s() {
  rusage usage{};
  ::getrusage(RUSAGE_THREAD, &usage);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) / 1e6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

// A connected pair over the loopback interface, reno as lanes have it there.
std::array<UniqueFd, 2> connect_pair() {
  const UniqueFd listener(::socket(AF_INET, SOCK_STREAM, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t bytes = sizeof(address);
  auto* const raw = reinterpret_cast<sockaddr*>(&address);
  if (::bind(listener.get(), raw, bytes) != 0 || ::listen(listener.get(), 1) != 0 ||
      ::getsockname(listener.get(), raw, &bytes) != 0) {
    die("listen");
  }
  UniqueFd dialed(::socket(AF_INET, SOCK_STREAM, 0));
  ::setsockopt(dialed.get(), IPPROTO_TCP, 13 /* TCP_CONGESTION */, "reno", 4);
  if (::connect(dialed.get(), raw, bytes) != 0) die("connect");
  UniqueFd accepted(::accept4(listener.get(), nullptr, nullptr, SOCK_NONBLOCK));
  if (!accepted) die("accept");
  return {std::move(dialed), std::move(accepted)};
}

// Where the next bytes of one connection go: pages in random order, over and over.
class Pages {
 public:
  Pages(std::byte* arena, std::uint64_t page_bytes, std::uint64_t seed)
      : arena_(arena), page_bytes_(page_bytes), order_(kArenaBytes / page_bytes) {
    std::iota(order_.begin(), order_.end(), std::uint64_t{0});
    SplitMix random(seed);
    for (std::size_t i = order_.size(); i > 1; --i)
      std::swap(order_[i - 1], order_[random.below(i)]);
  }
  std::span<iovec> vectors() {
    for (std::size_t i = 0; i < kPagesPerCall; ++i) {
      std::byte* const page = arena_ + order_[(next_ + i) % order_.size()] * page_bytes_;
      const std::uint64_t skip = i == 0 ? within_ : 0;
      vectors_[i] = {page + skip, page_bytes_ - skip};
    }
    return vectors_;
  }
  void received(std::uint64_t bytes) {
    within_ += bytes;
    next_ = (next_ + within_ / page_bytes_) % order_.size();
    within_ %= page_bytes_;
    total += bytes;
  }
  std::uint64_t total = 0;

 private:
  std::byte* const arena_;
  const std::uint64_t page_bytes_;
  std::vector<std::uint64_t> order_;
  std::size_t next_ = 0;
  std::uint64_t within_ = 0;
  std::array<iovec, kPagesPerCall> vectors_{};
};

using Lanes = std::array<std::pair<int, Pages*>, kConnections>;

void receive_epoll(const Lanes& lanes, std::uint64_t until) {
  const UniqueFd epoll(::epoll_create1(0));
  for (std::size_t i = 0; i < lanes.size(); ++i) {
    epoll_event event{EPOLLIN | EPOLLET, {.u64 = i}};
    ::epoll_ctl(epoll.get(), EPOLL_CTL_ADD, lanes[i].first, &event);
  }
  const auto done = [&] {
    return std::ranges::all_of(lanes, [&](auto& lane) { return lane.second->total >= until; });
  };
  while (!done()) {
    epoll_event ready[kConnections];
    const int count = ::epoll_wait(epoll.get(), ready, kConnections, -1);
    for (int i = 0; i < count; ++i) {
      const auto& [fd, pages] = lanes[ready[i].data.u64];
      while (pages->total < until) {
        const auto vectors = pages->vectors();
        const ssize_t n = ::readv(fd, vectors.data(), static_cast<int>(vectors.size()));
        if (n < 0 && errno == EAGAIN) break;
        if (n <= 0) die("readv");
        pages->received(static_cast<std::uint64_t>(n));
      }
    }
  }
}

void receive_uring(io_uring& ring, const Lanes& lanes, std::uint64_t until) {
  std::size_t open = 0;
  const auto post = [&](std::size_t i) {
    const auto& [fd, pages] = lanes[i];
    if (pages->total >= until) return;
    io_uring_sqe* const entry = ::io_uring_get_sqe(&ring);
    const auto vectors = pages->vectors();
    ::io_uring_prep_readv(entry, fd, vectors.data(), static_cast<unsigned>(vectors.size()), 0);
    ::io_uring_sqe_set_data64(entry, i);
    ++open;
  };
  for (std::size_t i = 0; i < lanes.size(); ++i) post(i);
  while (open > 0) {
    ::io_uring_submit_and_wait(&ring, 1);
    io_uring_cqe* entry = nullptr;
    while (::io_uring_peek_cqe(&ring, &entry) == 0) {
      const auto i = static_cast<std::size_t>(::io_uring_cqe_get_data64(entry));
      const int n = entry->res;
      ::io_uring_cqe_seen(&ring, entry);
      --open;
      if (n <= 0 && n != -EAGAIN) die("io_uring readv");
      if (n > 0) lanes[i].second->received(static_cast<std::uint64_t>(n));
      post(i);
    }
  }
}

struct Figures {
  std::vector<double> seconds, cpu;
};

int run(double seconds, std::uint64_t page_bytes) {
  std::vector<std::byte> arena(kArenaBytes), source(4u << 20, std::byte{7});
  io_uring ring{};
  unsigned flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_COOP_TASKRUN;
  if (::io_uring_queue_init(8, &ring, flags) != 0 && ::io_uring_queue_init(8, &ring, 0) != 0) {
    std::puts("receive_bench: this kernel offers no io_uring: nothing to compare");
    return 0;
  }
  std::array<std::array<UniqueFd, 2>, kConnections> pairs;
  std::vector<Pages> pages;
  pages.reserve(kConnections);
  Lanes lanes;
  for (std::size_t i = 0; i < kConnections; ++i) {
    pairs[i] = connect_pair();
    pages.emplace_back(arena.data(), page_bytes, i + 1);
    lanes[i] = {pairs[i][1].get(), &pages[i]};
  }
  Figures figures[2];
  const SteadyClock clock;
  const std::int64_t end_ns = clock.now_ns() + static_cast<std::int64_t>(seconds * 1e9);
  std::uint64_t until = 0;
  for (std::size_t round = 0; clock.now_ns() < end_ns || round < 4; ++round) {
    const std::size_t kind = (round + round / 2) % 2;  // A B B A
    until += kRoundBytes;
    std::vector<std::thread> senders;
    senders.reserve(kConnections);
    for (const auto& pair : pairs) {
      senders.emplace_back([fd = pair[0].get(), &source] {
        for (std::uint64_t sent = 0; sent < kRoundBytes;) {
          const std::uint64_t bytes = std::min<std::uint64_t>(source.size(), kRoundBytes - sent);
          const ssize_t n = ::send(fd, source.data(), bytes, MSG_NOSIGNAL);
          if (n <= 0) die("send");
          sent += static_cast<std::uint64_t>(n);
        }
      });
    }
    const std::int64_t start_ns = clock.now_ns();
    const double cpu = thread_cpu_s();
    if (kind == 0) {
      receive_epoll(lanes, until);
    } else {
      receive_uring(ring, lanes, until);
    }
    figures[kind].seconds.push_back(static_cast<double>(clock.now_ns() - start_ns) / 1e9);
    figures[kind].cpu.push_back(thread_cpu_s() - cpu);
    for (std::thread& sender : senders) sender.join();
  }
  ::io_uring_queue_exit(&ring);
  constexpr double kGigabytes = static_cast<double>(kRoundBytes * kConnections) / 1e9;
  std::printf("pages of %llu bytes, %zu connections\n          GB/s  cpu_s/GB\n",
              static_cast<unsigned long long>(page_bytes), kConnections);
  for (const std::size_t kind : {std::size_t{0}, std::size_t{1}}) {
    std::printf("%-8s  %4.2f     %.4f\n", kind == 0 ? "epoll" : "io_uring",
                kGigabytes / median(figures[kind].seconds), median(figures[kind].cpu) / kGigabytes);
  }
  const std::size_t rounds = std::min(figures[0].cpu.size(), figures[1].cpu.size());
  const auto print = [&](const char* what, std::vector<double>& a, std::vector<double>& b) {
    a.resize(rounds);
    b.resize(rounds);
    const Ratio ratio = paired_ratio(a, b);
    std::printf("io_uring / epoll, %s: %.3f (%.3f to %.3f)\n", what, ratio.value, ratio.low,
                ratio.high);
  };
  print("rate", figures[0].seconds, figures[1].seconds);
  print("CPU of the receiver", figures[1].cpu, figures[0].cpu);
  return 0;
}

}  // namespace
}  // namespace kvl::bench

int main(int argc, char** argv) {
  const double seconds = argc > 1 ? std::atof(argv[1]) : 5;
  const long page_bytes = argc > 2 ? std::atol(argv[2]) : 64 << 10;
  if (!(seconds >= 0) || seconds > 3600 || page_bytes < 512 || page_bytes > 16 << 20) {
    std::fputs("receive_bench [SECONDS] [PAGE_BYTES: 512 to 16777216]\n", stderr);
    return 2;
  }
  return kvl::bench::run(seconds, static_cast<std::uint64_t>(page_bytes));
}
