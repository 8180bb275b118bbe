// Result rows: one set of named values each, written as a text table, JSON lines or CSV.
#pragma once

#include <cstdint>
#include <cstdio>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace kvl::bench {

// Absent values (no such measurement) are std::monostate: null in JSON, empty in CSV, "-" in text.
// So is a double that is not finite.
using Value = std::variant<std::monostate, bool, std::int64_t, double, std::string>;

// Names in the order of their first setting.
class Row {
 public:
  Row& set(std::string_view name, Value value);
  Row& set(std::string_view name, const char* text) { return set(name, Value(std::string(text))); }
  const Value* find(std::string_view name) const;
  double number(std::string_view name) const;     // NaN when absent or not a number
  std::string text(std::string_view name) const;  // as in the table
  const std::vector<std::pair<std::string, Value>>& fields() const { return fields_; }

 private:
  std::vector<std::pair<std::string, Value>> fields_;
};

std::string json_string(std::string_view text);  // quoted and escaped
std::string json(const Value& value);
std::string json(const Row& row);  // one object on one line
std::string csv_cell(const Value& value);

enum class Format { text, json, csv };

// A column of the text table: which value, under which head. Columns that no row has are left out.
struct Column {
  std::string name, head;
};

// Writes rows as they come. Text: a head line when the first row comes, then aligned columns.
// CSV: a head line with the names of the first row; later rows are put in that order.
class Report {
 public:
  Report(std::FILE* out, Format format, std::vector<Column> columns)
      : out_(out), format_(format), columns_(std::move(columns)) {}
  void add(const Row& row);
  // A line of prose: text only.
  void note(std::string_view line);
  // A blank line and a title; the next row gets a head line again. Text only.
  void section(std::string_view title, std::vector<Column> columns);
  Format format() const { return format_; }

 private:
  std::FILE* out_;
  Format format_;
  std::vector<Column> columns_;
  std::vector<std::string> csv_names_;
  bool head_written_ = false;
};

// 4096 -> "4 KiB", 1000 -> "1000 B".
std::string bytes_text(std::uint64_t bytes);

}  // namespace kvl::bench
