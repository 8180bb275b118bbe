// Sessions with a key: whose memory a peer may name, what a lane must prove, and what an encrypted
// lane does with bytes that are not what the peer has sent.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>

#include "tests/support/deferred_memory_ops.h"
#include "tests/support/log_guard.h"
#include "tests/transport/tcp/fake_peer.h"
#include "transport/tcp/tcp_greeting.h"
#include "transport/tcp/tcp_seal.h"

namespace kvl {
namespace {

using tcp::Greeting;
using tcp::WireAck;
using tcp::WireRun;
using test::FakePeer;
using test::Host;
using test::memory_of;
using test::Pair;
using test::random_bytes;
using test::raw_bytes;

PeerSecurity security(bool encrypt) {
  PeerSecurity all;
  all.key.fill(std::byte{0x33});
  all.encrypt = encrypt;
  return all;
}

std::uint64_t grant_of(Host& host, MemoryId memory, PeerId peer) {
  return tcp::decode_memory(*host.link->export_memory(memory, peer))->memory;
}

// What the target says to one write of 8 bytes.
Code write_eight(FakePeer& peer, std::uint64_t batch, std::uint64_t memory) {
  const WireRun run{memory, 0, 0, 8, 1};
  const std::array<std::byte, 8> data{std::byte{0xEE}};
  test::say(peer.lane, FakePeer::write_frame(batch, {&run, 1}, data));
  const auto header = peer.hear<tcp::FrameHeader>();
  EXPECT_EQ(header.type, tcp::FrameType::ack);
  return tcp::code_from_wire(peer.hear<WireAck>().code);
}

TEST(TcpGrants, MemoryIsReachableOnlyByPeersItWasExportedTo) {
  const test::ExpectLog log("tcp.run_refused");
  Host host;
  std::vector<std::byte> bytes(4096), before = bytes;
  const MemoryId memory = host.add(memory_of(bytes, Access::remote_all));
  FakePeer owner(host), other(host);
  // Registered, and exported to nobody: no number names it.
  for (std::uint64_t guess = 0; guess < 8; ++guess) {
    for (const std::uint64_t generation : {0ULL, 1ULL, 2ULL}) {
      EXPECT_EQ(write_eight(other, 1 + guess, guess | generation << 32), Code::permission);
    }
  }
  EXPECT_EQ(write_eight(other, 100, memory.value), Code::permission);
  const std::uint64_t grant = grant_of(host, memory, owner.peer);
  EXPECT_EQ(grant_of(host, memory, owner.peer), grant) << "one name for one peer";
  EXPECT_EQ(write_eight(other, 101, grant), Code::permission);
  EXPECT_EQ(bytes, before);
  EXPECT_EQ(write_eight(owner, 102, grant), Code::ok);
  EXPECT_EQ(bytes[0], std::byte{0xEE});
  EXPECT_NE(grant_of(host, memory, other.peer), grant);
}

TEST(TcpGrants, EndWithTheMemoryAndWithThePeer) {
  const test::ExpectLog log("tcp.run_refused");
  Host host;
  std::vector<std::byte> bytes(4096);
  const MemoryId memory = host.add(memory_of(bytes, Access::remote_all));
  std::uint64_t grant = 0;
  {
    FakePeer first(host);
    grant = grant_of(host, memory, first.peer);
    EXPECT_EQ(write_eight(first, 1, grant), Code::ok);
    host.link->close_peer(first.peer);
    host.poll();
  }
  std::fill(bytes.begin(), bytes.end(), std::byte{});
  FakePeer second(host);
  EXPECT_EQ(write_eight(second, 1, grant), Code::permission) << "of an earlier session";
  const std::uint64_t own = grant_of(host, memory, second.peer);
  EXPECT_EQ(write_eight(second, 2, own), Code::ok);
  ASSERT_TRUE(host.link->remove_memory(memory).ok());
  EXPECT_EQ(write_eight(second, 3, own), Code::permission);
  const MemoryId again = host.add(memory_of(bytes, Access::remote_all));
  EXPECT_EQ(write_eight(second, 4, own), Code::permission);
  EXPECT_EQ(write_eight(second, 5, grant_of(host, again, second.peer)), Code::ok);
}

// A dialer in a session with a key, which knows it or does not.
struct KeyedPeer {
  explicit KeyedPeer(Host& target, bool encrypt = false) : host(target) {
    peer = *host.link->open_peer(PeerRole::passive);
    EXPECT_TRUE(host.link->secure_peer(peer, security(encrypt)).ok());
    offer = *tcp::decode_offer(*host.link->offer(peer));
    tcp::Offer own;
    own.addresses = offer.addresses;
    EXPECT_TRUE(host.link->accept(peer, tcp::encode(own)).ok());
  }
  Greeting hello(std::uint32_t incarnation = 1) const {
    Greeting greeting;
    greeting.token = offer.token;
    greeting.lanes = 1;
    greeting.incarnation = incarnation;
    greeting.batches_inflight_max = 64;
    crypto::random(greeting.nonce);
    greeting.proof = tcp::prove_greeting(security(false).key, greeting, {});
    return greeting;
  }
  // The welcome, or nothing when the host hangs up.
  std::optional<Greeting> greet(const Greeting& greeting) {
    lane = test::dial_port(offer.addresses.front().port());
    test::say(lane, raw_bytes(greeting));
    const auto in = hear(sizeof(Greeting));
    if (in.size() < sizeof(Greeting)) return std::nullopt;
    return tcp::read_wire<Greeting>(in.data());
  }
  std::vector<std::byte> hear(std::size_t bytes) { return test::hear_bytes(host, lane, bytes); }

