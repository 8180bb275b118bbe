// What does the libfabric Link cost above the provider? The same page runs through the Link and
// through a plain loop of fi_writemsg and fi_cq_read on the same provider, in turns.
//
//   fabric_bench [PROVIDER] [PAGE_BYTES] [BATCH] [SECONDS] [loop|link]
//
// Without PROVIDER: the fake EFA of the tests with an instant wire; what is left of the Link's time
// above the loop's is the Link's own. Aim: 300 ns per run at batches of 64 or more. With a provider
// (tcp) its own work counts, the target is served by a thread, and the aim is a ratio of at least
// 0.9 at 64 KiB and 1 MiB.
//
// With the last word one of the two runs alone, for a profiler. Instructions of 86,016 runs:
//
//   valgrind --tool=callgrind --toggle-collect='*::move_batch*' fabric_bench fake 64 64 0 link
#include <array>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "bench/support/stats.h"
#include "tests/transport/libfabric/fake_provider.h"
#include "transport/libfabric/fabric_device.h"
#include "transport/libfabric/fabric_endpoint.h"
#include "transport/libfabric/fabric_transport.h"

namespace kvl::bench {
namespace {

using libfabric::Endpoint;

struct Shape {
  std::uint64_t page_bytes = 4096, batch = 64;
  std::uint64_t arena() const { return std::min<std::uint64_t>(2 * page_bytes * batch, 256 << 20); }
  std::uint64_t pages() const { return arena() / (2 * page_bytes); }  // every other one
};

[[noreturn]] void fail(const std::string& what) {
  std::fprintf(stderr, "fabric_bench: %s\n", what.c_str());
  std::exit(1);
}
template <typename T>
T must(Result<T> result) {
  if (!result.ok()) fail(result.status().to_string());
  return std::move(result).value();
}
void check(bool good, const char* what) {
  if (!good) fail(what);
}

// Of this thread's CPU, where it does all of the work; else of the wall.
double time_ns(bool alone) {
  timespec t{};
  ::clock_gettime(alone ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &t);
  return static_cast<double>(t.tv_sec) * 1e9 + static_cast<double>(t.tv_nsec);
}

// Serves a target until it is told to stop; where the target needs no help nobody runs.
class Server {
 public:
  Server(bool needed, std::function<void()> turn) {
    if (!needed) return;
    thread_ = std::thread([this, turn = std::move(turn)] {
      while (!stop_.load(std::memory_order_relaxed)) turn();
    });
  }
  ~Server() {
    stop_.store(true);
    if (thread_.joinable()) thread_.join();
  }

 private:
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

class Contender {
 public:
  virtual ~Contender() = default;
  virtual void move_batch() = 0;
};

// fi_writemsg until the provider is full, fi_cq_read, and so on.
class Loop final : public Contender {
 public:
  Loop(const libfabric::FabricApi& api, const libfabric::FoundDevice& device,
       const libfabric::FabricConfig& config, const Shape& shape, bool serve)
      : shape_(shape), here_(shape.arena()), there_(shape.arena()) {
    complete_ = device.delivery_complete ? FI_DELIVERY_COMPLETE : FI_TRANSMIT_COMPLETE;
    from_ = must(Endpoint::open(api, device, config));
    to_ = must(Endpoint::open(api, device, config));
    contexts_.resize(from_->tx_depth());
    address_ = insert(*from_, *to_);
    insert(*to_, *from_);
    local_ = enrol(*from_, here_);
    remote_ = enrol(*to_, there_);
    base_ =
        to_->mr_mode(FI_MR_VIRT_ADDR) != 0 ? reinterpret_cast<std::uintptr_t>(there_.data()) : 0;
    server_ = std::make_unique<Server>(serve, [this] { drain(*to_); });
  }
  ~Loop() override {
    server_.reset();
    local_.reset();
    remote_.reset();
    ::fi_av_remove(from_->av(), &address_, 1, 0);
    fi_addr_t first = 0;
    ::fi_av_remove(to_->av(), &first, 1, 0);
  }

  void move_batch() override {
    std::uint64_t posted = 0, done = 0;
    while (done < shape_.batch) {
      while (posted < shape_.batch && posted - done < contexts_.size()) {
        const bool more =
            posted % 16 != 15 && posted + 1 < shape_.batch && posted + 1 - done < contexts_.size();
        const ssize_t result = post(posted, more);
        if (result == -FI_EAGAIN) break;
        check(result == 0, "fi_writemsg");
        ++posted;
      }
      done += drain(*from_);
    }
  }

