// What follows from a worker's options.
#include "worker/worker_options.h"

#include <algorithm>

#include "kvl/trace.h"
#include "kvl/transport.h"
#include "worker/http_server.h"

namespace kvl::worker {
namespace {

Status say(std::string* error, Status status, std::string sentence) {
  if (error != nullptr) *error = std::move(sentence);
  return status;
}

Status check(const WorkerOptions& options, std::string* error) {
  const auto bad = [&](const char* what, std::string sentence) {
    return say(error, {Code::invalid_argument, what}, std::move(sentence));
  };
  if (options.page_order != "layer_first" && options.page_order != "page_first") {
    return bad("page order", "page order must be layer_first or page_first");
  }
  if (options.page_tokens == 0) return bad("page tokens", "a page needs at least one token");
  if (options.role == EngineRole::prefill && options.bootstrap.empty() &&
      options.bootstrap_port < 0) {
    return bad("bootstrap",
               "a prefill worker needs a rendezvous: --bootstrap URL, or "
               "--bootstrap-port to serve one");
  }
  return {};
}

}  // namespace

Result<HostOptions> host_options(const WorkerOptions& options, std::string* error) {
  KVL_TRY(check(options, error));
  Result<ModelConfig> model = find_model(options.model);
  if (!model) {
    std::string names;
    for (const NamedGeometry& known : known_geometries()) names += " " + std::string(known.name);
    return say(error, model.status(), "no model '" + options.model + "'; there are:" + names);
  }
  if (!options.dtype.empty()) {
    const Result<Dtype> dtype = parse_dtype(options.dtype);
    if (!dtype) return say(error, dtype.status(), dtype.status().context());
    model->kv.dtype = *dtype;
  }
  const Dtype dtype = model->kv.dtype;
  if (!options.kv_only && !model->computable()) {
    return say(error, {Code::unsupported, "model"},
               "'" + options.model + "' is geometry only: run it with --kv-only");
  }
  if (!options.kv_only && dtype != Dtype::f32 && dtype != Dtype::bf16) {
    return say(error, {Code::unsupported, "dtype"}, "KV that is computed is f32 or bf16");
  }
  std::uint64_t token_bytes = 0;  // over all ranks; replicas count
  for (std::uint32_t rank = 0; rank < options.tp * options.pp; ++rank) {
    const Result<RankShare> share = share_of(*model, slice_at(options.tp, options.pp, rank));
    if (!share) return say(error, share.status(), share.status().context());
    token_bytes += std::uint64_t{share->layers.count} * (model->kv.mla ? 1 : 2) *
                   share->kv_heads.count * model->kv.head_dim * dtype_bytes(model->kv.dtype);
  }
  HostOptions host;
  host.model = *std::move(model);
  host.sizes = {options.tp, options.pp};
  host.layout.page_tokens = options.page_tokens;
  const std::uint64_t page_bytes = token_bytes * options.page_tokens;
  const std::uint64_t pages = options.pages != 0 ? options.pages : options.pool_bytes / page_bytes;
  host.layout.page_count =
      static_cast<std::uint32_t>(std::clamp<std::uint64_t>(pages, 1, UINT32_MAX));
  if (options.page_order == "page_first") {
    host.layout.order = PageOrder::page_first;
    host.layout.kv_joined = true;
  }
  host.seed = options.seed;
  host.kv_only = options.kv_only;
  host.handoffs = makes_handoffs(options);
  host.prefill = options.role != EngineRole::decode;
  host.decode = options.role != EngineRole::prefill;
  return host;
}

std::vector<Setting> own_settings() {
  std::vector<Setting> rows = engine_settings();
  for (const std::vector<Setting>& more :
       {transport_settings(), handoff_settings(), http_server_settings()}) {
    rows.insert(rows.end(), more.begin(), more.end());
  }
  rows.insert(rows.end(), trace_settings().begin(), trace_settings().end());
  return rows;
}

Result<Settings> worker_settings(const WorkerOptions& options, std::string* error) {
  std::vector<Setting> rows = own_settings();
  for (const Setting& row : options.known) {
    const bool there =
        std::any_of(rows.begin(), rows.end(), [&](const Setting& r) { return r.name == row.name; });
    if (!there) rows.push_back(row);
  }
  Settings::Source source;
  source.file = options.config_file;
  source.flags = options.settings;
  const Result<Settings> said = Settings::load(rows, source, error);
  if (!said) return said.status();
  const auto fill = [&](const char* name, const std::string& value) {
    if (!value.empty() && said->value(name).origin == "default") {
      source.flags.emplace_back(name, value);
    }
  };
  fill("listen", host_and_port(options.host, 0));
  fill("advertise", options.advertise);
  fill("require", options.transport == "auto" ? "" : options.transport);
  return Settings::load(rows, source, error);
}

bool makes_handoffs(const WorkerOptions& options) {
  return options.role != EngineRole::both || !options.bootstrap.empty() ||
         options.bootstrap_port >= 0;
}

std::string advertised_host(const WorkerOptions& options) {
  return options.advertise.empty() ? options.host : options.advertise;
}

std::string host_and_port(const std::string& host, std::int64_t port) {
  const bool v6 = host.find(':') != std::string::npos && host.front() != '[';
  return (v6 ? "[" + host + "]" : host) + ":" + std::to_string(port);
}

}  // namespace kvl::worker
