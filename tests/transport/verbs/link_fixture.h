// Two verbs Links over one device in memory, in one thread, with a clock that the test moves.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cerrno>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <numeric>
#include <span>
#include <vector>

#include "kvl/transport.h"
#include "tests/support/log_guard.h"
#include "tests/transport/fabric/link_side.h"
#include "tests/transport/verbs/fake_device.h"
#include "tests/transport/verbs/fake_host.h"
#include "transport/verbs/verbs_transport.h"

namespace kvl::verbs {

struct ManualClock final : Clock {
  std::int64_t now_ns() const override { return now; }
  std::int64_t now = 1'000'000'000;
};

class VerbsLinkTest : public ::testing::Test {
 protected:
  void TearDown() override {
    a.reset();
    b.reset();
    transport.reset();
    EXPECT_EQ(fake.objects(), 0U);
    EXPECT_TRUE(fake.misuse.empty()) << fake.misuse.front();
  }

  void make_sides() {
    transport = make_transport(config, fake.api(), host.places());
    a = std::make_unique<test::LinkSide>(*transport, clock);
    b = std::make_unique<test::LinkSide>(*transport, clock);
  }
  // Both sides' peers, their offers exchanged; what they say to each other is not delivered yet.
  void introduce() {
    a->peer = a->link->open_peer(PeerRole::active).value();
    b->peer = b->link->open_peer(PeerRole::passive).value();
    const Blob from_a = a->link->offer(a->peer).value(), from_b = b->link->offer(b->peer).value();
    ASSERT_TRUE(a->link->accept(a->peer, from_b).ok());
    ASSERT_TRUE(b->link->accept(b->peer, from_a).ok());
    meets[a.get()][a->peer.value] = b->peer;
    meets[b.get()][b->peer.value] = a->peer;
  }
  void deliver_control() {
    for (const auto& [from, to] : {std::pair{a.get(), b.get()}, std::pair{b.get(), a.get()}}) {
      for (const auto& [peer, bytes] : from->control.sent) {
        to->link->on_control(meets[from][peer.value], bytes);
      }
      from->control.sent.clear();
    }
  }
  bool run(const std::function<bool()>& done) {
    for (int i = 0; i < 2'000 && !done(); ++i) {
      a->poll();
      b->poll();
      deliver_control();
    }
    return done();
  }
  // Up, with b's memory known to a.
  void open() {
    make_sides();
    connect();
  }
  void connect() {
    introduce();
    ASSERT_TRUE(run([&] {
      return a->find(Event::Kind::peer_up) != nullptr && b->find(Event::Kind::peer_up) != nullptr;
    }));
    a->remote = a->link->import_memory(a->peer, name_of_b()).value();
    std::iota(reinterpret_cast<unsigned char*>(a->memory.data()),
              reinterpret_cast<unsigned char*>(a->memory.data()) + a->memory.size(), 0);
    fake.set_numbers();
  }
  Blob name_of_b() { return b->link->export_memory(b->id, b->peer).value(); }

  // `pages` pages, each twice its size from the next one, so that no two are merged.
  Status try_post(std::uint32_t pages, std::span<const std::byte> note = {},
                  Direction direction = Direction::write, std::uint32_t page_bytes = 1024) {
    ops.push_back({0, 0, 0, 0, page_bytes, pages, 2ULL * page_bytes, 2ULL * page_bytes});
    Batch batch;
    batch.ticket = {++tickets};
    batch.peer = a->peer;
    batch.direction = direction;
    if (pages > 0) batch.ops = std::span(&ops.back(), 1);
    batch.locals = std::span(&a->id, 1);
    batch.remotes = std::span(&a->remote, 1);
    batch.note = note;
    return a->link->post(batch);
  }
  Ticket post(std::uint32_t pages, std::span<const std::byte> note = {},
              Direction direction = Direction::write, std::uint32_t page_bytes = 1024) {
    EXPECT_TRUE(try_post(pages, note, direction, page_bytes).ok());
    return {tickets};
  }
  Code end_of(Ticket ticket) {
    const bool ended = run([&] { return a->find(Event::Kind::batch, ticket) != nullptr; });
    EXPECT_TRUE(ended);
    return ended ? a->find(Event::Kind::batch, ticket)->code : Code::internal;
  }
  bool same(std::uint32_t pages, std::uint32_t page_bytes = 1024) const {
    for (std::size_t i = 0; i < pages; ++i) {
      const std::size_t at = i * 2 * page_bytes;
      if (!std::equal(&a->memory[at], &a->memory[at] + page_bytes, &b->memory[at])) return false;
    }
    return true;
  }
  double fault(const test::LinkSide& side, const std::string& cause) const {
    return side.metric("kvlane_verbs_faults_total " + cause);
  }

  ManualClock clock;
  VerbsConfig config;
  test::FakeDevice fake;  // outlives the Links
  test::FakeHost host{fake.name};
  std::unique_ptr<Transport> transport;
  std::unique_ptr<test::LinkSide> a, b;
  std::map<const test::LinkSide*, std::map<std::uint64_t, PeerId>> meets;
  std::deque<PageOp> ops;
  std::uint64_t tickets = 0;
};

}  // namespace kvl::verbs