 private:
  static fi_addr_t insert(const Endpoint& to, const Endpoint& other) {
    fi_addr_t address = 0;
    check(::fi_av_insert(to.av(), other.address().data(), 1, &address, 0, nullptr) == 1,
          "fi_av_insert");
    return address;
  }
  static libfabric::Fid<fid_mr> enrol(const Endpoint& endpoint, std::vector<std::byte>& memory) {
    fid_mr* mr = nullptr;
    static std::uint64_t keys = 0;
    check(::fi_mr_reg(endpoint.domain(), memory.data(), memory.size(),
                      FI_READ | FI_WRITE | FI_REMOTE_READ | FI_REMOTE_WRITE, 0, ++keys, 0, &mr,
                      nullptr) == 0,
          "fi_mr_reg");
    return libfabric::Fid<fid_mr>(mr);
  }
  static std::uint64_t drain(const Endpoint& endpoint) {
    std::array<fi_cq_data_entry, 16> entries;
    const ssize_t count = ::fi_cq_read(endpoint.cq(), entries.data(), entries.size());
    check(count > 0 || count == -FI_EAGAIN, "fi_cq_read");
    return count > 0 ? static_cast<std::uint64_t>(count) : 0;
  }
  ssize_t post(std::uint64_t number, bool more) {
    const std::uint64_t at = number % shape_.pages() * 2 * shape_.page_bytes;
    iovec range{here_.data() + at, shape_.page_bytes};
    void* desc = ::fi_mr_desc(local_.get());
    fi_rma_iov target{base_ + at, shape_.page_bytes, ::fi_mr_key(remote_.get())};
    fi_msg_rma message{};
    message.msg_iov = &range;
    message.desc = &desc;
    message.iov_count = 1;
    message.addr = address_;
    message.rma_iov = &target;
    message.rma_iov_count = 1;
    message.context = &contexts_[number % contexts_.size()];
    return ::fi_writemsg(from_->ep(), &message, FI_COMPLETION | complete_ | (more ? FI_MORE : 0));
  }

  const Shape shape_;
  std::vector<std::byte> here_, there_;
  std::unique_ptr<Endpoint> from_, to_;
  std::vector<fi_context2> contexts_;
  libfabric::Fid<fid_mr> local_, remote_;
  fi_addr_t address_ = 0;
  std::uint64_t base_ = 0, complete_ = 0;
  std::unique_ptr<Server> server_;
};

struct Silent final : ControlChannel {
  Status send(PeerId, std::span<const std::byte>) override { return {}; }
};

class OurLink final : public Contender {
 public:
  OurLink(const libfabric::FabricApi& api, const libfabric::FabricConfig& config,
          const Shape& shape, bool serve)
      : shape_(shape), here_(shape.arena()), there_(shape.arena()) {
    transport_ = libfabric::make_transport(config, api);
    const Device device = transport_->devices().at(0);
    from_ = must(transport_->open(device, {control_, *memory_ops_, clock_}));
    to_ = must(transport_->open(device, {control_, *memory_ops_, clock_}));
    peer_ = must(from_->open_peer(PeerRole::active));
    const PeerId back = must(to_->open_peer(PeerRole::passive));
    check(from_->accept(peer_, must(to_->offer(back))).ok(), "accept");
    check(to_->accept(back, must(from_->offer(peer_))).ok(), "accept");
    bool up = false;
    while (!up) {
      up = poll(*from_, Event::Kind::peer_up) > 0;
      poll(*to_, Event::Kind::peer_up);
    }
    local_ = must(from_->add_memory({here_.data(), here_.size(), MemoryKind::host, 0}));
    const MemoryId remote = must(
        to_->add_memory({there_.data(), there_.size(), MemoryKind::host, 0, Access::remote_all}));
    remote_ = must(from_->import_memory(peer_, must(to_->export_memory(remote, back))));
    for (std::uint64_t i = 0; i < shape.batch; ++i) {
      const std::uint64_t at = i % shape.pages() * 2 * shape.page_bytes;
      ops_.push_back({0, 0, at, at, static_cast<std::uint32_t>(shape.page_bytes), 1, 0, 0});
    }
    server_ = std::make_unique<Server>(serve, [this] { poll(*to_, Event::Kind::peer_up); });
  }
  ~OurLink() override { server_.reset(); }

  void move_batch() override {
    Batch batch;
    batch.ticket = {++tickets_};
    batch.peer = peer_;
    batch.ops = ops_;
    batch.locals = {&local_, 1};
    batch.remotes = {&remote_, 1};
    check(from_->post(batch).ok(), "post");
    while (poll(*from_, Event::Kind::batch) == 0) {
    }
  }

