// The load client: one io_context, one coroutine per request.
#include "tools/replay/client.h"

#include <algorithm>
#include <boost/asio.hpp>
#include <boost/beast.hpp>
#include <boost/json.hpp>
#include <chrono>

namespace kvl::replay {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
namespace json = boost::json;
using asio::ip::tcp;
using SteadyTime = std::chrono::steady_clock;

std::string request_body(const TraceRow& row, std::uint32_t block_tokens, std::size_t number) {
  json::array ids(row.block_ids.begin(), row.block_ids.end());
  const json::object body{
      {"rid", "replay-" + std::to_string(number)},
      {"stream", true},
      {"kv_only", json::object{{"tokens", row.input_tokens},
                               {"block_tokens", block_tokens},
                               {"hash_ids", std::move(ids)}}},
      {"sampling_params",
       json::object{{"max_new_tokens", std::max<std::uint64_t>(row.output_tokens, 1)},
                    {"ignore_eos", true}}}};
  return json::serialize(body);
}

double number(const json::object& object, std::string_view key) {
  const json::value* const value = object.if_contains(key);
  return value != nullptr && value->is_number() ? value->to_number<double>() : 0;
}

// The last event before [DONE] carries the figures; an "error" event is a failure.
void read_answer(const std::string& body, Outcome& outcome) {
  const std::size_t done = body.rfind("data: [DONE]");
  const std::size_t last =
      body.rfind("data: {", done == std::string::npos ? std::string::npos : done);
  if (last == std::string::npos) {
    outcome.error = "the stream has no event";
    return;
  }
  const std::size_t begin = last + 6;
  boost::system::error_code failed;
  const json::value event =
      json::parse(std::string_view(body).substr(begin, body.find('\n', begin) - begin), failed);
  if (failed || !event.is_object()) {
    outcome.error = "the last event is not JSON";
    return;
  }
  const json::object& object = event.get_object();
  if (const json::value* const error = object.if_contains("error")) {
    outcome.error = json::serialize(*error);
    return;
  }
  const json::value* const meta = object.if_contains("meta_info");
  if (done == std::string::npos || meta == nullptr || !meta->is_object()) {
    outcome.error = "the stream ended early";
    return;
  }
  const json::object& info = meta->get_object();
  outcome.output_tokens = static_cast<std::uint64_t>(number(info, "completion_tokens"));
  if (const json::value* const value = info.if_contains("kvlane");
      value != nullptr && value->is_object()) {
    const json::object& figures = value->get_object();
    outcome.bytes = static_cast<std::uint64_t>(number(figures, "bytes_moved"));
    outcome.pages = static_cast<std::uint64_t>(number(figures, "pages_moved"));
    outcome.pages_verified = static_cast<std::uint64_t>(number(figures, "pages_verified"));
    outcome.pages_wrong = static_cast<std::uint64_t>(number(figures, "pages_wrong"));
    outcome.transfer_ms = number(figures, "exposed_ms");
    outcome.handoff_ms = number(figures, "handoff_ms");
    outcome.waited_ms = number(figures, "waited_ms");
  }
  outcome.ok = outcome.pages_wrong == 0;
  if (!outcome.ok) outcome.error = std::to_string(outcome.pages_wrong) + " wrong pages";
}

class Player {
 public:
  Player(const Trace& trace, const ClientOptions& options)
      : trace_(trace), options_(options), gate_(io_, SteadyTime::time_point::max()) {
    outcomes_.resize(trace.rows.size());
    progress_.total = trace.rows.size();
  }

  std::vector<Outcome> run(const std::function<void(const Progress&)>& progress,
                           const std::function<bool()>& go_on) {
    begin_ = SteadyTime::now();
    asio::co_spawn(io_, arrivals(), asio::detached);
    asio::co_spawn(io_, report(progress, go_on), asio::detached);
    io_.run();
    progress_.seconds = now_s();
    progress(progress_);
    return std::move(outcomes_);
  }

 private:
  double now_s() const { return std::chrono::duration<double>(SteadyTime::now() - begin_).count(); }

