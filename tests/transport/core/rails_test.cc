// Many rails: who carries a piece, what happens when one is slow, far or lost.
#include <gtest/gtest.h>

#include <cmath>

#include "kvl/metrics.h"
#include "tests/support/log_guard.h"
#include "tests/transport/core/rig.h"
#include "transport/core/rail_rate.h"

namespace kvl {
namespace {

using test::ExpectLog;
using test::kLongMs;
using test::Rig;
using test::ScriptedDevices;
using test::ScriptedLink;
using Kind = EngineEvent::Kind;

constexpr std::uint32_t kMiB = 1U << 20;

double counter(const Engine& engine, const std::string& line) {
  PrometheusText text;
  engine.visit_metrics(text);
  const std::string all = text.text();
  const std::size_t at = all.find("\n" + line);
  return at == std::string::npos ? NAN : std::stod(all.substr(all.find(' ', at + line.size()) + 1));
}

TEST(RailRate, FollowsWhatArrivesAndForgetsWhatWasLost) {
  RailRate rate(1'000'000'000);  // one byte per nanosecond, until it has shown otherwise
  EXPECT_DOUBLE_EQ(rate.finish_ns(500, 9), 500);
  rate.posted(1000, 0);
  rate.posted(1000, 10);
  EXPECT_DOUBLE_EQ(rate.finish_ns(500, 9), 2500);
  rate.ended(1000, 1000);
  rate.settle(500);
  EXPECT_DOUBLE_EQ(rate.bytes_per_ns(), 2);
  rate.ended(1000, 0);  // lost
  rate.settle(900);
  EXPECT_DOUBLE_EQ(rate.bytes_per_ns(), 2);
  EXPECT_EQ(rate.loaded(), 0U);
  // An idle pause is not the rail's.
  rate.posted(100, 10'000);
  rate.ended(100, 100);
  rate.settle(10'050);
  EXPECT_DOUBLE_EQ(rate.bytes_per_ns(), 2);
  EXPECT_DOUBLE_EQ(RailRate().finish_ns(90, 9), 10);
}

// Rail 0 needs 1 ms for a piece, rail 1 `slow_ms`. Virtual milliseconds until the second of two
// transfers of 48 pieces has ended; the first teaches the engine the rates.
std::int64_t second_transfer_ms(std::int64_t slow_ms, std::uint32_t* slow_pieces) {
  Rig rig({.devices = 2,
           .settings = {{"piece_bytes", std::to_string(kMiB)}, {"pieces_inflight", "4"}}});
  std::int64_t took = 0;
  for (int round = 0; round < 2; ++round) {
    *slow_pieces = 0;
    rig.write(48 * kMiB);
    std::int64_t slow_left = slow_ms;
    for (took = 0; took < 10'000 && !rig.has(0, Kind::transfer); ++took) {
      rig.step();
      if (rig.link(0, 0).posted() > 0) rig.link(0, 0).finish(Code::ok);
      if (rig.link(0, 1).posted() == 0) {
        slow_left = slow_ms;
      } else if (--slow_left == 0) {
        rig.link(0, 1).finish(Code::ok);
        ++*slow_pieces;
        slow_left = slow_ms;
      }
    }
    const auto done = rig.next(0, Kind::transfer);
    EXPECT_TRUE(done.has_value() && done->code == Code::ok);
  }
  return took;
}

TEST(Rails, ASlowRailIsNotWhatATransferWaitsForInTheEnd) {
  std::uint32_t slow_pieces = 0;
  // As fast as the two can: 48 pieces at 1 + 1/12 a millisecond are 44.3 ms.
  EXPECT_LE(second_transfer_ms(12, &slow_pieces), 54);
  EXPECT_GE(slow_pieces, 1U);
  EXPECT_LE(slow_pieces, 5U);
}

TEST(Rails, EqualRailsShareEvenly) {
  std::uint32_t second_pieces = 0;
  EXPECT_LE(second_transfer_ms(1, &second_pieces), 28);
  EXPECT_NEAR(second_pieces, 24, 2);
}

TEST(Rails, ATransferIsCutForAllRailsButNotIntoCrumbs) {
  for (const auto& [bytes, pieces] : {std::pair{32 * kMiB, 16U}, {4 * kMiB, 8U}, {kMiB / 2, 1U}}) {
    Rig rig({.devices = 4, .settings = {{"pieces_inflight", "8"}}});
    rig.write(bytes);
    rig.run(20);
    std::size_t posted = 0;
    for (std::size_t i = 0; i < 4; ++i) {
      posted += rig.link(0, i).posted();
      EXPECT_LE(rig.link(0, i).posted(), (pieces + 3) / 4);
    }
    EXPECT_EQ(posted, pieces) << bytes;
  }
}

test::RigOptions near_first_gpu() {
  test::RigOptions options;
  ScriptedDevices devices;
  devices.names = {"x-rdmap146s0-y", "x-rdmap18s0-y", "x-rdmap19s0-y"};
  devices.domain = "fabric";
  options.transports = {devices};
  options.settings = {{"near", "cuda0"},
                      {"topology_file", KVL_FIXTURES "/two_sockets_four_gpus.xml"}};
  return options;
}

TEST(Rails, WhatIsNearCarriesEverythingAndAReserveTakesOver) {
  const ExpectLog degraded("peer.degraded");
  Rig rig(near_first_gpu());
  for (int round = 0; round < 4; ++round) {
    rig.write();
    rig.run(5);
  }
  EXPECT_EQ(rig.link(0, 0).posted(), 0U);
  EXPECT_EQ(rig.link(0, 1).posted() + rig.link(0, 2).posted(), 2U);  // one a rail: pieces_inflight
  // Both near rails go: what they had is posted again on the reserve, and comes back to near ones
  // when they are there again.
  rig.link(0, 1).lose(Code::peer_lost);
  rig.link(0, 2).lose(Code::peer_lost);
  ASSERT_TRUE(rig.until([&] { return rig.link(0, 0).posted() > 0; }));
  for (int ended = 0; ended < 4;) {
    rig.step();
    for (std::size_t i = 0; i < 3; ++i) {
      if (rig.link(0, i).posted() > 0) rig.link(0, i).finish(Code::ok);
    }
    while (rig.has(0, Kind::transfer)) {
      EXPECT_EQ(rig.next(0, Kind::transfer)->code, Code::ok);
      ++ended;
    }
  }
  ASSERT_TRUE(rig.until([&] { return rig.link(0, 1).peers() + rig.link(0, 2).peers() == 2; }));
  rig.run(5);
  rig.write();
  rig.run(5);
  EXPECT_EQ(rig.link(0, 0).posted(), 0U);
}

TEST(Rails, AWorseTransportInTheSameTransferIsSaidLoudly) {
  const ExpectLog degraded("peer.degraded");
  test::RigOptions options;
  options.transports.resize(2);
  options.transports[0].names = {"fast"};
  options.transports[1].names = {"slow"};
  options.transports[1].transport = "spare";
  options.transports[1].rank = 90;
  Rig rig(options);
  rig.write();
  rig.run(5);
  ASSERT_EQ(rig.link(0, 0).posted(), 1U);
  rig.link(0, 0).lose(Code::peer_lost);
  ASSERT_TRUE(rig.until([&] { return rig.link(0, 1).posted() == 1; }));
  const std::string line = "kvlane_peers_degraded_total{from=\"scripted\",to=\"spare\"";
  EXPECT_TRUE(std::isnan(counter(rig.engine(0), line))) << "a moment is not worth a warning";
  rig.link(0, 1).finish(Code::ok);
  EXPECT_EQ(rig.next(0, Kind::transfer)->code, Code::ok);
  rig.link(0, 0).refuse_peers = true;
  rig.link(0, 0).lose(Code::peer_lost);
  rig.run(900);
  EXPECT_EQ(counter(rig.engine(0), line), 1);
}

TEST(Rails, APathThatStandsStillIsGivenUpForAnother) {
  Rig rig({.devices = 2});
  rig.write();
  rig.write();
  rig.run(5);
  ASSERT_EQ(rig.link(0, 0).posted(), 1U);
  ASSERT_EQ(rig.link(0, 1).posted(), 1U);
  rig.link(0, 1).finish(Code::ok);
  // Nothing is heard of rail 0 any more, and the peer is heard.
  rig.run(900);
  EXPECT_EQ(rig.link(0, 0).posted(), 1U);
  ASSERT_TRUE(rig.until([&] { return rig.link(0, 1).posted() == 1; }, 600));
  rig.link(0, 1).finish(Code::ok);
  for (int ended = 0; ended < 2; ++ended) {
    const auto done = rig.next(0, Kind::transfer);
    ASSERT_TRUE(done.has_value());
    EXPECT_EQ(done->code, Code::ok);
    EXPECT_EQ(done->physical, Physical::quiescent);
  }
}

TEST(Rails, APathWaitsForWhatIsNotReady) {
  for (const bool ready : {false, true}) {
    Rig rig({.devices = 2});
    std::atomic<std::uint32_t> flag{ready ? 1U : 0U};
    rig.write(4096, {.flag = &flag, .at_least = 1});
    rig.run(5);
    const std::size_t first = rig.link(0, 0).posted() == 1 ? 0 : 1;
    ASSERT_EQ(rig.link(0, first).posted(), 1U);
    rig.run(1600);
    EXPECT_EQ(rig.link(0, 1 - first).posted(), ready ? 1U : 0U);
  }
}

TEST(Rails, TheOnlyPathIsKept) {
  Rig rig({});
  rig.write();
  rig.run(2500);
  EXPECT_EQ(rig.link(0, 0).posted(), 1U);
}

TEST(Rails, RequireNamesAProviderAndADevice) {
  for (const auto& [require, rails] : {std::pair{"scripted", 3U},
                                       {"scripted:efa", 2U},
                                       {"scripted:efa*", 2U},
                                       {"scripted:efa-direct", 1U},
                                       {"scripted:efa:rdmap18s0", 1U},
                                       {"scripted:efa:rdmap9", 0U}}) {
    std::vector<ScriptedLink*> links;
    ScriptedDevices devices;
    devices.names = {"efa-direct-rdmap18s0-rdm", "efa-rdmap19s0-rdm", "tcp-eth0"};
    EngineWorld world;
    world.transports.push_back(std::make_unique<test::ScriptedTransport>(devices, &links));
    Settings::Source source;
    source.environment = false;
    source.flags = {{"require", require}};
    const auto engine =
        Engine::open(Settings::load(engine_settings(), source).value(), std::move(world));
    EXPECT_EQ(engine.ok() ? (*engine)->rails().size() : 0U, rails) << require;
  }
}

TEST(Rails, NearMustNameADeviceOfTheHost) {
  Settings::Source source;
  source.environment = false;
  source.flags = {{"near", "cuda9"}, {"topology_file", KVL_FIXTURES "/two_sockets_four_gpus.xml"}};
  std::string error;
  const auto engine =
      Engine::open(Settings::load(engine_settings(), source).value(), EngineWorld{}, &error);
  EXPECT_EQ(engine.code(), Code::invalid_argument);
  EXPECT_NE(error.find("cuda0 (0000:11:00.0)"), std::string::npos) << error;
}

// Reserves get the memory after register_memory() has returned, and give it back.
TEST(Rails, ReservesRegisterInTheBackground) {
  std::vector<ScriptedLink*> links;
  Settings::Source source;
  source.environment = false;
  test::RigOptions options = near_first_gpu();
  source.flags = options.settings;
  EngineWorld world;
  world.transports.push_back(
      std::make_unique<test::ScriptedTransport>(options.transports[0], &links));
  const auto engine =
      Engine::open(Settings::load(engine_settings(), source).value(), std::move(world)).value();
  std::byte byte{};
  const std::string reserve = "kvlane_rail_registered_bytes_total{rail=\"0\"",
                    near = reserve.substr(0, reserve.size() - 2);
  for (int round = 1; round <= 20; ++round) {
    const MemoryHandle handle =
        engine->register_memory({&byte, 1000, MemoryKind::host, 0, Access::remote_all}).value();
    EXPECT_EQ(counter(*engine, near + "1\""), 1000.0 * round);
    if (round % 2 == 0) {
      const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
      const double before = counter(*engine, reserve);
      while (before < 1000 && counter(*engine, reserve) < 1000) {
        ASSERT_LT(std::chrono::steady_clock::now(), deadline);
        std::this_thread::yield();
      }
    }
    EXPECT_TRUE(engine->deregister_memory(handle).ok());
  }
  EXPECT_LE(counter(*engine, reserve), 20'000.0);
}

}  // namespace
}  // namespace kvl
