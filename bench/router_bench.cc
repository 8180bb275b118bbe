// What the router costs: CPU of its process per request, and added latency, with stub workers and
// one closed-loop client. Baselines in the same run: the client straight to a stub, and nginx as a
// plain proxy of one upstream where it is installed. Rounds of all targets are interleaved.
//
//   router_bench [--seconds 2] [--rounds 5] [--connections 1,16] [--bodies 200,16384] [--json]
#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "bench/support/http_load.h"
#include "bench/support/output.h"
#include "bench/support/stats.h"
#include "kvl/router.h"

namespace kvl::bench {
namespace {

struct Options {
  double seconds = 2;
  int rounds = 5;
  std::vector<std::size_t> connections = {1, 16};
  std::vector<std::size_t> bodies = {200, 16384};
  bool json = false;
};

std::vector<std::size_t> numbers(const char* text) {
  std::vector<std::size_t> out;
  char* end = nullptr;
  for (const char* at = text; *at != '\0'; at = *end == ',' ? end + 1 : end) {
    out.push_back(std::strtoull(at, &end, 10));
    if (end == at) std::exit(2);
  }
  return out;
}

// A child process that ends with this one. `body` reports its port through the pipe and serves.
class Child {
 public:
  explicit Child(const std::function<void(int report_fd)>& body) {
    int pipe_fds[2];
    if (::pipe(pipe_fds) != 0) std::abort();
    pid_ = ::fork();
    if (pid_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      ::close(pipe_fds[0]);
      body(pipe_fds[1]);
      std::_Exit(0);
    }
    ::close(pipe_fds[1]);
    std::uint16_t port = 0;
    while (::read(pipe_fds[0], &port, sizeof(port)) == sizeof(port)) ports.push_back(port);
    ::close(pipe_fds[0]);
  }
  ~Child() {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  double cpu_seconds() const { return cpu_seconds_of(pid_); }
  static double cpu_seconds_of(pid_t pid) {
    clockid_t clock{};
    timespec time{};
    if (::clock_getcpuclockid(pid, &clock) != 0 || ::clock_gettime(clock, &time) != 0) return 0;
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
  }
  pid_t pid() const { return pid_; }

  std::vector<std::uint16_t> ports;

 private:
  pid_t pid_;
};

void report_port(int fd, std::uint16_t port) {
  if (::write(fd, &port, sizeof(port)) != sizeof(port)) std::_Exit(1);
}

void serve_stubs(int report_fd) {
  StubServer server(4);
  for (const std::uint16_t port : server.ports()) report_port(report_fd, port);
  ::close(report_fd);
  server.run();
}

void serve_router(int report_fd, const std::vector<std::uint16_t>& stubs, bool pd) {
  const auto url = [&](std::size_t i) { return "http://127.0.0.1:" + std::to_string(stubs[i]); };
  RouterOptions options;
  options.host = "127.0.0.1";
  options.port = 0;
  options.pd_disaggregation = pd;
  if (pd) {
    options.prefill = {{url(0), 8998}, {url(1), 8999}};
    options.decode = {url(2), url(3)};
  } else {
    options.workers = {url(0), url(1), url(2), url(3)};
  }
  const auto router = Router::open(options);
  if (!router.ok()) std::_Exit(1);
  report_port(report_fd, (*router)->port());
  ::close(report_fd);
  (*router)->run();
}

// A certificate for 127.0.0.1 that is its own authority, in a folder that is left to /tmp.
struct Certificate {
  std::string cert, key;
  Certificate() {
    char folder[] = "/tmp/router_bench.XXXXXX";
    if (::mkdtemp(folder) == nullptr) std::_Exit(1);
    cert = std::string(folder) + "/cert.pem";
    key = std::string(folder) + "/key.pem";
    const std::string command =
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
        " -subj /CN=bench -addext subjectAltName=IP:127.0.0.1 -keyout " +
        key + " -out " + cert + " 2>/dev/null";
    if (std::system(command.c_str()) != 0) std::_Exit(1);
  }
};

// Without a certificate: plain to a worker that speaks TLS. With one: TLS to clients, plain to
// stubs.
void serve_tls(int report_fd, const std::vector<std::string>& workers, const Certificate& files,
               bool server) {
  RouterOptions options;
  options.host = "127.0.0.1";
  options.port = 0;
  options.workers = workers;
  options.ca_cert_path = files.cert;
  if (server) {
    options.tls_cert_path = files.cert;
    options.tls_key_path = files.key;
  }
  const auto router = Router::open(options);
  if (!router.ok()) std::_Exit(1);
  report_port(report_fd, (*router)->port());
  ::close(report_fd);
  (*router)->run();
}

// nginx in the foreground with one worker process, whose id its pid file does not tell: so master
// and worker are one process.
void serve_nginx(int report_fd, std::uint16_t stub) {
  const std::uint16_t port = free_port();
  char folder[] = "/tmp/router_bench.XXXXXX";
  if (::mkdtemp(folder) == nullptr) std::_Exit(1);
  const std::string path = std::string(folder) + "/nginx.conf";
  std::ofstream config(path);
  config << "daemon off; master_process off; worker_processes 1; pid " << folder
         << "/pid; error_log /dev/null;\n"
            "events { worker_connections 1024; }\n"
            "http { access_log off; client_body_temp_path "
         << folder << "; proxy_temp_path " << folder
         << "; client_body_buffer_size 64k; keepalive_requests 100000000;\n"
            "upstream u { server 127.0.0.1:"
         << stub << "; keepalive 128; keepalive_requests 100000000; }\n"
         << "server { listen 127.0.0.1:" << port
         << "; location / { proxy_pass http://u; proxy_http_version 1.1;"
            " proxy_set_header Connection \"\"; } } }\n";
  config.close();
  report_port(report_fd, port);
  ::close(report_fd);
  const int null = ::open("/dev/null", O_WRONLY | O_CLOEXEC);
  ::dup2(null, 2);
  ::execlp("nginx", "nginx", "-c", path.c_str(), "-e", "/dev/null", static_cast<char*>(nullptr));
  std::_Exit(1);
}

bool has_nginx() { return std::system("command -v nginx >/dev/null 2>&1") == 0; }

struct Target {
  std::string name;
  std::uint16_t port;
  const Child* process;  // whose CPU is counted; null: none between client and stub
};

struct Samples {
  std::vector<double> rps, cpu_us, p50, p99;
};

std::string prompt_body(std::size_t bytes) {
  const std::string head = R"({"stream":false,"sampling_params":{"max_new_tokens":16},"text":")";
  const std::string tail = "\"}";
  std::string text;
  while (head.size() + text.size() + tail.size() < bytes) {
    text += static_cast<char>('a' + text.size() % 26);
  }
  return head + text + tail;
}

int run(const Options& options) {
  const Child stubs([](int fd) { serve_stubs(fd); });
  const Child pd([&](int fd) { serve_router(fd, stubs.ports, true); });
  const Child plain([&](int fd) { serve_router(fd, stubs.ports, false); });
  std::vector<Target> targets = {{"direct", stubs.ports[0], nullptr},
                                 {"router_pd", pd.ports.at(0), &pd},
                                 {"router", plain.ports.at(0), &plain}};
  // A router that speaks TLS to its worker, which is a router that speaks TLS to its client: one
  // load, and the CPU of each of the two.
  const Certificate certificate;
  std::vector<std::string> stub_urls;
  for (const std::uint16_t port : stubs.ports) {
    stub_urls.push_back("http://127.0.0.1:" + std::to_string(port));
  }
  const Child tls_server([&](int fd) { serve_tls(fd, stub_urls, certificate, true); });
  const Child tls_client([&](int fd) {
    serve_tls(fd, {"https://127.0.0.1:" + std::to_string(tls_server.ports.at(0))}, certificate,
              false);
  });
  targets.push_back({"router_tls_out", tls_client.ports.at(0), &tls_client});
  targets.push_back({"router_tls_in", tls_client.ports.at(0), &tls_server});
  std::unique_ptr<Child> nginx;
  if (has_nginx()) {
    nginx = std::make_unique<Child>([&](int fd) { serve_nginx(fd, stubs.ports[0]); });
    targets.push_back({"nginx", nginx->ports.at(0), nginx.get()});
  } else {
    std::fprintf(stderr, "router_bench: nginx is not installed: its baseline is skipped\n");
  }

  Report report(stdout, options.json ? Format::json : Format::text,
                {{"target", "target"},
                 {"body_bytes", "body B"},
                 {"connections", "conns"},
                 {"cpu_us_per_request", "CPU us/req"},
                 {"cpu_us_per_request_min", "min"},
                 {"requests_per_s", "req/s"},
                 {"of_direct", "of direct"},
                 {"p50_us", "p50 us"},
                 {"p99_us", "p99 us"},
                 {"failed", "failed"}});
  std::uint64_t failed_total = 0;
  for (const std::size_t body_bytes : options.bodies) {
    const std::string body = prompt_body(body_bytes);
    for (const std::size_t connections : options.connections) {
      std::map<std::string, Samples> all;
      std::map<std::string, std::uint64_t> failed;
      for (int round = -1; round < options.rounds; ++round) {  // -1 warms up
        for (const Target& target : targets) {
          const double before = target.process == nullptr ? 0 : target.process->cpu_seconds();
          const LoadResult result = run_load({.port = target.port,
                                              .path = "/generate",
                                              .body = body,
                                              .connections = connections,
                                              .seconds = round < 0 ? 0.2 : options.seconds});
          const double after = target.process == nullptr ? 0 : target.process->cpu_seconds();
          failed[target.name] += result.failed;
          if (round < 0 || result.requests == 0) continue;
          Samples& samples = all[target.name];
          const auto requests = static_cast<double>(result.requests);
          samples.rps.push_back(requests / result.seconds);
          samples.cpu_us.push_back((after - before) * 1e6 / requests);
          samples.p50.push_back(percentile(result.latency_us, 0.5));
          samples.p99.push_back(percentile(result.latency_us, 0.99));
        }
      }
      for (const Target& target : targets) {
        const Samples& samples = all[target.name];
        Row row;
        row.set("target", target.name);
        row.set("body_bytes", static_cast<std::int64_t>(body.size()));
        row.set("connections", static_cast<std::int64_t>(connections));
        if (target.process != nullptr) {
          row.set("cpu_us_per_request", median(samples.cpu_us));
          row.set("cpu_us_per_request_min", percentile(samples.cpu_us, 0));
        }
        row.set("requests_per_s", median(samples.rps));
        row.set("of_direct", paired_ratio(samples.rps, all["direct"].rps).value);
        row.set("p50_us", median(samples.p50));
        row.set("p99_us", median(samples.p99));
        row.set("failed", static_cast<std::int64_t>(failed[target.name]));
        report.add(row);
        failed_total += failed[target.name];
      }
    }
  }
  return failed_total == 0 ? 0 : 1;
}

}  // namespace
}  // namespace kvl::bench

int main(int argc, char** argv) {
  kvl::bench::Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    const char* const value = i + 1 < argc ? argv[i + 1] : "";
    if (name == "--json") {
      options.json = true;
      continue;
    }
    ++i;
    if (name == "--seconds") {
      options.seconds = std::atof(value);
    } else if (name == "--rounds") {
      options.rounds = std::atoi(value);
    } else if (name == "--connections") {
      options.connections = kvl::bench::numbers(value);
    } else if (name == "--bodies") {
      options.bodies = kvl::bench::numbers(value);
    } else {
      std::fprintf(stderr,
                   "usage: router_bench [--seconds S] [--rounds N] [--connections 1,16]\n"
                   "                    [--bodies 200,16384] [--json]\n");
      return 2;
    }
  }
  ::signal(SIGPIPE, SIG_IGN);
  return kvl::bench::run(options);
}
