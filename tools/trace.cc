// `kvlane trace`: the life of one request from the trace files of several processes.
#include <cstdio>
#include <fstream>
#include <memory>

#include "tools/program.h"
#include "tools/trace/timeline.h"

namespace kvl::tools {
namespace {

struct Options {
  std::string id;
  std::vector<std::string> files;
  bool list = false, json = false, chrome = false;
};

void print_list(const tracing::Traces& traces) {
  std::printf("%-20s %-24s %8s %12s  %s\n", "room", "rid", "lines", "ms", "outcome");
  for (const tracing::Request& request : traces.all()) {
    const tracing::Summary summary = tracing::summarize(request);
    std::printf("%-20llu %-24.24s %8zu %12.3f  %s\n",
                static_cast<unsigned long long>(request.rooms.empty() ? 0 : request.rooms.back()),
                request.rid.c_str(), request.lines.size(),
                static_cast<double>(summary.total_ns) / 1e6, summary.outcome.c_str());
  }
}

void print(const std::string& text) { std::fwrite(text.data(), 1, text.size(), stdout); }

void run(Options options, Program& program) {
  // `kvlane trace --list FILES…` has no id: the first word is a file as well.
  if (options.list && !options.id.empty()) {
    options.files.insert(options.files.begin(), options.id);
  }
  if (options.files.empty()) return program.fail("name the trace files; kvlane trace --help");
  tracing::Traces traces;
  for (const std::string& file : options.files) {
    std::ifstream in(file);
    if (!in) return program.fail("cannot read '" + file + "'");
    traces.read(in);
  }
  if (traces.bad_lines() > 0) {
    std::fprintf(stderr,
                 "kvlane: %llu lines were not whole (a process was killed, or a disk full)\n",
                 static_cast<unsigned long long>(traces.bad_lines()));
  }
  traces.align();
  if (options.list) {
    return options.chrome ? print(tracing::render_chrome(traces.all())) : print_list(traces);
  }
  const Result<tracing::Request> found = traces.find(options.id);
  if (!found.ok()) {
    return program.fail("no request '" + options.id + "' in " + std::to_string(traces.lines()) +
                        " lines; --list shows those that are there");
  }
  if (options.chrome) return print(tracing::render_chrome({*found}));
  const tracing::Summary summary = tracing::summarize(*found);
  print(options.json ? render_json(*found, summary) : render_text(*found, summary));
}

}  // namespace

void add_trace(CLI::App& app, Program& program) {
  CLI::App* const command =
      app.add_subcommand("trace", "a request's life over all processes, and where its time went");
  command->footer(
      "The files are what router and workers write when they run with --trace.file.\n"
      "Examples:\n"
      "  kvlane trace --list router.jsonl prefill.jsonl decode.jsonl\n"
      "  kvlane trace 5083912 router.jsonl prefill.jsonl decode.jsonl\n"
      "  kvlane trace my-request-id *.jsonl --chrome > life.json   # for ui.perfetto.dev");
  const auto options = std::make_shared<Options>();
  command->add_option("id", options->id, "a room, or a request id")->type_name("ID");
  command->add_option("files", options->files, "trace files of all processes")->type_name("FILE…");
  command->add_flag("--list", options->list, "every request in the files; takes no ID");
  command->add_flag("--json", options->json, "one JSON object");
  command->add_flag("--chrome", options->chrome, "Chrome's trace event format");
  command->callback([&program, options] { run(*options, program); });
}

}  // namespace kvl::tools
