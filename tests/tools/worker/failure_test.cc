// What goes wrong between a prefill and a decode worker: each request ends with a typed error, its
// pages come back, and the next request is served.
#include "tests/support/log_guard.h"
#include "tests/tools/worker/worker_rig.h"
#include "worker/kv_only.h"
#include "worker/tokenizer.h"

namespace kvl::worker::test {
namespace {

WorkerOptions small() {
  WorkerOptions options;
  options.page_tokens = 16;
  options.pages = 32;
  options.handoff_timeout_ms = 20000;
  return options;
}

Request prompt(std::string_view text, std::uint32_t output = 3) {
  Request request;
  request.tokens = encode_text(text);
  request.sampling.max_new_tokens = output;
  return request;
}

// Every page is free or kept for its prefix, and nothing is under way.
void expect_idle(WorkerServer& worker) {
  const auto limit = std::chrono::steady_clock::now() + std::chrono::seconds(30);
  SchedulerFigures figures = worker.figures();
  while ((figures.requests_running + figures.requests_queued != 0 ||
          figures.pages_held != figures.pages_cached) &&
         std::chrono::steady_clock::now() < limit) {
    Outcome flush;  // something that makes the scheduler go round
    worker.scheduler().submit({}, flush.sink());
    flush.wait();
    figures = worker.figures();
  }
  EXPECT_EQ(figures.requests_running + figures.requests_queued, 0U);
  EXPECT_EQ(figures.pages_held, figures.pages_cached);
  EXPECT_EQ(figures.pages_quarantined, 0U);
}

TEST(WorkerFailure, AFlippedBitOfKvIsNoticed) {
  const Meeting meeting;
  const std::unique_ptr<WorkerServer> prefill = meeting.prefill(small());
  WorkerOptions damaging = small();
  damaging.damage_received = true;
  const std::unique_ptr<WorkerServer> decode = meeting.decode(damaging);
  const std::vector<OutputToken> expected = run_alone(*open_worker(small()), prompt("some words"));
  const Handed handed = run_well(*prefill, *decode, prompt("some words"));
  ASSERT_EQ(handed.tokens.size(), 3U);
  EXPECT_EQ(handed.tokens[0], expected[0]);  // computed by prefill
  EXPECT_NE(handed.tokens[1].digest, expected[1].digest);
}

TEST(WorkerFailure, KvOnlyNoticesItToo) {
  const Meeting meeting;
  WorkerOptions options = small();
  options.model = "tiny";
  options.kv_only = true;
  const std::unique_ptr<WorkerServer> prefill = meeting.prefill(options);
  options.damage_received = true;
  const std::unique_ptr<WorkerServer> decode = meeting.decode(options);
  Request request;
  request.content = content_of_ids(std::vector<std::uint64_t>{5}, 512);
  request.content_tokens = 100;
  const Handed handed = run_pair(*prefill, *decode, request);
  EXPECT_EQ(handed.decode.status.code(), Code::corrupt);
  EXPECT_EQ(handed.decode.figures.pages_verified, 7U);
  EXPECT_EQ(handed.decode.figures.pages_wrong, 1U);
}

TEST(WorkerFailure, OtherWeightsAreRefused) {
  const kvl::test::ExpectLog quiet("handoff.");
  const Meeting meeting;
  const std::unique_ptr<WorkerServer> prefill = meeting.prefill(small());
  WorkerOptions other = small();
  other.seed = 1;
  const std::unique_ptr<WorkerServer> decode = meeting.decode(other);
  const Handed handed = run_pair(*prefill, *decode, prompt("x"));
  EXPECT_FALSE(handed.decode.status.ok());
  EXPECT_NE(handed.decode.status.code(), Code::timed_out);
  EXPECT_FALSE(handed.prefill.status.ok());
  expect_idle(*prefill);
  expect_idle(*decode);
}

TEST(WorkerFailure, NobodyTakesTheOtherSide) {
  WorkerOptions hasty = small();
  hasty.handoff_timeout_ms = 300;
  const Meeting meeting;
  const std::unique_ptr<WorkerServer> prefill = meeting.prefill(hasty);
  const std::unique_ptr<WorkerServer> decode = meeting.decode(hasty);
  Request request = prompt("x");
  request.session = session_at(*prefill);
  Outcome only_prefill;
  prefill->scheduler().submit(request, only_prefill.sink());
  EXPECT_EQ(only_prefill.wait().status.code(), Code::timed_out);
  request.session = session_at(*prefill);
  Outcome only_decode;
  decode->scheduler().submit(request, only_decode.sink());
  EXPECT_EQ(only_decode.wait().status.code(), Code::timed_out);
  expect_idle(*prefill);
  expect_idle(*decode);
  WorkerOptions slow = small();
  run_well(*prefill, *meeting.decode(slow), prompt("y"));
}

// As a router runs a pair: where decode fails, prefill's leg is aborted. A prefill worker that
// decode has not reached cannot know of the failure and would wait for its deadline.
Handed run_routed(WorkerServer& prefill, WorkerServer& decode, Request request) {
  request.session = session_at(prefill);
  Outcome at_prefill, at_decode;
  decode.scheduler().submit(request, at_decode.sink());
  const std::uint64_t id = prefill.scheduler().submit(request, at_prefill.sink());
  Handed handed;
  handed.decode = at_decode.wait();
  if (!handed.decode.status.ok()) prefill.scheduler().abort(id);
  handed.prefill = at_prefill.wait();
  return handed;
}

// Decode keeps in mind where prefill's engines are; a new life of them is elsewhere. The loss alone
// must make it look again: a request that is sent to the old place ends only by its deadline.
TEST(WorkerFailure, APrefillWorkerThatComesBackIsFoundAtOnce) {
  const kvl::test::ExpectLog quiet("handoff.");
  const Meeting meeting;
  WorkerOptions patient = small();
  patient.handoff_timeout_ms = 50'000;
  const std::unique_ptr<WorkerServer> decode = meeting.decode(patient);
  std::unique_ptr<WorkerServer> prefill = meeting.prefill(patient);
  patient.port = prefill->port();
  run_well(*prefill, *decode, prompt("before"));
  for (int life = 0; life < 3; ++life) {
    prefill.reset();
    prefill = meeting.prefill(patient);
    // One may come before the loss is noticed: it fails at once, as a router would want it.
    for (bool good = false; !good;) {
      const Handed handed = run_routed(*prefill, *decode, prompt("life " + std::to_string(life)));
      ASSERT_NE(handed.decode.status.code(), Code::timed_out) << handed.decode.reason;
      ASSERT_NE(handed.prefill.status.code(), Code::timed_out) << handed.prefill.reason;
      good = handed.decode.status.ok();
    }
  }
  expect_idle(*prefill);
  expect_idle(*decode);
}

TEST(WorkerFailure, TheClientLeavesInEveryState) {
  const Meeting meeting;
  const std::unique_ptr<WorkerServer> prefill = meeting.prefill(small());
  const std::unique_ptr<WorkerServer> decode = meeting.decode(small());
  // After 0, 1, 2 … milliseconds, so that each state is met by some round.
  for (int round = 0; round < 24; ++round) {
    Request request = prompt("words of round " + std::to_string(round), 40);
    request.sampling.ignore_eos = true;
    request.session = session_at(*prefill);
    Outcome at_prefill;
    Outcome at_decode;
    const std::uint64_t d = decode->scheduler().submit(request, at_decode.sink());
    const std::uint64_t p = prefill->scheduler().submit(request, at_prefill.sink());
    at_decode.ended_within(std::chrono::milliseconds(round * 2));
    decode->scheduler().abort(d);
    prefill->scheduler().abort(p);
    at_decode.wait();
    at_prefill.wait();
  }
  expect_idle(*prefill);
  expect_idle(*decode);
  run_well(*prefill, *decode, prompt("after all that"));
}

TEST(WorkerFailure, OnlyDecodeLeaves) {
  const Meeting meeting;
  const std::unique_ptr<WorkerServer> prefill = meeting.prefill(small());
  const std::unique_ptr<WorkerServer> decode = meeting.decode(small());
  for (int round = 0; round < 8; ++round) {
    Request request = prompt("round " + std::to_string(round));
    request.session = session_at(*prefill);
    Outcome at_prefill;
    Outcome at_decode;
    const std::uint64_t d = decode->scheduler().submit(request, at_decode.sink());
    prefill->scheduler().submit(request, at_prefill.sink());
    at_decode.ended_within(std::chrono::milliseconds(round * 3));
    decode->scheduler().abort(d);
    at_decode.wait();
    at_prefill.wait(15);  // told, not left to a deadline
  }
  expect_idle(*prefill);
  expect_idle(*decode);
}

TEST(WorkerFailure, ARoomIsUsedOnce) {
  const Meeting meeting;
  const std::unique_ptr<WorkerServer> prefill = meeting.prefill(small());
  Request request = prompt("x");
  request.session = session_at(*prefill);
  Outcome first;
  Outcome second;
  const std::uint64_t id = prefill->scheduler().submit(request, first.sink());
  prefill->scheduler().submit(request, second.sink());
  EXPECT_EQ(second.wait().status.code(), Code::invalid_argument);
  EXPECT_FALSE(first.ended_within(std::chrono::milliseconds(1)));
  prefill->scheduler().abort(id);
  EXPECT_EQ(first.wait().status.code(), Code::aborted);
}

TEST(WorkerFailure, AnUnknownPrefillAndOneThatIsGone) {
  const kvl::test::ExpectLog quiet("");
  const Meeting meeting;
  std::unique_ptr<WorkerServer> prefill = meeting.prefill(small());
  const std::unique_ptr<WorkerServer> decode = meeting.decode(small());
  run_well(*prefill, *decode, prompt("while it lives"));
  Request request = prompt("too late");
  request.session = session_at(*prefill);
  Outcome waiting;
  decode->scheduler().submit(request, waiting.sink());
  EXPECT_FALSE(waiting.ended_within(std::chrono::milliseconds(100)));
  prefill.reset();
  EXPECT_FALSE(waiting.wait(15).status.ok());  // by the lost peer, long before the deadline
  WorkerOptions options = small();
  options.handoff_timeout_ms = 500;
  const std::unique_ptr<WorkerServer> hasty = meeting.decode(options);
  Outcome unknown;
  hasty->scheduler().submit(request, unknown.sink());
  EXPECT_EQ(unknown.wait(30).status.code(), Code::not_found);
  expect_idle(*decode);
  const std::unique_ptr<WorkerServer> next = meeting.prefill(small());
  run_well(*next, *decode, prompt("another one"));
}

}  // namespace
}  // namespace kvl::worker::test
