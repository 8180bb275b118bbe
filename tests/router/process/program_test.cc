// The programs `kvlane router`, `kvlane bootstrap` and `kvlane config` as processes: what they
// print, how they end.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <string>
#include <vector>

#include "tests/router/support/stub_worker.h"
#include "tests/router/support/test_client.h"

namespace kvl::test {
namespace {

class Program {
 public:
  explicit Program(std::vector<std::string> arguments) {
    int out[2], err[2];
    if (::pipe(out) != 0 || ::pipe(err) != 0) std::abort();
    pid_ = ::fork();
    if (pid_ == 0) {
      ::dup2(out[1], 1);
      ::dup2(err[1], 2);
      arguments.insert(arguments.begin(), KVLANE_PROGRAM);
      std::vector<char*> raw;
      for (std::string& argument : arguments) raw.push_back(argument.data());
      raw.push_back(nullptr);
      ::execv(raw[0], raw.data());
      std::_Exit(127);
    }
    ::close(out[1]);
    ::close(err[1]);
    out_ = out[0];
    err_ = err[0];
  }
  ~Program() {
    if (pid_ > 0) {
      ::kill(pid_, SIGKILL);
      ::waitpid(pid_, nullptr, 0);
    }
    ::close(out_);
    ::close(err_);
  }
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  // The port in "listening on http://…:PORT"; 0 when that line does not come.
  std::uint16_t port() {
    std::string line;
    while (line.find('\n') == std::string::npos && read_some(out_, line)) {
    }
    const std::size_t colon = line.rfind(':', line.find('\n'));
    if (!line.starts_with("listening on http://") || colon == std::string::npos) return 0;
    return static_cast<std::uint16_t>(std::atoi(line.c_str() + colon + 1));
  }
  void signal(int number) const { ::kill(pid_, number); }
  // Both streams to their ends, then the exit status; -1 for a death by signal.
  int wait() {
    while (read_some(out_, output)) {
    }
    while (read_some(err_, errors)) {
    }
    int status = 0;
    ::waitpid(std::exchange(pid_, -1), &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }

  std::string output, errors;

 private:
  static bool read_some(int fd, std::string& into) {
    pollfd poll{.fd = fd, .events = POLLIN, .revents = 0};
    char bytes[4096];
    if (::poll(&poll, 1, static_cast<int>(kPatience.count() * 1000)) <= 0) return false;
    const ssize_t got = ::read(fd, bytes, sizeof(bytes));
    if (got > 0) into.append(bytes, static_cast<std::size_t>(got));
    return got > 0;
  }

  pid_t pid_;
  int out_, err_;
};

TEST(Program, RouterServesAndStopsWhenAsked) {
  StubWorker prefill, decode(StubWorker::answer_name("d"));
  Program router({"router", "--pd-disaggregation", "--prefill", prefill.url(), "8998", "--decode",
                  decode.url(), "--host", "127.0.0.1", "--port", "0"});
  const std::uint16_t port = router.port();
  ASSERT_NE(port, 0);
  TestClient client(port);
  EXPECT_EQ(client.post("/generate", "{}").body, "{\"name\":\"d\"}");
  router.signal(SIGTERM);
  EXPECT_EQ(router.wait(), 0) << router.errors;
}

TEST(Program, RouterTakesSeveralWorkersWithAndWithoutPorts) {
  Program router({"router",
                  "--pd-disaggregation",
                  "--prefill",
                  "http://127.0.0.1:1",
                  "--prefill",
                  "http://127.0.0.1:2",
                  "none",
                  "--prefill",
                  "http://127.0.0.1:3",
                  "77",
                  "--decode",
                  "http://127.0.0.1:4",
                  "--decode",
                  "http://127.0.0.1:5",
                  "--host",
                  "127.0.0.1",
                  "--port",
                  "0",
                  "--disable-health-check",
                  "--log",
                  "off"});
  TestClient client(router.port());
  const TestAnswer workers = client.call("GET", "/workers");
  EXPECT_TRUE(workers.has("\"total\":5")) << workers.body;
  EXPECT_TRUE(
      workers.has("http://127.0.0.1:1\",\"worker_type\":\"prefill\",\"bootstrap_port\":null"))
      << workers.body;
  EXPECT_TRUE(workers.has("http://127.0.0.1:3\",\"worker_type\":\"prefill\",\"bootstrap_port\":77"))
      << workers.body;
  client.close();
  router.signal(SIGINT);
  EXPECT_EQ(router.wait(), 0);
}

TEST(Program, APortInUseIsOneClearLine) {
  const StubWorker taken;
  for (const char* name : {"router", "bootstrap"}) {
    std::vector<std::string> arguments = {name, "--host", "127.0.0.1", "--port",
                                          std::to_string(taken.port())};
    if (name == std::string("router")) arguments.insert(arguments.end(), {"--worker-urls", "h:1"});
    Program program(arguments);
    EXPECT_EQ(program.wait(), 1);
    EXPECT_EQ(program.errors, "kvlane: cannot listen on 127.0.0.1:" + std::to_string(taken.port()) +
                                  ": Address already in use\n");
  }
}

TEST(Program, WrongOptionsAreNamed) {
  Program policy({"router", "--worker-urls", "h:1", "--policy", "psychic", "--host", "127.0.0.1",
                  "--port", "0"});
  EXPECT_EQ(policy.wait(), 1);
  EXPECT_NE(policy.errors.find("psychic"), std::string::npos) << policy.errors;
  Program port({"router", "--pd-disaggregation", "--prefill", "h:1", "x", "--port", "0"});
  EXPECT_EQ(port.wait(), 1);
  EXPECT_NE(port.errors.find("'x'"), std::string::npos) << port.errors;
  Program unknown({"router", "--no-such-flag"});
  EXPECT_EQ(unknown.wait(), 2);
  Program subcommand({"rooter"});
  EXPECT_EQ(subcommand.wait(), 2);
  EXPECT_NE(subcommand.errors.find("'rooter'"), std::string::npos) << subcommand.errors;
}

// Their command lines are taken; what one of them asks for in vain is said.
TEST(Program, FlagsOfOtherRoutersAreAnswered) {
  Program router({"router",
                  "--worker-urls",
                  "http://127.0.0.1:1",
                  "--host",
                  "127.0.0.1",
                  "--port",
                  "0",
                  "--policy",
                  "cache_aware",
                  "--cache-threshold",
                  "0.5",
                  "--balance-abs-threshold",
                  "32",
                  "--max-tree-size",
                  "1000",
                  "--disable-retries",
                  "--health-check-interval-secs",
                  "60",
                  "--cb-failure-threshold",
                  "5"});
  TestClient client(router.port());
  EXPECT_EQ(client.call("GET", "/health").status, 200);
  client.close();
  router.signal(SIGTERM);
  EXPECT_EQ(router.wait(), 0);
  for (const char* flag : {"--cache-threshold", "--balance-abs-threshold", "--max-tree-size",
                           "--cb-failure-threshold"}) {
    EXPECT_NE(router.errors.find(std::string(flag) + " has no effect: "), std::string::npos)
        << router.errors;
  }
  EXPECT_EQ(router.errors.find("--disable-retries"), std::string::npos) << "it has one";
  Program key({"router", "--worker-urls", "http://127.0.0.1:1", "--api-key", "abc"});
  EXPECT_EQ(key.wait(), 1);
  EXPECT_NE(key.errors.find("--api-key-file"), std::string::npos) << key.errors;
  Program discovery({"router", "--service-discovery", "--selector", "app=x"});
  EXPECT_EQ(discovery.wait(), 1);
  EXPECT_NE(discovery.errors.find("POST /workers"), std::string::npos) << discovery.errors;
}

TEST(Program, BootstrapServesAndStopsWhenAsked) {
  Program bootstrap({"bootstrap", "--host", "127.0.0.1", "--port", "0"});
  TestClient client(bootstrap.port());
  EXPECT_EQ(client.call("GET", "/health").body, "OK");
  client.close();
  bootstrap.signal(SIGTERM);
  EXPECT_EQ(bootstrap.wait(), 0);
}

TEST(Program, ListenersBeyondLoopbackNeedASecretThatIsNeverAFlag) {
  for (const char* name : {"router", "bootstrap"}) {
    Program open({name, "--host", "0.0.0.0", "--port", "0"});
    EXPECT_EQ(open.wait(), 1);
    EXPECT_NE(open.errors.find("secret_file"), std::string::npos) << open.errors;
    Program flag({name, "--secret", "0123456789012345678901234567890123456789"});
    EXPECT_EQ(flag.wait(), 2) << "everybody can read a command line";
    Program insecure({name, "--host", "0.0.0.0", "--port", "0", "--insecure"});
    EXPECT_NE(insecure.port(), 0);
    insecure.signal(SIGTERM);
    EXPECT_EQ(insecure.wait(), 0) << insecure.errors;
  }
  ::setenv("KVLANE_SECRET", "0123456789012345678901234567890123456789", 1);
  Program bootstrap({"bootstrap", "--host", "0.0.0.0", "--port", "0"});
  ::unsetenv("KVLANE_SECRET");
  TestClient client(bootstrap.port());
  EXPECT_EQ(client.call("GET", "/kvlane/v1/instances").status, 401);
  client.close();
  bootstrap.signal(SIGHUP);
  bootstrap.signal(SIGTERM);
  EXPECT_EQ(bootstrap.wait(), 0);
  EXPECT_NE(bootstrap.errors.find("read anew"), std::string::npos) << bootstrap.errors;
}

TEST(Program, HelpHasExamples) {
  for (const char* name : {"router", "bootstrap", "config"}) {
    Program help({name, "--help"});
    EXPECT_EQ(help.wait(), 0);
    EXPECT_NE(help.output.find("Examples:"), std::string::npos) << name;
  }
}

TEST(Program, ConfigShowsWhereAValueComesFrom) {
  ::setenv("KVLANE_ROUTER_PORT", "31234", 1);
  Program config({"config", "--json", "--router.threads", "3"});
  ::unsetenv("KVLANE_ROUTER_PORT");
  EXPECT_EQ(config.wait(), 0) << config.errors;
  EXPECT_NE(config.output.find(
                R"("name":"router.port","value":"31234","origin":"env KVLANE_ROUTER_PORT")"),
            std::string::npos);
  EXPECT_NE(config.output.find(R"("name":"router.threads","value":"3","origin":"flag")"),
            std::string::npos);
  Program wrong({"config", "--router.threads", "0"});
  EXPECT_EQ(wrong.wait(), 1);
  EXPECT_NE(wrong.errors.find("router.threads"), std::string::npos);
}

}  // namespace
}  // namespace kvl::test
