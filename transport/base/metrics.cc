// Prometheus text exposition of what a visitor is shown.
#include "kvl/metrics.h"

#include <charconv>

namespace kvl {
namespace {

void append_escaped(std::string& out, std::string_view text) {
  for (char c : text) {
    if (c == '\\' || c == '"') out += '\\';
    if (c == '\n') {
      out += "\\n";
    } else {
      out += c;
    }
  }
}

}  // namespace

void PrometheusText::line(std::string_view type, std::string_view name, std::string_view help,
                          const MetricLabels& labels, double value) {
  Family* family = nullptr;
  for (Family& f : families_) {
    if (f.name == name) family = &f;
  }
  if (family == nullptr) {
    family = &families_.emplace_back();
    family->name = name;
    family->head.append("# HELP ").append(name).append(" ").append(help).append("\n");
    family->head.append("# TYPE ").append(name).append(" ").append(type).append("\n");
  }
  std::string& out = family->lines;
  out += name;
  char separator = '{';
  for (const auto& [key, text] : labels) {
    out += separator;
    out.append(key).append("=\"");
    append_escaped(out, text);
    out += '"';
    separator = ',';
  }
  if (!labels.empty()) out += '}';
  char digits[32];
  const auto end = std::to_chars(digits, digits + sizeof(digits), value).ptr;
  out.append(" ").append(digits, end).append("\n");
}

void PrometheusText::counter(std::string_view name, std::string_view help,
                             const MetricLabels& labels, double value) {
  line("counter", name, help, labels, value);
}

void PrometheusText::gauge(std::string_view name, std::string_view help, const MetricLabels& labels,
                           double value) {
  line("gauge", name, help, labels, value);
}

std::string PrometheusText::text() const {
  std::string out;
  for (const Family& family : families_) out += family.head + family.lines;
  return out;
}

}  // namespace kvl
