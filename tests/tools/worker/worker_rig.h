// Workers in this process, and requests to their schedulers without HTTP.
#pragma once

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <vector>

#include "kvl/bootstrap_server.h"
#include "worker/worker_server.h"

namespace kvl::worker::test {

// Everything a request said until its end.
class Outcome {
 public:
  UpdateSink sink() {
    return [state = state_](const Update& update) {
      const std::lock_guard lock(state->mutex);
      state->tokens.insert(state->tokens.end(), update.tokens.begin(), update.tokens.end());
      if (!update.done) return;
      EXPECT_FALSE(state->done) << "ended twice";
      state->done = true;
      state->last = update;
      state->ended.notify_all();
    };
  }
  // Waits for the end; a test that waits longer than this has failed.
  const Update& wait(int seconds = 60) {
    std::unique_lock lock(state_->mutex);
    const bool done =
        state_->ended.wait_for(lock, std::chrono::seconds(seconds), [&] { return state_->done; });
    EXPECT_TRUE(done) << "the request did not end";
    return state_->last;
  }
  bool ended_within(std::chrono::milliseconds time) {
    std::unique_lock lock(state_->mutex);
    return state_->ended.wait_for(lock, time, [&] { return state_->done; });
  }
  std::vector<OutputToken> tokens() {
    const std::lock_guard lock(state_->mutex);
    return state_->tokens;
  }

 private:
  struct State {
    std::mutex mutex;
    std::condition_variable ended;
    std::vector<OutputToken> tokens;
    bool done = false;
    Update last;
  };
  // Shared: the sink may outlive the test's interest.
  std::shared_ptr<State> state_ = std::make_shared<State>();
};

inline std::unique_ptr<WorkerServer> open_worker(const WorkerOptions& options) {
  std::string error;
  Result<std::unique_ptr<WorkerServer>> worker = WorkerServer::open(options, &error);
  EXPECT_TRUE(worker.ok()) << error;
  return worker.ok() ? *std::move(worker) : nullptr;
}

// A rendezvous for workers of this process.
class Meeting {
 public:
  Meeting() {
    BootstrapServerOptions options;
    options.host = "127.0.0.1";
    options.port = 0;
    std::string error;
    Result<std::unique_ptr<BootstrapServer>> server = BootstrapServer::open(options, &error);
    EXPECT_TRUE(server.ok()) << error;
    bootstrap_ = *std::move(server);
  }
  std::unique_ptr<WorkerServer> open(WorkerOptions options, EngineRole role) const {
    options.bootstrap = "http://127.0.0.1:" + std::to_string(bootstrap_->port());
    options.role = role;
    return open_worker(options);
  }
  std::unique_ptr<WorkerServer> prefill(const WorkerOptions& options) const {
    return open(options, EngineRole::prefill);
  }
  std::unique_ptr<WorkerServer> decode(const WorkerOptions& options) const {
    return open(options, EngineRole::decode);
  }

 private:
  std::unique_ptr<BootstrapServer> bootstrap_;
};

inline Session session_at(const WorkerServer& prefill) {
  static std::atomic<std::uint64_t> rooms{1};
  return {"127.0.0.1", prefill.bootstrap_port(), rooms++};
}

// What both workers say about one request.
struct Handed {
  std::vector<OutputToken> tokens;  // decode's
  Update prefill, decode;
};

// Sends the request to both, as a router does.
inline Handed run_pair(WorkerServer& prefill, WorkerServer& decode, Request request) {
  request.session = session_at(prefill);
  Outcome at_prefill;
  Outcome at_decode;
  decode.scheduler().submit(request, at_decode.sink());
  prefill.scheduler().submit(request, at_prefill.sink());
  Handed handed;
  handed.decode = at_decode.wait();
  handed.prefill = at_prefill.wait();
  handed.tokens = at_decode.tokens();
  return handed;
}

// The same where both must succeed.
inline Handed run_well(WorkerServer& prefill, WorkerServer& decode, const Request& request) {
  Handed handed = run_pair(prefill, decode, request);
  EXPECT_TRUE(handed.decode.status.ok())
      << handed.decode.status.to_string() << " " << handed.decode.reason;
  EXPECT_TRUE(handed.prefill.status.ok())
      << handed.prefill.status.to_string() << " " << handed.prefill.reason;
  return handed;
}

// What one worker alone answers.
inline std::vector<OutputToken> run_alone(WorkerServer& worker, const Request& request) {
  Outcome outcome;
  worker.scheduler().submit(request, outcome.sink());
  const Update last = outcome.wait();
  EXPECT_TRUE(last.status.ok()) << last.status.to_string();
  return outcome.tokens();
}

}  // namespace kvl::worker::test
