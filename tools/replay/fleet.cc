// Starting the processes of a replay and asking them for their metrics.
#include "tools/replay/fleet.h"

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <charconv>
#include <chrono>
#include <set>
#include <sstream>

namespace kvl::replay {
namespace {

constexpr std::int64_t kStartMs = 60'000;

// "listening on http://127.0.0.1:4711" to 4711.
std::uint16_t port_of(const std::string& line) {
  const std::size_t colon = line.rfind(':');
  std::uint16_t port = 0;
  if (line.rfind("listening on ", 0) != 0 || colon == std::string::npos) return 0;
  std::from_chars(line.data() + colon + 1, line.data() + line.size(), port);
  return port;
}

// The text of /metrics; "" where nobody answers in time.
std::string fetch_metrics(std::uint16_t port) {
  namespace asio = boost::asio;
  namespace http = boost::beast::http;
  try {
    asio::io_context io;
    boost::beast::tcp_stream stream(io);
    std::string text;
    stream.expires_after(std::chrono::seconds(5));
    http::request<http::empty_body> request(http::verb::get, "/metrics", 11);
    request.set(http::field::host, "localhost");
    request.set(http::field::connection, "close");
    boost::beast::flat_buffer buffer;
    http::response<http::string_body> response;
    stream.async_connect(
        asio::ip::tcp::endpoint(asio::ip::address_v4::loopback(), port),
        [&](boost::system::error_code failed) {
          if (failed) return;
          http::async_write(stream, request, [&](boost::system::error_code bad, std::size_t) {
            if (bad) return;
            http::async_read(stream, buffer, response, [&](boost::system::error_code, std::size_t) {
              text = response.body();
            });
          });
        });
    io.run();
    return text;
  } catch (const std::exception&) {
    return "";
  }
}

struct Sample {
  std::string name, labels;
  double value = 0;
};
std::vector<Sample> samples(const std::string& text) {
  std::vector<Sample> all;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    const std::size_t space = line.rfind(' ');
    if (line.empty() || line[0] == '#' || space == std::string::npos) continue;
    Sample sample;
    const std::size_t brace = line.find('{');
    sample.name = line.substr(0, std::min(brace, space));
    if (brace != std::string::npos) sample.labels = line.substr(brace, space - brace);
    std::from_chars(line.data() + space + 1, line.data() + line.size(), sample.value);
    all.push_back(std::move(sample));
  }
  return all;
}

}  // namespace

Status Fleet::add(const std::string& name, bool prefill, const std::vector<std::string>& arguments,
                  std::string* error) {
  auto process = bench::ChildProcess::start(arguments);
  if (!process) {
    *error = name + ": " + process.status().to_string();
    return process.status();
  }
  Member member{name, prefill, 0, std::move(*process)};
  while (member.port == 0) {
    const auto line = member.process->read_line(kStartMs);
    if (!line) {
      *error = member.process->running() ? name + " did not start: " + line.status().to_string()
                                         : name + " did not start (" + member.process->how_ended() +
                                               "); what it said stands above";
      return line.status();
    }
    member.port = port_of(*line);
  }
  members_.push_back(std::move(member));
  return {};
}

Result<std::unique_ptr<Fleet>> Fleet::start(const FleetOptions& options, std::string* error) {
  auto fleet = std::make_unique<Fleet>();
  std::vector<std::string> common{"--host", "127.0.0.1", "--port", "0"};
  if (!options.config_file.empty()) {
    common.insert(common.end(), {"--config", options.config_file});
  }
  const auto with_common = [&common](std::vector<std::string> arguments) {
    arguments.insert(arguments.end(), common.begin(), common.end());
    return arguments;
  };
  KVL_TRY(fleet->add("rendezvous", false, with_common({"bootstrap"}), error));
  const std::string rendezvous = "http://127.0.0.1:" + std::to_string(fleet->members_[0].port);
  std::vector<std::string> router =
      with_common({"router", "--pd-disaggregation", "--policy", options.policy});
  for (std::uint32_t i = 0; i < options.prefill + options.decode; ++i) {
    const bool prefill = i < options.prefill;
    std::vector<std::string> worker = with_common({
        "worker",
        "--role",
        prefill ? "prefill" : "decode",
        "--kv-only",
        "--model",
        options.model,
        "--tp",
        std::to_string(prefill ? options.prefill_tp : options.decode_tp),
        "--pp",
        std::to_string(prefill ? options.prefill_pp : options.decode_pp),
        "--page-tokens",
        std::to_string(options.page_tokens),
        "--pool-bytes",
        std::to_string(options.pool_bytes),
        "--mode",
        options.mode,
        "--bootstrap",
        rendezvous,
    });
    if (!options.transport.empty()) worker.insert(worker.end(), {"--transport", options.transport});
    if (options.damage_received && !prefill) worker.emplace_back("--damage-received");
    for (const auto& [name, text] : options.settings)
      worker.insert(worker.end(), {"--" + name, text});
    const std::string name =
        (prefill ? "prefill " : "decode ") + std::to_string(prefill ? i : i - options.prefill);
    KVL_TRY(fleet->add(name, prefill, worker, error));
    const std::string port = std::to_string(fleet->members_.back().port);
    router.push_back(prefill ? "--prefill" : "--decode");
    router.push_back("http://127.0.0.1:" + port);
    // A worker's instance is named by its HTTP port.
    if (prefill) router.push_back(port);
  }
  KVL_TRY(fleet->add("router", false, router, error));
  fleet->router_port_ = fleet->members_.back().port;
  return fleet;
}

std::string Fleet::lost() {
  for (Member& member : members_) {
    if (!member.process->running()) return member.name + ": " + member.process->how_ended();
  }
  return "";
}

double Fleet::metric(bool prefill, const std::string& name) {
  double sum = 0;
  for (const Member& member : members_) {
    if (member.name == "router" || member.name == "rendezvous" || member.prefill != prefill)
      continue;
    for (const Sample& sample : samples(fetch_metrics(member.port))) {
      if (sample.name == name) sum += sample.value;
    }
  }
  return sum;
}

std::string Fleet::transports() {
  std::set<std::string> names;
  for (const Member& member : members_) {
    if (member.name == "router" || member.name == "rendezvous") continue;
    for (const Sample& sample : samples(fetch_metrics(member.port))) {
      if (sample.name != "kvlane_rail_bytes_total" || sample.value == 0) continue;
      const std::size_t begin = sample.labels.find("transport=\"");
      if (begin == std::string::npos) continue;
      const std::size_t from = begin + 11;
      names.insert(sample.labels.substr(from, sample.labels.find('"', from) - from));
    }
  }
  std::string all;
  for (const std::string& name : names) all += (all.empty() ? "" : "+") + name;
  return all;
}

}  // namespace kvl::replay
