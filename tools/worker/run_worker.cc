// A worker as a whole program.
#include <csignal>
#include <cstdio>

#include "kvl/trace.h"
#include "worker/worker_server.h"

namespace kvl::worker {
namespace {

// Before ranks are forked, so that they write to the same file.
Status start_trace(const WorkerOptions& options, std::string* error) {
  const Result<Settings> settings = worker_settings(options, error);
  if (!settings) return settings.status();
  return open_trace(settings->read<TraceConfig>(trace_settings()),
                    "worker " + std::string(to_string(options.role)), error);
}

}  // namespace

int run_worker(const WorkerOptions& options) {
  // Before any thread: they inherit the mask, and only sigwait() below takes the signals.
  sigset_t stop;
  sigemptyset(&stop);
  sigaddset(&stop, SIGINT);
  sigaddset(&stop, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &stop, nullptr);
  std::signal(SIGPIPE, SIG_IGN);

  std::string error;
  const auto fail = [&error](const Status& status) {
    if (error.empty()) error = status.to_string();
    std::fprintf(stderr, "kvlane worker: %s\n", error.c_str());
    return 1;
  };
  if (const Status traced = start_trace(options, &error); !traced.ok()) return fail(traced);
  const Result<std::unique_ptr<WorkerServer>> worker = WorkerServer::open(options, &error);
  if (!worker) return fail(worker.status());
  std::printf("listening on %s\n", (*worker)->url().c_str());
  if (options.role != EngineRole::decode && (*worker)->bootstrap_port() >= 0) {
    std::printf("for a router: --prefill %s %d\n", (*worker)->url().c_str(),
                (*worker)->bootstrap_port());
  }
  std::fflush(stdout);
  int signal = 0;
  sigwait(&stop, &signal);
  return 0;
}

}  // namespace kvl::worker
