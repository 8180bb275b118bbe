// The command line of a worker.
#include "worker/worker_cli.h"

#include <algorithm>
#include <map>
#include <set>
#include <string>

namespace kvl::worker {
namespace {

// An option whose words stand for the values of an enum.
template <typename Enum>
void add_words(CLI::App& command, const std::string& name, Enum& to,
               const std::map<std::string, Enum>& words, const std::string& help) {
  std::set<std::string> names;
  for (const auto& [word, value] : words) names.insert(word);
  command
      .add_option_function<std::string>(
          name, [&to, words](const std::string& word) { to = words.at(word); }, help)
      ->check(CLI::IsMember(names));
}

void add_model(CLI::App& command, WorkerOptions& options) {
  command.add_option("--model", options.model, "demo or tiny; any known geometry with --kv-only")
      ->capture_default_str();
  command.add_option("--tp", options.tp, "tensor-parallel ranks")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  command.add_option("--pp", options.pp, "pipeline stages")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  command.add_option("--page-tokens", options.page_tokens, "tokens of a KV page")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  command.add_option("--pages", options.pages, "KV pages; 0: as many as --pool-bytes holds")
      ->capture_default_str();
  command.add_option("--pool-bytes", options.pool_bytes, "KV memory over all ranks")
      ->transform(CLI::AsSizeValue(false))
      ->check(CLI::Range(std::uint64_t{0}, std::uint64_t{1} << 44))
      ->capture_default_str();
  command.add_option("--dtype", options.dtype,
                     "of the KV: f32, bf16, f16, fp8; default: the model's");
  command.add_option("--page-order", options.page_order, "layer_first or page_first")
      ->capture_default_str();
  command.add_option("--seed", options.seed, "of the weights: equal on both sides")
      ->capture_default_str();
  command.add_flag("--kv-only", options.kv_only,
                   "no arithmetic: KV derived from the prompt, every byte checked at decode");
  command.add_option("--chunk-tokens", options.chunk_tokens, "of prefill in one forward pass")
      ->check(CLI::Range(1, 1 << 16))
      ->capture_default_str();
}

void add_place(CLI::App& command, WorkerOptions& options) {
  add_words<EngineRole>(command, "--role", options.role,
                        {{"prefill", EngineRole::prefill},
                         {"decode", EngineRole::decode},
                         {"both", EngineRole::both}},
                        "default: both");
  command.add_option("--host", options.host, "HTTP and engine listeners; an IP address")
      ->capture_default_str();
  command.add_option("--port", options.port, "HTTP; 0: any free one")->capture_default_str();
  command.add_option("--advertise", options.advertise, "host told to others; default: --host");
  command.add_option("--bootstrap", options.bootstrap, "URL of the rendezvous");
  command
      .add_option("--bootstrap-port,--disaggregation-bootstrap-port", options.bootstrap_port,
                  "what a router is told as --prefill URL PORT; without --bootstrap the worker\n"
                  "serves the rendezvous there (0: any free port), and prefill needs it. Default\n"
                  "with --bootstrap: the HTTP port")
      ->check(CLI::Range(0, 65535));
  command.add_option("--tls-cert-path", options.tls_cert,
                     "PEM: shown to a rendezvous with https, and by the one served here");
  command.add_option("--tls-key-path", options.tls_key, "its key; refused when others can read it");
  command.add_option(
      "--tls-ca-path", options.tls_ca,
      "PEM: authority of the rendezvous; its clients must show its certificates, too");
  command.add_option("--cluster", options.cluster, "workers of different clusters never meet")
      ->capture_default_str();
  command.add_option("--transport", options.transport, "require this transport; default: the best");
  add_words<HandoffMode>(
      command, "--mode", options.mode,
      {{"push", HandoffMode::push}, {"pull", HandoffMode::pull}, {"best", HandoffMode::best}},
      "push: prefill writes; pull: decode reads; best: push, but pull where\n"
      "devices can read and not write. Default: best");
  command
      .add_option("--handoff-timeout-ms", options.handoff_timeout_ms,
                  "of a handoff, and of silence from the other worker")
      ->check(CLI::Range(1, 86'400'000))
      ->capture_default_str();
  command.add_flag("--damage-received", options.damage_received,
                   "a control: flip one bit of every handoff received; checks must notice");
  command.add_flag("--rank-processes", options.rank_processes,
                   "each rank in a process of its own instead of a thread");
}

}  // namespace

void add_worker_options(CLI::App& command, WorkerOptions& options) {
  add_model(command, options);
  add_place(command, options);
  for (const Setting& row : own_settings()) {
    if (row.secret) continue;  // everybody can see a command line
    const std::string name(row.name);
    if (name == "advertise" || name == "require") continue;  // --advertise, --transport
    const std::string fallback = row.fallback();
    command
        .add_option_function<std::string>(
            "--" + name,
            [&options, name](const std::string& text) {
              options.settings.emplace_back(name, text);
            },
            std::string(row.help) + (fallback.empty() ? "" : " (" + fallback + ")"))
        ->type_name(row.unit.empty() ? "TEXT" : std::string(row.unit))
        ->group(name.starts_with("testing.") ? "" : "Settings");
  }
}

}  // namespace kvl::worker
