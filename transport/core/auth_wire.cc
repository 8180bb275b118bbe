// Handshake messages to and from bytes.
#include "transport/core/auth_wire.h"

#include <algorithm>

#include "transport/base/wire.h"

namespace kvl::auth {
namespace {

constexpr std::uint8_t kFlagEncrypt = 1;
// type, magic, version, flags, nonce, share
constexpr std::size_t kHeadBytes = 1 + 4 + 2 + 1 + 32 + 32;
const Status kMalformed{Code::invalid_argument, "malformed authentication message"};

template <std::size_t n>
void take(WireReader& in, std::array<std::byte, n>& out) {
  const auto part = in.raw(n);
  if (part.size() == n) std::copy(part.begin(), part.end(), out.begin());
}

void put_head(WireWriter& out, Type type, bool encrypt, const Nonce& nonce,
              const crypto::Digest& share) {
  out.put(type).put(kMagic).put(kVersion);
  out.put(encrypt ? kFlagEncrypt : std::uint8_t{0}).raw(nonce).raw(share);
}

template <typename Message>
Status get_head(WireReader& in, Type type, Message& message) {
  if (in.get<Type>() != type || in.get<std::uint32_t>() != kMagic) return kMalformed;
  if (in.get<std::uint16_t>() != kVersion) {
    return {Code::unsupported, "the peer authenticates in another way; use equal releases"};
  }
  const auto flags = in.get<std::uint8_t>();
  take(in, message.nonce);
  take(in, message.share);
  message.encrypt = (flags & kFlagEncrypt) != 0;
  return !in.ok() || flags > kFlagEncrypt ? kMalformed : Status{};
}

}  // namespace

std::vector<std::byte> encode(const Challenge& challenge) {
  WireWriter out;
  put_head(out, Type::challenge, challenge.encrypt, challenge.nonce, challenge.share);
  return out.take();
}

std::vector<std::byte> encode(const Answer& answer) {
  WireWriter out;
  put_head(out, Type::answer, answer.encrypt, answer.nonce, answer.share);
  out.put(static_cast<std::uint8_t>(answer.proofs.size()));
  for (const crypto::Digest& proof : answer.proofs) out.raw(proof);
  return out.take();
}

std::vector<std::byte> encode(const Proof& proof) {
  return WireWriter().put(Type::proof).put(proof.secret).raw(proof.proof).take();
}

std::vector<std::byte> encode(Reason reason) {
  return WireWriter().put(Type::refused).put(reason).take();
}

std::span<const std::byte> without_proofs(std::span<const std::byte> answer) {
  return answer.first(std::min(answer.size(), kHeadBytes));
}

Result<Challenge> decode_challenge(std::span<const std::byte> message) {
  WireReader in(message);
  Challenge challenge;
  KVL_TRY(get_head(in, Type::challenge, challenge));
  if (!in.finished()) return kMalformed;
  return challenge;
}

Result<Answer> decode_answer(std::span<const std::byte> message) {
  WireReader in(message);
  Answer answer;
  KVL_TRY(get_head(in, Type::answer, answer));
  const auto count = in.get<std::uint8_t>();
  if (count == 0 || count > kSecretsMax) return kMalformed;
  answer.proofs.resize(count);
  for (crypto::Digest& proof : answer.proofs) take(in, proof);
  if (!in.finished()) return kMalformed;
  return answer;
}

Result<Proof> decode_proof(std::span<const std::byte> message) {
  WireReader in(message);
  Proof proof;
  if (in.get<Type>() != Type::proof) return kMalformed;
  proof.secret = in.get<std::uint8_t>();
  take(in, proof.proof);
  if (!in.finished() || proof.secret >= kSecretsMax) return kMalformed;
  return proof;
}

Result<Reason> decode_refused(std::span<const std::byte> message) {
  WireReader in(message);
  if (in.get<Type>() != Type::refused) return kMalformed;
  const auto reason = in.get<std::uint8_t>();
  if (!in.finished() || reason < 1 || reason > static_cast<std::uint8_t>(Reason::malformed)) {
    return kMalformed;
  }
  return static_cast<Reason>(reason);
}

}  // namespace kvl::auth
