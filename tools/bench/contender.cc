// The contenders and their rounds.
#include "tools/bench/contender.h"

#include <algorithm>
#include <limits>
#include <optional>

#include "bench/support/memcpy_baseline.h"
#include "bench/support/process_vm_baseline.h"
#include "bench/support/stats.h"

namespace kvl::bench {
namespace {

constexpr std::uint64_t kArenaEdgeBytes = 4096;  // Workload's guard before the first page

double now_seconds() { return static_cast<double>(SteadyClock().now_ns()) / 1e9; }

void add_round(Series& series, double seconds, double bytes, double cpu_seconds) {
  series.seconds += seconds;
  series.bytes += bytes;
  series.cpu_seconds += cpu_seconds;
  series.gb_per_s.push_back(bytes / seconds / 1e9);
}

class EngineContender final : public Contender {
 public:
  EngineContender(TestBed& bed, const LoadShape& shape, const char* name)
      : name_(name), bed_(bed), shape_(shape), started_(shape.depth) {}
  const char* name() const override { return name_; }

  Status round(double seconds, Series& series) override {
    Session& session = bed_.session();
    const double target_cpu = session.target_cpu_seconds();
    const double own_cpu = cpu_seconds_used();
    const double begin = now_seconds();
    double bytes = 0;
    double now = begin;
    std::uint32_t flying = 0;
    for (; flying < shape_.depth; ++flying) KVL_TRY(start(flying));
    while (flying > 0) {
      const auto event = session.ended();
      if (!event.ok()) return event.status();
      now = now_seconds();
      bytes += static_cast<double>(event->bytes);
      series.transfer_us.push_back((now - started_[event->user]) * 1e6);
      if (now - begin < seconds) {
        KVL_TRY(start(event->user));
      } else {
        --flying;
      }
    }
    const double cpu = cpu_seconds_used() - own_cpu;
    add_round(series, now - begin, bytes, cpu + session.target_cpu_seconds() - target_cpu);
    return {};
  }

 private:
  Status start(std::uint64_t slot) {
    started_[slot] = now_seconds();
    return bed_.start(shape_.direction, next_++, slot, shape_.notes);
  }
  const char* const name_;
  TestBed& bed_;
  const LoadShape shape_;
  std::vector<double> started_;
  std::size_t next_ = 0;
};

// Moves one transfer at a time by a function: memcpy and process_vm.
class LocalContender final : public Contender {
 public:
  using Move = std::function<Status(std::span<const PageOp>)>;
  LocalContender(const char* name, TestBed& bed, Move move)
      : name_(name), bed_(bed), move_(std::move(move)) {}
  const char* name() const override { return name_; }

  Status round(double seconds, Series& series) override {
    const double cpu = cpu_seconds_used();
    const double begin = now_seconds();
    double bytes = 0;
    double now = begin;
    while (now - begin < seconds) {
      KVL_TRY(move_(bed_.workload().ops_of(next_++)));
      const double end = now_seconds();
      series.transfer_us.push_back((end - now) * 1e6);
      now = end;
      bytes += static_cast<double>(bed_.workload().spec().transfer_bytes());
    }
    add_round(series, now - begin, bytes, cpu_seconds_used() - cpu);
    return {};
  }

 private:
  const char* const name_;
  TestBed& bed_;
  const Move move_;
  std::size_t next_ = 0;
};

// The page numbers of a transfer as the raw baseline counts them, beginning after the edge guard.
RawPlan raw_plan(const Workload& workload, std::size_t transfer, Direction direction) {
  const std::uint64_t page_bytes = workload.spec().page_bytes;
  RawPlan plan{direction, static_cast<std::uint32_t>(page_bytes), {}, {}};
  for (const PageOp& op : workload.ops_of(transfer)) {
    for (std::uint64_t i = 0; i < op.count; ++i) {
      const auto page = [&](std::uint64_t offset, std::uint64_t stride) {
        return static_cast<std::uint32_t>((offset - kArenaEdgeBytes + i * stride) / page_bytes);
      };
      plan.client_pages.push_back(page(op.local_offset, op.local_stride));
      plan.server_pages.push_back(page(op.remote_offset, op.remote_stride));
    }
  }
  return plan;
}

class SocketContender final : public Contender {
 public:
  SocketContender(TestBed& bed, const LoadShape& shape, std::unique_ptr<RawSocketClient> client)
      : bed_(bed), shape_(shape), client_(std::move(client)) {}
  const char* name() const override { return "socket"; }

  Status round(double seconds, Series& series) override {
    const bool rotating = bed_.workload().transfers() > 1;
    double spent = 0, bytes = 0, cpu = 0;
    while (spent < seconds) {
      // The page lists of the next transfer are told outside of the timed part.
      if (rotating || !planned_) {
        KVL_TRY(client_->configure(raw_plan(bed_.workload(), next_++, shape_.direction)));
        planned_ = true;
      }
      std::uint64_t batches = shape_.depth;
      if (!rotating && spent > 0) {
        const double each = spent * static_cast<double>(bed_.workload().spec().transfer_bytes());
        batches = std::max(batches, static_cast<std::uint64_t>((seconds - spent) * bytes / each));
      }
      const auto run = client_->run(batches, shape_.depth);
      if (!run.ok()) return run.status();
      spent += run->seconds;
      bytes += static_cast<double>(run->bytes);
      cpu += run->client_cpu_seconds + run->server_cpu_seconds;
      series.transfer_us.insert(series.transfer_us.end(), run->batch_us.begin(),
                                run->batch_us.end());
    }
    add_round(series, spent, bytes, cpu);
    return {};
  }

