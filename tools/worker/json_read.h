// Typed reads from a JSON object that nobody has checked: each names the key it does not like.
#pragma once

#include <boost/json/value.hpp>
#include <cmath>
#include <cstdint>
#include <string>
#include <string_view>

namespace kvl::worker {

// What a reader throws and parse_call() catches: exceptions stay inside one source file's call.
struct BadBody {
  std::string message;
  int http_status = 400;
};

inline const boost::json::value* find(const boost::json::object& object, std::string_view key) {
  const boost::json::value* const value = object.if_contains(key);
  return value == nullptr || value->is_null() ? nullptr : value;
}

inline bool read_bool(const boost::json::object& object, std::string_view key, bool fallback) {
  const boost::json::value* const value = find(object, key);
  if (value == nullptr) return fallback;
  if (!value->is_bool()) throw BadBody{std::string(key) + " must be true or false"};
  return value->get_bool();
}

inline std::int64_t as_integer(const boost::json::value& value, std::string_view key,
                               std::int64_t min, std::int64_t max) {
  std::int64_t number = 0;
  bool good = true;
  if (value.is_int64()) {
    number = value.get_int64();
  } else if (value.is_double() && std::trunc(value.get_double()) == value.get_double() &&
             std::abs(value.get_double()) < 0x1p53) {
    number = static_cast<std::int64_t>(value.get_double());
  } else {
    good = false;  // also uint64 beyond int64
  }
  if (!good || number < min || number > max) {
    throw BadBody{std::string(key) + " must be an integer from " + std::to_string(min) + " to " +
                  std::to_string(max)};
  }
  return number;
}

inline std::int64_t read_integer(const boost::json::object& object, std::string_view key,
                                 std::int64_t min, std::int64_t max, std::int64_t fallback) {
  const boost::json::value* const value = find(object, key);
  return value == nullptr ? fallback : as_integer(*value, key, min, max);
}

inline double read_number(const boost::json::object& object, std::string_view key, double min,
                          double max, double fallback) {
  const boost::json::value* const value = find(object, key);
  if (value == nullptr) return fallback;
  const double number = value->is_int64()    ? static_cast<double>(value->get_int64())
                        : value->is_double() ? value->get_double()
                                             : NAN;
  if (!(number >= min && number <= max)) {
    throw BadBody{std::string(key) + " is out of range"};
  }
  return number;
}

inline std::string read_text(const boost::json::object& object, std::string_view key) {
  const boost::json::value* const value = find(object, key);
  if (value == nullptr) return {};
  if (!value->is_string()) throw BadBody{std::string(key) + " must be a string"};
  return std::string(value->get_string());
}

}  // namespace kvl::worker
