// Every name that kvlane exposes follows one scheme.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kvl/bootstrap_server.h"
#include "kvl/router.h"
#include "tests/kvcache/handoff/cluster.h"
#include "tests/metrics/name_check.h"
#include "tests/support/engine_pair.h"
#include "transport/sim/sim_transport.h"
#include "worker/worker_server.h"

namespace kvl::test {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

template <typename Owner>
std::string shown(const Owner& owner) {
  PrometheusText text;
  owner.visit_metrics(text);
  return text.text();
}

TEST(MetricNames, EngineAndTransports) {
  const TestEngine engine;
  ASSERT_TRUE(engine);
  const std::string text = shown(*const_cast<TestEngine&>(engine).operator->());
  EXPECT_THAT(text, HasSubstr("kvlane_rail_bytes_total{"));
  EXPECT_THAT(text, HasSubstr("kvlane_tcp_sent_bytes_total{"));
  EXPECT_THAT(text, HasSubstr("kvlane_shm_written_bytes_total{"));
  EXPECT_THAT(bad_metrics(text), IsEmpty());
}

TEST(MetricNames, Handoff) {
  Cluster cluster;
  const auto good = cluster.make_request(1, 12);
  const auto failed = cluster.make_request(2, 12, 0, HandoffMode::pull);
  for (const auto& request : {good, failed}) cluster.open_everywhere(request);
  cluster.finish_everywhere(good);
  cluster.run();
  EXPECT_TRUE(cluster.decode().endpoint->abort(HandoffSide::decode, 2).ok());
  cluster.run();
  for (const auto* node : {&cluster.prefill(), &cluster.decode()}) {
    const std::string text = shown(*node->endpoint);
    EXPECT_THAT(text, HasSubstr("kvlane_handoffs_ended_total{"));
    EXPECT_THAT(bad_metrics(text), IsEmpty());
  }
}

TEST(MetricNames, SimulatedLink) {
  sim::SimWorld world(sim::SimOptions{});
  struct NoControl final : ControlChannel {
    Status send(PeerId, std::span<const std::byte>) override { return {}; }
  } control;
  const auto memory_ops = make_host_memory_ops();
  sim::SimTransport transport(world, 0);
  const auto link =
      transport.open(transport.devices().at(0), {control, *memory_ops, world.clock()});
  ASSERT_TRUE(link.ok());
  PrometheusText text;
  (*link)->visit_metrics(text, {{"rail", "0"}});
  EXPECT_THAT(text.text(), HasSubstr("kvlane_sim_bytes_total{"));
  EXPECT_THAT(bad_metrics(text.text()), IsEmpty());
}

TEST(MetricNames, RouterWithItsRendezvous) {
  RouterOptions options;
  options.host = "127.0.0.1";
  options.port = 0;
  options.pd_disaggregation = true;
  options.disable_health_check = true;
  options.prefill = {{"http://127.0.0.1:1", 8998}};
  options.decode = {"http://127.0.0.1:2"};
  std::string error;
  const auto router = Router::open(options, &error);
  ASSERT_TRUE(router.ok()) << error;
  const std::string text = shown(**router);
  EXPECT_THAT(text, HasSubstr("kvlane_router_requests_total"));
  EXPECT_THAT(bad_metrics(text), IsEmpty());
}

TEST(MetricNames, Rendezvous) {
  BootstrapServerOptions options;
  options.host = "127.0.0.1";
  options.port = 0;
  const auto server = BootstrapServer::open(options);
  ASSERT_TRUE(server.ok());
  const std::string text = shown(**server);
  EXPECT_THAT(text, HasSubstr("kvlane_bootstrap_lookups_total"));
  EXPECT_THAT(bad_metrics(text), IsEmpty());
}

TEST(MetricNames, Worker) {
  worker::WorkerOptions options;
  std::string error;
  const auto server = worker::WorkerServer::open(options, &error);
  ASSERT_TRUE(server.ok()) << error;
  const std::string text = shown(**server);
  EXPECT_THAT(text, HasSubstr("kvlane_worker_pages_free"));
  EXPECT_THAT(bad_metrics(text), IsEmpty());
}

TEST(MetricNames, TheCheckFindsWhatItShould) {
  const auto broken = [](const std::string& name, const std::string& type) {
    return bad_metrics("# HELP " + name + " Text.\n# TYPE " + name + " " + type + "\n" + name +
                       " 1\n");
  };
  EXPECT_THAT(broken("kvlane_x_total", "counter"), IsEmpty());
  EXPECT_THAT(broken("kvlane_x_seconds_total", "counter"), IsEmpty());
  for (const char* bad :
       {"kvl_x_total", "kvlane_x", "kvlane_X_total", "kvlane_x_ms_total", "kvlane_bytes_x_total"}) {
    EXPECT_EQ(broken(bad, "counter").size(), 1U) << bad;
  }
  EXPECT_EQ(broken("kvlane_x_total", "gauge").size(), 1U);
  EXPECT_EQ(broken("kvlane_x", "histogram").size(), 1U);
  EXPECT_EQ(bad_metrics("kvlane_x 1\n").size(), 2U) << "neither help nor type";
  EXPECT_EQ(bad_metrics("# HELP kvlane_x Text.\n# TYPE kvlane_x gauge\n"
                        "kvlane_x{a=\"1\"} 1\nkvlane_x{a=\"1\"} 2\n")
                .size(),
            1U);
  EXPECT_EQ(
      bad_metrics("# HELP kvlane_x Text.\n# TYPE kvlane_x gauge\nkvlane_x{A=\"}\"} 1\n").size(),
      1U);
}

}  // namespace
}  // namespace kvl::test
