// Dispatch by path, and the paths that concern requests.
#include "router/api/api.h"

#include <utility>

#include "router/api/exchange.h"
#include "router/api/fan_out.h"
#include "router/api/forward.h"
#include "router/http/body_scan.h"
#include "router/http/message.h"

namespace kvl::router {
namespace {

using http::Session;

bool path_matches(std::string_view route, std::string_view path) {
  if (route.ends_with('/')) return path.starts_with(route) && path.size() > route.size();
  return path == route;
}

}  // namespace

void reply_error(Session& session, int status, std::string_view type, std::string_view message) {
  session.reply({.status = status, .body = http::error_body(status, type, message)});
}

Api::Api(LoopContext& context, std::function<std::string()> metrics, const ApiAccess& access)
    : context_(context), metrics_(std::move(metrics)), access_(access) {}

bool Api::allowed(const Session& session, Access needed) const {
  if (access_.open() || needed == Access::anybody) return true;
  const std::string_view shown = session.request().headers.find("authorization");
  if (access_.tokens.accept(shown)) return true;
  return needed == Access::clients && access_.api_keys.accept(shown);
}

void Api::handle(Session& session) {
  static constexpr Route kRoutes[] = {
      {"/generate", "POST", &Api::relay},
      {"/v1/chat/completions", "POST", &Api::relay},
      {"/v1/completions", "POST", &Api::relay},
      {"/health", "GET", &Api::health, Access::anybody},
      {"/liveness", "GET", &Api::health, Access::anybody},
      {"/readiness", "GET", &Api::readiness, Access::anybody},
      {"/health_generate", "GET", &Api::health_generate},
      {"/metrics", "GET", &Api::metrics},
      {"/v1/models", "GET", &Api::pass},
      {"/get_model_info", "GET", &Api::pass},
      {"/get_server_info", "GET", &Api::pass},
      {"/workers", "GET", &Api::list_workers, Access::operators},
      {"/workers", "POST", &Api::add_worker, Access::operators},
      {"/workers", "DELETE", &Api::remove_worker, Access::operators},
      {"/workers/", "GET", &Api::show_worker, Access::operators},
      {"/workers/", "DELETE", &Api::remove_worker, Access::operators},
      {"/abort_request", "POST", &Api::fan_out},
      {"/flush_cache", "POST", &Api::fan_out, Access::operators},
  };
  const std::string_view path = session.request().path();
  const std::string_view method = session.request().method;
  bool known_path = false;
  for (const Route& route : kRoutes) {
    if (!path_matches(route.path, path)) continue;
    known_path = true;
    const bool head = method == "HEAD" && route.method == "GET" && route.run != &Api::pass;
    if (method != route.method && !head) continue;
    if (allowed(session, route.access)) return (this->*route.run)(session);
    return session.turn_away(
        {.status = 401,
         .body = http::error_body(401, "authentication_error",
                                  "missing or wrong: Authorization: Bearer KEY"),
         .headers = "WWW-Authenticate: Bearer\r\n"});
  }
  if (known_path) {
    return reply_error(session, 405, "invalid_request_error", "method not allowed on this path");
  }
  reply_error(session, 404, "not_found_error", "no such path: " + std::string(path));
}

void Api::relay(Session& session) {
  context_.counters().requests_total.add();
  ExchangePlan plan;
  const bool pd = context_.options().pd_disaggregation;
  const bool prompts =
      pd ? context_.wants_prompts(WorkerRole::prefill) || context_.wants_prompts(WorkerRole::decode)
         : context_.wants_prompts(WorkerRole::regular);
  // Without P/D nothing is asked of a body: what is wrong with it is the worker's to say.
  if (pd || prompts) plan.scan = http::scan_body(session.body());
  if (prompts) plan.prompt = prompt_keys(plan.scan.prompt, plan.scan.prompt_tokens);
  plan.session = context_.session_of(session.request());
  if (pd) {
    plan.disaggregated = true;
    plan.role = WorkerRole::decode;
    std::string wrong;
    if (plan.scan.error != nullptr) {
      wrong = std::string("invalid JSON at byte ") + std::to_string(plan.scan.error_offset) + ": " +
              plan.scan.error;
    } else if (!plan.scan.session_key.empty()) {
      wrong = "the field '" + plan.scan.session_key + "' is set by the router; leave it out";
    } else if (const std::string_view name = session_header(session.request()); !name.empty()) {
      wrong = "the header '" + std::string(name) + "' is set by the router; leave it out";
    }
    if (!wrong.empty()) {
      context_.counters().bad_requests_total.add();
      return reply_error(session, 400, "invalid_request_error", wrong);
    }
  }
  Exchange::start(context_, session, std::move(plan));
}

void Api::pass(Session& session) {
  const bool pd = context_.options().pd_disaggregation;
  Exchange::start(context_, session,
                  {.role = pd ? WorkerRole::prefill : WorkerRole::regular,
                   .scan = {},
                   .prompt = {},
                   .session = {}});
}

void Api::fan_out(Session& session) {
  if (session.request().path() == "/flush_cache") {
    for (const WorkerPtr& worker : context_.workers().all) context_.fleet().cache_lost(*worker);
  }
  FanOut::start(context_, session, context_.workers().all, "POST", session.request().path(),
                std::string(session.body()));
}

void Api::health_generate(Session& session) {
  std::vector<WorkerPtr> chosen;
  const bool pd = context_.options().pd_disaggregation;
  for (const WorkerRole role : {WorkerRole::regular, WorkerRole::prefill, WorkerRole::decode}) {
    if (pd == (role == WorkerRole::regular)) continue;
    WorkerPtr worker = context_.pick(role, {}, {.prompt = {}}).worker;
    if (worker == nullptr) {
      return reply_error(session, 503, "upstream_error",
                         "no " + std::string(to_string(role)) + " worker is available");
    }
    chosen.push_back(std::move(worker));
  }
  FanOut::start(context_, session, chosen, "GET", "/health_generate", {});
}

void Api::health(Session& session) { session.reply({.content_type = "text/plain", .body = "OK"}); }

void Api::metrics(Session& session) {
  session.reply({.content_type = "text/plain; version=0.0.4", .body = metrics_()});
}

}  // namespace kvl::router
