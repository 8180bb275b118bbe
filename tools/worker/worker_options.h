// What a worker is told when it starts, and what follows from that.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "kvl/bootstrap_client.h"
#include "kvl/config.h"
#include "kvl/handoff.h"
#include "worker/local_host.h"

namespace kvl::worker {

struct WorkerOptions {
  std::string model = "demo";  // demo and tiny compute; any known geometry with kv_only
  EngineRole role = EngineRole::both;
  std::uint32_t tp = 1;
  std::uint32_t pp = 1;
  std::uint32_t page_tokens = 64;
  std::uint32_t pages = 0;                 // 0: from pool_bytes
  std::uint64_t pool_bytes = 256 << 20;    // of KV over all ranks; used only where pages is 0
  std::string dtype;                       // of the KV: f32, bf16, …; "": the model's own
  std::string page_order = "layer_first";  // page_first
  std::uint64_t seed = 0;                  // of the weights: equal on both sides of a handoff
  bool kv_only = false;

  std::string host = "127.0.0.1";  // HTTP, and the engines' listeners
  std::uint16_t port = 0;          // HTTP; 0: any free one
  std::string advertise;           // host told to others; "": host
  // The rendezvous. With neither, the worker makes no handoffs (and role must be both).
  std::string bootstrap;             // "http://host:port"; "": as the session says
  std::int32_t bootstrap_port = -1;  // what routers are told as --prefill URL PORT. Without
                                     // `bootstrap` a prefill worker serves the rendezvous there.
                                     // -1: the HTTP port. 0 without `bootstrap`: any free port
  std::string cluster = "default";
  // PEM files: of the rendezvous that the worker serves, and of its calls to one with https.
  std::string tls_cert, tls_key, tls_ca;

  std::string transport;  // "": the best; else `require`
  HandoffMode mode = HandoffMode::best;
  std::int64_t handoff_timeout_ms = 30000;
  std::uint32_t chunk_tokens = 256;
  bool damage_received = false;  // a control: flip one bit of the KV of every handoff received, to
                                 // see that what checks the result notices
  bool rank_processes = false;   // each rank in a process of its own; see open()
  std::string config_file;       // settings in TOML
  std::vector<Setting> known;    // further settings that the file may hold, of other programs
  std::vector<std::pair<std::string, std::string>> settings;  // name, value: engine, transports, …
};

// Both check; `error` (optional) receives a sentence.
// not_found: model. invalid_argument, unsupported: what does not go together.
Result<HostOptions> host_options(const WorkerOptions& options, std::string* error);
// The rows that a worker understands: of engine, transports, handoff and trace.
std::vector<Setting> own_settings();
// Their values: defaults, file, environment, options.settings;
// where none of those says otherwise, engines listen on `host` and use `transport`.
Result<Settings> worker_settings(const WorkerOptions& options, std::string* error);

// Whether the worker hands off at all.
bool makes_handoffs(const WorkerOptions& options);
std::string advertised_host(const WorkerOptions& options);
// "[::1]:80", "host:80"
std::string host_and_port(const std::string& host, std::int64_t port);

}  // namespace kvl::worker
