// The questions and answers of the benchmark's two processes: "verb key=value key=value" as a
// message of the engine. Text, so that a reader of a capture sees what happens. Bytes from the
// network: parse() bounds everything.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kvl/status.h"
#include "tools/bench/workload.h"

namespace kvl::bench {

class Message {
 public:
  static constexpr std::size_t kBytesMax = 4096;

  explicit Message(std::string_view verb = {}) : verb_(verb) {}
  const std::string& verb() const { return verb_; }

  // Keys and values without blanks; blanks in values become '_' .
  Message& set(std::string_view key, std::string_view value);
  Message& set(std::string_view key, std::uint64_t value);
  Message& set(std::string_view key, double value);
  std::string text(std::string_view key) const;  // "" when absent
  // `fallback` when absent or not a number.
  std::uint64_t number(std::string_view key, std::uint64_t fallback = 0) const;
  double real(std::string_view key, double fallback = 0) const;

  Message& set(const WorkloadSpec& spec);
  WorkloadSpec spec() const;  // not validated

  std::string encode() const;
  static Result<Message> parse(std::span<const std::byte> bytes);

 private:
  std::string verb_;
  std::vector<std::pair<std::string, std::string>> fields_;
};

}  // namespace kvl::bench
