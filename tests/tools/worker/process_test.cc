// Workers, and their ranks, as processes: the same bits across process boundaries, and kill -9 in
// the middle.
#include <signal.h>
#include <sys/wait.h>

#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>
#include <boost/json/value.hpp>
#include <cstdio>
#include <fstream>
#include <optional>

#include "tests/tools/worker/http_client.h"
#include "worker/worker_server.h"

namespace kvl::worker::test {
namespace {

namespace json = boost::json;

// run_worker() in a child. Make all of a test's before anything in it starts a thread.
class WorkerProcess {
 public:
  explicit WorkerProcess(const WorkerOptions& options) {
    int ends[2];
    if (::pipe(ends) != 0) return;
    pid_ = ::fork();
    if (pid_ == 0) {
      ::dup2(ends[1], STDOUT_FILENO);
      ::close(ends[0]);
      ::close(ends[1]);
      ::_exit(run_worker(options));
    }
    ::close(ends[1]);
    std::FILE* const out = ::fdopen(ends[0], "r");
    char line[256];
    unsigned port = 0;
    if (std::fgets(line, sizeof(line), out) != nullptr &&
        std::sscanf(line, "listening on http://127.0.0.1:%u", &port) == 1) {
      port_ = static_cast<std::uint16_t>(port);
    }
    if (options.role == EngineRole::prefill && std::fgets(line, sizeof(line), out) != nullptr) {
      std::sscanf(line, "for a router: --prefill %*s %d", &bootstrap_port_);
    }
    std::fclose(out);
    EXPECT_NE(port_, 0);
  }
  ~WorkerProcess() { stop(SIGTERM); }
  WorkerProcess(const WorkerProcess&) = delete;
  WorkerProcess& operator=(const WorkerProcess&) = delete;

  void stop(int signal) {
    if (pid_ <= 0) return;
    ::kill(pid_, signal);
    ::waitpid(std::exchange(pid_, -1), nullptr, 0);
  }
  std::uint16_t port() const { return port_; }
  int bootstrap_port() const { return bootstrap_port_; }
  // Its rank processes.
  std::vector<pid_t> children() const {
    const std::string id = std::to_string(pid_);
    std::ifstream list("/proc/" + id + "/task/" + id + "/children");
    std::vector<pid_t> pids;
    for (pid_t pid = 0; list >> pid;) pids.push_back(pid);
    return pids;
  }

 private:
  pid_t pid_ = -1;
  std::uint16_t port_ = 0;
  int bootstrap_port_ = -1;
};

WorkerOptions options_of(EngineRole role, std::uint32_t tp, std::uint32_t pp) {
  WorkerOptions options;
  options.role = role;
  options.tp = tp;
  options.pp = pp;
  options.page_tokens = 16;
  options.pages = 64;
  options.rank_processes = tp * pp > 1;
  if (role == EngineRole::prefill) options.bootstrap_port = 0;
  return options;
}

json::object body_of(std::string_view text, const WorkerProcess* prefill, std::uint64_t room) {
  json::object body{{"text", text},
                    {"return_logits_digest", true},
                    {"return_logprob", true},
                    {"sampling_params", json::object{{"max_new_tokens", 5}, {"temperature", 0}}}};
  if (prefill != nullptr) {
    body["bootstrap_host"] = "127.0.0.1";
    body["bootstrap_port"] = prefill->bootstrap_port();
    body["bootstrap_room"] = room;
  }
  return body;
}

// Tokens, log-probabilities and digests of all logits, as the worker printed them.
std::string essence(const HttpConnection::Answer& answer) {
  EXPECT_EQ(answer.status, 200) << answer.body;
  if (answer.status != 200) return "";
  const json::value value = json::parse(answer.body);
  return json::serialize(value.at("output_ids")) +
         json::serialize(value.at("meta_info").at("output_token_logprobs")) +
         json::serialize(value.at("meta_info").at("logits_digests"));
}

HttpConnection::Answer run_pair(const WorkerProcess& prefill, const WorkerProcess& decode,
                                const json::object& body) {
  HttpConnection to_prefill(prefill.port());
  HttpConnection to_decode(decode.port());
  to_prefill.send_request("POST", "/generate", json::serialize(body));
  to_decode.send_request("POST", "/generate", json::serialize(body));
  HttpConnection::Answer answer = to_decode.read_answer();
  to_prefill.read_answer();
  return answer;
}

const char* const kText = "Each rank is a process; what they share is a name and a few pages.";

struct Shapes {
  std::uint32_t prefill_tp, prefill_pp, decode_tp, decode_pp;
};

class RankProcesses : public ::testing::TestWithParam<Shapes> {};

TEST_P(RankProcesses, GiveTheBitsOfOneProcess) {
  const Shapes& s = GetParam();
  const WorkerProcess alone(options_of(EngineRole::both, 1, 1));
  const WorkerProcess prefill(options_of(EngineRole::prefill, s.prefill_tp, s.prefill_pp));
  const WorkerProcess decode(options_of(EngineRole::decode, s.decode_tp, s.decode_pp));
  const std::string expected =
      essence(call(alone.port(), "POST", "/generate", json::serialize(body_of(kText, nullptr, 0))));
  EXPECT_EQ(essence(run_pair(prefill, decode, body_of(kText, &prefill, 5))), expected);
  // Again, with the prefix on both sides.
  EXPECT_EQ(essence(run_pair(prefill, decode, body_of(kText, &prefill, 6))), expected);
}

INSTANTIATE_TEST_SUITE_P(Shapes, RankProcesses,
                         ::testing::Values(Shapes{4, 1, 2, 1}, Shapes{1, 2, 1, 1},
                                           Shapes{2, 1, 1, 2}));

TEST(WorkerProcesses, KillMinusNineOfPrefillFailsOnlyWhatItServed) {
  std::optional<WorkerProcess> prefill;
  prefill.emplace(options_of(EngineRole::prefill, 1, 1));
  const WorkerProcess next(options_of(EngineRole::prefill, 1, 1));
  const WorkerProcess decode(options_of(EngineRole::decode, 2, 1));
  EXPECT_EQ(run_pair(*prefill, decode, body_of(kText, &*prefill, 1)).status, 200);
  // Only decode has this one: it waits for prefill, which dies.
  HttpConnection waiting(decode.port());
  waiting.send_request("POST", "/generate", json::serialize(body_of("x", &*prefill, 2)));
  EXPECT_EQ(call(decode.port(), "GET", "/health").status, 200);
  prefill->stop(SIGKILL);
  const HttpConnection::Answer answer = waiting.read_answer();
  EXPECT_EQ(answer.status, 503) << answer.body;
  EXPECT_EQ(run_pair(next, decode, body_of(kText, &next, 3)).status, 200);
}

TEST(WorkerProcesses, KillMinusNineOfARankIsAnError) {
  const WorkerProcess worker(options_of(EngineRole::both, 2, 1));
  const std::string body = json::serialize(body_of(kText, nullptr, 0));
  EXPECT_EQ(call(worker.port(), "POST", "/generate", body).status, 200);
  const std::vector<pid_t> ranks = worker.children();
  ASSERT_EQ(ranks.size(), 2U);
  ::kill(ranks[1], SIGKILL);
  while (call(worker.port(), "GET", "/health").status == 200) {
  }
  const HttpConnection::Answer answer = call(worker.port(), "POST", "/generate", body);
  EXPECT_EQ(answer.status, 503);
  EXPECT_NE(answer.body.find("a rank of this worker is gone"), std::string::npos) << answer.body;
}

}  // namespace
}  // namespace kvl::worker::test
