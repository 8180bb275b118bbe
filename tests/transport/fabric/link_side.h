// One Link over a device of a test's own, its memory, and what it has shown.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kvl/transport.h"

namespace kvl::test {

// Control messages wait until somebody delivers them.
struct HeldControl final : ControlChannel {
  Status send(PeerId peer, std::span<const std::byte> bytes) override {
    sent.emplace_back(peer, Blob(bytes.begin(), bytes.end()));
    return {};
  }
  std::vector<std::pair<PeerId, Blob>> sent;
};

// Counters by name and labels.
struct CounterValues final : MetricVisitor {
  void counter(std::string_view name, std::string_view, const MetricLabels& labels,
               double value) override {
    std::string key(name);
    for (const auto& [label, text] : labels) key += " " + text;
    values[key] = value;
  }
  void gauge(std::string_view, std::string_view, const MetricLabels&, double) override {}
  std::map<std::string, double> values;
};

struct LinkSide {
  LinkSide(Transport& transport, const Clock& clock)
      : memory_ops(make_host_memory_ops()), memory(1 << 20) {
    auto opened = transport.open(transport.devices().front(), {control, *memory_ops, clock});
    link = std::move(opened).value();
    id = link->add_memory({memory.data(), memory.size(), MemoryKind::host, 0, Access::remote_all})
             .value();
  }
  void poll() {
    std::array<Event, 8> out;
    const std::size_t count = link->poll(out);
    events.insert(events.end(), out.begin(), out.begin() + static_cast<std::ptrdiff_t>(count));
  }
  const Event* find(Event::Kind kind, Ticket ticket = {}) const {
    const auto found = std::find_if(events.begin(), events.end(), [&](const Event& event) {
      return event.kind == kind && event.ticket == ticket;
    });
    return found == events.end() ? nullptr : &*found;
  }
  double metric(const std::string& name) const {
    CounterValues metrics;
    link->visit_metrics(metrics, {});
    return metrics.values.at(name);
  }

  HeldControl control;
  std::unique_ptr<MemoryOps> memory_ops;
  std::vector<std::byte> memory;
  std::unique_ptr<Link> link;
  MemoryId id;
  RemoteId remote;
  PeerId peer;
  std::vector<Event> events;
};

}  // namespace kvl::test
