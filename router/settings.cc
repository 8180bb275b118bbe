// The settings of the router and of the rendezvous: one row per field of their options.
#include "kvl/bootstrap_server.h"
#include "kvl/router.h"

namespace kvl {
namespace {

// Comes from the environment only.
Setting secret(Setting row) {
  row.secret = true;
  return row;
}

}  // namespace

std::span<const Setting> router_settings() {
  using O = RouterOptions;
  static const Setting rows[] = {
      setting<&O::pd_disaggregation>("router.pd_disaggregation", "", 0, 0,
                                     "send each request to a prefill and a decode worker"),
      setting<&O::host>("router.host", "", 0, 0, "address to listen on"),
      setting<&O::port>("router.port", "", 0, 65535, "port to listen on; 0 takes any free one"),
      setting<&O::threads>("router.threads", "", 1, 64, "event loops, one thread each"),
      setting<&O::policy>(
          "router.policy", "", 0, 0,
          "how a worker is chosen: cost, random, round_robin, least_loaded, power_of_two, "
          "consistent_hashing, prefix_hash, manual, bucket"),
      setting<&O::prefill_policy>("router.prefill_policy", "", 0, 0,
                                  "policy for prefill workers; empty: router.policy"),
      setting<&O::decode_policy>("router.decode_policy", "", 0, 0,
                                 "policy for decode workers; empty: router.policy"),
      setting<&O::cache_tokens>(
          "router.cache_tokens", "tokens", 1, 1e15,
          "KV cache of a worker that does not tell its size, for policy cost"),
      setting<&O::session_headers>("router.session_headers", "", 0, 0,
                                   "headers that name a session, for policies manual and "
                                   "consistent_hashing; the first that is there counts"),
      setting<&O::max_idle_secs>("router.max_idle_secs", "s", 1, 1e9,
                                 "policy manual forgets a session that is silent for so long"),
      setting<&O::request_timeout_secs>("router.request_timeout_secs", "s", 0.001, 1e6,
                                        "limit of a whole request, retries included"),
      setting<&O::connect_timeout_secs>("router.connect_timeout_secs", "s", 0.001, 600,
                                        "limit of a connection attempt to a worker"),
      setting<&O::header_timeout_secs>(
          "router.header_timeout_secs", "s", 0.001, 3600,
          "limit for a client to send a request's head, then its body"),
      setting<&O::idle_timeout_secs>("router.idle_timeout_secs", "s", 0.001, 86400,
                                     "a kept-alive connection without a request is closed after"),
      setting<&O::shutdown_grace_period_secs>("router.shutdown_grace_period_secs", "s", 0, 86400,
                                              "limit for requests in flight when asked to stop"),
      setting<&O::max_payload_size>("router.max_payload_size", "bytes", 1024, 1e12,
                                    "largest request body; beyond it the answer is 413"),
      setting<&O::max_connections>("router.max_connections", "", 1, 1e6,
                                   "client connections per thread; beyond, silent ones are closed"),
      setting<&O::max_connections_per_address>(
          "router.max_connections_per_address", "", 0, 1e6,
          "of these from one address; beyond, new ones are closed; 0: no limit"),
      setting<&O::max_requests_per_second_per_address>(
          "router.max_requests_per_second_per_address", "", 0, 1e9,
          "of one address, per thread; beyond it the answer is 429; 0: no limit"),
      setting<&O::max_buffered_bytes>(
          "router.max_buffered_bytes", "bytes", 1024, 1e15,
          "large request bodies in memory, per thread; beyond it the answer is 503"),
      setting<&O::retry_max_retries>("router.retry_max_retries", "", 0, 64,
                                     "other workers tried before the first byte of an answer"),
      setting<&O::health_check_interval_secs>("router.health_check_interval_secs", "s", 0.01, 3600,
                                              "time between two health checks of a worker"),
      setting<&O::health_check_timeout_secs>("router.health_check_timeout_secs", "s", 0.01, 3600,
                                             "limit of one health check"),
      setting<&O::health_failure_threshold>("router.health_failure_threshold", "", 1, 1000,
                                            "failures in a row that make a worker unhealthy"),
      setting<&O::health_success_threshold>("router.health_success_threshold", "", 1, 1000,
                                            "good checks in a row that make it healthy again"),
      setting<&O::health_check_endpoint>("router.health_check_endpoint", "", 0, 0,
                                         "path asked by a health check"),
      setting<&O::disable_health_check>("router.disable_health_check", "", 0, 0,
                                        "judge workers by their traffic only"),
      setting<&O::inject_rid>(
          "router.inject_rid", "", 0, 0,
          "give requests without \"rid\" one, so that they can be aborted by it"),
      setting<&O::prometheus_port>(
          "router.prometheus_port", "", -1, 65535,
          "a port for /metrics alone; -1: none (the main port has it too)"),
      setting<&O::bootstrap_port>("router.bootstrap_port", "", -1, 65535,
                                  "a port for the rendezvous in this process; -1: none"),
      setting<&O::tls_cert_path>("router.tls_cert_path", "", 0, 0,
                                 "PEM file with this server's certificate; the port speaks TLS"),
      setting<&O::tls_key_path>("router.tls_key_path", "", 0, 0,
                                "PEM file with its key; refused when others can read it"),
      setting<&O::tls_client_ca_path>("router.tls_client_ca_path", "", 0, 0,
                                      "clients must show a certificate signed by this authority"),
      setting<&O::tls_allow_1_2>("router.tls_allow_1_2", "", 0, 0, "speak TLS 1.2 as well as 1.3"),
      setting<&O::api_key_file>("router.api_key_file", "", 0, 0,
                                "file of keys that clients must show, one a line; mode 600"),
      setting<&O::ca_cert_path>("router.ca_cert_path", "", 0, 0,
                                "authority of workers with https; empty: the machine's"),
      setting<&O::client_cert_path>("router.client_cert_path", "", 0, 0,
                                    "certificate shown to workers with https"),
      setting<&O::client_key_path>("router.client_key_path", "", 0, 0,
                                   "its key; refused when others can read it"),
  };
  return rows;
}

std::span<const Setting> bootstrap_settings() {
  using O = BootstrapServerOptions;
  static const Setting rows[] = {
      setting<&O::host>("bootstrap.host", "", 0, 0, "address to listen on"),
      setting<&O::port>("bootstrap.port", "", 0, 65535, "port to listen on; 0 takes any free one"),
      setting<&O::lease_min_ms>("bootstrap.lease_min_ms", "ms", 1, 1e9,
                                "shortest lease; shorter wishes get this"),
      setting<&O::lease_max_ms>("bootstrap.lease_max_ms", "ms", 1, 1e9,
                                "longest lease; longer wishes get this"),
      setting<&O::dp_rank_ttl_ms>("bootstrap.dp_rank_ttl_ms", "ms", 1, 1e9,
                                  "how long the data-parallel rank of a room is kept"),
      setting<&O::max_connections>("bootstrap.max_connections", "", 1, 1e6,
                                   "connections; beyond, silent ones are closed"),
      setting<&O::max_connections_per_address>(
          "bootstrap.max_connections_per_address", "", 0, 1e6,
          "of these from one address; beyond, new ones are closed; 0: no limit"),
      setting<&O::max_requests_per_second_per_address>(
          "bootstrap.max_requests_per_second_per_address", "", 0, 1e9,
          "of one address; beyond it the answer is 429; 0: no limit"),
      setting<&O::header_timeout_secs>(
          "bootstrap.header_timeout_secs", "s", 0.001, 3600,
          "limit for a client to send a request's head, then its body"),
      setting<&O::idle_timeout_secs>("bootstrap.idle_timeout_secs", "s", 0.001, 86400,
                                     "a kept-alive connection without a request is closed after"),
      setting<&O::records_max>("bootstrap.records_max", "", 1, 1e9,
                               "ranks, and rooms, kept at most; beyond it the answer is 503"),
      setting<&O::store>("bootstrap.store", "", 0, 0,
                         "where records are kept: memory, or etcd for several servers"),
      setting<&O::etcd_endpoints>("bootstrap.etcd_endpoints", "", 0, 0,
                                  "URLs of etcd's members, separated by commas"),
      setting<&O::etcd_prefix>("bootstrap.etcd_prefix", "", 0, 0,
                               "of every key in etcd; servers with one prefix are one service"),
      setting<&O::etcd_user>("bootstrap.etcd_user", "", 0, 0, "user at etcd; empty: none"),
      setting<&O::etcd_password_file>("bootstrap.etcd_password_file", "", 0, 0,
                                      "file with that user's password, mode 600"),
      secret(setting<&O::etcd_password>(
          "bootstrap.etcd_password", "", 0, 0,
          "that user's password; only as KVLANE_BOOTSTRAP_ETCD_PASSWORD, never a flag")),
      setting<&O::etcd_timeout_ms>("bootstrap.etcd_timeout_ms", "ms", 1, 600000,
                                   "limit of one call to etcd, over all members"),
      setting<&O::etcd_probe_ms>("bootstrap.etcd_probe_ms", "ms", 1, 600000,
                                 "how often etcd is asked whether it is there"),
      setting<&O::sglang_without_secret>(
          "bootstrap.sglang_without_secret", "", 0, 0,
          "serve SGLang's protocol, which knows no secret, although there is one"),
      setting<&O::etcd_ca_cert_path>("bootstrap.etcd_ca_cert_path", "", 0, 0,
                                     "authority of etcd with https; empty: the machine's"),
      setting<&O::etcd_client_cert_path>("bootstrap.etcd_client_cert_path", "", 0, 0,
                                         "certificate shown to etcd"),
      setting<&O::etcd_client_key_path>("bootstrap.etcd_client_key_path", "", 0, 0,
                                        "its key; refused when others can read it"),
      setting<&O::tls_cert_path>("bootstrap.tls_cert_path", "", 0, 0,
                                 "PEM file with this server's certificate; the port speaks TLS"),
      setting<&O::tls_key_path>("bootstrap.tls_key_path", "", 0, 0,
                                "PEM file with its key; refused when others can read it"),
      setting<&O::tls_client_ca_path>("bootstrap.tls_client_ca_path", "", 0, 0,
                                      "clients must show a certificate signed by this authority"),
      setting<&O::tls_allow_1_2>("bootstrap.tls_allow_1_2", "", 0, 0,
                                 "speak TLS 1.2 as well as 1.3"),
  };
  return rows;
}

}  // namespace kvl