 private:
  TestBed& bed_;
  const LoadShape shape_;
  const std::unique_ptr<RawSocketClient> client_;
  std::size_t next_ = 0;
  bool planned_ = false;
};

}  // namespace

double Series::rate() const { return median(gb_per_s); }
double Series::cpu_s_per_gb() const {
  return measured() ? cpu_seconds / (bytes / 1e9) : std::numeric_limits<double>::quiet_NaN();
}
double Series::percentile_us(double q) const { return percentile(transfer_us, q); }

std::unique_ptr<Contender> make_engine_contender(TestBed& bed, const LoadShape& shape,
                                                 const char* name) {
  return std::make_unique<EngineContender>(bed, shape, name);
}

Result<std::unique_ptr<Contender>> make_memcpy_contender(TestBed& bed, const LoadShape& shape,
                                                         bool foreign) {
  auto arena = Arena::open(bed.workload().remote_bytes(), foreign);
  if (!arena.ok()) return arena.status();
  fill_pattern((*arena)->bytes(), 3, 0);  // every page is there before the first round
  std::shared_ptr<Arena> other = std::move(*arena);
  std::unique_ptr<Contender> contender = std::make_unique<LocalContender>(
      "memcpy", bed,
      [other, &bed, direction = shape.direction](std::span<const PageOp> ops) -> Status {
        if (direction == Direction::write) {
          memcpy_ops(other->data(), bed.local().data(), ops);
        } else {
          memcpy_ops_back(bed.local().data(), other->data(), ops);
        }
        return {};
      });
  return contender;
}

Result<std::unique_ptr<Contender>> make_process_vm_contender(TestBed& bed, const LoadShape& shape) {
  const ForeignProcess peer{static_cast<pid_t>(bed.session().hello().number("pid")),
                            bed.remote_base()};
  if (peer.base == 0) return Status{Code::unsupported, "process_vm: the target is not local"};
  // One try tells whether the kernel allows it.
  const auto first = bed.workload().ops_of(0).first(1);
  KVL_TRY(process_vm_ops(peer, bed.local().data(), first, shape.direction));
  std::unique_ptr<Contender> contender = std::make_unique<LocalContender>(
      "process_vm", bed, [peer, &bed, direction = shape.direction](std::span<const PageOp> ops) {
        return process_vm_ops(peer, bed.local().data(), ops, direction);
      });
  return contender;
}

Result<std::unique_ptr<Contender>> make_socket_contender(TestBed& bed, const LoadShape& shape,
                                                         const RawSocketOptions& options,
                                                         const std::string& host,
                                                         std::string* congestion) {
  const WorkloadSpec& spec = bed.workload().spec();
  if (spec.local_stride % spec.page_bytes != 0 || spec.remote_stride % spec.page_bytes != 0 ||
      spec.gap_bytes % spec.page_bytes != 0) {
    return Status{Code::unsupported, "the raw baseline needs strides that are whole pages"};
  }
  const auto answer = bed.session().ask(
      Message("raw")
          .set("offset", kArenaEdgeBytes)
          .set("connections", static_cast<std::uint64_t>(options.connections))
          .set("threads", static_cast<std::uint64_t>(options.threads))
          .set("congestion", options.congestion)
          .set("send_buffer_bytes", static_cast<std::uint64_t>(options.send_buffer_bytes))
          .set("recv_buffer_bytes", static_cast<std::uint64_t>(options.recv_buffer_bytes))
          .set("spin", std::uint64_t{options.spin}));
  if (!answer.ok()) return answer.status();
  auto client = RawSocketClient::open(options, bed.local().subspan(kArenaEdgeBytes), host,
                                      static_cast<std::uint16_t>(answer->number("port")));
  if (!client.ok()) return client.status();
  if (congestion != nullptr) *congestion = (*client)->congestion();
  std::unique_ptr<Contender> contender =
      std::make_unique<SocketContender>(bed, shape, std::move(*client));
  return contender;
}

Result<std::vector<Series>> interleave(Session& session,
                                       const std::vector<std::unique_ptr<Contender>>& contenders,
                                       const RoundPlan& plan) {
  std::vector<Series> all(contenders.size());
  for (std::size_t i = 0; i < all.size(); ++i) all[i].name = contenders[i]->name();
  const double round_seconds = std::clamp(plan.seconds / 20, 0.01, 0.25);
  for (std::size_t round = 0; round < plan.rounds_min || all[0].seconds < plan.seconds; ++round) {
    if (plan.progress) plan.progress(round);
    for (std::size_t i = 0; i < all.size(); ++i) {
      if (interrupted()) return session.fail(Code::aborted, "interrupted");
      const std::size_t turn = round % 2 == 0 ? i : all.size() - 1 - i;
      const std::string before = session.error();
      const Status status = contenders[turn]->round(round_seconds, all[turn]);
      if (!status.ok()) {
        if (session.error() == before) {
          return session.fail(status.code(), all[turn].name + ": " + status.to_string());
        }
        return status;
      }
    }
  }
  return all;
}

}  // namespace kvl::bench
