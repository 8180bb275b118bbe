// The serving side: answers the initiator's questions (message.h) while its engine receives pages.
//
//   hello                                    -> version cores pid rss
//   arena <spec> foreign                     -> memory bytes register_us base
//   fill own_seed                            -> (writes the pattern over the arena)
//   verify own_seed other_seed direction transfers -> wrong first inside
//   flip direction                           -> (breaks one byte, to see that verify sees it)
//   cpu                                      -> seconds
//   raw connections threads congestion ...   -> port (a raw-socket server on the arena)
//   futex path spin_us                       -> (answers a FutexPingPong)
//   spin us                                  -> (look that long before each sleep)
//   drop                                     -> (frees the arena)
//
// Each question carries id=N; the answer is "ok id=N ..." or "error id=N why=...". A note that
// begins with 'P' is answered by a note 'A'.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <future>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "bench/support/raw_socket.h"
#include "kvl/engine.h"
#include "tools/bench/arena.h"
#include "tools/bench/message.h"

namespace kvl::bench {

inline constexpr std::uint64_t kProtocolVersion = 1;
inline constexpr std::byte kPingNote{'P'};
inline constexpr std::byte kPongNote{'A'};

struct TargetOptions {
  // Of all arenas together; more is refused.
  std::uint64_t bytes_max = kArenaBytesMax;
  // The initiator is a process of the same user on this host: it may be told addresses.
  bool local = false;
  std::string raw_address = "127.0.0.1";  // where raw baselines listen
};

// Owned by one thread, which calls run().
class Target {
 public:
  Target(Engine& engine, TargetOptions options);
  ~Target();
  // Until `stop` says so (asked at least every 50 ms) or, with `last_peer_ends`, the first peer
  // that came has gone.
  void run(const std::function<bool()>& stop, bool last_peer_ends);
  // One look at the engine's events, for owners of several targets. False: there were none.
  bool step();

 private:
  struct Visitor;
  void on_event(const EngineEvent& event);
  void on_question(Visitor& visitor, const Message& question);
  Status make_arena(Visitor& visitor, const Message& question, Message& answer);
  // Runs beside the loop and answers when done, so that heartbeats go on.
  void beside(Visitor& visitor, const Message& question,
              std::function<Status(Message& answer)> work);
  void reap();

  Engine& engine_;
  const TargetOptions options_;
  std::map<std::uint64_t, std::unique_ptr<Visitor>> visitors_;  // by peer handle
  std::vector<std::unique_ptr<Visitor>> leaving_;               // gone; their work is not done yet
  std::array<EngineEvent, 32> events_;
  std::int64_t spin_us_ = 0;
  bool peer_seen_ = false;
};

}  // namespace kvl::bench
