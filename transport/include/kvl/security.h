// Who may talk to this process: the shared secret, and when there must be one. One definition for
// the engine and for every HTTP listener. docs/security.md tells the operator.
//
// A secret is at least 32 characters. It comes from a file (secret_file, one secret a line, newest
// first) or from the environment (KVLANE_SECRET); never from a flag or a configuration file, and no
// function of kvlane prints it. Several secrets are valid at a time, so that they can be rotated.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "kvl/config.h"
#include "kvl/status.h"

namespace kvl {

inline constexpr std::size_t kSecretBytesMin = 32;
inline constexpr std::size_t kSecretBytesMax = 1024;
inline constexpr std::size_t kSecretsMax = 4;

struct SecurityConfig {
  std::string secret;       // from the environment only; the text of a secret file
  std::string secret_file;  // path
  bool insecure = false;    // allow listeners that are not loopback without a secret
  bool encrypt = false;     // seal the data path, too; one side that wants it is enough
};
// Part of engine_settings(); programs without an engine load these rows themselves.
std::vector<Setting> security_settings();

// The secrets in force, newest first; none: whoever can connect is trusted. The bytes are wiped
// when the last copy goes.
class Secrets {
 public:
  Secrets() = default;
  Secrets(const Secrets&) = default;
  Secrets(Secrets&&) noexcept = default;
  Secrets& operator=(const Secrets&) = default;
  Secrets& operator=(Secrets&&) noexcept = default;
  ~Secrets();

  // One secret a line; blank lines, blanks around a secret and lines that begin with # do not
  // count. invalid_argument: too short, too long, too many, two the same. `error` (optional)
  // receives a sentence without the secret.
  static Result<Secrets> parse(std::string_view text, std::string* error = nullptr);

  bool empty() const { return all_.empty(); }
  std::size_t size() const { return all_.size(); }
  const std::string& operator[](std::size_t i) const { return all_[i]; }

 private:
  std::vector<std::string> all_;
};

// From secret_file or the environment. permission: the file is readable by everybody or writable by
// others; not_found: no such file; invalid_argument: as parse(), or both sources are set.
Result<Secrets> load_secrets(const SecurityConfig& config, std::string* error = nullptr);
// The same with the rows of security_settings() in `settings`.
Result<Secrets> load_secrets(const Settings& settings, std::string* error = nullptr);

// "127.0.0.1", "[::1]:80", "localhost:0": only processes of this host can connect. Names are
// resolved. An address that cannot be read is not loopback.
bool is_loopback(std::string_view address);

// The rule of every listener: loopback, or a secret, or insecure=true. `setting` is what the
// operator would change ("listen", "router.host"), `address` its value, with or without a port.
// permission: refused; `error` (optional) receives a sentence that says what to do.
Status check_listener(std::string_view setting, std::string_view address, bool has_secret,
                      bool insecure, std::string* error = nullptr);
// The same with what `settings` say of secrets.
Status check_listener(std::string_view setting, std::string_view address, const Settings& settings,
                      std::string* error = nullptr);

}  // namespace kvl
