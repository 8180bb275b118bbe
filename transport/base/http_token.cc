// Tokens from secrets, and their comparison.
#include "kvl/http_token.h"

#include <algorithm>
#include <charconv>

#include "transport/base/crypto.h"
#include "transport/base/private_file.h"

namespace kvl {
namespace {

using crypto::bytes_of;

constexpr std::string_view kPurpose = "kvlane http 1";
constexpr std::size_t kFileBytesMax = 64 << 10;
constexpr std::size_t kKeyBytesMin = 16;

std::string hex(const crypto::Digest& bytes) {
  constexpr std::string_view kHex = "0123456789abcdef";
  std::string out;
  for (const std::byte byte : bytes) {
    const auto value = std::to_integer<unsigned>(byte);
    out.append({kHex[value >> 4], kHex[value & 15]});
  }
  return out;
}

std::string hmac(std::string_view key, std::string_view text) {
  return hex(crypto::hmac(bytes_of(key), {bytes_of(text)}));
}

// Digests have one length, so that the comparison tells nothing about the text's.
bool equal(std::string_view a, std::string_view b) {
  return crypto::equal(crypto::sha256({bytes_of(a)}), crypto::sha256({bytes_of(b)}));
}

}  // namespace

std::string http_token(std::string_view secret) { return hmac(secret, kPurpose); }

std::string http_signature(std::string_view token, const SignedRequest& request,
                           std::int64_t unix_secs) {
  const std::string when = std::to_string(unix_secs);
  std::string text = when;
  text.append("\n").append(request.method).append("\n").append(request.target).append("\n");
  text.append(hex(crypto::sha256({bytes_of(request.body)})));
  return "KVL1 " + when + " " + hmac(token, text);
}

std::string http_token(const Secrets& secrets) {
  return secrets.empty() ? std::string() : http_token(std::string_view(secrets[0]));
}

Result<std::vector<std::string>> load_api_keys(const std::string& path, std::string* error) {
  std::vector<std::string> keys;
  if (path.empty()) return keys;
  const Result<std::string> text =
      read_private_file(path, "the file of API keys", kFileBytesMax, error);
  if (!text.ok()) return text.status();
  std::string_view rest = *text;
  while (!rest.empty()) {
    const std::size_t end = std::min(rest.find('\n'), rest.size());
    std::string_view line = rest.substr(0, end);
    rest.remove_prefix(std::min(end + 1, rest.size()));
    while (!line.empty() && (line.back() == '\r' || line.back() == ' ')) line.remove_suffix(1);
    if (line.empty() || line.front() == '#') continue;
    if (line.size() < kKeyBytesMin) {
      if (error != nullptr) *error = "an API key in " + path + " has less than 16 characters";
      return Status{Code::invalid_argument, "an API key is too short"};
    }
    keys.emplace_back(line);
  }
  if (keys.empty()) {
    if (error != nullptr) *error = path + " holds no API key";
    return Status{Code::invalid_argument, "no API key there"};
  }
  return keys;
}

HttpTokens::HttpTokens(const Secrets& secrets) {
  for (std::size_t i = 0; i < secrets.size(); ++i) {
    tokens_.push_back(http_token(std::string_view(secrets[i])));
  }
}

bool HttpTokens::accept(std::string_view authorization) const {
  constexpr std::string_view kScheme = "bearer ";
  if (authorization.size() < kScheme.size()) return false;
  for (std::size_t i = 0; i < kScheme.size(); ++i) {
    const char c = authorization[i];
    if ((c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c) != kScheme[i]) return false;
  }
  unsigned found = 0;
  for (const std::string& token : tokens_) {
    found |= static_cast<unsigned>(equal(token, authorization.substr(kScheme.size())));
  }
  return found != 0;
}

bool HttpTokens::accept(std::string_view authorization, const SignedRequest& request,
                        std::int64_t unix_secs) const {
  constexpr std::string_view kScheme = "KVL1 ";
  if (!authorization.starts_with(kScheme)) return accept(authorization);
  const std::string_view rest = authorization.substr(kScheme.size());
  std::int64_t when = 0;
  const auto [end, errc] = std::from_chars(rest.data(), rest.data() + rest.size(), when);
  if (errc != std::errc{} || when < 0) return false;
  if (when < unix_secs - kSignatureSecs || when > unix_secs + kSignatureSecs) return false;
  unsigned found = 0;
  for (const std::string& token : tokens_) {
    found |= static_cast<unsigned>(equal(http_signature(token, request, when), authorization));
  }
  return found != 0;
}

}  // namespace kvl
