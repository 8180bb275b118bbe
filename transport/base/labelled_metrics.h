// Counters of one component, shown with its labels and, where they have one, with their cause.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "kvl/metrics.h"
#include "kvl/status.h"

namespace kvl {

class LabelledMetrics {
 public:
  // Both outlive it.
  LabelledMetrics(MetricVisitor& visitor, const MetricLabels& labels)
      : visitor_(visitor), labels_(labels), with_cause_(labels) {
    with_cause_.emplace_back("cause", "");
  }
  void count(std::string_view name, std::string_view help, const Counter& counter) {
    visitor_.counter(name, help, labels_, static_cast<double>(counter.value()));
  }
  void by_cause(std::string_view name, std::string_view help, std::string_view cause,
                const Counter& counter) {
    with_cause_.back().second = std::string(cause);
    visitor_.counter(name, help, with_cause_, static_cast<double>(counter.value()));
  }
  // Counters by Code. A series appears with its first; that of `always` is there from the
  // beginning.
  void by_code(std::string_view name, std::string_view help, Code always,
               std::span<const Counter> counters) {
    for (std::size_t i = 0; i < counters.size(); ++i) {
      const auto code = static_cast<Code>(i);
      if (code != always && counters[i].value() == 0) continue;
      by_cause(name, help, to_string(code), counters[i]);
    }
  }

 private:
  MetricVisitor& visitor_;
  const MetricLabels& labels_;
  MetricLabels with_cause_;
};

}  // namespace kvl
