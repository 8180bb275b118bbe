// Prometheus text exposition of what a visitor is shown.
#include "kvl/metrics.h"

#include <algorithm>
#include <cassert>
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

// A peer's words: what is not plain text would make a scraper refuse all the rest.
std::string plain(std::string_view text) {
  constexpr std::size_t kBytesMax = 256;
  std::string out(text.substr(0, kBytesMax));
  for (char& c : out) {
    if (c < 0x20 || c > 0x7e) c = '?';
  }
  return out;
}

}  // namespace

BoundedCounts::BoundedCounts(std::string_view name, std::string_view help,
                             std::vector<std::string_view> closed,
                             std::vector<std::string_view> open)
    : name_(name), help_(help), closed_(std::move(closed)), open_(std::move(open)) {}

void BoundedCounts::add(std::initializer_list<std::string_view> closed,
                        std::initializer_list<std::string_view> open) {
  assert(closed.size() == closed_.size() && open.size() == open_.size());
  std::vector<std::string> key(closed.begin(), closed.end());
  for (const std::string_view value : open) key.push_back(plain(value));
  const std::lock_guard lock(mutex_);
  if (counts_.size() >= kSeriesMax && !counts_.contains(key)) {
    std::fill(key.begin() + static_cast<std::ptrdiff_t>(closed.size()), key.end(), "other");
  }
  ++counts_[std::move(key)];
}

void BoundedCounts::visit(MetricVisitor& visitor, const MetricLabels& owner) const {
  const std::lock_guard lock(mutex_);
  for (const auto& [key, count] : counts_) {
    MetricLabels labels = owner;
    for (const auto* const names : {&closed_, &open_}) {
      for (const std::string_view name : *names) {
        labels.emplace_back(name, key[labels.size() - owner.size()]);
      }
    }
    visitor.counter(name_, help_, labels, static_cast<double>(count));
  }
}

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
