// The handshake without a network: right and wrong secrets, replay, reflection, downgrade, garbage;
// and the sealed channel that it leaves behind.
#include "transport/core/auth.h"

#include <gtest/gtest.h>

#include <random>

namespace kvl::auth {
namespace {

using Side = Handshake::Side;
using Message = std::vector<std::byte>;

const std::string kOne = "the first secret of this test, 32 and more";
const std::string kTwo = "the second secret of this test, 32 and more";
const std::string kThree = "the third secret of this test, 32 and more";

Secrets secrets(const std::string& text) { return Secrets::parse(text).value(); }

// Two sides and what they have said.
struct Talk {
  Talk(const std::string& dialer_secrets, const std::string& listener_secrets,
       bool dialer_encrypts = false, bool listener_encrypts = false)
      : of_dialer(secrets(dialer_secrets)),
        of_listener(secrets(listener_secrets)),
        dialer(Side::dialer, of_dialer, dialer_encrypts, crypto::random),
        listener(Side::listener, of_listener, listener_encrypts, crypto::random) {}

  Secrets of_dialer, of_listener;
  Handshake dialer, listener;
  Message challenge, answer, proof, none;
  Status at_dialer, at_listener;

  void run() {
    challenge = dialer.start();
    at_listener = listener.on_message(challenge, answer);
    if (!at_listener.ok()) return;
    at_dialer = dialer.on_message(answer, proof);
    at_listener = listener.on_message(proof, none);
  }
  bool agreed() const {
    return dialer.done() && listener.done() &&
           dialer.keys().data.bytes == listener.keys().data.bytes &&
           dialer.keys().from_dialer.bytes == listener.keys().from_dialer.bytes &&
           dialer.keys().from_listener.bytes == listener.keys().from_listener.bytes &&
           dialer.keys().encrypt == listener.keys().encrypt;
  }
};

TEST(Handshake, SameSecretGivesSameKeysAndEverySessionOthers) {
  Talk first(kOne, kOne), second(kOne, kOne);
  first.run();
  second.run();
  ASSERT_TRUE(first.agreed() && second.agreed());
  EXPECT_NE(first.dialer.keys().data.bytes, second.dialer.keys().data.bytes);
  EXPECT_NE(first.dialer.keys().from_dialer.bytes, first.dialer.keys().from_listener.bytes);
  EXPECT_NE(first.dialer.keys().from_dialer.bytes, first.dialer.keys().data.bytes);
}

TEST(Handshake, AnyCommonSecretWillDoWhileSecretsAreRotated) {
  for (const auto& [dialer, listener] : std::vector<std::pair<std::string, std::string>>{
           {kOne, kTwo + "\n" + kOne},
           {kTwo + "\n" + kOne, kOne},
           {kThree + "\n" + kTwo, kTwo + "\n" + kOne}}) {
    Talk talk(dialer, listener);
    talk.run();
    EXPECT_TRUE(talk.agreed());
  }
}

TEST(Handshake, WrongSecretIsPermissionOnBothSides) {
  Talk talk(kOne, kTwo + "\n" + kThree);
  talk.run();
  EXPECT_EQ(talk.at_dialer.code(), Code::permission);
  EXPECT_EQ(talk.at_listener.code(), Code::permission);
  EXPECT_FALSE(talk.dialer.done() || talk.listener.done());
  EXPECT_EQ(decode_refused(talk.proof).value(), Reason::wrong_secret);
}

TEST(Handshake, EitherSideMayAskForEncryptionAndNobodyCanTakeItAway) {
  for (const auto& [dialer, listener] :
       std::vector<std::pair<bool, bool>>{{false, false}, {true, false}, {false, true}}) {
    Talk talk(kOne, kOne, dialer, listener);
    talk.run();
    ASSERT_TRUE(talk.agreed());
    EXPECT_EQ(talk.dialer.keys().encrypt, dialer || listener);
  }
  constexpr std::size_t kFlags = 7;
  Talk talk(kOne, kOne, true, false);
  talk.challenge = talk.dialer.start();
  talk.challenge[kFlags] = std::byte{0};  // the man in the middle
  ASSERT_TRUE(talk.listener.on_message(talk.challenge, talk.answer).ok());
  EXPECT_EQ(talk.dialer.on_message(talk.answer, talk.proof).code(), Code::permission);
  Talk back(kOne, kOne, false, true);
  back.challenge = back.dialer.start();
  ASSERT_TRUE(back.listener.on_message(back.challenge, back.answer).ok());
  back.answer[kFlags] = std::byte{0};
  EXPECT_EQ(back.dialer.on_message(back.answer, back.proof).code(), Code::permission);
}

TEST(Handshake, RecordedMessagesOpenNoOtherSession) {
  Talk old(kOne, kOne);
  old.run();
  ASSERT_TRUE(old.agreed());
  // To a listener: the whole dialer's side again.
  Talk fresh(kOne, kOne);
  ASSERT_TRUE(fresh.listener.on_message(old.challenge, fresh.answer).ok());
  EXPECT_EQ(fresh.listener.on_message(old.proof, fresh.none).code(), Code::permission);
  EXPECT_FALSE(fresh.listener.done());
  // To a dialer: an old answer.
  Talk other(kOne, kOne);
  other.challenge = other.dialer.start();
  EXPECT_EQ(other.dialer.on_message(old.answer, other.proof).code(), Code::permission);
}

TEST(Handshake, ReflectedMessagesAreRefused) {
  Talk talk(kOne, kOne);
  talk.challenge = talk.dialer.start();
  EXPECT_EQ(talk.dialer.on_message(talk.challenge, talk.proof).code(), Code::invalid_argument);
  // The dialer's own nonce and share, dressed up as an answer.
  Talk other(kOne, kOne);
  const auto said = decode_challenge(other.dialer.start()).value();
  const Message dressed = encode(Answer{false, said.nonce, said.share, {crypto::Digest{}}});
  EXPECT_FALSE(other.dialer.on_message(dressed, other.proof).ok());
  // A listener's proof is no dialer's proof.
  Talk third(kOne, kOne);
  ASSERT_TRUE(third.listener.on_message(third.dialer.start(), third.answer).ok());
  const auto answer = decode_answer(third.answer).value();
  EXPECT_EQ(third.listener.on_message(encode(Proof{0, answer.proofs[0]}), third.none).code(),
            Code::permission);
}

TEST(Handshake, EveryChangedByteIsNoticed) {
  for (int message = 0; message < 3; ++message) {
    Talk probe(kOne, kOne);
    probe.run();
    const std::size_t bytes = (message == 0   ? probe.challenge
                               : message == 1 ? probe.answer
                                              : probe.proof)
                                  .size();
    for (std::size_t i = 0; i < bytes; ++i) {
      Talk talk(kOne, kOne);
      const auto spoil = [&](Message& m) {
        // Bit 255 of an X25519 share means nothing; the transcript covers it all the same.
        m[i] ^= std::byte{0x80};
      };
      talk.challenge = talk.dialer.start();
      if (message == 0) spoil(talk.challenge);
      talk.at_listener = talk.listener.on_message(talk.challenge, talk.answer);
      if (!talk.at_listener.ok()) continue;
      if (message == 1) spoil(talk.answer);
      talk.at_dialer = talk.dialer.on_message(talk.answer, talk.proof);
      if (talk.at_dialer.ok() && message == 2) spoil(talk.proof);
      talk.at_listener = talk.listener.on_message(talk.proof, talk.none);
      EXPECT_FALSE(talk.listener.done()) << "message " << message << " byte " << i;
    }
  }
}

TEST(Handshake, GarbageAndShortMessagesAreTypedErrors) {
  std::mt19937_64 random(20240611);
  Talk probe(kOne, kOne);
  probe.run();
  for (const Message& good : {probe.challenge, probe.answer, probe.proof}) {
    for (std::size_t bytes = 0; bytes < good.size(); ++bytes) {
      const Message cut(good.begin(), good.begin() + static_cast<std::ptrdiff_t>(bytes));
      EXPECT_FALSE(decode_challenge(cut).ok());
      EXPECT_FALSE(decode_answer(cut).ok());
      EXPECT_FALSE(decode_proof(cut).ok());
    }
    for (int round = 0; round < 300; ++round) {
      Message bad = good;
      bad[random() % bad.size()] = static_cast<std::byte>(random());
      if (random() % 2 == 0) bad.resize(random() % 400);
      Talk talk(kOne, kOne);
      talk.challenge = talk.dialer.start();
      Message reply;
      const Status at_listener = talk.listener.on_message(bad, reply);
      EXPECT_FALSE(talk.listener.done());
      if (!at_listener.ok()) {
        // Over is over.
        EXPECT_FALSE(talk.listener.on_message(talk.challenge, reply).ok());
      }
      const Status at_dialer = talk.dialer.on_message(bad, reply);
      EXPECT_FALSE(at_dialer.ok());
    }
  }
}

TEST(Channel, MessagesOpenOnceInOrderAndUnchanged) {
  Talk talk(kOne, kOne);
  talk.run();
  ASSERT_TRUE(talk.agreed());
  const auto pair = [&] {
    return std::pair<Channel, Channel>(Channel(Side::dialer, talk.dialer.keys()),
                                       Channel(Side::listener, talk.listener.keys()));
  };
  {
    auto [dialer, listener] = pair();
    for (const std::size_t bytes : {0U, 1U, 5000U}) {
      const Message message(bytes, std::byte{9});
      const Message sealed = dialer.seal(message);
      EXPECT_EQ(sealed.size(), bytes + crypto::kTagBytes);
      EXPECT_EQ(listener.open(sealed).value(), message);
      EXPECT_EQ(dialer.open(listener.seal(message)).value(), message);
    }
  }
  const Message message(100, std::byte{9});
  {
    auto [dialer, listener] = pair();
    const Message sealed = dialer.seal(message);
    EXPECT_TRUE(listener.open(sealed).ok());
    EXPECT_EQ(listener.open(sealed).code(), Code::corrupt) << "replayed";
  }
  {
    auto [dialer, listener] = pair();
    const Message dropped = dialer.seal(message);
    EXPECT_EQ(listener.open(dialer.seal(message)).code(), Code::corrupt) << "after a lost one";
  }
  {
    auto [dialer, listener] = pair();
    EXPECT_EQ(dialer.open(dialer.seal(message)).code(), Code::corrupt) << "reflected";
    Message sealed = listener.seal(message);
    sealed[50] ^= std::byte{1};
    EXPECT_EQ(dialer.open(sealed).code(), Code::corrupt) << "changed";
    EXPECT_EQ(dialer.open(Message(5)).code(), Code::corrupt) << "short";
  }
}

}  // namespace
}  // namespace kvl::auth
