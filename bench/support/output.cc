// Text, JSON lines and CSV.
#include "bench/support/output.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace kvl::bench {
namespace {

template <typename... Ts>
std::string format(const char* pattern, Ts... values) {
  char text[64];
  std::snprintf(text, sizeof(text), pattern, values...);
  return text;
}

// Few digits for people.
std::string brief(double value) {
  if (!std::isfinite(value)) return "-";
  const double size = std::fabs(value);
  if (size >= 1000) return format("%.0f", value);
  if (size >= 100) return format("%.1f", value);
  if (size >= 1) return format("%.2f", value);
  return size >= 0.001 || size == 0 ? format("%.3f", value) : format("%.2e", value);
}

std::string text_cell(const Value* value) {
  if (value == nullptr || std::holds_alternative<std::monostate>(*value)) return "-";
  if (const auto* number = std::get_if<double>(value)) return brief(*number);
  if (const auto* number = std::get_if<std::int64_t>(value)) return std::to_string(*number);
  if (const auto* flag = std::get_if<bool>(value)) return *flag ? "yes" : "no";
  return std::get<std::string>(*value);
}

}  // namespace

Row& Row::set(std::string_view name, Value value) {
  for (auto& [known, old] : fields_) {
    if (known == name) {
      old = std::move(value);
      return *this;
    }
  }
  fields_.emplace_back(name, std::move(value));
  return *this;
}

const Value* Row::find(std::string_view name) const {
  for (const auto& [known, value] : fields_) {
    if (known == name) return &value;
  }
  return nullptr;
}

double Row::number(std::string_view name) const {
  const Value* const value = find(name);
  if (value != nullptr) {
    if (const auto* number = std::get_if<double>(value)) return *number;
    if (const auto* number = std::get_if<std::int64_t>(value)) return static_cast<double>(*number);
  }
  return std::numeric_limits<double>::quiet_NaN();
}

std::string Row::text(std::string_view name) const { return text_cell(find(name)); }

std::string json_string(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      out += format("\\u%04x", static_cast<unsigned>(static_cast<unsigned char>(c)));
    } else {
      out += c;
    }
  }
  return out + '"';
}

std::string json(const Value& value) {
  if (const auto* flag = std::get_if<bool>(&value)) return *flag ? "true" : "false";
  if (const auto* number = std::get_if<std::int64_t>(&value)) return std::to_string(*number);
  if (const auto* text = std::get_if<std::string>(&value)) return json_string(*text);
  if (const auto* number = std::get_if<double>(&value); number != nullptr && std::isfinite(*number))
    return format("%.6g", *number);
  return "null";
}

std::string json(const Row& row) {
  std::string out = "{";
  for (const auto& [name, value] : row.fields()) {
    if (out.size() > 1) out += ", ";
    out += json_string(name) + ": " + json(value);
  }
  return out + "}";
}

std::string csv_cell(const Value& value) {
  const auto* const text = std::get_if<std::string>(&value);
  if (text == nullptr) {
    const std::string number = json(value);
    return number == "null" ? "" : number;
  }
  if (text->find_first_of("\",\n\r") == std::string::npos) return *text;
  std::string out = "\"";
  for (const char c : *text) {
    if (c == '"') out += '"';
    out += c;
  }
  return out + '"';
}

void Report::add(const Row& row) {
  std::string line, head;
  if (format_ == Format::json) {
    line = json(row);
  } else if (format_ == Format::csv) {
    if (!head_written_) {
      for (const auto& [name, value] : row.fields()) csv_names_.push_back(name);
    }
    for (const std::string& name : csv_names_) {
      if (&name != csv_names_.data()) {
        line += ',';
        head += ',';
      }
      const Value* const value = row.find(name);
      if (value != nullptr) line += csv_cell(*value);
      head += csv_cell(Value(name));
    }
  } else {
    for (const Column& column : columns_) {
      const std::string cell = text_cell(row.find(column.name));
      const std::size_t width = std::max<std::size_t>(column.head.size(), 8) + 2;
      const auto pad = [width](const std::string& text) {
        return std::string(text.size() < width ? width - text.size() : 1, ' ') + text;
      };
      line += pad(cell);
      head += pad(column.head);
    }
  }
  if (!head_written_ && !head.empty()) std::fprintf(out_, "%s\n", head.c_str());
  head_written_ = true;
  std::fprintf(out_, "%s\n", line.c_str());
  std::fflush(out_);
}

void Report::note(std::string_view line) {
  if (format_ != Format::text) return;
  std::fprintf(out_, "%.*s\n", static_cast<int>(line.size()), line.data());
  std::fflush(out_);
}

void Report::section(std::string_view title, std::vector<Column> columns) {
  if (format_ != Format::text) return;
  columns_ = std::move(columns);
  std::fprintf(out_, "%s%.*s\n", head_written_ ? "\n" : "", static_cast<int>(title.size()),
               title.data());
  head_written_ = false;
}

std::string bytes_text(std::uint64_t bytes) {
  for (const auto& [shift, unit] : {std::pair{30, " GiB"}, {20, " MiB"}, {10, " KiB"}}) {
    const std::uint64_t size = std::uint64_t{1} << shift;
    if (bytes >= size && bytes % size == 0) return std::to_string(bytes >> shift) + unit;
  }
  return std::to_string(bytes) + " B";
}

}  // namespace kvl::bench
