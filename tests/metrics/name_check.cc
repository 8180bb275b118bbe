// Reads an exposition line by line.
#include "tests/metrics/name_check.h"

#include <algorithm>
#include <array>
#include <map>
#include <set>
#include <sstream>

namespace kvl::test {
namespace {

constexpr std::string_view kPrefix = "kvlane_";

bool plain_word(std::string_view name) {
  return !name.empty() && name.front() >= 'a' && name.front() <= 'z' && name.back() != '_' &&
         std::ranges::all_of(name, [](char c) {
           return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_';
         });
}

// Units in names are seconds and bytes, whole; anything else hides a factor.
bool scaled_unit(std::string_view name) {
  constexpr std::array kBad = {"ns", "us", "ms", "millis", "usec", "sec", "secs", "minutes",
                               "kb", "mb", "gb", "kib",    "mib",  "gib", "bits"};
  std::istringstream words{std::string(name)};
  for (std::string word; std::getline(words, word, '_');) {
    if (std::ranges::find(kBad, word) != kBad.end()) return true;
  }
  return false;
}

// Where the unit is said, it comes last: …_bytes, …_seconds_total.
bool unit_inside(std::string_view name) {
  for (const std::string_view unit : {"seconds", "bytes"}) {
    const std::size_t at = name.find(unit);
    if (at == std::string_view::npos) continue;
    const std::string_view rest = name.substr(at + unit.size());
    if (!rest.empty() && rest != "_total") return true;
  }
  return false;
}

class Reader {
 public:
  std::vector<std::string> read(std::string_view exposition) {
    std::istringstream lines{std::string(exposition)};
    for (std::string line; std::getline(lines, line);) take(line);
    for (const auto& [name, type] : types_) {
      if (samples_.contains(name)) continue;
      complain(name, "has a type and no sample");
    }
    return std::move(bad_);
  }

 private:
  void complain(const std::string& name, const char* why) { bad_.push_back(name + " " + why); }

  void take(const std::string& line) {
    std::istringstream words(line);
    std::string word, kind, name, rest;
    words >> word;
    if (word == "#") {
      words >> kind >> name;
      std::getline(words >> std::ws, rest);
      if (kind == "HELP") {
        if (rest.empty()) complain(name, "has an empty help text");
        if (!helps_.emplace(name, rest).second) complain(name, "has two help texts");
      } else if (kind == "TYPE") {
        if (!types_.emplace(name, rest).second) complain(name, "has two types");
        check_name(name, rest);
      }
      return;
    }
    if (line.empty()) return;
    name = line.substr(0, line.find_first_of("{ "));
    samples_.insert(name);
    if (!helps_.contains(name)) complain(name, "has no help text");
    if (!types_.contains(name)) complain(name, "has no type");
    if (!series_.insert(line.substr(0, line.rfind(' '))).second) {
      complain(name, "has two series with equal labels");
    }
    check_labels(name, line);
  }

  void check_name(const std::string& name, const std::string& type) {
    if (!name.starts_with(kPrefix)) complain(name, "does not begin with kvlane_");
    if (!plain_word(name)) complain(name, "is not made of a-z, 0-9 and _");
    if (type != "counter" && type != "gauge") complain(name, "is neither counter nor gauge");
    if ((type == "counter") != name.ends_with("_total")) {
      complain(name, "must end in _total when it counts, and only then");
    }
    if (scaled_unit(name)) complain(name, "has a unit other than seconds and bytes");
    if (unit_inside(name)) complain(name, "has its unit inside the name");
  }

  void check_labels(const std::string& name, const std::string& line) {
    const std::size_t open = line.find('{');
    if (open == std::string::npos) return;
    // Keys: what stands before =" outside quotes.
    std::string key;
    bool quoted = false;
    for (std::size_t i = open + 1; i < line.size() && (quoted || line[i] != '}'); ++i) {
      if (quoted) {
        if (line[i] == '\\')
          ++i;
        else if (line[i] == '"')
          quoted = false;
      } else if (line[i] == '=') {
        if (!plain_word(key)) complain(name, "has a label that is not made of a-z, 0-9 and _");
        key.clear();
      } else if (line[i] == '"') {
        quoted = true;
      } else if (line[i] != ',') {
        key += line[i];
      }
    }
  }

  std::map<std::string, std::string> helps_, types_;
  std::set<std::string> samples_, series_;
  std::vector<std::string> bad_;
};

}  // namespace

std::vector<std::string> bad_metrics(std::string_view exposition) {
  return Reader().read(exposition);
}

}  // namespace kvl::test
