// `kvlane worker`: the reference engine (tools/worker).
#include "tools/program.h"
#include "worker/worker_cli.h"
#include "worker/worker_server.h"

namespace kvl::tools {

void add_worker(CLI::App& app, Program& program) {
  CLI::App* const command = app.add_subcommand(
      "worker", "the reference engine: a transformer over paged KV, with SGLang's HTTP API");
  command->footer(
      "Examples, three shells:\n"
      "  kvlane worker --role prefill --tp 2 --port 31000 --bootstrap-port 8998\n"
      "  kvlane worker --role decode --port 31001\n"
      "  kvlane router --host 127.0.0.1 --pd-disaggregation \\\n"
      "      --prefill http://127.0.0.1:31000 8998 --decode http://127.0.0.1:31001\n"
      "  curl localhost:30000/generate -d '{\"text\": \"Once upon a time\"}'");
  const auto options = std::make_shared<worker::WorkerOptions>();
  worker::add_worker_options(*command, *options);
  command->callback([&program, options] {
    options->config_file = program.config_file;
    options->known = all_settings();
    program.exit_status = worker::run_worker(*options);
  });
}

}  // namespace kvl::tools
