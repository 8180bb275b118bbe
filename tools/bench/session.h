// The asking side of the benchmark: an engine, one peer that runs a Target, and the loop that waits
// for either with a deadline.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "kvl/engine.h"
#include "tools/bench/child_process.h"
#include "tools/bench/message.h"

namespace kvl::bench {

// Owned by one thread. Every wait ends by its deadline, when the peer or the child is lost, or by
// Ctrl-C. What went wrong is a Status, and a sentence in error().
class Session {
 public:
  struct Options {
    std::string address;            // the target's engine
    ChildProcess* child = nullptr;  // whose end ends every wait; or none
    std::int64_t timeout_ms = 30'000;
    std::int64_t spin_us = 0;  // poll that long before each sleep
  };

  // Opens an engine with `settings`, connects, waits for the peer and checks that it is a Target.
  // On failure `error` says why.
  static Result<std::unique_ptr<Session>> open(const Settings& settings, const Options& options,
                                               std::string* error);

  Engine& engine() { return *engine_; }
  PeerHandle peer() const { return peer_; }
  ChildProcess* child() const { return options_.child; }
  std::int64_t timeout_ms() const { return options_.timeout_ms; }
  void spin(std::int64_t spin_us) { options_.spin_us = spin_us; }
  double open_ms() const { return open_ms_; }        // Engine::open
  double connect_ms() const { return connect_ms_; }  // from connect() to peer_up
  const Message& hello() const { return hello_; }    // the target's first answer

  // "tcp", "shm": what carries bytes to the peer; "tcp+shm" when several do.
  std::string transport() const;
  Result<PeerInfo> describe() const { return engine_->describe(peer_); }

  // The answer to a question; an "error" answer becomes a failed Status.
  Result<Message> ask(Message question);
  // Frees the target's arena as soon as nothing uses it. Keeps error() as it was.
  void drop_arena();
  // Seconds of CPU that the target's process has used.
  double target_cpu_seconds();
  // Starts a transfer to the peer.
  Status start(Transfer transfer);
  // The next transfer that ended; failed when it ended with another code than ok.
  Result<EngineEvent> ended();
  // A note from the peer.
  Status note();
  // Runs `work` on another thread and keeps the engine going meanwhile.
  void beside(const std::function<void()>& work);

  const std::string& error() const { return error_; }
  Status fail(Code code, std::string sentence);

 private:
  explicit Session(const Options& options) : options_(options) {}
  // Until `ready`; takes events as they come.
  Status pump(const std::function<bool()>& ready, const char* what);
  Status pump_once(std::int64_t deadline_ns, const char* what);
  void take(EngineEvent& event);

  Options options_;
  std::unique_ptr<Engine> engine_;
  PeerHandle peer_;
  Message hello_;
  double open_ms_ = 0, connect_ms_ = 0;
  bool up_ = false;
  Status lost_;
  std::uint64_t questions_ = 0, notes_ = 0;
  std::deque<Message> answers_;
  std::deque<EngineEvent> ended_;
  std::array<EngineEvent, 64> events_;
  std::int64_t last_event_ns_ = 0;
  std::string error_;
};

}  // namespace kvl::bench
