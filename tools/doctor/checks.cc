// One function per check; each names what it found and what to do.
#include "tools/doctor/checks.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <sstream>

#include "kvl/bootstrap_server.h"
#include "kvl/router.h"
#include "kvl/security.h"
#include "tools/doctor/fabric.h"
#include "transport/base/host_files.h"

namespace kvl::tools {
namespace {

using State = Check::State;

// Per peer a process holds the control connection, the lanes and shm's descriptors.
constexpr rlim_t kFdsLeast = 4096;
constexpr rlim_t kLockedLeast = 64u << 20;

bool has_word(const std::string& list, const std::string& wanted) {
  std::istringstream words(list);
  for (std::string word; words >> word;) {
    if (word == wanted) return true;
  }
  return false;
}

Check limit(int resource, rlim_t least, const char* name, const char* unit, const char* remedy) {
  rlimit now{};
  ::getrlimit(resource, &now);
  const bool all = now.rlim_cur == RLIM_INFINITY;
  Check check{State::ok, name, (all ? "unlimited" : std::to_string(now.rlim_cur)) + unit, ""};
  if (all || now.rlim_cur >= least) return check;
  check.state = State::note;
  check.remedy = remedy;
  return check;
}

Check attach() {
  const std::string scope = first_line("/proc/sys/kernel/yama/ptrace_scope");
  if (scope.empty() || scope == "0")
    return {State::ok, "ptrace_scope", "processes of one user", ""};
  if (::geteuid() == 0 && scope != "3") {
    return {State::ok, "ptrace_scope", scope + ", and this is root", ""};
  }
  return {State::note, "ptrace_scope", scope,
          "shm cannot reach pages that SharedBuffer did not make: use it, or set "
          "kernel.yama.ptrace_scope=0"};
}

Check congestion(const Settings& settings) {
  const std::string available = first_line("/proc/sys/net/ipv4/tcp_available_congestion_control");
  const std::string wanted = settings.value("tcp.congestion").text;
  if (wanted.empty() || wanted == "auto" || wanted == "system" || has_word(available, wanted)) {
    return {State::ok, "tcp_congestion", available, ""};
  }
  return {State::problem, "tcp_congestion", wanted + " is not among: " + available,
          "modprobe tcp_" + wanted + ", or set tcp.congestion to one of them"};
}

Check listener(const Settings& settings) {
  const std::string listen = settings.value("listen").text;
  if (is_loopback(listen)) return {State::ok, "listener", listen + ", this host only", ""};
  const auto security = settings.read<SecurityConfig>(security_settings());
  if (!security.secret_file.empty() || !security.secret.empty()) {
    return {State::ok, "listener", listen + ", with a secret", ""};
  }
  if (security.insecure) {
    return {State::note, "listener", listen + ", insecure by choice",
            "whoever can connect may read and write KV memory: set secret_file"};
  }
  return {State::problem, "listener", listen + ", without a secret",
          "set secret_file (or KVLANE_SECRET), listen on 127.0.0.1, or say insecure=true"};
}

// As an engine will read it when it starts.
Check secret(const Settings& settings) {
  const std::string file = settings.value("secret_file").text;
  std::string why;
  const Result<Secrets> secrets = load_secrets(settings, &why);
  switch (secrets.code()) {
    case Code::ok:
      return {State::ok, "secret_file", file + ", closed to others", ""};
    case Code::permission:
      return {State::problem, "secret_file", why, "chmod 600 " + file + "; this user must own it"};
    case Code::not_found:
      return {State::problem, "secret_file", why, "name a file that exists"};
    default:
      return {State::problem, "secret_file", why,
              "one secret a line, of 32 characters and more, and KVLANE_SECRET unset"};
  }
}

// What a program that serves HTTP with these settings would say when it starts. Only where a
// setting says that this host has one.
template <typename Options>
void check_port(const Settings& settings, const std::string& component,
                std::span<const Setting> rows, std::vector<Check>& all) {
  const bool meant = std::ranges::any_of(rows, [&](const Setting& row) {
    const bool guards = row.name.ends_with(".host") || row.name.ends_with("_path") ||
                        row.name.ends_with("_file") || row.name.ends_with(".store");
    return guards && settings.value(row.name).origin != "default";
  });
  if (!meant) return;
  Options options = settings.read<Options>(rows);
  const Result<Secrets> secrets = load_secrets(settings);
  if (secrets.ok()) options.secrets = *secrets;  // else another check has said so
  options.insecure = settings.read<SecurityConfig>(security_settings()).insecure || !secrets.ok();
  std::string why;
  const Status status = check_security(options, &why);
  Check check{State::ok, component + "_port", options.host, ""};
  if (status.ok()) {
    check.found += options.tls_cert_path.empty() ? ", plain HTTP" : ", TLS";
    if (!options.tls_client_ca_path.empty()) check.found += ", clients show a certificate";
  } else {
    check.state = State::problem;
    check.found = why;
    check.remedy =
        status.code() == Code::permission
            ? "a host beyond loopback: secret_file, certificates of clients or keys; a file: "
              "chmod 600, owned by this user"
        : status.code() == Code::not_found ? "name a file that exists"
                                           : "docs/tls.md tells what belongs together";
  }
  all.push_back(std::move(check));
}

}  // namespace

std::string_view to_string(Check::State state) {
  switch (state) {
    case State::ok:
      return "ok";
    case State::note:
      return "note";
    case State::problem:
      return "problem";
  }
  return "unknown";
}

std::vector<Check> check_host(const Settings& settings) {
  std::vector<Check> all;
  all.push_back(listener(settings));
  if (!settings.value("secret_file").text.empty()) all.push_back(secret(settings));
  check_port<RouterOptions>(settings, "router", router_settings(), all);
  check_port<BootstrapServerOptions>(settings, "bootstrap", bootstrap_settings(), all);
  all.push_back(limit(RLIMIT_NOFILE, kFdsLeast, "fd_limit", " files",
                      "ulimit -n 65536, or LimitNOFILE=65536 in the unit: peers need descriptors"));
  all.push_back(
      limit(RLIMIT_MEMLOCK, kLockedLeast, "locked_memory", " bytes",
            "ulimit -l unlimited, or LimitMEMLOCK=infinity: MSG_ZEROCOPY and pinned pages "
            "count against it"));
  all.push_back(attach());
  all.push_back(congestion(settings));
  rlimit locked{};
  ::getrlimit(RLIMIT_MEMLOCK, &locked);
  for (Check& check : check_fabrics(
           {}, locked.rlim_cur == RLIM_INFINITY ? UINT64_MAX : std::uint64_t{locked.rlim_cur})) {
    all.push_back(std::move(check));
  }
  return all;
}

}  // namespace kvl::tools
