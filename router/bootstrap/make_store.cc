// Checks of what an operator may get wrong.
#include "router/bootstrap/make_store.h"

#include <algorithm>
#include <random>
#include <utility>

#include "router/bootstrap/memory_store.h"
#include "transport/base/private_file.h"

namespace kvl::bootstrap {
namespace {

constexpr std::size_t kPasswordBytesMax = 1024;

std::uint64_t random_seed() {
  return std::random_device{}() | std::uint64_t{std::random_device{}()} << 32;
}

Status wrong(std::string* error, std::string sentence, Code code = Code::invalid_argument) {
  if (error != nullptr) *error = std::move(sentence);
  return {code, "the options of the rendezvous' store"};
}

Status read_password(const BootstrapServerOptions& options, std::string& password,
                     std::string* error) {
  password = options.etcd_password;
  if (!options.etcd_password_file.empty()) {
    if (!password.empty()) {
      return wrong(error,
                   "both bootstrap.etcd_password_file and KVLANE_BOOTSTRAP_ETCD_PASSWORD are set; "
                   "use one of them");
    }
    Result<std::string> text = read_private_file(
        options.etcd_password_file, "bootstrap.etcd_password_file", kPasswordBytesMax, error);
    if (!text.ok()) return text.status();
    password = text->substr(0, text->find_first_of("\r\n"));
  }
  if (options.etcd_user.empty() != password.empty()) {
    return wrong(error,
                 "bootstrap.etcd_user needs a password (bootstrap.etcd_password_file, or "
                 "KVLANE_BOOTSTRAP_ETCD_PASSWORD), and a password needs the user");
  }
  return {};
}

}  // namespace

Result<EtcdStoreOptions> etcd_options(const BootstrapServerOptions& options, std::string* error) {
  EtcdStoreOptions out;
  std::string_view list = options.etcd_endpoints;
  while (!list.empty()) {
    const std::size_t comma = std::min(list.find(','), list.size());
    const std::string_view text = list.substr(0, comma);
    list.remove_prefix(std::min(list.size(), comma + 1));
    const std::optional<http::Url> url = http::parse_url(text);
    if (!url.has_value()) {
      return wrong(error, "bootstrap.etcd_endpoints: '" + std::string(text) +
                              "' is not a URL like http://HOST:2379");
    }
    out.client.endpoints.push_back(*url);
  }
  if (out.client.endpoints.empty()) {
    return wrong(error,
                 "bootstrap.store=etcd needs bootstrap.etcd_endpoints, like "
                 "http://a:2379,http://b:2379,http://c:2379");
  }
  if (options.etcd_prefix.empty()) {
    return wrong(error, "bootstrap.etcd_prefix must not be empty: others may use etcd, too");
  }
  const bool tls = std::any_of(out.client.endpoints.begin(), out.client.endpoints.end(),
                               [](const http::Url& url) { return url.tls; });
  if (tls) {
    Result<std::shared_ptr<TlsContext>> context =
        TlsContext::client({.cert = options.etcd_client_cert_path,
                            .key = options.etcd_client_key_path,
                            .ca = options.etcd_ca_cert_path},
                           error);
    if (!context.ok()) return context.status();
    out.client.tls = *std::move(context);
  }
  KVL_TRY(read_password(options, out.client.password, error));
  out.client.user = options.etcd_user;
  out.client.timeout_ms = options.etcd_timeout_ms;
  out.prefix = options.etcd_prefix;
  out.probe_ms = options.etcd_probe_ms;
  out.records_max = options.records_max;
  out.seed = random_seed();
  return out;
}

Result<OpenStore> make_store(http::Loop& loop, const Clock& clock,
                             const BootstrapServerOptions& options, std::string* error) {
  OpenStore out;
  if (options.store == "memory") {
    out.store = std::make_unique<MemoryStore>(clock, random_seed(), options.records_max);
  } else if (options.store == "etcd") {
    Result<EtcdStoreOptions> etcd = etcd_options(options, error);
    if (!etcd.ok()) return etcd.status();
    auto store = std::make_unique<EtcdStore>(loop, clock, *std::move(etcd));
    out.etcd = store.get();
    out.store = std::move(store);
  } else {
    return wrong(error, "bootstrap.store must be memory or etcd, not '" + options.store + "'");
  }
  return out;
}

}  // namespace kvl::bootstrap
