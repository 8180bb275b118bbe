// Opening, asking, waiting.
#include "tools/bench/session.h"

#include <chrono>
#include <future>
#include <utility>

#include "tools/bench/target.h"

namespace kvl::bench {
namespace {

constexpr std::int64_t kLookMs = 20;  // at Ctrl-C and at the child
constexpr std::int64_t kDropMs = 3000;

std::int64_t now_ns() { return SteadyClock().now_ns(); }
double ms_since(std::int64_t start_ns) { return static_cast<double>(now_ns() - start_ns) / 1e6; }

}  // namespace

Status Session::fail(Code code, std::string sentence) {
  error_ = std::move(sentence);
  return {code, "benchmark session"};
}

Result<std::unique_ptr<Session>> Session::open(const Settings& settings, const Options& options,
                                               std::string* error) {
  std::unique_ptr<Session> session(new Session(options));
  std::int64_t start_ns = now_ns();
  auto engine = Engine::open(settings, error);
  if (!engine.ok()) {
    if (error->empty()) *error = engine.status().to_string();
    return engine.status();
  }
  session->engine_ = std::move(*engine);
  session->open_ms_ = ms_since(start_ns);
  start_ns = now_ns();
  const auto connected = [&]() -> Status {
    const auto peer = session->engine_->connect(options.address);
    if (!peer.ok()) return session->fail(peer.code(), peer.status().to_string());
    session->peer_ = *peer;
    KVL_TRY(session->pump([&] { return session->up_; }, "connecting to the serving side"));
    session->connect_ms_ = ms_since(start_ns);
    auto hello = session->ask(Message("hello").set("version", kProtocolVersion));
    if (!hello.ok()) return hello.status();
    session->hello_ = std::move(*hello);
    if (session->hello_.number("version") != kProtocolVersion) {
      return session->fail(Code::unsupported, "the other side runs another version of kvlane");
    }
    return {};
  };
  const Status status = connected();
  if (!status.ok()) {
    *error = session->error();
    return status;
  }
  return session;
}

void Session::take(EngineEvent& event) {
  switch (event.kind) {
    case EngineEvent::Kind::transfer:
      ended_.push_back(std::move(event));
      break;
    case EngineEvent::Kind::proven:
      break;
    case EngineEvent::Kind::note:
      ++notes_;
      break;
    case EngineEvent::Kind::message:
      if (auto answer = Message::parse(event.data); answer.ok()) {
        answers_.push_back(std::move(*answer));
      }
      break;
    case EngineEvent::Kind::peer_up:
      if (event.peer == peer_) up_ = true;
      break;
    case EngineEvent::Kind::peer_down:
      if (event.peer == peer_) lost_ = {event.code, "the serving side was lost"};
      break;
  }
}

Status Session::pump_once(std::int64_t deadline_ns, const char* what) {
  const std::size_t count = engine_->poll(events_);
  for (EngineEvent& event : std::span(events_).first(count)) take(event);
  if (!lost_.ok()) {
    const auto peer = describe();
    std::string why = std::string(what) + ": " + std::string(to_string(lost_.code()));
    if (peer.ok()) {
      for (const PathInfo& path : peer->paths) {
        if (!path.in_use && !path.reason.empty()) {
          why += "; " + path.transport + ": " + path.reason;
        }
      }
    }
    if (child() != nullptr && !child()->running()) {
      why += " (the serving process ended: " + child()->how_ended() + ")";
    }
    return fail(lost_.code(), std::move(why));
  }
  const std::int64_t now = now_ns();
  if (count > 0) {
    last_event_ns_ = now;
    return {};
  }
  if (options_.spin_us > 0 && now < last_event_ns_ + options_.spin_us * 1000) return {};
  if (interrupted()) return fail(Code::aborted, "interrupted");
  if (child() != nullptr && !child()->running()) {
    return fail(Code::peer_lost,
                std::string(what) + ": the serving process ended: " + child()->how_ended());
  }
  if (now >= deadline_ns) {
    return fail(Code::timed_out, std::string(what) + ": nothing within " +
                                     std::to_string(options_.timeout_ms) + " ms");
  }
  engine_->wait(kLookMs);
  return {};
}

Status Session::pump(const std::function<bool()>& ready, const char* what) {
  const std::int64_t deadline_ns = now_ns() + options_.timeout_ms * 1'000'000;
  last_event_ns_ = now_ns();
  while (!ready()) KVL_TRY(pump_once(deadline_ns, what));
  return {};
}

std::string Session::transport() const {
  std::string names;
  if (const auto peer = describe(); peer.ok()) {
    for (const PathInfo& path : peer->paths) {
      if (!path.in_use || names.find(path.transport) != std::string::npos) continue;
      names += (names.empty() ? "" : "+") + path.transport;
    }
  }
  return names;
}

Result<Message> Session::ask(Message question) {
  const std::uint64_t id = ++questions_;
  const std::string text = question.set("id", id).encode();
  if (const Status sent = engine_->send(peer_, std::as_bytes(std::span(text))); !sent.ok()) {
    return fail(sent.code(), "asking the serving side: " + sent.to_string());
  }
  const auto answered = [&] { return !answers_.empty() && answers_.front().number("id") == id; };
  const auto ready = [&] {
    while (!answers_.empty() && answers_.front().number("id") < id) answers_.pop_front();
    return answered();
  };
  KVL_TRY(pump(ready, ("waiting for the answer to '" + question.verb() + "'").c_str()));
  Message answer = std::move(answers_.front());
  answers_.pop_front();
  if (answer.verb() != "ok") {
    return fail(Code::unavailable,
                "the serving side refused '" + question.verb() + "': " + answer.text("why"));
  }
  return answer;
}

void Session::drop_arena() {
  const std::string error = error_;
  // A raw-socket server of the target sees the end of its client a moment later.
  const std::int64_t deadline_ns = now_ns() + kDropMs * 1'000'000;
  while (lost_.ok() && !interrupted() && now_ns() < deadline_ns) {
    if (ask(Message("drop")).ok()) break;
    engine_->wait(kLookMs);
  }
  error_ = error;
}

double Session::target_cpu_seconds() {
  const auto answer = ask(Message("cpu"));
  return answer.ok() ? answer->real("seconds") : 0;
}

Status Session::start(Transfer transfer) {
  transfer.peer = peer_;
  if (transfer.timeout_ms == 0) transfer.timeout_ms = options_.timeout_ms;
  const auto id = engine_->submit(transfer);
  if (!id.ok()) return fail(id.code(), "submit: " + id.status().to_string());
  return {};
}

Result<EngineEvent> Session::ended() {
  if (ended_.empty()) KVL_TRY(pump([&] { return !ended_.empty(); }, "waiting for a transfer"));
  EngineEvent event = std::move(ended_.front());
  ended_.pop_front();
  if (event.code != Code::ok) {
    return fail(event.code, "a transfer ended with " + std::string(to_string(event.code)) +
                                " after " + std::to_string(event.bytes) + " bytes");
  }
  return event;
}

Status Session::note() {
  if (notes_ == 0) KVL_TRY(pump([&] { return notes_ > 0; }, "waiting for a note"));
  --notes_;
  return {};
}

void Session::beside(const std::function<void()>& work) {
  const auto done = std::async(std::launch::async, work);
  while (done.wait_for(std::chrono::seconds(0)) != std::future_status::ready) {
    const std::size_t count = engine_->poll(events_);
    for (EngineEvent& event : std::span(events_).first(count)) take(event);
    done.wait_for(std::chrono::milliseconds(2));
  }
}

}  // namespace kvl::bench
