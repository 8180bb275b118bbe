// Reads settings once: defaults, then a TOML file, then the environment, then flags. The only
// place of kvlane that reads the environment.
#include "kvl/config.h"

#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <sstream>

// toml++ 3.3 asserts what a key begins with before it looks, and without assertions it promises it
// to the compiler: "[%" would be undefined. Neither is wanted: the look that follows says what is
// wrong.
#pragma push_macro("NDEBUG")
#undef NDEBUG
#define TOML_ASSERT(condition) static_cast<void>(0)
#define TOML_HEADER_ONLY 1
#include <toml++/toml.h>
#pragma pop_macro("NDEBUG")

namespace kvl {
namespace {

std::string lower(std::string_view text) {
  std::string out(text);
  std::transform(out.begin(), out.end(), out.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return out;
}

std::string environment_name(std::string_view key) {
  std::string out = "KVLANE_";
  for (char c : key) {
    out += (c == '.' || c == '-') ? '_'
                                  : static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  }
  return out;
}

Status in_range(const Setting& row, double value) {
  // Written so that a number that is none is refused: it is in no range.
  if (row.min != row.max && !(value >= row.min && value <= row.max)) {
    return {Code::invalid_argument, "value out of range; kvlane config prints the range"};
  }
  return {};
}

void flatten(const toml::table& table, const std::string& prefix,
             std::vector<std::pair<std::string, std::string>>& out) {
  for (const auto& [key, node] : table) {
    const std::string name =
        prefix.empty() ? std::string(key.str()) : prefix + "." + std::string(key.str());
    if (const toml::table* inner = node.as_table()) {
      flatten(*inner, name, out);
    } else if (const auto* text = node.as_string()) {
      out.emplace_back(name, text->get());
    } else {
      std::ostringstream stream;
      node.visit([&stream](const auto& value) { stream << value; });
      out.emplace_back(name, stream.str());
    }
  }
}

// toml++ 3.3 runs into undefined behaviour at letters outside ASCII where a key may stand. They are
// taken in comment lines only; TOML writes them as \u escapes elsewhere.
std::string first_foreign_line(std::string_view text) {
  for (std::size_t number = 1; !text.empty(); ++number) {
    const std::string_view line = text.substr(0, text.find('\n'));
    text.remove_prefix(std::min(text.size(), line.size() + 1));
    const std::size_t first = line.find_first_not_of(" \t");
    if (first != std::string_view::npos && line[first] == '#') continue;
    if (std::any_of(line.begin(), line.end(), [](char c) { return (c & 0x80) != 0; })) {
      return "line " + std::to_string(number);
    }
  }
  return {};
}

struct Loader {
  const std::vector<Setting>& rows;
  std::map<std::string, Settings::Value, std::less<>>& values;
  std::map<std::string, std::string, std::less<>>& secrets;
  std::string* error;

  Status set(std::string_view name, const std::string& text, const std::string& origin) {
    const auto row =
        std::find_if(rows.begin(), rows.end(), [&](const Setting& r) { return r.name == name; });
    if (row == rows.end()) {
      return fail("unknown setting '" + std::string(name) + "' (" + origin +
                  "); kvlane config lists all settings");
    }
    if (row->secret) {
      if (!origin.starts_with("env ")) {
        return fail("setting '" + std::string(name) + "' (" + origin +
                    ") is read from the environment only: everybody can see a command line, and "
                    "configuration files travel; secret_file names a file");
      }
      if (text.empty()) return {};
      secrets[std::string(name)] = text;
      values[std::string(name)] = {"set", origin};
      return {};
    }
    if (Status status = row->parse(*row, text, nullptr); !status.ok()) {
      return fail("setting '" + std::string(name) + "' = '" + text + "' (" + origin +
                  "): " + status.context());
    }
    values[std::string(name)] = {text, origin};
    return {};
  }
  Status fail(std::string sentence) {
    if (error != nullptr) *error = std::move(sentence);
    return {Code::invalid_argument, "settings; see the message above"};
  }
};

}  // namespace

namespace detail {

Status parse_value(const Setting&, std::string_view text, bool& out) {
  const std::string word = lower(text);
  if (word == "1" || word == "true" || word == "yes" || word == "on") {
    out = true;
  } else if (word == "0" || word == "false" || word == "no" || word == "off") {
    out = false;
  } else {
    return {Code::invalid_argument, "not a boolean; use 1/true/yes/on or 0/false/no/off"};
  }
  return {};
}

Status parse_value(const Setting& row, std::string_view text, std::int64_t& out) {
  std::int64_t value = 0;
  const char* const end = text.data() + text.size();
  const auto [rest, errc] = std::from_chars(text.data(), end, value);
  if (errc != std::errc{} || text.empty()) return {Code::invalid_argument, "not a whole number"};
  std::int64_t scale = 1;
  if (rest != end) {
    const std::string suffix = lower({rest, static_cast<std::size_t>(end - rest)});
    if (suffix == "k" || suffix == "kb" || suffix == "kib")
      scale = 1LL << 10;
    else if (suffix == "m" || suffix == "mb" || suffix == "mib")
      scale = 1LL << 20;
    else if (suffix == "g" || suffix == "gb" || suffix == "gib")
      scale = 1LL << 30;
    else
      return {Code::invalid_argument, "unknown suffix; use k, m or g (powers of 1024)"};
  }
  if (__builtin_mul_overflow(value, scale, &out)) {
    return {Code::invalid_argument, "number too large"};
  }
  return in_range(row, static_cast<double>(out));
}

Status parse_value(const Setting& row, std::string_view text, double& out) {
  const auto [rest, errc] = std::from_chars(text.data(), text.data() + text.size(), out);
  if (errc != std::errc{} || rest != text.data() + text.size() || !std::isfinite(out)) {
    return {Code::invalid_argument, "not a number"};
  }
  return in_range(row, out);
}

Status parse_value(const Setting&, std::string_view text, std::string& out) {
  out = text;
  return {};
}

std::string print_value(bool value) { return value ? "true" : "false"; }
std::string print_value(std::int64_t value) { return std::to_string(value); }
std::string print_value(double value) {
  std::ostringstream stream;
  stream << value;
  return stream.str();
}
std::string print_value(const std::string& value) { return value; }

}  // namespace detail

Result<Settings> Settings::load(std::vector<Setting> rows, const Source& source,
                                std::string* error) {
  Settings settings;
  settings.rows_ = std::move(rows);
  for (const Setting& row : settings.rows_) {
    settings.values_[std::string(row.name)] = {row.fallback(), "default"};
  }
  Loader loader{settings.rows_, settings.values_, settings.secrets_, error};
  if (!source.file.empty()) {
    std::vector<std::pair<std::string, std::string>> pairs;
    std::ifstream file(source.file, std::ios::binary);
    const std::string text((std::istreambuf_iterator<char>(file)), {});
    if (!file) return loader.fail(source.file + ": cannot be read");
    if (const std::string line = first_foreign_line(text); !line.empty()) {
      return loader.fail(source.file + ", " + line +
                         ": letters outside ASCII belong in comment lines, or as \\u escapes");
    }
    try {
      flatten(toml::parse(text, source.file), "", pairs);
    } catch (const toml::parse_error& problem) {
      std::ostringstream why;
      why << source.file << ": " << problem;
      return loader.fail(why.str());
    }
    for (const auto& [name, value] : pairs) KVL_TRY(loader.set(name, value, "file " + source.file));
  }
  if (source.environment) {
    for (const Setting& row : settings.rows_) {
      // The alias first: KVLANE_ wins.
      for (const std::string& name : {std::string(row.alias), environment_name(row.name)}) {
        const char* const text = name.empty() ? nullptr : std::getenv(name.c_str());
        if (text != nullptr) KVL_TRY(loader.set(row.name, text, "env " + name));
      }
    }
  }
  for (const auto& [name, text] : source.flags) KVL_TRY(loader.set(name, text, "flag"));
  return settings;
}

std::vector<std::string> unknown_variables(std::span<const Setting> rows) {
  std::vector<std::string> unknown;
  for (char** variable = environ; variable != nullptr && *variable != nullptr; ++variable) {
    const std::string_view text(*variable);
    const std::string_view name = text.substr(0, text.find('='));
    if (!name.starts_with("KVLANE_")) continue;
    const bool known = std::any_of(rows.begin(), rows.end(), [&](const Setting& row) {
      return name == row.alias || name == environment_name(row.name);
    });
    if (!known) unknown.emplace_back(name);
  }
  return unknown;
}

void Settings::apply(const Setting& row, void* owner) const {
  const auto found = values_.find(row.name);
  if (found == values_.end() || found->second.origin == "default") return;
  const auto secret = secrets_.find(row.name);
  const std::string& text = secret == secrets_.end() ? found->second.text : secret->second;
  // load() has checked the text already.
  [[maybe_unused]] const Status status = row.parse(row, text, owner);
  assert(status.ok());
}

Settings::Value Settings::value(std::string_view name) const {
  const auto found = values_.find(name);
  return found == values_.end() ? Value{} : found->second;
}

}  // namespace kvl