  asio::awaitable<void> arrivals() {
    asio::steady_timer timer(io_);
    for (std::size_t i = 0; i < trace_.rows.size(); ++i) {
      const double at_s = trace_.rows[i].at_s / options_.time_scale;
      timer.expires_at(begin_ + std::chrono::duration_cast<SteadyTime::duration>(
                                    std::chrono::duration<double>(at_s)));
      co_await timer.async_wait(asio::use_awaitable);
      // Time to first token counts from here, also while the request waits its turn.
      outcomes_[i].sent_s = now_s();
      while (inflight_ >= options_.inflight_max) {
        boost::system::error_code woken;
        co_await gate_.async_wait(asio::redirect_error(asio::use_awaitable, woken));
        gate_.expires_at(SteadyTime::time_point::max());
      }
      ++inflight_;
      ++progress_.sent;
      asio::co_spawn(io_, request(i), asio::detached);
    }
  }

  asio::awaitable<void> request(std::size_t index) {
    Outcome& outcome = outcomes_[index];
    const TraceRow& row = trace_.rows[index];
    outcome.input_tokens = row.input_tokens;
    try {
      co_await exchange(request_body(row, trace_.block_tokens, index), outcome);
    } catch (const std::exception& problem) {
      outcome.error = problem.what();
    }
    outcome.ended = true;
    outcome.end_s = now_s();
    ++progress_.ended;
    progress_.ok += outcome.ok;
    progress_.bytes += outcome.bytes;
    progress_.pages += outcome.pages_verified;
    progress_.pages_wrong += outcome.pages_wrong;
    --inflight_;
    gate_.cancel();
    if (progress_.ended == progress_.total) io_.stop();
  }

  asio::awaitable<void> exchange(std::string body, Outcome& outcome) {
    beast::tcp_stream stream(io_);
    stream.expires_after(std::chrono::duration_cast<SteadyTime::duration>(
        std::chrono::duration<double>(options_.request_timeout_s)));
    co_await stream.async_connect(
        tcp::endpoint(asio::ip::address_v4::loopback(), options_.router_port), asio::use_awaitable);
    http::request<http::string_body> request(http::verb::post, "/generate", 11);
    request.set(http::field::host, "localhost");
    request.set(http::field::content_type, "application/json");
    request.body() = std::move(body);
    request.prepare_payload();
    co_await http::async_write(stream, request, asio::use_awaitable);
    beast::flat_buffer buffer;
    http::response_parser<http::string_body> parser;
    parser.body_limit(boost::none);
    parser.eager(true);
    while (!parser.is_done()) {
      co_await http::async_read_some(stream, buffer, parser, asio::use_awaitable);
      if (outcome.first_s < 0 && parser.is_header_done() && !parser.get().body().empty()) {
        outcome.first_s = now_s();
      }
    }
    if (parser.get().result() != http::status::ok) {
      outcome.error = "HTTP " + std::to_string(parser.get().result_int()) + ": " +
                      parser.get().body().substr(0, 200);
      co_return;
    }
    read_answer(parser.get().body(), outcome);
  }

  asio::awaitable<void> report(std::function<void(const Progress&)> progress,
                               std::function<bool()> go_on) {
    asio::steady_timer timer(io_);
    while (true) {
      timer.expires_after(std::chrono::milliseconds(500));
      co_await timer.async_wait(asio::use_awaitable);
      progress_.seconds = now_s();
      progress(progress_);
      if (!go_on()) io_.stop();
    }
  }

  const Trace& trace_;
  const ClientOptions options_;
  asio::io_context io_{1};
  asio::steady_timer gate_;
  SteadyTime::time_point begin_;
  std::vector<Outcome> outcomes_;
  std::uint32_t inflight_ = 0;
  Progress progress_;
};

}  // namespace

std::vector<Outcome> play(const Trace& trace, const ClientOptions& options,
                          const std::function<void(const Progress&)>& progress,
                          const std::function<bool()>& go_on) {
  return Player(trace, options).run(progress, go_on);
}

}  // namespace kvl::replay