 private:
  static std::size_t poll(Link& link, Event::Kind kind) {
    std::array<Event, 16> events;
    std::size_t found = 0;
    const std::size_t count = link.poll(events);
    for (std::size_t i = 0; i < count; ++i) {
      check(events.at(i).code == Code::ok, "an event that is not ok");
      found += events.at(i).kind == kind ? 1 : 0;
    }
    return found;
  }

  const Shape shape_;
  std::vector<std::byte> here_, there_;
  SteadyClock clock_;
  Silent control_;
  std::unique_ptr<MemoryOps> memory_ops_ = make_host_memory_ops();
  std::unique_ptr<Transport> transport_;
  std::unique_ptr<Link> from_, to_;
  PeerId peer_;
  MemoryId local_;
  RemoteId remote_;
  std::vector<PageOp> ops_;
  std::uint64_t tickets_ = 0;
  std::unique_ptr<Server> server_;
};

double ns_per_run(Contender& contender, const Shape& shape, bool alone) {
  const std::uint64_t of_bytes = (std::uint64_t{64} << 20) / (shape.batch * shape.page_bytes);
  const std::uint64_t turns = std::max<std::uint64_t>(1, std::min(4096 / shape.batch, of_bytes));
  const double begin = time_ns(alone);
  for (std::uint64_t i = 0; i < turns; ++i) contender.move_batch();
  return (time_ns(alone) - begin) / static_cast<double>(turns * shape.batch);
}

void compare(const libfabric::FabricApi& api, const libfabric::FabricConfig& config,
             const Shape& shape, double seconds, bool fake, const std::string& only) {
  std::string why;
  const auto devices = libfabric::find_devices(api, config, {config.providers}, &why);
  if (devices.empty()) fail(why);
  std::vector<double> loop_ns, link_ns;
  const double end = time_ns(fake) + seconds * 1e9;
  // Both need the CPUs: a target that is not measured is not served.
  const auto turn = [&](bool ours, std::vector<double>& samples) {
    std::unique_ptr<Contender> contender;
    if (ours) {
      contender = std::make_unique<OurLink>(api, config, shape, !fake);
    } else {
      contender = std::make_unique<Loop>(api, devices.front(), config, shape, !fake);
    }
    ns_per_run(*contender, shape, fake);  // warm
    for (int i = 0; i < (fake ? 20 : 3); ++i)
      samples.push_back(ns_per_run(*contender, shape, fake));
  };
  while (time_ns(fake) < end || loop_ns.size() + link_ns.size() == 0) {
    if (only != "link") turn(false, loop_ns);
    if (only != "loop") turn(true, link_ns);
  }
  if (!only.empty()) {
    std::printf("%s: %.0f ns a run\n", only.c_str(), median(only == "loop" ? loop_ns : link_ns));
    return;
  }
  const Ratio ratio = paired_ratio(loop_ns, link_ns);
  std::printf("%s, pages of %llu bytes, batches of %llu: loop %.0f ns a run, Link %.0f ns, ",
              config.providers.c_str(), static_cast<unsigned long long>(shape.page_bytes),
              static_cast<unsigned long long>(shape.batch), median(loop_ns), median(link_ns));
  std::printf("of the loop's rate %.3f [%.3f, %.3f], above it %.0f ns\n", ratio.value, ratio.low,
              ratio.high, median(link_ns) - median(loop_ns));
}

}  // namespace

int run(const std::vector<std::string>& words) {
  const auto number = [&](std::size_t i, double usual) {
    return words.size() > i ? std::strtod(words[i].c_str(), nullptr) : usual;
  };
  const bool fake = words.empty() || words[0] == "fake";
  const std::string only = words.size() > 4 ? words[4] : "";
  Shape shape;
  shape.page_bytes = static_cast<std::uint64_t>(number(1, 64));
  shape.batch = static_cast<std::uint64_t>(number(2, 64));
  libfabric::FabricConfig config;
  config.op_bytes = 1 << 20;
  if (fake) {
    test::FakeProvider provider(test::measured());
    compare(provider.api(), config, shape, number(3, 2), true, only);
    return 0;
  }
  config.providers = words[0];
  std::string why;
  const auto api = libfabric::load_fabric_api("", &why);
  if (!api.ok()) fail(why);
  compare(*api, config, shape, number(3, 5), false, only);
  return 0;
}

}  // namespace kvl::bench

int main(int argc, char** argv) { return kvl::bench::run({argv + 1, argv + argc}); }
