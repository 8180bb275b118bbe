// Two RDMA devices with a wire between them: what a device in memory cannot prove. Runs where
// tests/rdma-vm.sh has made rxe0 and rxe1 on veth0 and veth1; the wire is made worse and cut here.
#include <gtest/gtest.h>

#include <cstdlib>
#include <functional>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "kvl/transport.h"
#include "tests/support/log_guard.h"
#include "tests/transport/fabric/link_side.h"

namespace kvl {
std::unique_ptr<Transport> make_verbs_transport(const Settings&);

namespace {

using test::ExpectLog;
using test::LinkSide;

constexpr std::int64_t kDeadlineNs = 30'000'000'000;
constexpr std::uint32_t kPages = 64, kPageBytes = 4096;

void must_run(const std::string& command) {
  ASSERT_EQ(std::system(command.c_str()), 0) << command;  // NOLINT: in a machine of our own
}

class VerbsDevices : public ::testing::Test {
 protected:
  void SetUp() override {
    const char* const devices = std::getenv("RDMA_DEVICES");
    if (devices == nullptr || std::string(devices) != "rxe0 rxe1") {
      GTEST_SKIP() << "needs tests/rdma-vm.sh --netdev pair";
    }
    one = make("rxe0");
    two = make("rxe1");
    open();
  }
  void TearDown() override {
    [[maybe_unused]] const int result =
        std::system("tc qdisc del dev veth0 root 2>/dev/null; ip link set veth0 up");  // NOLINT
  }
  static std::unique_ptr<Transport> make(const std::string& device) {
    Settings::Source source;
    source.environment = false;
    source.flags = {{"verbs.devices", device}};
    const auto settings = Settings::load(transport_settings(), source);
    return make_verbs_transport(*settings);
  }

  void open() {
    a = std::make_unique<LinkSide>(*one, clock);
    b = std::make_unique<LinkSide>(*two, clock);
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
  }
  bool run(const std::function<bool()>& done) {
    const std::int64_t end_ns = clock.now_ns() + kDeadlineNs;
    while (!done() && clock.now_ns() < end_ns) {
      for (const auto& [from, to] : {std::pair{a.get(), b.get()}, std::pair{b.get(), a.get()}}) {
        from->poll();
        for (const auto& [peer, bytes] : from->control.sent) to->link->on_control(to->peer, bytes);
        from->control.sent.clear();
      }
    }
    return done();
  }
  Ticket post(Direction direction = Direction::write) {
    const std::array<std::byte, 1> note{std::byte{1}};
    Batch batch;
    batch.ticket = {++tickets};
    batch.peer = a->peer;
    batch.direction = direction;
    batch.ops = std::span(&op, 1);
    batch.locals = std::span(&a->id, 1);
    batch.remotes = std::span(&a->remote, 1);
    if (direction == Direction::write) batch.note = note;
    EXPECT_TRUE(a->link->post(batch).ok());
    return batch.ticket;
  }
  Code end_of(Ticket ticket) {
    EXPECT_TRUE(run([&] { return a->find(Event::Kind::batch, ticket) != nullptr; }));
    const Event* const event = a->find(Event::Kind::batch, ticket);
    return event == nullptr ? Code::internal : event->code;
  }
  // Every page there and back, with other bytes each round.
  void move_all(int rounds) {
    for (int round = 0; round < rounds; ++round) {
      std::iota(reinterpret_cast<unsigned char*>(a->memory.data()),
                reinterpret_cast<unsigned char*>(a->memory.data()) + a->memory.size(),
                static_cast<unsigned char>(round));
      std::fill(b->memory.begin(), b->memory.end(), std::byte{});
      const std::vector<std::byte> sent = a->memory;
      ASSERT_EQ(end_of(post()), Code::ok);
      std::fill(a->memory.begin(), a->memory.end(), std::byte{});
      ASSERT_EQ(end_of(post(Direction::read)), Code::ok);
      for (std::size_t page = 0; page < kPages; ++page) {
        const std::size_t at = page * 2 * kPageBytes;
        ASSERT_TRUE(std::equal(&a->memory[at], &a->memory[at] + kPageBytes, &sent[at]));
        ASSERT_EQ(b->memory[at + kPageBytes], std::byte{});
      }
    }
  }
  bool lost(const LinkSide& side) const {
    const Event* const down = side.find(Event::Kind::peer_down);
    return down != nullptr && down->code == Code::peer_lost;
  }

  SteadyClock clock;
  std::unique_ptr<Transport> one, two;
  std::unique_ptr<LinkSide> a, b;
  const PageOp op{0, 0, 0, 0, kPageBytes, kPages, 2 * kPageBytes, 2 * kPageBytes};
  std::uint64_t tickets = 0;
};

TEST_F(VerbsDevices, BytesPassTheWire) { move_all(8); }

TEST_F(VerbsDevices, LossAndReorderingAreRepaired) {
  must_run("tc qdisc add dev veth0 root netem delay 1ms loss 0.5% reorder 25%");
  move_all(4);
}

TEST_F(VerbsDevices, DeadWireIsNoticedByAProbe) {
  const ExpectLog expected("verbs.peer_lost");
  move_all(1);
  must_run("tc qdisc add dev veth0 root netem loss 100%");
  const std::int64_t start_ns = clock.now_ns();
  EXPECT_TRUE(run([&] { return lost(*a) && lost(*b); }));
  RecordProperty("milliseconds", static_cast<int>((clock.now_ns() - start_ns) / 1'000'000));
  must_run("tc qdisc del dev veth0 root");
  open();
  move_all(1);
}

TEST_F(VerbsDevices, LinkThatGoesDownWithBatchesUnderWay) {
  const ExpectLog expected("verbs.");
  move_all(1);
  std::vector<Ticket> all;
  for (int i = 0; i < 10; ++i) all.push_back(post());
  a->poll();
  must_run("ip link set veth0 down");
  EXPECT_TRUE(run([&] { return lost(*a) && lost(*b); }));
  for (const Ticket ticket : all) EXPECT_NE(a->find(Event::Kind::batch, ticket), nullptr);
}

// Its owner has removed the memory, and word of that has not come.
TEST_F(VerbsDevices, StaleKeyIsRefusedByTheDevice) {
  const ExpectLog expected("verbs.peer_lost");
  std::fill(b->memory.begin(), b->memory.end(), std::byte{3});
  ASSERT_TRUE(b->link->remove_memory(b->id).ok());
  const Ticket ticket = post();
  const std::int64_t end_ns = clock.now_ns() + kDeadlineNs;
  while (a->find(Event::Kind::batch, ticket) == nullptr && clock.now_ns() < end_ns) a->poll();
  ASSERT_NE(a->find(Event::Kind::batch, ticket), nullptr);
  EXPECT_EQ(a->find(Event::Kind::batch, ticket)->code, Code::permission);
  EXPECT_EQ(a->metric("kvlane_verbs_faults_total stale_key"), 1.0);
  EXPECT_TRUE(run([&] { return lost(*a) && lost(*b); }));
  EXPECT_EQ(b->memory, std::vector<std::byte>(b->memory.size(), std::byte{3}));
}

}  // namespace
}  // namespace kvl
