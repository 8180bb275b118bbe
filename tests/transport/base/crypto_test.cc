// Cryptographic building blocks against published vectors, and the refusals of its AEADs.
#include "transport/base/crypto.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace kvl::crypto {
namespace {

std::vector<std::byte> hex(const std::string& text) {
  std::vector<std::byte> out;
  for (std::size_t i = 0; i + 1 < text.size(); i += 2) {
    out.push_back(static_cast<std::byte>(std::stoi(text.substr(i, 2), nullptr, 16)));
  }
  return out;
}

template <typename T>
std::vector<std::byte> all(const T& bytes) {
  return {bytes.begin(), bytes.end()};
}

TEST(Crypto, KnownAnswers) {
  // FIPS 180-2, RFC 4231 test 2, RFC 5869 test 1 (one block), RFC 7748 section 5.2.
  EXPECT_EQ(all(sha256({bytes_of("a"), bytes_of("bc")})),
            hex("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"));
  EXPECT_EQ(all(hmac(bytes_of("Jefe"), {bytes_of("what do ya want "), bytes_of("for nothing?")})),
            hex("5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"));
  const Key prk = extract(hex("000102030405060708090a0b0c"),
                          hex("0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b"));
  EXPECT_EQ(all(prk.bytes),
            hex("077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5"));
  EXPECT_EQ(all(expand(prk, "", hex("f0f1f2f3f4f5f6f7f8f9")).bytes),
            hex("3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf"));
  const Exchange scalar(hex("a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4"));
  Key product;
  ASSERT_TRUE(scalar.agree(hex("e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c"),
                           product));
  EXPECT_EQ(all(product.bytes),
            hex("c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552"));
}

TEST(Crypto, BothSidesAgreeAndLowOrderSharesAreRefused) {
  Key seed_a, seed_b, shared_a, shared_b;
  random(seed_a.bytes);
  random(seed_b.bytes);
  const Exchange a(seed_a), b(seed_b);
  ASSERT_TRUE(a.agree(b.share(), shared_a));
  ASSERT_TRUE(b.agree(a.share(), shared_b));
  EXPECT_EQ(shared_a.bytes, shared_b.bytes);
  EXPECT_FALSE(a.agree(Digest{}, shared_a));
  Digest one{};
  one[0] = std::byte{1};
  EXPECT_FALSE(a.agree(one, shared_a));
  EXPECT_FALSE(a.agree(bytes_of("short"), shared_a));
}

TEST(Crypto, OpensOnlyWhatWasSealedWithThisCounterAndHeader) {
  for (const std::size_t key_bytes : {16U, 32U}) {
    const std::vector<std::byte> key(key_bytes, std::byte{7});
    Aead seal(Aead::Use::seal, key), open(Aead::Use::open, key);
    const std::vector<std::byte> text(1000, std::byte{42});
    std::vector<std::byte> sealed(text.size() + kTagBytes), back(text.size());
    ASSERT_TRUE(seal.begin(5, bytes_of("head"), sealed.data()));
    ASSERT_TRUE(seal.update(Bytes(text).first(333)));
    ASSERT_TRUE(seal.update(Bytes(text).subspan(333)));
    ASSERT_TRUE(seal.seal_end(sealed.data() + text.size()));
    const auto opens = [&](std::uint64_t counter, std::string_view head) {
      return open.begin(counter, bytes_of(head), back.data()) &&
             open.update(Bytes(sealed).first(text.size())) &&
             open.open_end(sealed.data() + text.size());
    };
    EXPECT_TRUE(opens(5, "head"));
    EXPECT_EQ(back, text);
    EXPECT_FALSE(opens(6, "head"));
    EXPECT_FALSE(opens(5, "heap"));
    sealed[500] ^= std::byte{1};
    EXPECT_FALSE(opens(5, "head"));
    sealed[500] ^= std::byte{1};
    sealed.back() ^= std::byte{1};
    EXPECT_FALSE(opens(5, "head"));
    sealed.back() ^= std::byte{1};
    EXPECT_TRUE(opens(5, "head"));
  }
}

TEST(Crypto, EqualComparesAllBytes) {
  EXPECT_TRUE(equal(bytes_of("same"), bytes_of("same")));
  EXPECT_FALSE(equal(bytes_of("same"), bytes_of("some")));
  EXPECT_FALSE(equal(bytes_of("same"), bytes_of("sam")));
}

}  // namespace
}  // namespace kvl::crypto
