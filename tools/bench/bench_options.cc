// Meaning of some options.
#include "tools/bench/bench_options.h"

namespace kvl::bench {

bool BenchOptions::baseline(std::string_view name) const {
  if (baselines == "all") return true;
  std::string_view rest = baselines;
  while (!rest.empty()) {
    const std::size_t comma = std::min(rest.find(','), rest.size());
    if (rest.substr(0, comma) == name) return true;
    rest.remove_prefix(std::min(comma + 1, rest.size()));
  }
  return false;
}

Result<std::string> required_transport(std::string_view text, std::string* error) {
  if (text == "auto" || text.empty()) return std::string();
  if (text == "efa") return std::string("libfabric:efa*");
  std::vector<std::string> parts;
  std::string_view rest = text;
  for (;;) {
    const std::size_t colon = rest.find(':');
    parts.emplace_back(rest.substr(0, colon));
    if (colon == std::string_view::npos) break;
    rest.remove_prefix(colon + 1);
  }
  if (parts.size() > 3 || parts[0].empty()) {
    *error = "--transport is auto or NAME[:PROVIDER[:DEVICE]], not '" + std::string(text) + "'";
    return Status{Code::invalid_argument, "--transport"};
  }
  std::string require = parts[0];
  for (std::size_t i = 1; i < parts.size(); ++i) {
    if (!parts[i].empty()) require += ":" + parts[i];
  }
  return require;
}

}  // namespace kvl::bench
