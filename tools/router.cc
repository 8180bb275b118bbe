// `kvlane router`: the HTTP front of a fleet, with sglang-router's flags.
#include "kvl/router.h"

#include <cstdio>
#include <memory>

#include "kvl/trace.h"
#include "tools/program.h"
#include "tools/router_peers.h"
#include "tools/signals.h"

namespace kvl::tools {
namespace {

struct RouterFlags {
  SettingFlags settings;
  std::vector<std::vector<std::string>> prefill;  // URL [PORT]
  std::vector<std::string> decode, workers;
  PeerFlags peers;
};

// --prefill URL [BOOTSTRAP_PORT|none]
bool read_prefill(const std::vector<std::string>& words, PrefillWorker& worker) {
  worker.url = words.front();
  if (words.size() == 1 || words[1] == "none") return true;
  try {
    std::size_t end = 0;
    worker.bootstrap_port = std::stoi(words[1], &end);
    return end == words[1].size() && worker.bootstrap_port > 0 && worker.bootstrap_port < 65536;
  } catch (const std::exception&) {
    return false;
  }
}

void run_router(Program& program, const RouterFlags& flags) {
  if (!flags.peers.refused.empty()) return program.fail(flags.peers.refused);
  for (const std::string& sentence : flags.peers.without_effect) {
    std::fprintf(stderr, "kvlane router: %s\n", sentence.c_str());
  }
  const Result<Settings> settings = program.settings(flags.settings);
  if (!settings.ok()) return;
  RouterOptions options = settings->read<RouterOptions>(router_settings());
  options.bootstrap = settings->read<BootstrapServerOptions>(bootstrap_settings());
  std::string error;
  Result<Secrets> secrets = load_secrets(*settings, &error);
  if (!secrets.ok()) return program.fail(error);
  options.secrets = *std::move(secrets);
  options.insecure = settings->read<SecurityConfig>(security_settings()).insecure;
  for (const std::vector<std::string>& words : flags.prefill) {
    PrefillWorker worker;
    if (!read_prefill(words, worker)) {
      return program.fail("--prefill takes URL and, optionally, a bootstrap port: '" + words[1] +
                          "' is none");
    }
    options.prefill.push_back(worker);
  }
  options.decode = flags.decode;
  options.workers = flags.workers;

  if (!program.start_trace(*settings, "router")) return;
  StopOnSignal::block();
  const Result<std::unique_ptr<Router>> router = Router::open(options, &error);
  if (!router.ok()) return program.fail(error);
  const StopOnSignal signals(
      [&router] { (*router)->stop(); },
      [&router] { report_reload([&](std::string* why) { return (*router)->reload_tls(why); }); });
  const char* const scheme = options.tls_cert_path.empty() ? "http" : "https";
  std::printf("listening on %s://%s:%u\n", scheme, options.host.c_str(),
              static_cast<unsigned>((*router)->port()));
  if ((*router)->prometheus_port() != 0) {
    std::printf("metrics on %s://%s:%u/metrics\n", scheme, options.host.c_str(),
                static_cast<unsigned>((*router)->prometheus_port()));
  }
  if ((*router)->bootstrap_port() != 0) {
    std::printf("rendezvous on %s://%s:%u\n",
                options.bootstrap.tls_cert_path.empty() ? "http" : "https", options.host.c_str(),
                static_cast<unsigned>((*router)->bootstrap_port()));
  }
  std::fflush(stdout);
  (*router)->run();
}

}  // namespace

void add_router(CLI::App& app, Program& program) {
  CLI::App* const command =
      app.add_subcommand("router", "HTTP front: chooses workers, starts transfers, relays answers");
  command->footer(
      "Examples:\n"
      "  kvlane router --pd-disaggregation --prefill http://10.0.0.1:30001 8998 \\\n"
      "    --decode http://10.0.0.2:30001 --api-key-file /etc/kvlane/keys\n"
      "  kvlane router --worker-urls http://10.0.0.1:30001 http://10.0.0.2:30001 \\\n"
      "    --policy least_loaded --prometheus-port 29000 --insecure\n"
      "  kvlane router --worker-urls https://10.0.0.1:30001 --ca-cert-path ca.pem \\\n"
      "    --tls-cert-path router.pem --tls-key-path router.key --secret_file /etc/kvlane/secret\n"
      "SIGHUP reads certificates anew. Workers can also be added and removed while it runs: POST "
      "and DELETE /workers.");
  const auto flags = std::make_shared<RouterFlags>();
  command
      ->add_option("--prefill", flags->prefill,
                   "a prefill worker and its bootstrap port; may be repeated")
      ->type_name("URL [PORT]")
      ->type_size(1, 2)
      ->expected(1, CLI::detail::expected_max_vector_size);
  command->add_option("--decode", flags->decode, "a decode worker; may be repeated")
      ->type_name("URL");
  command->add_option("--worker-urls", flags->workers, "workers that do both, without P/D")
      ->type_name("URL ...");
  add_setting_flags(*command, router_settings(), "router.", flags->settings);
  add_setting_flags(*command, bootstrap_settings(), "", flags->settings);
  add_setting_flags(*command, security_settings(), "", flags->settings);
  add_setting_flags(*command, trace_settings(), "", flags->settings);
  add_peer_flags(*command, flags->peers, flags->settings);
  command->callback([&program, flags] { run_router(program, *flags); });
}

}  // namespace kvl::tools
