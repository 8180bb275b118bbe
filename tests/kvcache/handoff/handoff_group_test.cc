// The agreement of the decode ranks of one request.
#include <gtest/gtest.h>

#include "kvcache/handoff/wire.h"
#include "tests/kvcache/handoff/cluster.h"

namespace kvl::test {
namespace {

TEST(HandoffGroup, TheLeadCommitsLastAndOnlyIfAllDo) {
  ClusterOptions options;
  options.prefill = {2, 1};
  options.decode = {4, 1};
  Cluster cluster(options);
  const Request request = cluster.make_request(4, 12);
  cluster.open_everywhere(request);
  // The lead hears of no commit: members have committed, the lead has not and prefill knows it.
  const std::size_t lead = cluster.decode_index(0);
  cluster.world.on_message = [&](std::size_t, std::size_t to, auto& bytes) {
    const auto message = handoff::decode(bytes);
    return to != lead || !std::holds_alternative<handoff::Committed>(message->body);
  };
  cluster.finish_everywhere(request);
  cluster.run();
  EXPECT_EQ(cluster.seen_decode(4, 0).terminals(), 0);
  for (std::size_t d = 1; d < 4; ++d) EXPECT_EQ(cluster.seen_decode(4, d).committed, 1);
  EXPECT_EQ(cluster.seen_prefill(4, 0).terminals(), 0);  // it feeds the lead
  EXPECT_EQ(cluster.seen_prefill(4, 1).committed, 1);
  cluster.advance_ms(31'000);
  EXPECT_EQ(cluster.seen_decode(4, 0).code, Code::timed_out);
  EXPECT_EQ(cluster.seen_prefill(4, 0).failed, 1);
  cluster.expect_nothing_open();
}

TEST(HandoffGroup, TheLeadWaitsForEveryMembersWord) {
  ClusterOptions options;
  options.decode = {4, 1};
  Cluster cluster(options);
  const Request request = cluster.make_request(4, 12);
  cluster.open_everywhere(request);
  cluster.world.on_message = [&](std::size_t from, std::size_t, auto& bytes) {
    const auto message = handoff::decode(bytes);
    return from != cluster.decode_index(2) ||
           !std::holds_alternative<handoff::Committed>(message->body);
  };
  cluster.finish_everywhere(request);
  cluster.run();
  EXPECT_EQ(cluster.seen_decode(4, 0).terminals(), 0);
  // The member that was not heard dies: then the lead cannot know, and does not commit.
  cluster.kill(cluster.decode_index(2), true);
  cluster.run();
  EXPECT_EQ(cluster.seen_decode(4, 0).code, Code::peer_lost);
  EXPECT_EQ(cluster.seen_prefill(4).failed, 1);
  cluster.expect_nothing_open();
}

TEST(HandoffGroup, OneRankThatFailsFailsAll) {
  for (std::size_t culprit = 0; culprit < 4; ++culprit) {
    ClusterOptions options;
    options.prefill = {2, 1};
    options.decode = {4, 1};
    Cluster cluster(options);
    const Request request = cluster.make_request(4, 12);
    cluster.open_everywhere(request);
    cluster.run();
    ASSERT_TRUE(
        cluster.decode(culprit).endpoint->abort(HandoffSide::decode, 4, Code::exhausted).ok());
    (void)cluster.run();
    cluster.expect_failed(request, Code::exhausted);
    cluster.expect_nothing_open();
  }
}

TEST(HandoffGroup, AMemberThatComesAfterTheFailureHearsOfIt) {
  ClusterOptions options;
  options.decode = {2, 1};
  Cluster cluster(options);
  const Request request = cluster.make_request(4, 12);
  ASSERT_TRUE(cluster.open_prefill(request).ok());
  ASSERT_TRUE(cluster.open_decode(request, 0).ok());
  ASSERT_TRUE(cluster.decode(0).endpoint->abort(HandoffSide::decode, 4, Code::exhausted).ok());
  cluster.run();
  ASSERT_TRUE(cluster.open_decode(request, 1).ok());
  cluster.run();
  EXPECT_EQ(cluster.seen_decode(4, 1).failed, 1);
  cluster.expect_nothing_open();
}

}  // namespace
}  // namespace kvl::test
