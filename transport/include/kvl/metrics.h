// Metrics: counters are plain members of their owner; a visitor gathers them when somebody asks.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace kvl {

// A counter written by one thread (its owner's) and read by any. No read-modify-write instruction.
class Counter {
 public:
  void add(std::uint64_t n = 1) {
    value_.store(value_.load(std::memory_order_relaxed) + n, std::memory_order_relaxed);
  }
  std::uint64_t value() const { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<std::uint64_t> value_{0};
};

using MetricLabels = std::vector<std::pair<std::string_view, std::string>>;

// Receives every metric of a component: `component.visit_metrics(visitor)`.
class MetricVisitor {
 public:
  virtual ~MetricVisitor() = default;
  virtual void counter(std::string_view name, std::string_view help, const MetricLabels& labels,
                       double value) = 0;
  virtual void gauge(std::string_view name, std::string_view help, const MetricLabels& labels,
                     double value) = 0;
};

// Prometheus text exposition, version 0.0.4: HELP and TYPE once per name, labels escaped.
class PrometheusText final : public MetricVisitor {
 public:
  void counter(std::string_view name, std::string_view help, const MetricLabels& labels,
               double value) override;
  void gauge(std::string_view name, std::string_view help, const MetricLabels& labels,
             double value) override;
  std::string text() const;

 private:
  struct Family {
    std::string name, head, lines;
  };
  void line(std::string_view type, std::string_view name, std::string_view help,
            const MetricLabels& labels, double value);
  std::vector<Family> families_;
};

}  // namespace kvl
