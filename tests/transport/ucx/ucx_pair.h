// Two UCX Links of one transport, joined, and what they have shown.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "kvl/transport.h"

namespace kvl::test {

// Time that passes when a test says so, and a little with every look.
struct TestClock final : Clock {
  std::int64_t now_ns() const override { return now += 1'000; }
  mutable std::int64_t now = 1;
};

struct UcxControl final : ControlChannel {
  Status send(PeerId peer, std::span<const std::byte> bytes) override {
    sent.emplace_back(peer, Blob(bytes.begin(), bytes.end()));
    return {};
  }
  std::vector<std::pair<PeerId, Blob>> sent;
};

struct UcxMetrics final : MetricVisitor {
  void counter(std::string_view name, std::string_view, const MetricLabels& labels,
               double value) override {
    std::string key(name);
    for (const auto& [label, text] : labels) key += " " + text;
    values[key] = value;
  }
  void gauge(std::string_view, std::string_view, const MetricLabels&, double) override {}
  std::map<std::string, double> values;
};

// One Link, 1 MiB that peers may read and write, and 64 KiB that they may read.
struct UcxSide {
  UcxSide(Transport& transport, const Clock& clock)
      : memory_ops(make_host_memory_ops()), memory(1 << 20), readable(64 << 10) {
    auto opened = transport.open(transport.devices().front(), {control, *memory_ops, clock});
    link = std::move(opened).value();
    id = add(memory, Access::remote_all);
    readable_id = add(readable, Access::remote_read);
  }
  MemoryId add(std::vector<std::byte>& bytes, Access access) const {
    return link->add_memory({bytes.data(), bytes.size(), MemoryKind::host, 0, access}).value();
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
    UcxMetrics metrics;
    link->visit_metrics(metrics, {});
    return metrics.values.contains(name) ? metrics.values.at(name) : 0;
  }

  UcxControl control;
  std::unique_ptr<MemoryOps> memory_ops;
  std::vector<std::byte> memory, readable;
  std::unique_ptr<Link> link;
  MemoryId id, readable_id;
  RemoteId remote;  // of the other side's memory
  PeerId peer;
  Blob offered;
  std::vector<Event> events;
};

class UcxPair {
 public:
  UcxPair(Transport& transport, const Clock& clock) : a(transport, clock), b(transport, clock) {
    a.peer = a.link->open_peer(PeerRole::active).value();
    b.peer = b.link->open_peer(PeerRole::passive).value();
    a.offered = a.link->offer(a.peer).value();
    b.offered = b.link->offer(b.peer).value();
    EXPECT_TRUE(a.link->accept(a.peer, b.offered).ok());
    EXPECT_TRUE(b.link->accept(b.peer, a.offered).ok());
    const Blob name = b.link->export_memory(b.id, b.peer).value();
    a.remote = a.link->import_memory(a.peer, name).value();
    std::iota(reinterpret_cast<unsigned char*>(a.memory.data()),
              reinterpret_cast<unsigned char*>(a.memory.data()) + a.memory.size(), 0);
  }
  bool run(const std::function<bool()>& done) {
    for (int i = 0; i < 20'000 && !done(); ++i) {
      a.poll();
      b.poll();
    }
    return done();
  }
  bool up() {
    return run([&] {
      return a.find(Event::Kind::peer_up) != nullptr && b.find(Event::Kind::peer_up) != nullptr;
    });
  }
  // `pages` pages of 1 KiB, 2 KiB apart, so that no two are merged.
  Ticket post(std::uint32_t pages, std::span<const std::byte> note = {},
              Direction direction = Direction::write) {
    return post({0, 0, 0, 0, 1024, pages, 2048, 2048}, note, direction);
  }
  Ticket post(const PageOp& what, std::span<const std::byte> note = {},
              Direction direction = Direction::write) {
    op = what;
    Batch batch;
    batch.ticket = {++tickets};
    batch.peer = a.peer;
    batch.direction = direction;
    batch.ops = std::span(&op, 1);
    batch.locals = std::span(&a.id, 1);
    batch.remotes = std::span(&a.remote, 1);
    batch.note = note;
    EXPECT_TRUE(a.link->post(batch).ok());
    return batch.ticket;
  }
  Code end_of(Ticket ticket) {
    const bool ended = run([&] { return a.find(Event::Kind::batch, ticket) != nullptr; });
    EXPECT_TRUE(ended);
    return ended ? a.find(Event::Kind::batch, ticket)->code : Code::internal;
  }
  bool pages_are_there(std::size_t pages) const {
    for (std::size_t i = 0; i < pages; ++i) {
      if (!std::equal(&a.memory[i * 2048], &a.memory[i * 2048] + 1024, &b.memory[i * 2048])) {
        return false;
      }
    }
    return true;
  }

  UcxSide a, b;
  PageOp op;
  std::uint64_t tickets = 0;
};

}  // namespace kvl::test
