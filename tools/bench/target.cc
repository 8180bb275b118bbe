// The serving side's loop and its answers.
#include "tools/bench/target.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <thread>

#include "bench/support/futex_pingpong.h"
#include "kvl/failure.h"
#include "kvl/log.h"

namespace kvl::bench {

struct Target::Visitor {
  PeerHandle peer;
  WorkloadSpec spec;
  std::unique_ptr<Workload> workload;
  std::unique_ptr<Arena> arena;
  MemoryHandle memory;
  std::vector<std::future<void>> work;  // destroyed first: it uses the members above

  bool busy() {
    std::erase_if(work, [](const std::future<void>& job) {
      return job.wait_for(std::chrono::seconds(0)) == std::future_status::ready;
    });
    return !work.empty();
  }
};

namespace {

constexpr std::int64_t kWaitMs = 50;
constexpr std::int64_t kBusyWaitMs = 2;  // while work runs beside a caller-driven engine
constexpr std::size_t kWorkMax = 4;      // of one visitor at a time
constexpr std::size_t kVisitorsMax = 64;

Direction direction_of(const Message& question) {
  return question.text("direction") == "read" ? Direction::read : Direction::write;
}

void reply(Engine& engine, PeerHandle peer, const Message& question, const Status& status,
           Message answer) {
  if (!status.ok()) answer = Message("error").set("why", status.to_string());
  answer.set("id", question.number("id"));
  const std::string text = answer.encode();
  const Status sent = engine.send(peer, std::as_bytes(std::span(text)));
  if (!sent.ok()) {
    log(LogLevel::info, "bench.answer_lost",
        {{"code", to_string(sent.code())},
         {"why", sent.to_string()},
         {"hint", remedy(sent.code())}});
  }
}

RawSocketOptions raw_options(const Message& question) {
  RawSocketOptions options;
  options.connections =
      static_cast<int>(std::clamp<std::uint64_t>(question.number("connections", 2), 1, 64));
  options.threads = static_cast<int>(std::clamp<std::uint64_t>(
      question.number("threads", 1), 1, static_cast<std::uint64_t>(options.connections)));
  options.congestion = question.text("congestion");
  options.send_buffer_bytes =
      static_cast<int>(std::min<std::uint64_t>(question.number("send_buffer_bytes"), 1 << 30));
  options.recv_buffer_bytes =
      static_cast<int>(std::min<std::uint64_t>(question.number("recv_buffer_bytes"), 1 << 30));
  options.spin = question.number("spin") != 0;
  return options;
}

}  // namespace

Target::Target(Engine& engine, TargetOptions options)
    : engine_(engine), options_(std::move(options)) {}
Target::~Target() = default;

void Target::run(const std::function<bool()>& stop, bool last_peer_ends) {
  const SteadyClock clock;
  std::int64_t spin_until_ns = 0;
  while (!stop()) {
    if (step()) {
      if (spin_us_ > 0) spin_until_ns = clock.now_ns() + spin_us_ * 1000;
      continue;
    }
    if (spin_us_ > 0 && clock.now_ns() < spin_until_ns) continue;
    reap();
    if (last_peer_ends && peer_seen_ && visitors_.empty()) return;
    const bool busy = !leaving_.empty() || std::any_of(visitors_.begin(), visitors_.end(),
                                                       [](auto& v) { return v.second->busy(); });
    engine_.wait(busy ? kBusyWaitMs : kWaitMs);
  }
}

bool Target::step() {
  const std::size_t count = engine_.poll(events_);
  for (const EngineEvent& event : std::span(events_).first(count)) on_event(event);
  return count > 0;
}

void Target::reap() {
  std::erase_if(leaving_, [this](std::unique_ptr<Visitor>& visitor) {
    if (visitor->busy()) return false;
    if (visitor->arena == nullptr) return true;
    // exhausted while a transfer of ours uses it: later.
    return engine_.deregister_memory(visitor->memory).code() != Code::exhausted;
  });
}

void Target::on_event(const EngineEvent& event) {
  switch (event.kind) {
    case EngineEvent::Kind::peer_up: {
      if (visitors_.size() >= kVisitorsMax) break;
      auto& visitor = visitors_[event.peer.value];
      if (visitor == nullptr) visitor = std::make_unique<Visitor>();
      visitor->peer = event.peer;
      peer_seen_ = true;
      break;
    }
    case EngineEvent::Kind::peer_down: {
      const auto found = visitors_.find(event.peer.value);
      if (found == visitors_.end()) break;
      leaving_.push_back(std::move(found->second));
      visitors_.erase(found);
      break;
    }
    case EngineEvent::Kind::note: {
      if (event.data.empty() || event.data.front() != kPingNote) break;
      const std::array<std::byte, 1> note{kPongNote};
      const auto id = engine_.submit({.peer = event.peer, .note = note});
      if (!id.ok()) {
        log(LogLevel::warning, "bench.pong",
            {{"code", to_string(id.code())},
             {"why", id.status().to_string()},
             {"hint", remedy(id.code())}});
      }
      break;
    }
    case EngineEvent::Kind::message: {
      const auto found = visitors_.find(event.peer.value);
      const auto question = Message::parse(event.data);
      if (found == visitors_.end() || !question.ok()) break;
      on_question(*found->second, *question);
      break;
    }
    case EngineEvent::Kind::transfer:
    case EngineEvent::Kind::proven:
      break;  // a pong went out
  }
}

void Target::beside(Visitor& visitor, const Message& question,
                    std::function<Status(Message& answer)> work) {
  if (visitor.busy() && visitor.work.size() >= kWorkMax) {
    reply(engine_, visitor.peer, question, {Code::exhausted, "too much work at once"}, Message());
    return;
  }
  visitor.work.push_back(
      std::async(std::launch::async, [this, peer = visitor.peer, question, work = std::move(work)] {
        Message answer("ok");
        const Status status = work(answer);
        reply(engine_, peer, question, status, std::move(answer));
      }));
}

Status Target::make_arena(Visitor& visitor, const Message& question, Message& answer) {
  const WorkloadSpec spec = question.spec();
  KVL_TRY(validate(spec));
  if (visitor.busy() || visitor.arena != nullptr) {
    return {Code::exhausted, "this peer has an arena; drop it first"};
  }
  auto workload = std::make_unique<Workload>(spec);
  std::uint64_t used = 0;
  for (const auto& [peer, other] : visitors_) {
    if (other->arena != nullptr) used += other->arena->bytes().size();
  }
  used += workload->transfers() * workload->runs_per_transfer() * sizeof(PageOp);
  if (used + workload->remote_bytes() > options_.bytes_max) {
    return {Code::exhausted, "more memory than the serving side grants (--serve-bytes-max)"};
  }
  const bool foreign = question.number("foreign") != 0;
  auto arena = Arena::open(workload->remote_bytes(), foreign);
  if (!arena.ok()) return arena.status();
  const SteadyClock clock;
  const std::int64_t start_ns = clock.now_ns();
  const auto memory = engine_.register_memory((*arena)->memory());
  if (!memory.ok()) return memory.status();
  answer.set("register_us", static_cast<double>(clock.now_ns() - start_ns) / 1000);
  visitor.spec = spec;
  visitor.workload = std::move(workload);
  visitor.arena = std::move(*arena);
  visitor.memory = *memory;
  answer.set("memory", memory->value).set("bytes", std::uint64_t{visitor.arena->bytes().size()});
  if (options_.local) {
    answer.set("base", reinterpret_cast<std::uint64_t>(visitor.arena->data()));
  }
  return {};
}

void Target::on_question(Visitor& visitor, const Message& question) {
  const std::string& verb = question.verb();
  Message answer("ok");
  Status status;
  Arena* const arena = visitor.arena.get();
  const Workload* const workload = visitor.workload.get();
  if (verb == "hello") {
    answer.set("version", kProtocolVersion)
        .set("cores", std::uint64_t{std::thread::hardware_concurrency()})
        .set("pid", static_cast<std::uint64_t>(::getpid()))
        .set("rss", process_rss_bytes());
  } else if (verb == "cpu") {
    answer.set("seconds", cpu_seconds_used());
  } else if (verb == "spin") {
    spin_us_ = static_cast<std::int64_t>(std::min<std::uint64_t>(question.number("us"), 100'000));
  } else if (verb == "arena") {
    status = make_arena(visitor, question, answer);
  } else if ((verb == "futex" || verb == "raw") && visitor.busy() &&
             visitor.work.size() >= kWorkMax) {
    status = {Code::exhausted, "too much work at once"};
  } else if (verb == "futex" && options_.local) {
    auto side = FutexPingPong::attach(question.text("path"));
    if (side.ok()) {
      std::shared_ptr<FutexPingPong> shared = std::move(*side);
      const auto spin_us = static_cast<std::int64_t>(question.number("spin_us"));
      visitor.work.push_back(std::async(std::launch::async, [shared, spin_us] {
        [[maybe_unused]] const Status ended = shared->answer(spin_us, 10'000);
      }));
    }
    status = side.status();
  } else if (arena == nullptr) {
    status = {Code::invalid_argument, "unknown question, or no arena yet"};
  } else if (verb == "fill") {
    return beside(visitor, question, [arena, question](Message&) -> Status {
      fill_pattern(arena->bytes(), question.number("own_seed"), 0);
      return {};
    });
  } else if (verb == "verify") {
    return beside(visitor, question, [arena, workload, question](Message& out) -> Status {
      const std::size_t transfers = question.number("transfers");
      auto pieces = direction_of(question) == Direction::write
                        ? workload->moved(Direction::write, transfers)
                        : std::vector<MovedPiece>{};
      const CheckResult check = check_arena(arena->bytes(), question.number("own_seed"),
                                            question.number("other_seed"), std::move(pieces));
      out.set("wrong", check.wrong_bytes)
          .set("first", check.first_offset)
          .set("inside", std::uint64_t{check.inside_page});
      return {};
    });
  } else if (verb == "flip") {
    arena->data()[workload->ops_of(0).front().remote_offset] ^= std::byte{1};
  } else if (verb == "raw") {
    const std::uint64_t offset = std::min<std::uint64_t>(question.number("offset"), 4096);
    auto server = RawSocketServer::open(raw_options(question), arena->bytes().subspan(offset),
                                        options_.raw_address);
    if (server.ok()) {
      answer.set("port", std::uint64_t{(*server)->port()});
      std::shared_ptr<RawSocketServer> shared = std::move(*server);
      visitor.work.push_back(std::async(std::launch::async, [shared] {
        const Status ended = shared->serve();
        if (!ended.ok()) {
          log(LogLevel::info, "bench.raw",
              {{"code", to_string(ended.code())},
               {"why", ended.to_string()},
               {"hint", remedy(ended.code())}});
        }
      }));
    }
    status = server.status();
  } else if (verb == "drop") {
    if (visitor.busy()) {
      status = {Code::exhausted, "work on the arena is not done yet"};
    } else {
      status = engine_.deregister_memory(visitor.memory);
      if (status.ok()) visitor.arena.reset();
    }
  } else {
    status = {Code::unsupported, "unknown question"};
  }
  reply(engine_, visitor.peer, question, status, std::move(answer));
}

}  // namespace kvl::bench
