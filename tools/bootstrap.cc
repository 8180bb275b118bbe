// `kvlane bootstrap`: the rendezvous service alone.
#include <atomic>
#include <cstdio>
#include <memory>

#include "kvl/bootstrap_server.h"
#include "kvl/trace.h"
#include "tools/program.h"
#include "tools/signals.h"

namespace kvl::tools {
namespace {

void run_bootstrap(Program& program, const SettingFlags& flags) {
  const Result<Settings> settings = program.settings(flags);
  if (!settings.ok()) return;
  auto options = settings->read<BootstrapServerOptions>(bootstrap_settings());
  if (!program.start_trace(*settings, "bootstrap")) return;
  std::string error;
  Result<Secrets> secrets = load_secrets(*settings, &error);
  if (!secrets.ok()) return program.fail(error);
  options.secrets = *std::move(secrets);
  options.insecure = settings->read<SecurityConfig>(security_settings()).insecure;
  StopOnSignal::block();
  const Result<std::unique_ptr<BootstrapServer>> server = BootstrapServer::open(options, &error);
  if (!server.ok()) return program.fail(error);
  std::printf("listening on %s://%s:%u\n", options.tls_cert_path.empty() ? "http" : "https",
              options.host.c_str(), static_cast<unsigned>((*server)->port()));
  std::fflush(stdout);
  std::atomic<bool> stopped{false};
  const StopOnSignal signals(
      [&stopped] {
        stopped = true;
        stopped.notify_all();
      },
      [&server] { report_reload([&](std::string* why) { return (*server)->reload_tls(why); }); });
  stopped.wait(false);
  (*server)->stop();
}

}  // namespace

void add_bootstrap(CLI::App& app, Program& program) {
  CLI::App* const command =
      app.add_subcommand("bootstrap", "rendezvous: ranks register here and find each other");
  command->footer(
      "Speaks kvlane's protocol (/kvlane/v1/...) and SGLang's (/route, /register_dp_rank, ...).\n"
      "Examples:\n"
      "  kvlane bootstrap --port 8998 --secret_file /etc/kvlane/secret\n"
      "  kvlane bootstrap --store etcd --etcd-endpoints http://a:2379,http://b:2379,http://c:2379\n"
      "  kvlane bootstrap --tls-cert-path server.pem --tls-key-path server.key   (SIGHUP: read "
      "anew)\n"
      "  curl 'http://localhost:8998/kvlane/v1/instances?cluster=default'   (without a secret)");
  const auto flags = std::make_shared<SettingFlags>();
  add_setting_flags(*command, bootstrap_settings(), "bootstrap.", *flags);
  add_setting_flags(*command, security_settings(), "", *flags);
  add_setting_flags(*command, trace_settings(), "", *flags);
  command->callback([&program, flags] { run_bootstrap(program, *flags); });
}

}  // namespace kvl::tools
