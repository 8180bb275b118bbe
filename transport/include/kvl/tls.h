// TLS for the HTTP listeners and clients of kvlane: certificates, keys and what is required of the
// other side. TLS 1.3 unless 1.2 is allowed; no renegotiation, no compression, no resumption, so
// that every connection shows its certificate anew. docs/security.md tells the operator.
#pragma once

#include <memory>
#include <mutex>
#include <string>

#include "kvl/status.h"

struct ssl_ctx_st;
struct ssl_st;

namespace kvl {

// Paths of PEM files.
struct TlsFiles {
  std::string cert;  // our certificate, then those between it and the root
  std::string key;   // its private key; refused when others can read it
  // A server: clients must show a certificate that these authorities signed (mTLS); "": none is
  // asked for. A client: servers must show one; "": the machine's authorities.
  std::string ca;
  bool allow_tls_1_2 = false;
};

// What the connections of one listener or client share. Thread-safe.
class TlsContext {
 public:
  // Server: cert and key are needed. Client: both or neither. Errors: not_found, permission (the
  // key is open to others), invalid_argument (not PEM, expired, a key of another certificate).
  // `error` (optional) receives a sentence that names the file.
  static Result<std::shared_ptr<TlsContext>> server(const TlsFiles& files,
                                                    std::string* error = nullptr);
  static Result<std::shared_ptr<TlsContext>> client(const TlsFiles& files,
                                                    std::string* error = nullptr);
  ~TlsContext();
  TlsContext(const TlsContext&) = delete;
  TlsContext& operator=(const TlsContext&) = delete;

  // Reads the files again; connections from now on use what they hold. On an error nothing changes.
  Status reload(std::string* error = nullptr);

  // OpenSSL's context, with a reference for the caller (SSL_CTX_free).
  ssl_ctx_st* acquire() const;
  // A connection's state; the caller frees it (SSL_free). A client names the host that the
  // certificate must be for: a name or an address.
  ssl_st* new_server() const;
  ssl_st* new_client(const std::string& host) const;
  static void expect_host(ssl_st* connection, const std::string& host);

 private:
  TlsContext(TlsFiles files, bool is_server) : files_(std::move(files)), is_server_(is_server) {}

  const TlsFiles files_;
  const bool is_server_;
  mutable std::mutex mutex_;  // guards what follows
  ssl_ctx_st* context_ = nullptr;
};

}  // namespace kvl
