// A BIO that sends without SIGPIPE, and the translation of OpenSSL's outcomes.
#include "router/http/tls_channel.h"

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509_vfy.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <new>

namespace kvl::http {
namespace {

constexpr std::size_t kRecordBytes = 16 << 10;

int fd_of(BIO* bio) { return static_cast<int>(reinterpret_cast<std::intptr_t>(BIO_get_data(bio))); }

int bio_write(BIO* bio, const char* data, int size) {
  BIO_clear_retry_flags(bio);
  const ssize_t sent =
      ::send(fd_of(bio), data, static_cast<std::size_t>(size), MSG_NOSIGNAL | MSG_DONTWAIT);
  if (sent < 0 && (errno == EAGAIN || errno == EINTR)) BIO_set_retry_write(bio);
  return static_cast<int>(sent);
}

int bio_read(BIO* bio, char* data, int size) {
  BIO_clear_retry_flags(bio);
  const ssize_t got = ::recv(fd_of(bio), data, static_cast<std::size_t>(size), MSG_DONTWAIT);
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) BIO_set_retry_read(bio);
  if (got == 0) BIO_set_flags(bio, BIO_FLAGS_IN_EOF);
  return static_cast<int>(got);
}

long bio_ctrl(BIO* bio, int command, long, void*) {
  if (command == BIO_CTRL_FLUSH) return 1;
  if (command == BIO_CTRL_EOF) return BIO_test_flags(bio, BIO_FLAGS_IN_EOF) != 0 ? 1 : 0;
  return 0;
}

// Made once for the process; OpenSSL keeps it as long.
const BIO_METHOD* bio_method() {
  static const BIO_METHOD* const method = [] {
    BIO_METHOD* const made = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "kvlane");
    if (made == nullptr) throw std::bad_alloc();
    BIO_meth_set_write(made, bio_write);
    BIO_meth_set_read(made, bio_read);
    BIO_meth_set_ctrl(made, bio_ctrl);
    return made;
  }();
  return method;
}

}  // namespace

void TlsChannel::Free::operator()(SSL* ssl) const { SSL_free(ssl); }

TlsChannel::TlsChannel(SSL* ssl, int fd) : ssl_(ssl) {
  BIO* const bio = BIO_new(bio_method());
  if (bio == nullptr) throw std::bad_alloc();
  BIO_set_data(bio, reinterpret_cast<void*>(static_cast<std::intptr_t>(fd)));
  BIO_set_init(bio, 1);
  SSL_set_bio(ssl, bio, bio);
}

TlsChannel::~TlsChannel() = default;

bool TlsChannel::established() const { return SSL_is_init_finished(ssl_.get()) == 1; }

TlsChannel::Want TlsChannel::outcome(int result) {
  switch (SSL_get_error(ssl_.get(), result)) {
    case SSL_ERROR_NONE:
      return Want::nothing;
    case SSL_ERROR_WANT_READ:
      return Want::read;
    case SSL_ERROR_WANT_WRITE:
      return Want::write;
    case SSL_ERROR_ZERO_RETURN:
      return Want::closed;
    default:
      break;
  }
  const long verified = SSL_get_verify_result(ssl_.get());
  const unsigned long code = ERR_peek_last_error();
  const char* const reason = code == 0 ? nullptr : ERR_reason_error_string(code);
  if (verified != X509_V_OK) {
    problem_ = X509_verify_cert_error_string(verified);
  } else {
    problem_ = reason != nullptr ? reason : "the connection was closed";
  }
  ERR_clear_error();
  return Want::failed;
}

TlsChannel::Want TlsChannel::handshake() {
  ERR_clear_error();
  return outcome(SSL_do_handshake(ssl_.get()));
}

TlsChannel::Want TlsChannel::read(char* at, std::size_t room, std::size_t& got) {
  ERR_clear_error();
  got = 0;
  return outcome(SSL_read_ex(ssl_.get(), at, room, &got));
}

TlsChannel::Want TlsChannel::push(const char* data, std::size_t size) {
  ERR_clear_error();
  std::size_t sent = 0;
  return outcome(SSL_write_ex(ssl_.get(), data, size, &sent));
}

// Small parts are put together, so that a head and a body are one record. One record is written
// whole or not at all: what the socket does not take stays inside OpenSSL.
TlsChannel::Want TlsChannel::write(std::span<iovec>& parts) {
  if (!unsent_.empty()) {
    const Want want = push(unsent_.data(), unsent_.size());
    if (want != Want::nothing) return want;
    unsent_.clear();
  }
  std::array<char, kRecordBytes> record;
  while (!parts.empty()) {
    std::size_t size = 0;
    while (!parts.empty() && size < record.size()) {
      iovec& part = parts.front();
      const std::size_t take = std::min(part.iov_len, record.size() - size);
      std::memcpy(record.data() + size, part.iov_base, take);
      size += take;
      part.iov_base = static_cast<char*>(part.iov_base) + take;
      part.iov_len -= take;
      if (part.iov_len == 0) parts = parts.subspan(1);
    }
    const Want want = push(record.data(), size);
    if (want == Want::nothing) continue;
    unsent_.assign(record.data(), size);
    return want;
  }
  return Want::nothing;
}

void TlsChannel::say_end() {
  if (!established()) return;
  ERR_clear_error();
  (void)SSL_shutdown(ssl_.get());
  ERR_clear_error();
}

}  // namespace kvl::http
