// Another endpoint for a Link: the peers that live go on as if nothing had been.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "tests/support/log_guard.h"
#include "tests/transport/libfabric/fabric_fixture.h"
#include "transport/fabric/peer_wire.h"

namespace kvl::libfabric {
namespace {

using test::ExpectLog;
using test::FakeOptions;
using test::FakeProvider;
using test::Side;

// a talks to b, whose packets vanish one day, and to c, which lives.
class FabricMove : public test::FabricFixture {
 protected:
  void open_all(FakeOptions options) {
    open(options);
    transport_c = make_transport(config, fake->api(2));
    c = std::make_unique<Side>(*transport_c, clock);
    c->peer = c->link->open_peer(PeerRole::passive).value();
    to_c = a->link->open_peer(PeerRole::active).value();
    ASSERT_TRUE(a->link->accept(to_c, c->link->offer(c->peer).value()).ok());
    ASSERT_TRUE(c->link->accept(c->peer, a->link->offer(to_c).value()).ok());
    ASSERT_TRUE(run_all([&] { return ups(*a, to_c) == 1 && ups(*c, c->peer) == 1; }));
    name_c = a->link->import_memory(to_c, c->link->export_memory(c->id, c->peer).value()).value();
    name_a = c->link->import_memory(c->peer, a->link->export_memory(a->id, to_c).value()).value();
  }
  bool run_all(const std::function<bool()>& done, bool with_c = true) {
    for (int i = 0; i < 20'000 && !done(); ++i) {
      for (Side* const side : {a.get(), b.get(), with_c ? c.get() : nullptr}) {
        if (side != nullptr) side->poll();
      }
      deliver();
    }
    return done();
  }
  void deliver() {
    for (const auto& [peer, bytes] : std::exchange(a->control.sent, {})) {
      Side& to = peer == to_c ? *c : *b;
      to.link->on_control(to.peer, bytes);
    }
    for (const auto& [peer, bytes] : std::exchange(b->control.sent, {})) {
      a->link->on_control(a->peer, bytes);
    }
    for (const auto& [peer, bytes] : std::exchange(c->control.sent, {})) {
      a->link->on_control(to_c, bytes);
    }
  }
  static long ups(const Side& side, PeerId peer) {
    return std::count_if(side.events.begin(), side.events.end(), [&](const Event& event) {
      return event.kind == Event::Kind::peer_up && event.peer == peer;
    });
  }
  static bool down(const Side& side, PeerId peer) {
    return std::any_of(side.events.begin(), side.events.end(), [&](const Event& event) {
      return event.kind == Event::Kind::peer_down && event.peer == peer;
    });
  }
  // One page and its number as a note; as many pages without one: none.
  Ticket send(Side& from, PeerId to, RemoteId name, std::uint16_t number, std::uint32_t count = 0) {
    const std::uint64_t at = number % kPages * 2048U;
    pages.push_back(std::make_unique<PageOp>(
        PageOp{0, 0, at, at + 512 * 1024U, 1024, std::max(count, 1U), 2048, 2048}));
    names.push_back(std::make_unique<RemoteId>(name));
    Batch batch;
    batch.ticket = {++tickets};
    batch.peer = to;
    batch.ops = std::span(pages.back().get(), 1);
    batch.locals = std::span(&from.id, 1);
    batch.remotes = std::span(names.back().get(), 1);
    const auto note = std::as_bytes(std::span(&number, 1));
    if (count == 0) batch.note = note;
    EXPECT_TRUE(from.link->post(batch).ok());
    return batch.ticket;
  }
  static std::vector<int> notes(const Side& side) {
    std::vector<int> seen;
    for (const Event& event : side.events) {
      if (event.kind != Event::Kind::note) continue;
      std::uint16_t number = 0;
      std::memcpy(&number, event.note.data(), sizeof(number));
      seen.push_back(number);
    }
    std::sort(seen.begin(), seen.end());
    return seen;
  }
  static void expect_ok(const Side& side, const std::vector<Ticket>& batches) {
    for (const Ticket ticket : batches) {
      const Event* const event = side.find(Event::Kind::batch, ticket);
      ASSERT_NE(event, nullptr);
      EXPECT_EQ(event->code, Code::ok);
    }
  }
  void lose_b(std::uint32_t pages_under_way) {
    fake->cut(0, 1, FakeProvider::Path::swallowed);
    stuck = post(pages_under_way);
    a->poll();
    a->link->close_peer(a->peer);
  }
  void TearDown() override {
    a.reset();
    c.reset();
    finish();
  }

