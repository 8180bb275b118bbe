// The connector: what makes an engine a kvlane engine. One thread that owns the Engine and the
// HandoffEndpoint of each rank in this process, beside the threads that compute.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <variant>
#include <vector>

#include "kvl/clock.h"
#include "kvl/engine.h"
#include "kvl/handoff.h"
#include "worker/kv_memory.h"
#include "worker/messages.h"

namespace kvl::worker {

struct ConnectorOptions {
  const Settings* settings = nullptr;  // of engine, transports and handoff; used during open only
  std::string model;                   // fingerprint
  bool prefill = true, decode = true;
};
struct ConnectorRank {
  std::uint32_t rank = 0;
  const KvMemory* memory = nullptr;  // outlives the connector
};

class Connector {
 public:
  // Opens one engine per rank and answers each with a RankUp. `error` receives a sentence.
  static Result<std::unique_ptr<Connector>> open(const ConnectorOptions& options,
                                                 const std::vector<ConnectorRank>& ranks,
                                                 RankEventSink sink, std::string* error);
  // Ends every handoff and closes the engines: on return nothing touches the memory.
  ~Connector();
  Connector(const Connector&) = delete;
  Connector& operator=(const Connector&) = delete;

  // Any thread. Not ComputeJob.
  void post(Command command);
  // Any thread: layers of a room became ready on a rank.
  void ready(std::uint32_t rank, std::uint64_t room, std::uint32_t layer, std::uint64_t tokens);
  void visit_metrics(MetricVisitor& visitor) const;  // of the engines

 private:
  struct Ready {
    std::uint32_t rank;
    std::uint64_t room;
    std::uint32_t layer;
    std::uint64_t tokens;
  };
  using Message = std::variant<Command, Ready>;

  // One rank. Everything but `engine` belongs to the thread.
  struct Port {
    std::uint32_t rank = 0;
    std::unique_ptr<Engine> engine;
    std::unique_ptr<HandoffEndpoint> endpoint;
    PeerHandle lead;
    struct Dialed {
      PeerHandle peer;
      std::int64_t down_since_ns = 0;  // 0: up, or being dialed for the first time
      bool up = false;
      std::vector<std::vector<std::byte>> unsent;  // until it is up
    };
    std::map<std::string, Dialed, std::less<>> dialed;
  };

  explicit Connector(RankEventSink sink) : sink_(std::move(sink)) {}
  Status add_port(const ConnectorOptions& options, const ConnectorRank& rank, std::string* error);
  void put(Message message);
  void loop();
  void sleep();
  void drain_inbox();
  void drain_port(Port& port);
  void forget_lost_peers(Port& port);
  void on_engine_event(Port& port, EngineEvent& event);

  void handle(Port& port, const OpenPrefill& command);
  void handle(Port& port, const FinishPrefill& command);
  void handle(Port& port, const OpenDecode& command);
  void handle(Port& port, const AbortRoom& command);
  void handle(Port& port, const SendMessage& command);
  void handle(Port& port, const SetLead& command);
  void handle(Port& port, const Ready& ready);
  void handle(Port&, const ComputeJob&) {}  // goes to the rank threads
  Result<PeerHandle> peer_at(Port& port, const std::string& address);
  // The room did not open here, so the endpoint has no event for it.
  void refuse(const Port& port, HandoffSide side, std::uint64_t room, const Status& status);

  SteadyClock clock_;
  RankEventSink sink_;
  std::vector<std::unique_ptr<Port>> ports_;
  int wake_fd_ = -1;
  std::atomic<bool> closing_{false};
  std::mutex mutex_;
  std::vector<Message> inbox_;
  std::thread thread_;
};

}  // namespace kvl::worker
