// main() of the one program. Each subcommand lives in a file of its own; CMake generates the list.
#include <csignal>
#include <exception>
#include <string_view>
#include <vector>

#include "kvl/log.h"
#include "tools/program.h"

namespace kvl::tools {
#define KVL_SUBCOMMAND(name) void add_##name(CLI::App& app, Program& program);
#include "subcommands.inc"
#undef KVL_SUBCOMMAND
}  // namespace kvl::tools

int main(int argc, char** argv) try {
  using namespace kvl::tools;
  // Writes to a closed connection or pipe are answered by an error where they happen.
  std::signal(SIGPIPE, SIG_IGN);

  CLI::App app{"kvlane: moves KV-cache pages between prefill and decode engines"};
  app.footer("`kvlane SUBCOMMAND --help` shows the options and examples of one.");
  app.set_version_flag("--version", KVL_VERSION);
  app.require_subcommand(1);
  app.fallthrough();

  Program program;
  app.add_option("--config", program.config_file, "settings in TOML")->check(CLI::ExistingFile);
  app.add_option_function<std::string>(
         "--log",
         [](const std::string& levels) {
           if (!kvl::set_log_levels(levels)) throw CLI::ValidationError("--log", "unknown level");
         },
         "log levels: debug, info, warning, error, off; or per subsystem: info,rail=debug")
      ->type_name("LEVELS");

#define KVL_SUBCOMMAND(name) add_##name(app, program);
#include "subcommands.inc"
#undef KVL_SUBCOMMAND

  // `kvlane help bench` is `kvlane bench --help`.
  std::string help = "--help";
  std::vector<char*> words(argv, argv + argc);
  if (argc > 1 && std::string_view(argv[1]) == "help") {
    words.erase(words.begin() + 1);
    words.push_back(help.data());
  }
  try {
    app.parse(static_cast<int>(words.size()), words.data());
  } catch (const CLI::RequiredError& problem) {
    const std::string first = argc > 1 ? argv[1] : "";
    if (app.get_subcommands().empty() && !first.empty() && first.front() != '-') {
      program.fail("no subcommand '" + first + "'; `kvlane --help` lists them");
      return 2;
    }
    return app.exit(problem) == 0 ? 0 : 2;
  } catch (const CLI::ParseError& problem) {
    const int status = app.exit(problem);
    return status == 0 ? 0 : 2;
  }
  return program.exit_status;
} catch (const std::exception& problem) {
  std::fprintf(stderr, "kvlane: %s\n", problem.what());
  return 1;
}