  static long ended(const Side& side) {
    return std::count_if(side.events.begin(), side.events.end(),
                         [](const Event& event) { return event.kind == Event::Kind::batch; });
  }

  static constexpr std::uint16_t kPages = 200;
  std::unique_ptr<Transport> transport_c;
  std::unique_ptr<Side> c;
  PeerId to_c;
  RemoteId name_c, name_a;
  Ticket stuck;
  std::vector<std::unique_ptr<PageOp>> pages;
  std::vector<std::unique_ptr<RemoteId>> names;
};

// Both directions are in use all the time, over a wire that keeps no order.
TEST_F(FabricMove, PeersThatLiveGoOn) {
  for (std::uint64_t seed = 1; seed <= 5; ++seed) {
    const ExpectLog expected("libfabric.endpoint_replaced");
    FakeOptions options;
    options.seed = seed;
    options.again = 0;
    pages.clear();
    open_all(options);
    lose_b(8);
    std::vector<Ticket> out, back;
    std::vector<int> notes_out, notes_back;
    std::uint16_t next = 0;
    const auto traffic = [&] {
      if (static_cast<long>(out.size() + back.size()) - ended(*a) - ended(*c) > 24) return;
      const bool note = next % 5 != 0;
      out.push_back(send(*a, to_c, name_c, next, note ? 0 : 40));
      back.push_back(send(*c, c->peer, name_a, next, note ? 0 : 40));
      if (note) notes_out.push_back(next);
      if (note) notes_back.push_back(next);
      ++next;
    };
    ASSERT_TRUE(run_all([&] {
      traffic();
      return down(*a, a->peer) && a->find(Event::Kind::batch, stuck) != nullptr;
    })) << "seed "
        << seed;
    EXPECT_EQ(a->metric("kvlane_libfabric_endpoints_replaced_total"), 1.0);
    for (int i = 0; i < 20; ++i) traffic();  // … and after
    ASSERT_TRUE(run_all([&] {
      return ended(*a) > static_cast<long>(out.size()) &&
             ended(*c) >= static_cast<long>(back.size()) && notes(*c).size() >= notes_out.size() &&
             notes(*a).size() >= notes_back.size();
    })) << "seed "
        << seed;
    run_all([count = 0]() mutable { return ++count > 500; });
    EXPECT_FALSE(down(*a, to_c)) << "a peer that lives was lost";
    EXPECT_FALSE(down(*c, c->peer)) << "a peer that lives was lost";
    EXPECT_EQ(ups(*a, to_c) + ups(*c, c->peer), 2);
    EXPECT_EQ(a->metric("kvlane_libfabric_peers_moved_total"), 1.0);
    EXPECT_EQ(c->metric("kvlane_libfabric_peers_moved_total"), 1.0);
    expect_ok(*a, out);
    expect_ok(*c, back);
    EXPECT_EQ(notes(*c), notes_out) << "each note once";
    EXPECT_EQ(notes(*a), notes_back) << "each note once";
    EXPECT_GT(notes_out.size(), 200U);
    for (std::ptrdiff_t page = 0; page < kPages; ++page) {
      const auto from = a->memory.begin() + page * 2048;
      ASSERT_TRUE(std::equal(from, from + 1024, c->memory.begin() + page * 2048 + (512 << 10)));
    }
    fake->heal();
    a.reset();
    c.reset();
  }
}

// What hangs fills the send queue: those who live are told by another way.
TEST_F(FabricMove, FullSendQueueIsNoObstacle) {
  const ExpectLog expected("libfabric.endpoint_replaced");
  FakeOptions options = calm();
  options.tx_size = 16;
  open_all(options);
  lose_b(100);
  ASSERT_TRUE(run_all([&] { return down(*a, a->peer); }));
  const Ticket ticket = send(*a, to_c, name_c, 7);
  ASSERT_TRUE(run_all([&] { return a->find(Event::Kind::batch, ticket) != nullptr; }));
  expect_ok(*a, {ticket});
  EXPECT_FALSE(down(*a, to_c));
}

// Who does not answer is lost, and that is said.
TEST_F(FabricMove, PeerThatIsNotQuietInTimeIsLost) {
  const ExpectLog expected("libfabric.endpoint_replaced");
  open_all(calm());
  lose_b(8);
  EXPECT_TRUE(run_all([&] { return down(*a, a->peer) && down(*a, to_c); }, false));
  const ExpectLog lost("libfabric.peer_lost");
  EXPECT_TRUE(run_all([&] { return down(*c, c->peer); }));
}

// One that has only been offered our address, and one that is about to come up.
TEST_F(FabricMove, PeersThatWereNotYetUpComeUp) {
  const ExpectLog expected("libfabric.endpoint_replaced");
  open_all(calm());
  Side d(*transport_c, clock);
  d.peer = d.link->open_peer(PeerRole::passive).value();
  const PeerId to_d = a->link->open_peer(PeerRole::active).value();
  const Blob from_a = a->link->offer(to_d).value();
  lose_b(8);
  ASSERT_TRUE(run_all([&] { return down(*a, a->peer); }));
  ASSERT_TRUE(d.link->accept(d.peer, from_a).ok());  // where a is no more
  ASSERT_TRUE(a->link->accept(to_d, d.link->offer(d.peer).value()).ok());
  EXPECT_TRUE(run_all([&] {
    for (const auto& [peer, bytes] : std::exchange(a->control.sent, {})) {
      if (peer == to_d) d.link->on_control(d.peer, bytes);
    }
    d.poll();
    return ups(*a, to_d) == 1 && ups(d, d.peer) == 1;
  }));
}

// Two Links that each have lost somebody, at the same time.
TEST_F(FabricMove, BothSidesMoveAtOnce) {
  const ExpectLog expected("libfabric.endpoint_replaced");
  const ExpectLog of_e("libfabric.peer_lost");  // whose goodbye finds nobody
  open_all(calm());
  Side e(*transport_b, clock);  // on b's host; c loses it
  e.peer = e.link->open_peer(PeerRole::passive).value();
  const PeerId to_e = c->link->open_peer(PeerRole::active).value();
  ASSERT_TRUE(e.link->accept(e.peer, c->link->offer(to_e).value()).ok());
  ASSERT_TRUE(c->link->accept(to_e, e.link->offer(e.peer).value()).ok());
  ASSERT_TRUE(run_all([&] {
    e.poll();
    return ups(*c, to_e) == 1 && ups(e, e.peer) == 1;
  }));
  const RemoteId name_e =
      c->link->import_memory(to_e, e.link->export_memory(e.id, e.peer).value()).value();
  fake->cut(2, 1, FakeProvider::Path::swallowed);
  send(*c, to_e, name_e, 1);
  c->poll();
  lose_b(8);
  c->link->close_peer(to_e);
  c->control.sent.clear();
  ASSERT_TRUE(run_all([&] {
    std::erase_if(c->control.sent, [&](const auto& sent) { return sent.first == to_e; });
    return down(*a, a->peer) && down(*c, to_e);
  }));
  const Ticket out = send(*a, to_c, name_c, 3), back = send(*c, c->peer, name_a, 4);
  ASSERT_TRUE(run_all([&] {
    std::erase_if(c->control.sent, [&](const auto& sent) { return sent.first == to_e; });
    return a->find(Event::Kind::batch, out) != nullptr &&
           c->find(Event::Kind::batch, back) != nullptr;
  }));
  expect_ok(*a, {out});
  expect_ok(*c, {back});
  EXPECT_FALSE(down(*a, to_c));
  EXPECT_FALSE(down(*c, c->peer));
  fake->heal();
}

// Only who knows the secret of the session says where it goes on.
TEST_F(FabricMove, StrangersDoNotMoveAPeer) {
  open_all(calm());
  PeerOffer forged;
  forged.token.peer = c->peer.value;
  forged.address.resize(32, std::byte{1});
  a->link->on_control(to_c, encode(forged));
  a->link->on_control(to_c, Blob(40, std::byte{7}));
  EXPECT_EQ(a->metric("kvlane_libfabric_strangers_total malformed"), 2.0);
  const Ticket ticket = send(*a, to_c, name_c, 7);
  ASSERT_TRUE(run_all([&] { return a->find(Event::Kind::batch, ticket) != nullptr; }));
  expect_ok(*a, {ticket});
}

}  // namespace
}  // namespace kvl::libfabric
