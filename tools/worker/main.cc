// The worker as a program of its own, for projects that have kvlane installed. In kvlane's own tree
// `kvlane worker` is the same.
#include <CLI/CLI.hpp>

#include "worker/worker_cli.h"
#include "worker/worker_server.h"

int main(int argc, char** argv) {
  CLI::App app{"The reference engine of kvlane"};
  kvl::worker::WorkerOptions options;
  app.add_option("--config", options.config_file, "settings in TOML");
  kvl::worker::add_worker_options(app, options);
  CLI11_PARSE(app, argc, argv);
  return kvl::worker::run_worker(options);
}
