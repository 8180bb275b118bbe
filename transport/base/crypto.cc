// OpenSSL behind a handful of functions.
#include "transport/base/crypto.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <sys/random.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace kvl::crypto {
namespace {

const unsigned char* raw(Bytes bytes) {
  return reinterpret_cast<const unsigned char*>(bytes.data());
}
unsigned char* raw(std::byte* bytes) { return reinterpret_cast<unsigned char*>(bytes); }

// Looked up once: a look-up per call costs more than the digest of a short message.
const EVP_MD* sha256_method() {
  static const EVP_MD* const method = EVP_MD_fetch(nullptr, "SHA256", nullptr);
  return method;
}

std::vector<std::byte> joined(std::initializer_list<Bytes> parts) {
  std::vector<std::byte> all;
  for (const Bytes part : parts) all.insert(all.end(), part.begin(), part.end());
  return all;
}

// Only a broken OpenSSL fails here; going on would send a guessable key or proof.
void must(bool done) {
  if (!done) std::abort();
}

struct FreePkeyContext {
  void operator()(EVP_PKEY_CTX* context) const { EVP_PKEY_CTX_free(context); }
};

}  // namespace

Key::~Key() { OPENSSL_cleanse(bytes.data(), bytes.size()); }

void random(std::span<std::byte> out) {
  while (!out.empty()) {
    const ssize_t n = ::getrandom(out.data(), out.size(), 0);
    must(n > 0 || errno == EINTR);
    if (n > 0) out = out.subspan(static_cast<std::size_t>(n));
  }
}

bool equal(Bytes a, Bytes b) {
  return a.size() == b.size() && CRYPTO_memcmp(a.data(), b.data(), a.size()) == 0;
}

Digest sha256(std::initializer_list<Bytes> parts) {
  const std::vector<std::byte> all = joined(parts);
  Digest digest{};
  must(EVP_Digest(all.data(), all.size(), raw(digest.data()), nullptr, sha256_method(), nullptr) ==
       1);
  return digest;
}

Digest hmac(Bytes key, std::initializer_list<Bytes> parts) {
  const std::vector<std::byte> all = joined(parts);
  Digest digest{};
  must(HMAC(sha256_method(), key.data(), static_cast<int>(key.size()), raw(Bytes(all)), all.size(),
            raw(digest.data()), nullptr) != nullptr);
  return digest;
}

Key extract(Bytes salt, Bytes input) {
  Key key;
  key.bytes = hmac(salt, {input});
  return key;
}

Key expand(Bytes key, std::string_view purpose, Bytes context) {
  static constexpr std::byte kFirstBlock[] = {std::byte{1}};
  Key made;
  made.bytes = hmac(key, {bytes_of(purpose), context, kFirstBlock});
  return made;
}

void Exchange::Free::operator()(evp_pkey_st* key) const { EVP_PKEY_free(key); }

Exchange::Exchange(Bytes seed)
    : secret_(EVP_PKEY_new_raw_private_key(EVP_PKEY_X25519, nullptr, raw(seed), seed.size())) {
  must(secret_ != nullptr);
}

Digest Exchange::share() const {
  Digest share{};
  std::size_t bytes = share.size();
  must(EVP_PKEY_get_raw_public_key(secret_.get(), raw(share.data()), &bytes) == 1);
  return share;
}

bool Exchange::agree(Bytes other_share, Key& shared) const {
  const std::unique_ptr<EVP_PKEY, Free> other(
      EVP_PKEY_new_raw_public_key(EVP_PKEY_X25519, nullptr, raw(other_share), other_share.size()));
  if (other == nullptr) return false;
  const std::unique_ptr<EVP_PKEY_CTX, FreePkeyContext> context(
      EVP_PKEY_CTX_new(secret_.get(), nullptr));
  std::size_t bytes = shared.bytes.size();
  // Fails for shares of low order, whose product everybody knows.
  return context != nullptr && EVP_PKEY_derive_init(context.get()) == 1 &&
         EVP_PKEY_derive_set_peer(context.get(), other.get()) == 1 &&
         EVP_PKEY_derive(context.get(), raw(shared.bytes.data()), &bytes) == 1 &&
         bytes == shared.bytes.size();
}

void Aead::Free::operator()(evp_cipher_ctx_st* context) const { EVP_CIPHER_CTX_free(context); }

Aead::Aead(Use use, Bytes key) : context_(EVP_CIPHER_CTX_new()) {
  must(context_ != nullptr && (key.size() == 16 || key.size() == 32));
  const EVP_CIPHER* const method = key.size() == 16 ? EVP_aes_128_ocb() : EVP_aes_256_gcm();
  must(EVP_CipherInit_ex(context_.get(), method, nullptr, raw(key), nullptr,
                         use == Use::seal ? 1 : 0) == 1);
}

Aead::Aead(Aead&&) noexcept = default;
Aead& Aead::operator=(Aead&&) noexcept = default;
Aead::~Aead() = default;

bool Aead::begin(std::uint64_t counter, Bytes header, std::byte* out) {
  std::array<unsigned char, 12> nonce{};
  std::memcpy(nonce.data() + 4, &counter, sizeof(counter));
  int bytes = 0;
  out_ = out;
  return EVP_CipherInit_ex(context_.get(), nullptr, nullptr, nullptr, nonce.data(), -1) == 1 &&
         (header.empty() || EVP_CipherUpdate(context_.get(), nullptr, &bytes, raw(header),
                                             static_cast<int>(header.size())) == 1);
}

// OCB works on whole blocks: what is left of an input comes out with the next one, or at the end.
bool Aead::update(Bytes in) {
  int bytes = 0;
  if (!in.empty() && EVP_CipherUpdate(context_.get(), raw(out_), &bytes, raw(in),
                                      static_cast<int>(in.size())) != 1) {
    return false;
  }
  out_ += bytes;
  return true;
}

bool Aead::finish() {
  std::array<unsigned char, 16> rest{};
  int bytes = 0;
  if (EVP_CipherFinal_ex(context_.get(), rest.data(), &bytes) != 1) return false;
  if (bytes > 0) std::memcpy(out_, rest.data(), static_cast<std::size_t>(bytes));
  return true;
}

bool Aead::seal_end(std::byte* tag) {
  return finish() && EVP_CIPHER_CTX_ctrl(context_.get(), EVP_CTRL_AEAD_GET_TAG,
                                         static_cast<int>(kTagBytes), tag) == 1;
}

bool Aead::open_end(const std::byte* tag) {
  std::array<std::byte, kTagBytes> expected{};
  std::memcpy(expected.data(), tag, kTagBytes);
  return EVP_CIPHER_CTX_ctrl(context_.get(), EVP_CTRL_AEAD_SET_TAG, static_cast<int>(kTagBytes),
                             expected.data()) == 1 &&
         finish();
}

}  // namespace kvl::crypto
