// The handshake: challenge, answer, proof. Every proof covers all that was said before it.
#include "transport/core/auth.h"

#include <algorithm>

namespace kvl::auth {
namespace {

// Each purpose has a text of its own, so that no value proves anything else than it was made for.
constexpr std::string_view kMaster = "kvlane auth 1 master";
constexpr std::string_view kListenerProof = "kvlane auth 1 listener knows";
constexpr std::string_view kDialerProof = "kvlane auth 1 dialer knows";
constexpr std::string_view kFromDialer = "kvlane auth 1 from dialer";
constexpr std::string_view kFromListener = "kvlane auth 1 from listener";
constexpr std::string_view kData = "kvlane auth 1 data";

crypto::Digest prove(std::string_view what, const crypto::Key& master,
                     const crypto::Digest& transcript) {
  return crypto::hmac(master, {crypto::bytes_of(what), transcript});
}

}  // namespace

Handshake::Handshake(Side side, const Secrets& secrets, bool encrypt, const Random& random)
    : secrets_(secrets),
      encrypt_(encrypt),
      state_(side == Side::dialer ? State::answer : State::challenge) {
  crypto::Key seed;
  random(nonce_);
  random(seed.bytes);
  exchange_ = std::make_unique<crypto::Exchange>(seed);
}

std::vector<std::byte> Handshake::start() {
  challenge_ = encode(Challenge{encrypt_, nonce_, exchange_->share()});
  return challenge_;
}

Status Handshake::on_message(std::span<const std::byte> message, std::vector<std::byte>& reply) {
  reply.clear();
  Status status{Code::invalid_argument, "authentication message out of place"};
  switch (state_) {
    case State::challenge:
      status = on_challenge(message, reply);
      break;
    case State::answer:
      status = on_answer(message, reply);
      break;
    case State::proof:
      status = on_proof(message, reply);
      break;
    case State::done:
    case State::failed:
      break;
  }
  if (status.ok()) return status;
  state_ = State::failed;
  reply = encode(status.code() == Code::permission ? Reason::wrong_secret : Reason::malformed);
  return status;
}

// The secret alone, then the exchange: a recorded handshake gives no way to try secrets.
crypto::Key Handshake::master(std::size_t secret, const crypto::Key& shared) const {
  return crypto::extract(
      crypto::hmac(crypto::bytes_of(kMaster), {crypto::bytes_of(secrets_[secret])}), shared);
}

Status Handshake::on_challenge(std::span<const std::byte> message, std::vector<std::byte>& reply) {
  const auto challenge = decode_challenge(message);
  if (!challenge) return challenge.status();
  Answer answer{encrypt_, nonce_, exchange_->share(), {}};
  crypto::Key shared;
  // A message of ours that comes back is nobody's challenge.
  if (challenge->nonce == answer.nonce || challenge->share == answer.share ||
      !exchange_->agree(challenge->share, shared)) {
    return {Code::invalid_argument, "malformed authentication message"};
  }
  transcript_ = crypto::sha256({message, without_proofs(encode(answer))});
  for (std::size_t i = 0; i < secrets_.size(); ++i) {
    masters_.push_back(master(i, shared));
    answer.proofs.push_back(prove(kListenerProof, masters_.back(), transcript_));
  }
  encrypt_ |= challenge->encrypt;
  reply = encode(answer);
  state_ = State::proof;
  return {};
}

Status Handshake::on_answer(std::span<const std::byte> message, std::vector<std::byte>& reply) {
  const auto answer = decode_answer(message);
  if (!answer) return answer.status();
  crypto::Key shared;
  if (answer->nonce == nonce_ || answer->share == exchange_->share() ||
      !exchange_->agree(answer->share, shared)) {
    return {Code::invalid_argument, "malformed authentication message"};
  }
  transcript_ = crypto::sha256({challenge_, without_proofs(message)});
  for (std::size_t i = 0; i < secrets_.size(); ++i) {
    const crypto::Key mine = master(i, shared);
    const crypto::Digest expected = prove(kListenerProof, mine, transcript_);
    for (std::size_t k = 0; k < answer->proofs.size(); ++k) {
      if (!crypto::equal(expected, answer->proofs[k])) continue;
      const Proof proof{static_cast<std::uint8_t>(k), prove(kDialerProof, mine, transcript_)};
      encrypt_ |= answer->encrypt;
      finish(mine, proof.proof);
      reply = encode(proof);
      return {};
    }
  }
  return kWrongSecret;
}

Status Handshake::on_proof(std::span<const std::byte> message, std::vector<std::byte>&) {
  const auto proof = decode_proof(message);
  if (!proof) {
    const auto refused = decode_refused(message);
    const bool wrong = refused.ok() && *refused == Reason::wrong_secret;
    return wrong ? kWrongSecret : proof.status();
  }
  if (proof->secret >= masters_.size() ||
      !crypto::equal(prove(kDialerProof, masters_[proof->secret], transcript_), proof->proof)) {
    return kWrongSecret;
  }
  finish(masters_[proof->secret], proof->proof);
  return {};
}

void Handshake::finish(const crypto::Key& master, const crypto::Digest& last_proof) {
  const crypto::Digest all = crypto::sha256({transcript_, last_proof});
  keys_.from_dialer = crypto::expand(master, kFromDialer, all);
  keys_.from_listener = crypto::expand(master, kFromListener, all);
  keys_.data = crypto::expand(master, kData, all);
  keys_.encrypt = encrypt_;
  masters_.clear();
  exchange_.reset();
  state_ = State::done;
}

Channel::Channel(Handshake::Side side, const SessionKeys& keys)
    : out_(crypto::Aead::Use::seal,
           side == Handshake::Side::dialer ? keys.from_dialer : keys.from_listener),
      in_(crypto::Aead::Use::open,
          side == Handshake::Side::dialer ? keys.from_listener : keys.from_dialer) {}

std::vector<std::byte> Channel::seal(std::span<const std::byte> message) {
  std::vector<std::byte> sealed(message.size() + crypto::kTagBytes);
  [[maybe_unused]] const bool done = out_.begin(sent_++, {}, sealed.data()) &&
                                     out_.update(message) &&
                                     out_.seal_end(sealed.data() + message.size());
  assert(done);
  return sealed;
}

Result<std::vector<std::byte>> Channel::open(std::span<const std::byte> sealed) {
  const Status kBad{Code::corrupt, "a control message was changed, repeated or lost on its way"};
  if (sealed.size() < crypto::kTagBytes) return kBad;
  const auto body = sealed.first(sealed.size() - crypto::kTagBytes);
  std::vector<std::byte> message(body.size());
  if (!in_.begin(received_++, {}, message.data()) || !in_.update(body) ||
      !in_.open_end(sealed.data() + body.size())) {
    return kBad;
  }
  return message;
}

}  // namespace kvl::auth
