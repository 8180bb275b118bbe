// /workers and /readiness: the fleet seen and changed from outside.
#include <boost/json.hpp>
#include <charconv>
#include <optional>

#include "router/api/api.h"
#include "router/http/message.h"
#include "router/http/url.h"

namespace kvl::router {
namespace {

using http::Session;

std::string worker_json(const Worker& worker) {
  std::string out = "{\"id\":" + std::to_string(worker.id);
  out += ",\"url\":" + http::json_quote(worker.url.text());
  out += ",\"worker_type\":" + http::json_quote(to_string(worker.role));
  if (worker.role == WorkerRole::prefill) {
    out += ",\"bootstrap_port\":";
    out += worker.bootstrap_port < 0 ? "null" : std::to_string(worker.bootstrap_port);
  }
  out += ",\"state\":" + http::json_quote(to_string(worker.state.load()));
  out += std::string(",\"is_healthy\":") + (worker.usable() ? "true" : "false");
  out += ",\"in_flight\":" + std::to_string(worker.in_flight.load());
  out += ",\"requests_total\":" + std::to_string(worker.requests_total.load());
  out += ",\"failures_total\":" + std::to_string(worker.failures_total());
  return out + "}";
}

struct NewWorker {
  std::string url;
  WorkerRole role = WorkerRole::regular;
  int bootstrap_port = -1;
};

// The body of POST /workers; a sentence instead when it makes no sense.
std::optional<NewWorker> read_new_worker(std::string_view body, bool pd, std::string& wrong) {
  boost::system::error_code failed;
  const boost::json::value value = boost::json::parse(body, failed);
  const boost::json::object* const object = failed ? nullptr : value.if_object();
  if (object == nullptr) {
    wrong = "the body must be a JSON object";
    return std::nullopt;
  }
  NewWorker worker;
  const auto* const url = object->if_contains("url");
  if (url == nullptr || !url->is_string()) {
    wrong = "the field 'url' is missing";
    return std::nullopt;
  }
  worker.url = url->get_string();
  const auto* const type = object->if_contains("worker_type");
  const std::string_view role = type != nullptr && type->is_string()
                                    ? std::string_view(type->get_string())
                                    : std::string_view("regular");
  const bool known = role == "prefill" || role == "decode" || role == "regular";
  if (!known || pd == (role == "regular")) {
    wrong = pd ? "worker_type must be prefill or decode" : "worker_type must be regular";
    return std::nullopt;
  }
  if (role == "prefill") worker.role = WorkerRole::prefill;
  if (role == "decode") worker.role = WorkerRole::decode;
  if (const auto* const port = object->if_contains("bootstrap_port");
      port != nullptr && !port->is_null()) {
    boost::system::error_code bad;
    worker.bootstrap_port = port->to_number<std::uint16_t>(bad);
    if (bad) {
      wrong = "bootstrap_port must be a port number";
      return std::nullopt;
    }
  }
  return worker;
}

// The worker that a request names: by id in the path, or by url in the query.
WorkerPtr named_worker(const WorkerSet& workers, const http::RequestHead& request) {
  constexpr std::string_view kPrefix = "/workers/";
  const std::string_view path = request.path();
  std::uint32_t id = 0;
  std::string url;
  if (path.starts_with(kPrefix)) {
    const std::string_view digits = path.substr(kPrefix.size());
    const char* const end = digits.data() + digits.size();
    if (std::from_chars(digits.data(), end, id).ptr != end) return nullptr;
  } else {
    const std::optional<http::Url> parsed =
        http::parse_url(http::query_value(request.query(), "url").value_or(""));
    if (!parsed.has_value()) return nullptr;
    url = parsed->text();
  }
  for (const WorkerPtr& worker : workers.all) {
    if (url.empty() ? worker->id == id : worker->url.text() == url) return worker;
  }
  return nullptr;
}

}  // namespace

void Api::readiness(Session& session) {
  const WorkerSet& workers = context_.workers();
  const auto healthy = [&](WorkerRole role) {
    std::size_t count = 0;
    for (const WorkerPtr& worker : workers.of(role)) {
      if (worker->state == WorkerState::healthy) ++count;
    }
    return count;
  };
  const std::size_t prefill = healthy(WorkerRole::prefill);
  const std::size_t decode = healthy(WorkerRole::decode);
  const std::size_t regular = healthy(WorkerRole::regular);
  const bool ready = context_.options().pd_disaggregation ? prefill > 0 && decode > 0 : regular > 0;
  session.reply({.status = ready ? 200 : 503,
                 .body = std::string("{\"status\":\"") + (ready ? "ready" : "not ready") +
                         "\",\"healthy_workers\":" + std::to_string(prefill + decode + regular) +
                         ",\"total_workers\":" + std::to_string(workers.all.size()) + "}"});
}

void Api::list_workers(Session& session) {
  std::string body = "{\"workers\":[";
  const char* separator = "";
  for (const WorkerPtr& worker : context_.workers().all) {
    body += std::exchange(separator, ",") + worker_json(*worker);
  }
  body += "],\"total\":" + std::to_string(context_.workers().all.size()) + "}";
  session.reply({.body = std::move(body)});
}

void Api::show_worker(Session& session) {
  const WorkerPtr worker = named_worker(context_.workers(), session.request());
  if (worker == nullptr) return reply_error(session, 404, "not_found_error", "no such worker");
  session.reply({.body = worker_json(*worker)});
}

void Api::add_worker(Session& session) {
  std::string wrong;
  const std::optional<NewWorker> wanted =
      read_new_worker(session.body(), context_.options().pd_disaggregation, wrong);
  if (!wanted.has_value()) return reply_error(session, 400, "invalid_request_error", wrong);
  const Result<WorkerPtr> worker =
      context_.fleet().add(wanted->role, wanted->url, wanted->bootstrap_port);
  if (!worker.ok()) {
    const int status = worker.code() == Code::permission ? 409 : 400;
    return reply_error(session, status, "invalid_request_error", worker.status().context());
  }
  session.reply({.status = 201, .body = worker_json(**worker)});
}

void Api::remove_worker(Session& session) {
  const WorkerPtr worker = named_worker(context_.workers(), session.request());
  if (worker == nullptr || !context_.fleet().drain(worker->id).ok()) {
    return reply_error(session, 404, "not_found_error", "no such worker");
  }
  session.reply({.status = 202, .body = worker_json(*worker)});
}

}  // namespace kvl::router
