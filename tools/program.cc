// Global options and setting flags of the program.
#include "tools/program.h"

#include <algorithm>
#include <cstdio>

#include "kvl/trace.h"

namespace kvl::tools {

Result<Settings> Program::settings(const SettingFlags& flags) {
  std::string error;
  Result<Settings> settings =
      Settings::load(all_settings(), {.file = config_file, .flags = flags}, &error);
  if (!settings.ok()) {
    fail(error);
  } else if (!environment_checked_) {
    environment_checked_ = true;
    for (const std::string& name : unknown_variables(settings->rows())) {
      std::fprintf(stderr,
                   "kvlane: the environment variable %s names no setting; kvlane config "
                   "lists them\n",
                   name.c_str());
    }
  }
  return settings;
}

bool Program::start_trace(const Settings& settings, std::string_view process) {
  std::string error;
  const auto config = settings.read<TraceConfig>(trace_settings());
  if (open_trace(config, process, &error).ok()) return true;
  fail(error);
  return false;
}

void Program::fail(std::string_view sentence) {
  std::fprintf(stderr, "kvlane: %.*s\n", static_cast<int>(sentence.size()), sentence.data());
  exit_status = 1;
}

CLI::Validator number_between(double least, double most) {
  const auto short_text = [](double value) {
    char text[32];
    std::snprintf(text, sizeof(text), "%.12g", value);
    return std::string(text);
  };
  const std::string range = short_text(least) + " to " + short_text(most);
  return CLI::Validator(
      [least, most, range](std::string& text) {
        double value = 0;
        const bool good = CLI::detail::lexical_cast(text, value) && value >= least && value <= most;
        return good ? std::string() : "'" + text + "' is no number from " + range;
      },
      "NUMBER");
}

void add_setting_flags(CLI::App& command, std::span<const Setting> rows, std::string_view prefix,
                       SettingFlags& flags) {
  for (const Setting& row : rows) {
    if (row.secret) continue;  // everybody can see a command line
    std::string names = "--" + std::string(row.name);
    if (!prefix.empty() && row.name.starts_with(prefix)) {
      std::string brief(row.name.substr(prefix.size()));
      std::replace(brief.begin(), brief.end(), '_', '-');
      names = "--" + brief + "," + names;
    }
    const std::string name(row.name);
    const std::string fallback = row.fallback();
    const bool boolean = fallback == "true" || fallback == "false";
    std::string help(row.help);
    if (!row.unit.empty()) help += " [" + std::string(row.unit) + "]";
    if (!fallback.empty()) help += " (" + fallback + ")";
    const auto store = [&flags, name](const std::string& text) { flags.emplace_back(name, text); };
    CLI::Option* const option = command.add_option_function<std::string>(names, store, help);
    // Rows of the program itself stand among its options; what only tests of kvlane set, nowhere.
    const bool own = !prefix.empty() && row.name.starts_with(prefix);
    if (!own) option->group(row.name.starts_with("testing.") ? "" : "Settings");
    if (boolean) {
      option->expected(0, 1)->default_str("true");
      option->type_name("[BOOL]");
    } else {
      option->type_name("VALUE");
    }
  }
}

}  // namespace kvl::tools
