// The command line of a worker, for `kvlane worker` and for the program of its own.
#pragma once

#include <CLI/CLI.hpp>

#include "worker/worker_options.h"

namespace kvl::worker {

// Adds every option of WorkerOptions, and one flag for each setting of engine, transports and
// handoff ("--tcp.lanes"). `options` is filled by the parse and must outlive it.
void add_worker_options(CLI::App& command, WorkerOptions& options);

}  // namespace kvl::worker
