// `kvlane config`: every setting with its value in force, where that came from, range, unit, help.
#include <algorithm>
#include <cstdio>

#include "tools/program.h"

namespace kvl::tools {
namespace {

std::string json_text(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out.append({'\\', c});
    } else if (static_cast<unsigned char>(c) < 0x20) {
      char escape[8];
      std::snprintf(escape, sizeof(escape), "\\u%04x", static_cast<unsigned>(c));
      out += escape;
    } else {
      out += c;
    }
  }
  return out + "\"";
}

std::string number(double value) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.12g", value);
  return text;
}

// KVLANE_ROUTER_PORT for router.port: the environment variable that Settings reads.
std::string environment_name(std::string_view name) {
  std::string out = "KVLANE_";
  for (const char c : name) {
    out += c == '.' || c == '-' ? '_' : static_cast<char>(std::toupper(c));
  }
  return out;
}

// Of a part: "tcp.lanes" of "tcp", and of "".
bool is_of(std::string_view name, std::string_view part) {
  return part.empty() || name == part ||
         (name.starts_with(part) && name.substr(part.size()).starts_with('.'));
}

void print_json(const Settings& settings, std::string_view part) {
  std::puts("[");
  const char* separator = " ";
  for (const Setting& row : settings.rows()) {
    if (!is_of(row.name, part)) continue;
    const Settings::Value value = settings.value(row.name);
    std::string line = std::string(separator) + "{\"name\":" + json_text(row.name);
    line += ",\"value\":" + json_text(value.text) + ",\"origin\":" + json_text(value.origin);
    line += ",\"default\":" + json_text(row.fallback());
    if (row.min != row.max) {
      line += ",\"min\":" + number(row.min) + ",\"max\":" + number(row.max);
    }
    line += ",\"unit\":" + json_text(row.unit) + ",\"help\":" + json_text(row.help);
    line += ",\"environment\":" + json_text(environment_name(row.name));
    if (!row.alias.empty()) line += ",\"alias\":" + json_text(row.alias);
    std::puts((line + "}").c_str());
    separator = ",";
  }
  std::puts("]");
}

void print_text(const Settings& settings, std::string_view part) {
  for (const Setting& row : settings.rows()) {
    if (!is_of(row.name, part)) continue;
    const Settings::Value value = settings.value(row.name);
    std::string line(row.name);
    line += " = " + (value.text.empty() ? std::string("\"\"") : value.text);
    if (!row.unit.empty()) line += " " + std::string(row.unit);
    line += "  (" + value.origin + ")";
    std::puts(line.c_str());
    std::string help = "    " + std::string(row.help);
    if (row.min != row.max) help += "; " + number(row.min) + " to " + number(row.max);
    if (!row.alias.empty()) help += "; also " + std::string(row.alias);
    std::puts(help.c_str());
  }
}

}  // namespace

void add_config(CLI::App& app, Program& program) {
  CLI::App* const command =
      app.add_subcommand("config", "print every setting: value, origin, range, unit, help");
  command->footer(
      "Sources, later ones win: default, --config FILE, environment (KVLANE_...), flags.\n"
      "Examples:\n"
      "  kvlane config\n"
      "  kvlane config tcp.lanes\n"
      "  KVLANE_ROUTER_PORT=31000 kvlane config --json");
  struct Flags {
    bool json = false;
    std::string name;
    SettingFlags settings;
  };
  const auto flags = std::make_shared<Flags>();
  command->add_option("NAME", flags->name, "only this setting, or those of this part: tcp");
  command->add_flag("--json", flags->json, "one JSON array");
  add_setting_flags(*command, all_settings(), "", flags->settings);
  command->callback([&program, flags] {
    const Result<Settings> settings = program.settings(flags->settings);
    if (!settings.ok()) return;
    if (std::ranges::none_of(settings->rows(),
                             [&](const Setting& row) { return is_of(row.name, flags->name); })) {
      return program.fail("no setting is called '" + flags->name + "'; kvlane config lists them");
    }
    if (flags->json) {
      print_json(*settings, flags->name);
    } else {
      print_text(*settings, flags->name);
    }
  });
}

}  // namespace kvl::tools
