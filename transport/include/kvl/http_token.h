// How HTTP clients of kvlane's listeners show that they have the shared secret. A token is made
// from it, which does not tell it. kvlane's own clients never send the token: they sign each
// request with it. People and scripts send it, as "Authorization: Bearer TOKEN"; without TLS
// whoever can read the network can take it then.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "kvl/security.h"
#include "kvl/status.h"

namespace kvl {

// HMAC-SHA-256 of "kvlane http 1" under the secret, in hex. By hand:
//   printf 'kvlane http 1' | openssl dgst -sha256 -hmac "$SECRET"
std::string http_token(std::string_view secret);
// Of the newest secret, which clients show; "" without one.
std::string http_token(const Secrets& secrets);

// The parts of a request that a signature covers.
struct SignedRequest {
  std::string_view method, target, body;
};
// The value of Authorization: "KVL1 SECONDS MAC", an HMAC-SHA-256 under the token. Good for
// kSignatureSecs around `unix_secs`, and for this request only.
inline constexpr std::int64_t kSignatureSecs = 300;
std::string http_signature(std::string_view token, const SignedRequest& request,
                           std::int64_t unix_secs);

// One key a line; blank lines and lines that begin with # do not count. The file must be private:
// errors as read by load_secrets(). A path of "" has none.
Result<std::vector<std::string>> load_api_keys(const std::string& path,
                                               std::string* error = nullptr);

// The tokens that a listener accepts. Immutable; any thread.
class HttpTokens {
 public:
  HttpTokens() = default;
  explicit HttpTokens(const Secrets& secrets);
  explicit HttpTokens(std::vector<std::string> keys) : tokens_(std::move(keys)) {}

  bool empty() const { return tokens_.empty(); }
  // `authorization`: the header's value, "Bearer …". Takes as long for a wrong token as for a right
  // one.
  bool accept(std::string_view authorization) const;
  // The same, or a signature of this request.
  bool accept(std::string_view authorization, const SignedRequest& request,
              std::int64_t unix_secs) const;

 private:
  std::vector<std::string> tokens_;
};

}  // namespace kvl
