// Shared secrets: where they come from, and which listeners must have one.
#include "kvl/security.h"

#include <algorithm>
#include <cstring>

#include "transport/base/address.h"
#include "transport/base/private_file.h"

namespace kvl {
namespace {

constexpr std::size_t kFileBytesMax = 64u << 10;

// The compiler may not drop it, although nobody reads the bytes any more.
void wipe(std::string& text) { ::explicit_bzero(text.data(), text.size()); }

Status fail(std::string* error, Code code, const char* context, std::string sentence,
            int os_error = 0) {
  if (error != nullptr) *error = std::move(sentence);
  return {code, context, os_error};
}

std::string_view trimmed(std::string_view text) {
  constexpr std::string_view kBlanks = " \t\r";
  const std::size_t first = text.find_first_not_of(kBlanks);
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(kBlanks) - first + 1);
}

}  // namespace

std::vector<Setting> security_settings() {
  using C = SecurityConfig;
  Setting secret = setting<&C::secret>(
      "secret", "", 0, 0,
      "the shared secret, at least 32 characters; only as KVLANE_SECRET, never a flag");
  secret.secret = true;
  return {
      secret,
      setting<&C::secret_file>("secret_file", "", 0, 0,
                               "file with the shared secret, one a line, newest first; mode 600"),
      setting<&C::insecure>("insecure", "", 0, 0,
                            "listen beyond loopback without a secret: whoever can connect may "
                            "read and write KV memory"),
      setting<&C::encrypt>("encrypt", "", 0, 0,
                           "on: data lanes are encrypted, too; needs a secret; one side that wants "
                           "it is enough"),
  };
}

Secrets::~Secrets() { std::for_each(all_.begin(), all_.end(), wipe); }

Result<Secrets> Secrets::parse(std::string_view text, std::string* error) {
  Secrets secrets;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    const std::string_view line = trimmed(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
    if (line.empty() || line.front() == '#') continue;
    if (line.size() < kSecretBytesMin || line.size() > kSecretBytesMax) {
      return fail(error, Code::invalid_argument, "a secret has 32 to 1024 characters",
                  "a secret has 32 to 1024 characters, this one has " +
                      std::to_string(line.size()) + "; make one with: openssl rand -base64 32");
    }
    if (secrets.all_.size() == kSecretsMax) {
      return fail(error, Code::invalid_argument, "too many secrets",
                  "at most 4 secrets may be valid at a time");
    }
    if (std::find(secrets.all_.begin(), secrets.all_.end(), line) != secrets.all_.end()) {
      return fail(error, Code::invalid_argument, "a secret is there twice",
                  "a secret is there twice; remove one of the lines");
    }
    secrets.all_.emplace_back(line);
  }
  return secrets;
}

Result<Secrets> load_secrets(const SecurityConfig& config, std::string* error) {
  if (config.secret.empty() && config.secret_file.empty()) return Secrets{};
  if (!config.secret.empty() && !config.secret_file.empty()) {
    return fail(error, Code::invalid_argument, "both KVLANE_SECRET and secret_file",
                "both KVLANE_SECRET and secret_file are set; use one of them");
  }
  const bool from_file = !config.secret_file.empty();
  Result<std::string> text = config.secret;
  if (from_file) text = read_private_file(config.secret_file, "secret_file", kFileBytesMax, error);
  if (!text) return text.status();
  std::string why;
  Result<Secrets> secrets = Secrets::parse(*text, &why);
  wipe(*text);
  const std::string source = from_file ? "secret_file " + config.secret_file : "KVLANE_SECRET";
  if (!secrets) return fail(error, secrets.code(), secrets.status().context(), source + ": " + why);
  if (secrets->empty()) {
    return fail(error, Code::invalid_argument, "no secret there", source + " holds no secret");
  }
  return secrets;
}

Result<Secrets> load_secrets(const Settings& settings, std::string* error) {
  return load_secrets(settings.read<SecurityConfig>(security_settings()), error);
}

bool is_loopback(std::string_view address) {
  std::string text(address);
  const bool bare_v6 = std::count(text.begin(), text.end(), ':') > 1 && text.front() != '[';
  if (bare_v6) text = "[" + text + "]";
  const std::size_t port = text.rfind(':');
  const std::size_t bracket = text.rfind(']');
  if (port == std::string::npos || (bracket != std::string::npos && port < bracket)) text += ":0";
  const auto parsed = parse_address(text);
  return parsed.ok() && parsed->loopback();
}

Status check_listener(std::string_view setting, std::string_view address, bool has_secret,
                      bool insecure, std::string* error) {
  if (has_secret || insecure || is_loopback(address)) return {};
  const std::string what(setting);
  return fail(error, Code::permission,
              "a listener beyond loopback needs a secret: set secret_file or KVLANE_SECRET",
              what + " is " + std::string(address) +
                  ", which other hosts can reach, and there is no secret: name a file with "
                  "secret_file (or set KVLANE_SECRET), the same on every host; or set " +
                  what + " to a loopback address; or accept everybody with insecure=true");
}

Status check_listener(std::string_view setting, std::string_view address, const Settings& settings,
                      std::string* error) {
  const auto config = settings.read<SecurityConfig>(security_settings());
  const bool has_secret = !config.secret.empty() || !config.secret_file.empty();
  return check_listener(setting, address, has_secret, config.insecure, error);
}

}  // namespace kvl
