// The worker's HTTP endpoints.
#include "worker/front.h"

#include <algorithm>
#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>
#include <mutex>

#include "worker/json_read.h"
#include "worker/tokenizer.h"

namespace kvl::worker {
namespace {

const char* const kJson = "application/json";

void refuse(HttpReply& reply, const ApiError& error) {
  reply.send(error.http_status, kJson, error_body(error),
             error.of_peer ? "X-Kvlane-At-Fault: peer\r\n" : "");
}

}  // namespace

// A call under way. Updates come from the scheduler's thread, the client's leaving from the
// server's.
struct Front::Running {
  Running(const Call& call, std::string model, std::shared_ptr<HttpReply> to)
      : answer(call, std::move(model)), reply(std::move(to)), stream(call.stream) {}

  void take(std::size_t index, const Update& update) {
    answer.take(index, update);
    if (stream) return take_stream(index, update);
    if (!answer.done()) return;
    if (answer.error()) return refuse(*reply, *answer.error());
    reply->send(200, kJson, health ? "" : answer.body());
  }

  // The head is sent with the first event, so that what fails before it has its status.
  void take_stream(std::size_t index, const Update& update) {
    if (!begun && answer.done() && answer.error()) return refuse(*reply, *answer.error());
    if (!begun) reply->begin(200, "text/event-stream");
    begun = true;
    reply->write(answer.events(index, update));
    if (answer.done()) reply->end();
  }

  Answer answer;  // the scheduler's thread
  std::shared_ptr<HttpReply> reply;
  bool stream = false;
  bool begun = false;
  bool health = false;
};

void Front::handle(const HttpRequest& request, const std::shared_ptr<HttpReply>& reply) {
  if (look_up(request, reply)) return;
  const bool posted = request.method == "POST";
  const struct {
    const char* path;
    ApiForm form;
  } forms[] = {{"/generate", ApiForm::generate},
               {"/v1/completions", ApiForm::completion},
               {"/v1/chat/completions", ApiForm::chat}};
  for (const auto& known : forms) {
    if (request.path != known.path) continue;
    if (posted) return generate(known.form, request, reply);
    return refuse(*reply, {405, "invalid_argument", request.path + " needs POST"});
  }
  if (request.path == "/abort_request" && posted) return abort(request, *reply);
  if (request.path == "/flush_cache") {
    scheduler_.flush_cache();
    return reply->send(200, "text/plain", "Cache flushed.\n");
  }
  if (request.path == "/health_generate") {
    if (!scheduler_.alive()) return refuse(*reply, {503, "unavailable", "a rank is gone"});
    Call call;
    Request& probe = call.requests.emplace_back();
    probe.tokens = {kBos};
    probe.rid = call.rid = "health-" + std::to_string(++calls_);
    probe.sampling.max_new_tokens = 1;
    return start(std::move(call), reply, true);
  }
  refuse(*reply, {404, "not_found", "no such path: " + request.path});
}

// What is answered without the scheduler's help.
bool Front::look_up(const HttpRequest& request, const std::shared_ptr<HttpReply>& reply) {
  if (request.path == "/health" || request.path == "/liveness" || request.path == "/readiness") {
    const bool alive = scheduler_.alive();
    if (alive) reply->send(200, "text/plain", "");
    if (!alive) refuse(*reply, {503, "unavailable", "a rank of this worker is gone"});
    return true;
  }
  if (request.path == "/get_model_info" || request.path == "/model_info") {
    reply->send(200, kJson, options_.model_info);
    return true;
  }
  if (request.path == "/get_server_info" || request.path == "/server_info") {
    const SchedulerFigures figures = scheduler_.figures();
    namespace json = boost::json;
    json::object info = json::parse(options_.server_info).get_object();
    info["requests_queued"] = figures.requests_queued;
    info["requests_running"] = figures.requests_running;
    info["pages_free"] = figures.pages_free;
    info["pages_held"] = figures.pages_held;
    info["pages_quarantined"] = figures.pages_quarantined;
    info["pages_cached"] = figures.pages_cached;
    reply->send(200, kJson, json::serialize(info));
    return true;
  }
  if (request.path == "/v1/models") {
    reply->send(200, kJson,
                boost::json::serialize(boost::json::object{
                    {"object", "list"},
                    {"data", boost::json::array{boost::json::object{{"id", options_.api.model},
                                                                    {"object", "model"}}}}}));
    return true;
  }
  if (request.path == "/metrics") {
    reply->send(200, "text/plain; version=0.0.4", options_.metrics());
    return true;
  }
  return false;
}

void Front::generate(ApiForm form, const HttpRequest& request,
                     const std::shared_ptr<HttpReply>& reply) {
  ApiError error;
  std::optional<Call> call = parse_call(form, request.body, options_.api, ++calls_, error);
  if (!call) return refuse(*reply, error);
  start(*std::move(call), reply, false);
}

void Front::start(Call call, const std::shared_ptr<HttpReply>& reply, bool health) {
  // Shared: the sinks of all sequences, on the scheduler's thread.
  const auto running = std::make_shared<Running>(call, options_.api.model, reply);
  running->health = health;
  std::vector<std::uint64_t> ids;
  for (std::size_t i = 0; i < call.requests.size(); ++i) {
    ids.push_back(
        scheduler_.submit(std::move(call.requests[i]),
                          [running, i](const Update& update) { running->take(i, update); }));
  }
  reply->on_gone([this, ids] {
    for (const std::uint64_t id : ids) scheduler_.abort(id);
  });
}

void Front::abort(const HttpRequest& request, HttpReply& reply) try {
  boost::json::error_code code;
  const boost::json::value body = boost::json::parse(request.body, code);
  if (code || !body.is_object()) throw BadBody{"the body must be a JSON object"};
  const bool all = read_bool(body.get_object(), "abort_all", false);
  const std::string rid = read_text(body.get_object(), "rid");
  if (rid.empty() && !all) throw BadBody{"rid or abort_all is needed"};
  scheduler_.abort_rid(rid, all);
  reply.send(200, kJson, "{}");
} catch (const BadBody& bad) {
  refuse(reply, {400, "invalid_argument", bad.message});
}

}  // namespace kvl::worker
