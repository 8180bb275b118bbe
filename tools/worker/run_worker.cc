// A worker as a whole program.
#include <csignal>
#include <cstdio>

#include "worker/worker_server.h"

namespace kvl::worker {

int run_worker(const WorkerOptions& options) {
  // Before any thread: they inherit the mask, and only sigwait() below takes the signals.
  sigset_t stop;
  sigemptyset(&stop);
  sigaddset(&stop, SIGINT);
  sigaddset(&stop, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &stop, nullptr);
  std::signal(SIGPIPE, SIG_IGN);

  std::string error;
  const Result<std::unique_ptr<WorkerServer>> worker = WorkerServer::open(options, &error);
  if (!worker) {
    if (error.empty()) error = worker.status().to_string();
    std::fprintf(stderr, "kvlane worker: %s\n", error.c_str());
    return 1;
  }
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
