// Metrics: counters are plain members of their owner; a visitor gathers them when somebody asks.
#pragma once

#include <atomic>
#include <cstdint>
#include <initializer_list>
#include <map>
#include <mutex>
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

// A family of counters with labels whose values come from outside: addresses of peers, paths.
// However many there are over the days, there are never more than kSeriesMax series and one "other"
// for each of the closed values. Any thread; takes a lock, so not for the data path.
class BoundedCounts {
 public:
  static constexpr std::size_t kSeriesMax = 256;

  // Names of labels with values from a closed set ("cause"), and of those with any ("peer").
  BoundedCounts(std::string_view name, std::string_view help, std::vector<std::string_view> closed,
                std::vector<std::string_view> open);
  // Values in the order of the names.
  void add(std::initializer_list<std::string_view> closed,
           std::initializer_list<std::string_view> open);
  // The labels of the owner come first.
  void visit(MetricVisitor& visitor, const MetricLabels& owner = {}) const;

 private:
  const std::string name_, help_;
  const std::vector<std::string_view> closed_, open_;
  mutable std::mutex mutex_;
  std::map<std::vector<std::string>, std::uint64_t> counts_;
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
