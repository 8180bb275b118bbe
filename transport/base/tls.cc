// Contexts over OpenSSL.
#include "kvl/tls.h"

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509_vfy.h>

#include <cerrno>
#include <new>
#include <system_error>
#include <utility>

#include "transport/base/private_file.h"

namespace kvl {
namespace {

constexpr std::size_t kKeyBytesMax = 64 << 10;

struct Free {
  void operator()(SSL_CTX* context) const { SSL_CTX_free(context); }
  void operator()(BIO* bio) const { BIO_free(bio); }
  void operator()(EVP_PKEY* key) const { EVP_PKEY_free(key); }
};
using Context = std::unique_ptr<SSL_CTX, Free>;

// OpenSSL's complaint in its own words; the system's where a call to that began it, and then
// `number` is errno.
std::string complaint(int* number = nullptr) {
  const unsigned long first = ERR_peek_error(), last = ERR_peek_last_error();
  ERR_clear_error();
  if (number != nullptr) *number = ERR_SYSTEM_ERROR(first) ? ERR_GET_REASON(first) : 0;
  if (ERR_SYSTEM_ERROR(first)) return std::generic_category().message(ERR_GET_REASON(first));
  const char* const reason = last == 0 ? nullptr : ERR_reason_error_string(last);
  return reason == nullptr ? "OpenSSL gives no reason" : reason;
}

Status fail(std::string* error, std::string sentence, Code code = Code::invalid_argument) {
  if (error != nullptr) *error = std::move(sentence);
  return {code, "set up TLS"};
}

// `what` could not be read from a file.
Status unreadable(std::string* error, const std::string& what) {
  int number = 0;
  const std::string why = complaint(&number);
  return fail(error, what + " cannot be used: " + why,
              number == ENOENT   ? Code::not_found
              : number == EACCES ? Code::permission
                                 : Code::invalid_argument);
}

Status load_own(SSL_CTX* context, const TlsFiles& files, std::string* error) {
  if (SSL_CTX_use_certificate_chain_file(context, files.cert.c_str()) != 1) {
    return unreadable(error, "the certificate " + files.cert);
  }
  if (X509_cmp_current_time(X509_get0_notAfter(SSL_CTX_get0_certificate(context))) < 0) {
    return fail(error, "the certificate " + files.cert + " has expired");
  }
  const Result<std::string> text = read_private_file(files.key, "the key", kKeyBytesMax, error);
  if (!text.ok()) return text.status();
  const std::unique_ptr<BIO, Free> bio(
      BIO_new_mem_buf(text->data(), static_cast<int>(text->size())));
  // No prompt for a passphrase: a program that waits for one has no terminal.
  const auto no_passphrase = [](char*, int, int, void*) { return -1; };
  const std::unique_ptr<EVP_PKEY, Free> key(
      PEM_read_bio_PrivateKey(bio.get(), nullptr, no_passphrase, nullptr));
  if (key == nullptr) {
    return fail(error, "the key " + files.key + " cannot be used: " + complaint() +
                           " (keys with a passphrase are not supported)");
  }
  if (SSL_CTX_use_PrivateKey(context, key.get()) != 1 || SSL_CTX_check_private_key(context) != 1) {
    return fail(error,
                "the key " + files.key + " does not belong to " + files.cert + ": " + complaint());
  }
  return {};
}

Result<SSL_CTX*> make(const TlsFiles& files, bool server, std::string* error) {
  ERR_clear_error();
  Context context(SSL_CTX_new(server ? TLS_server_method() : TLS_client_method()));
  if (context == nullptr) return fail(error, "OpenSSL: " + complaint(), Code::exhausted);
  SSL_CTX_set_min_proto_version(context.get(),
                                files.allow_tls_1_2 ? TLS1_2_VERSION : TLS1_3_VERSION);
  SSL_CTX_set_options(context.get(),
                      SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION | SSL_OP_NO_TICKET);
  SSL_CTX_set_num_tickets(context.get(), 0);
  SSL_CTX_set_session_cache_mode(context.get(), SSL_SESS_CACHE_OFF);
  SSL_CTX_set_mode(context.get(), SSL_MODE_ENABLE_PARTIAL_WRITE |
                                      SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER |
                                      SSL_MODE_RELEASE_BUFFERS);
  if (files.cert.empty() != files.key.empty() || (server && files.cert.empty())) {
    return fail(error, "TLS needs a certificate and its key, both");
  }
  if (!files.cert.empty()) KVL_TRY(load_own(context.get(), files, error));
  if (!files.ca.empty()) {
    if (SSL_CTX_load_verify_file(context.get(), files.ca.c_str()) != 1) {
      return unreadable(error, "the authorities in " + files.ca);
    }
    if (server)
      SSL_CTX_set_client_CA_list(context.get(), SSL_load_client_CA_file(files.ca.c_str()));
  } else if (!server) {
    SSL_CTX_set_default_verify_paths(context.get());
  }
  const bool verify = !server || !files.ca.empty();
  SSL_CTX_set_verify(context.get(),
                     verify ? SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT : SSL_VERIFY_NONE,
                     nullptr);
  ERR_clear_error();
  return context.release();
}

}  // namespace

Result<std::shared_ptr<TlsContext>> TlsContext::server(const TlsFiles& files, std::string* error) {
  std::shared_ptr<TlsContext> out(new TlsContext(files, true));
  KVL_TRY(out->reload(error));
  return out;
}

Result<std::shared_ptr<TlsContext>> TlsContext::client(const TlsFiles& files, std::string* error) {
  std::shared_ptr<TlsContext> out(new TlsContext(files, false));
  KVL_TRY(out->reload(error));
  return out;
}

TlsContext::~TlsContext() { SSL_CTX_free(context_); }

Status TlsContext::reload(std::string* error) {
  const Result<SSL_CTX*> fresh = make(files_, is_server_, error);
  if (!fresh.ok()) return fresh.status();
  const std::lock_guard lock(mutex_);
  SSL_CTX_free(std::exchange(context_, *fresh));
  return {};
}

SSL_CTX* TlsContext::acquire() const {
  const std::lock_guard lock(mutex_);
  SSL_CTX_up_ref(context_);
  return context_;
}

SSL* TlsContext::new_server() const {
  const Context context(acquire());
  SSL* const ssl = SSL_new(context.get());
  if (ssl == nullptr) throw std::bad_alloc();
  SSL_set_accept_state(ssl);
  return ssl;
}

SSL* TlsContext::new_client(const std::string& host) const {
  const Context context(acquire());
  SSL* const ssl = SSL_new(context.get());
  if (ssl == nullptr) throw std::bad_alloc();
  expect_host(ssl, host);
  SSL_set_connect_state(ssl);
  return ssl;
}

void TlsContext::expect_host(SSL* connection, const std::string& host) {
  X509_VERIFY_PARAM* const wanted = SSL_get0_param(connection);
  if (X509_VERIFY_PARAM_set1_ip_asc(wanted, host.c_str()) != 1) {
    X509_VERIFY_PARAM_set1_host(wanted, host.c_str(), host.size());
    SSL_set_tlsext_host_name(connection, host.c_str());
  }
  ERR_clear_error();
}

}  // namespace kvl
