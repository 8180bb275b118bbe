// Two Links over one fake EFA, driven by hand, in a time of their own.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "kvl/transport.h"
#include "tests/transport/fabric/link_side.h"
#include "tests/transport/libfabric/fake_provider.h"
#include "transport/libfabric/fabric_transport.h"

namespace kvl::test {

// Time goes on with every poll of either side, and a little with every look, so that no wait is for
// ever.
struct StepClock final : Clock {
  std::int64_t now_ns() const override { return now += 1'000; }
  mutable std::int64_t now = 1'000'000;
};

struct Side : LinkSide {
  Side(Transport& transport, StepClock& step) : LinkSide(transport, step), clock(step) {}
  void poll() {
    clock.now += 50'000;
    LinkSide::poll();
  }
  StepClock& clock;
};

class FabricFixture : public ::testing::Test {
 protected:
  void open(const std::string& provider, std::int64_t op_bytes = 4096) {
    FakeOptions options = calm();
    options.provider = provider;
    open(options, op_bytes);
  }
  static FakeOptions calm() {  // nothing goes wrong but what a test does
    FakeOptions options;
    options.again = options.late = 0;
    options.delay_max = 1;
    return options;
  }
  void open(const FakeOptions& options, std::int64_t op_bytes = 4096) {
    finish();
    fake = std::make_unique<FakeProvider>(options);
    config = {};
    config.providers = options.provider;
    config.op_bytes = op_bytes;
    config.close_timeout_ms = 50;
    config.give_up_ms = 200;
    if (adjust) adjust(config);
    transport = libfabric::make_transport(config, fake->api());
    transport_b = libfabric::make_transport(config, fake->api(1));
    a = std::make_unique<Side>(*transport, clock);
    b = std::make_unique<Side>(*transport_b, clock);
    connect();
    fake->rma_tries = 0;
  }
  void connect() {
    a->events.clear();
    b->events.clear();
    a->peer = a->link->open_peer(PeerRole::active).value();
    b->peer = b->link->open_peer(PeerRole::passive).value();
    const Blob from_a = a->link->offer(a->peer).value(), from_b = b->link->offer(b->peer).value();
    ASSERT_TRUE(a->link->accept(a->peer, from_b).ok());
    ASSERT_TRUE(b->link->accept(b->peer, from_a).ok());
    ASSERT_TRUE(run([&] {
      return a->find(Event::Kind::peer_up) != nullptr && b->find(Event::Kind::peer_up) != nullptr;
    }));
    const Blob name = b->link->export_memory(b->id, b->peer).value();
    a->remote = a->link->import_memory(a->peer, name).value();
    std::iota(reinterpret_cast<unsigned char*>(a->memory.data()),
              reinterpret_cast<unsigned char*>(a->memory.data()) + a->memory.size(), 0);
  }
  // Control messages go to the other side's present peer.
  void deliver_control() {
    for (const auto& [from, to] : {std::pair{a.get(), b.get()}, std::pair{b.get(), a.get()}}) {
      for (const auto& [peer, bytes] : std::exchange(from->control.sent, {})) {
        to->link->on_control(to->peer, bytes);
      }
    }
  }
  bool run(const std::function<bool()>& done, int turns = 10'000) {
    for (int i = 0; i < turns && !done(); ++i) {
      a->poll();
      b->poll();
      deliver_control();
    }
    return done();
  }
  // `pages` pages of 1 KiB, 2 KiB apart, so that no two are merged.
  Ticket post(std::uint32_t pages, std::span<const std::byte> note = {}) {
    op = {0, 0, 0, 0, 1024, pages, 2048, 2048};
    return post_op(note);
  }
  Ticket post_op(std::span<const std::byte> note = {}) {
    Batch batch = batch_of_op();
    batch.note = note;
    EXPECT_TRUE(a->link->post(batch).ok());
    return batch.ticket;
  }
  Batch batch_of_op() {
    Batch batch;
    batch.ticket = {++tickets};
    batch.peer = a->peer;
    batch.ops = std::span(&op, 1);
    batch.locals = std::span(&a->id, 1);
    batch.remotes = std::span(&a->remote, 1);
    return batch;
  }
  Code end_of(Ticket ticket) {
    const bool ended = run([&] { return a->find(Event::Kind::batch, ticket) != nullptr; });
    EXPECT_TRUE(ended);
    return ended ? a->find(Event::Kind::batch, ticket)->code : Code::internal;
  }

  void TearDown() override { finish(); }
  void finish() {
    a.reset();
    b.reset();
    if (!fake) return;
    EXPECT_EQ(fake->violations(), std::vector<std::string>{});
  }

  std::function<void(libfabric::FabricConfig&)> adjust;  // before the Links are opened
  StepClock clock;
  std::unique_ptr<FakeProvider> fake;  // outlives the Links
  libfabric::FabricConfig config;
  std::unique_ptr<Transport> transport, transport_b;  // of hosts 0 and 1
  std::unique_ptr<Side> a, b;
  PageOp op;
  std::uint64_t tickets = 0;
};

}  // namespace kvl::test