  Host& host;
  PeerId peer;
  tcp::Offer offer;
  UniqueFd lane;
};

TEST(TcpGreeting, TheTokenAloneOpensNothingOnceThereIsAKey) {
  const test::ExpectLog log("tcp.greeting_refused");
  Host host;
  KeyedPeer peer(host);
  Greeting bare = peer.hello();
  bare.proof = {};
  EXPECT_FALSE(peer.greet(bare));
  bare.nonce = {};
  EXPECT_FALSE(peer.greet(bare));
  // A proof of another lane, incarnation, nonce, role or key.
  for (const std::function<void(Greeting&)>& change : std::vector<std::function<void(Greeting&)>>{
           [](Greeting& g) {
             g.lane = 0;
             g.incarnation = 2;
           },
           [](Greeting& g) { g.lanes = 2; }, [](Greeting& g) { g.nonce[3] ^= std::byte{1}; },
           [](Greeting& g) { g.proof[15] ^= std::byte{1}; },
           [](Greeting& g) {
             g.kind = tcp::GreetingKind::welcome;
             g.proof = tcp::prove_greeting(security(false).key, g, {});
             g.kind = tcp::GreetingKind::hello;
           },
           [](Greeting& g) {
             PeerSecurity other = security(false);
             other.key[0] ^= std::byte{1};
             g.proof = tcp::prove_greeting(other.key, g, {});
           }}) {
    Greeting greeting = peer.hello();
    change(greeting);
    EXPECT_FALSE(peer.greet(greeting));
  }
  const Greeting good = peer.hello();
  const auto welcome = peer.greet(good);
  ASSERT_TRUE(welcome);
  EXPECT_EQ(welcome->proof, tcp::prove_greeting(security(false).key, *welcome, good.nonce));
  EXPECT_EQ(metric(host, "kvlane_tcp_refused_greetings_total"), 8);
  // Said again, it is worth nothing: neither while the lane is there nor after it.
  UniqueFd open = std::move(peer.lane);
  EXPECT_FALSE(peer.greet(good));
  open.reset();
  EXPECT_FALSE(peer.greet(good));
  EXPECT_TRUE(peer.greet(peer.hello(2)));
}

// An encrypted lane whose other end is in the hands of the test.
struct SealedPeer : KeyedPeer {
  explicit SealedPeer(Host& target) : KeyedPeer(target, true) {
    const Greeting mine = hello();
    const auto welcome = greet(mine);
    EXPECT_TRUE(welcome.has_value());
    const tcp::LaneKeys keys = tcp::lane_keys(security(true).key, mine.nonce, welcome->nonce);
    sealer.emplace(crypto::Bytes(keys.from_dialer).first(tcp::kLaneKeyBytes));
    opener.emplace(crypto::Bytes(keys.from_listener).first(tcp::kLaneKeyBytes));
  }
  // The records of these bytes, one after the other.
  std::vector<std::vector<std::byte>> records(std::span<const std::byte> bytes,
                                              std::size_t record_bytes = 4096) {
    std::vector<std::vector<std::byte>> all;
    while (!bytes.empty()) {
      const auto part = bytes.first(std::min(bytes.size(), record_bytes));
      const iovec vector{const_cast<std::byte*>(part.data()), part.size()};
      EXPECT_EQ(sealer->seal({&vector, 1}, *buffer), part.size());
      const auto sealed = sealer->pending(*buffer);
      all.emplace_back(sealed.begin(), sealed.end());
      bytes = bytes.subspan(part.size());
    }
    return all;
  }
  void say(const std::vector<std::vector<std::byte>>& all) const {
    for (const auto& record : all) test::say(lane, record);
  }
  // Plain bytes from the host; what travelled is kept in `seen`.
  std::vector<std::byte> hear_plain(std::size_t bytes) {
    std::vector<std::byte> plain;
    const SteadyClock clock;
    const std::int64_t deadline = clock.now_ns() + test::kPatienceNs;
    while (plain.size() < bytes && clock.now_ns() < deadline) {
      host.poll();
      const auto room = opener->room(*rx);
      const ssize_t n = ::recv(lane.get(), room.data(), room.size(), MSG_DONTWAIT);
      if (n == 0) break;
      if (n > 0) {
        seen.insert(seen.end(), room.begin(), room.begin() + n);
        opener->received(static_cast<std::size_t>(n));
      }
      while (opener->ready(*rx)) {
        std::vector<std::byte> part(tcp::kRecordBytesMax);
        std::size_t got = 0;
        if (!opener->open(*rx, part.data(), got).ok()) {
          ADD_FAILURE() << "the host's record does not open";
          return plain;
        }
        plain.insert(plain.end(), part.begin(), part.begin() + static_cast<std::ptrdiff_t>(got));
      }
    }
    return plain;
  }
  bool closed() {
    hear(1 << 20);
    char one = 0;
    const ssize_t n = ::recv(lane.get(), &one, 1, MSG_DONTWAIT);
    return n == 0 || (n < 0 && errno != EAGAIN);
  }
  std::optional<tcp::Sealer> sealer;
  std::optional<tcp::Opener> opener;
  std::unique_ptr<tcp::SealBuffer> buffer{new tcp::SealBuffer}, rx{new tcp::SealBuffer};
  std::vector<std::byte> seen;
};

// A write of `data` to the start of `memory`.
std::vector<std::byte> write_of(std::uint64_t memory, std::span<const std::byte> data) {
  const WireRun run{memory, 0, 0, static_cast<std::uint32_t>(data.size()), 1};
  return FakePeer::write_frame(7, {&run, 1}, data);
}

bool contains(std::span<const std::byte> where, std::span<const std::byte> what) {
  return std::search(where.begin(), where.end(), what.begin(), what.end()) != where.end();
}

TEST(TcpEncryption, RecordsOfAnySizeArriveAndNothingReadableTravelsBack) {
  for (const std::size_t record_bytes : {1UL, 37UL, 4096UL, tcp::kRecordBytesMax}) {
    Host host;
    SealedPeer peer(host);
    std::vector<std::byte> target(100'000);
    const std::vector<std::byte> data = random_bytes(record_bytes == 1 ? 300 : 100'000, 5);
    const std::uint64_t memory =
        grant_of(host, host.add(memory_of(target, Access::remote_all)), peer.peer);
    std::vector<std::byte> spoken = write_of(memory, data);
    tcp::FrameHeader ask;
    ask.type = tcp::FrameType::read_request;
    ask.count = 1;
    ask.batch = 8;
    ask.data_bytes = data.size();
    const WireRun run{memory, 0, 0, static_cast<std::uint32_t>(data.size()), 1};
    for (const auto part : {raw_bytes(ask), raw_bytes(run)}) {
      spoken.insert(spoken.end(), part.begin(), part.end());
    }
    const auto all = peer.records(spoken, record_bytes);
    for (const auto& record : all) {
      test::say(peer.lane, record);
      host.poll();
    }
    const std::size_t answer = 3 * sizeof(tcp::FrameHeader) + sizeof(WireAck) + data.size();
    const auto plain = peer.hear_plain(answer);
    EXPECT_EQ(plain.size(), answer);
    EXPECT_TRUE(std::equal(data.begin(), data.end(), target.begin()));
    EXPECT_TRUE(contains(plain, data));
    EXPECT_FALSE(contains(peer.seen, std::span(data).first(16)));
    EXPECT_GT(peer.seen.size(), answer);
  }
}

TEST(TcpEncryption, WhatWasTamperedWithClosesTheLaneAndLandsNowhere) {
  const test::ExpectLog log("tcp.");
  using Records = std::vector<std::vector<std::byte>>;
  const std::vector<std::function<void(Records&)>> deeds{
      [](Records& r) { r[0][20] ^= std::byte{1}; },       // the frame's header
      [](Records& r) { r[1][100] ^= std::byte{1}; },      // data
      [](Records& r) { r[1].back() ^= std::byte{1}; },    // a tag
      [](Records& r) { r[1][0] ^= std::byte{1}; },        // a record's length
      [](Records& r) { r[1][4] ^= std::byte{1}; },        // a record's magic
      [](Records& r) { std::swap(r[1], r[2]); },          // reordered
      [](Records& r) { r.insert(r.begin() + 1, r[0]); },  // replayed
      [](Records& r) { r.erase(r.begin() + 1); },         // left out
      [](Records& r) { r[1].assign(r[1].size(), std::byte{0xFF}); },
      [](Records& r) { r.insert(r.begin(), Records::value_type(8)); },  // of no bytes
  };
  for (std::size_t i = 0; i < deeds.size(); ++i) {
    Host host;
    SealedPeer peer(host);
    std::vector<std::byte> target(12'000, std::byte{1});
    const std::vector<std::byte> data(12'000, std::byte{2});
    const std::uint64_t memory =
        grant_of(host, host.add(memory_of(target, Access::remote_all)), peer.peer);
    Records all = peer.records(write_of(memory, data));
    ASSERT_GE(all.size(), 3U);
    deeds[i](all);
    peer.say(all);
    EXPECT_TRUE(peer.closed()) << i;
    EXPECT_EQ(metric(host, "kvlane_tcp_refused_records_total"), 1) << i;
    EXPECT_EQ(metric(host, "kvlane_tcp_batches_ok_total"), 0) << i;
    // Of the records before it whole pages may be there; of the bad one and after it, nothing.
    const auto end = std::find(target.begin(), target.end(), std::byte{1});
    EXPECT_LE(end - target.begin(), 2 * 4096) << i;
    EXPECT_TRUE(std::all_of(end, target.end(), [](std::byte b) { return b == std::byte{1}; })) << i;
    for (const Event& event : host.events) EXPECT_NE(event.kind, Event::Kind::note) << i;
  }
}

TEST(TcpEncryption, ATruncatedRecordIsNotDelivered) {
  Host host;
  SealedPeer peer(host);
  std::vector<std::byte> target(4096, std::byte{1});
  const std::vector<std::byte> data(4096, std::byte{2});
  const std::uint64_t memory =
      grant_of(host, host.add(memory_of(target, Access::remote_all)), peer.peer);
  auto all = peer.records(write_of(memory, data), tcp::kRecordBytesMax);
  ASSERT_EQ(all.size(), 1U);
  all[0].pop_back();
  peer.say(all);
  ::shutdown(peer.lane.get(), SHUT_WR);
  EXPECT_TRUE(peer.closed());
  EXPECT_EQ(target, std::vector<std::byte>(4096, std::byte{1}));
}

TEST(TcpEncryption, PlainFramesAndRecordsOfAnotherLaneAreRefused) {
  Host host;
  std::vector<std::byte> target(64, std::byte{1});
  const MemoryId memory = host.add(memory_of(target, Access::remote_all));
  const std::vector<std::byte> data(64, std::byte{2});
  {
    SealedPeer peer(host);
    test::say(peer.lane, write_of(grant_of(host, memory, peer.peer), data));
    EXPECT_TRUE(peer.closed());
  }
  SealedPeer one(host), two(host);
  const auto records = one.records(write_of(grant_of(host, memory, two.peer), data));
  two.say(records);
  EXPECT_TRUE(two.closed());
  EXPECT_EQ(target, std::vector<std::byte>(64, std::byte{1}));
}

// Both directions between two Links, in place and through bounce buffers, with many runs.
TEST(TcpEncryption, TwoLinksMoveWhatTheyMoveInPlain) {
  for (const bool staged : {false, true}) {
    const auto ops = [&]() -> std::unique_ptr<MemoryOps> {
      if (staged) return std::make_unique<test::DeferredMemoryOps>();
      return make_host_memory_ops();
    };
    Pair pair({}, ops(), ops(), security(true));
    constexpr std::uint64_t kBytes = 3 << 20;
    std::vector<std::byte> here = random_bytes(kBytes, 1), there = random_bytes(kBytes, 2);
    Memory of_a = memory_of(here), of_b = memory_of(there, Access::remote_all);
    if (staged) of_a.kind = of_b.kind = MemoryKind::cuda;
    pair.share(of_a, of_b);
    std::vector<PageOp> pages(kBytes / 4096 / 2);
    for (std::uint32_t i = 0; i < pages.size(); ++i) {
      pages[i].local_offset = std::uint64_t{i} * 8192;
      pages[i].remote_offset = kBytes - (std::uint64_t{i} + 1) * 8192;
      pages[i].bytes = 4096;
    }
    for (const Direction direction : {Direction::write, Direction::read}) {
      std::vector<std::byte> want = direction == Direction::write ? there : here;
      const std::vector<std::byte>& from = direction == Direction::write ? here : there;
      for (const PageOp& op : pages) {
        const std::uint64_t to = direction == Direction::write ? op.remote_offset : op.local_offset;
        const std::uint64_t at = direction == Direction::write ? op.local_offset : op.remote_offset;
        std::copy_n(from.begin() + static_cast<std::ptrdiff_t>(at), op.bytes,
                    want.begin() + static_cast<std::ptrdiff_t>(to));
      }
      ASSERT_TRUE(pair.a.link->post(pair.batch(direction, pages, 1)).ok());
      EXPECT_EQ(pair.await(pair.a, Event::Kind::batch).code, Code::ok);
      EXPECT_TRUE((direction == Direction::write ? there : here) == want) << staged;
    }
  }
}

}  // namespace
}  // namespace kvl
