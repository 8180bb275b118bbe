// Tokens and signatures of HTTP requests.
#include "kvl/http_token.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fstream>

namespace kvl {
namespace {

const std::string kSecret = "a secret for tests, forty characters 012";

TEST(HttpToken, IsTheHmacThatTheManualSays) {
  EXPECT_EQ(http_token(std::string_view(kSecret)),
            "42ade49830bce3d25b67f2d5bc0e0a1527d005bffb8e7a2c1ac2404f1fe38d45");
  EXPECT_EQ(http_token(Secrets{}), "");
}

TEST(HttpToken, EverySecretInForceIsAccepted) {
  const std::string old = "an older secret, also with forty letters";
  const HttpTokens tokens(*Secrets::parse(kSecret + "\n" + old));
  for (const std::string& secret : {kSecret, old}) {
    EXPECT_TRUE(tokens.accept("Bearer " + http_token(std::string_view(secret))));
    EXPECT_TRUE(tokens.accept("bearer " + http_token(std::string_view(secret))));
  }
  for (const std::string& wrong :
       {std::string(), std::string("Bearer"), std::string("Bearer "), "Bearer " + kSecret,
        http_token(std::string_view(kSecret)), "Basic " + http_token(std::string_view(kSecret))}) {
    EXPECT_FALSE(tokens.accept(wrong)) << wrong;
  }
  EXPECT_FALSE(HttpTokens().accept("Bearer "));
}

TEST(HttpSignature, IsGoodForOneRequestAndAWhile) {
  const HttpTokens tokens(*Secrets::parse(kSecret));
  const std::string token = http_token(std::string_view(kSecret));
  const SignedRequest request{"POST", "/a?b=c", "body"};
  constexpr std::int64_t kNow = 1'700'000'000;
  const std::string good = http_signature(token, request, kNow);
  EXPECT_EQ(good.find(token), std::string::npos);
  EXPECT_TRUE(tokens.accept(good, request, kNow));
  EXPECT_TRUE(tokens.accept(good, request, kNow + kSignatureSecs));
  EXPECT_TRUE(tokens.accept(good, request, kNow - kSignatureSecs));
  EXPECT_TRUE(tokens.accept("Bearer " + token, request, kNow));
  EXPECT_FALSE(tokens.accept(good, request, kNow + kSignatureSecs + 1)) << "too old";
  EXPECT_FALSE(tokens.accept(good, request, kNow - kSignatureSecs - 1)) << "from the future";
  EXPECT_FALSE(tokens.accept(good, {"PUT", "/a?b=c", "body"}, kNow));
  EXPECT_FALSE(tokens.accept(good, {"POST", "/a?b=d", "body"}, kNow));
  EXPECT_FALSE(tokens.accept(good, {"POST", "/a?b=c", "body "}, kNow));
  EXPECT_FALSE(tokens.accept(http_signature("another", request, kNow), request, kNow));
  for (std::size_t i = 0; i < good.size(); ++i) {
    std::string bent = good;
    bent[i] = static_cast<char>(bent[i] ^ 1);
    EXPECT_FALSE(tokens.accept(bent, request, kNow)) << bent;
    EXPECT_FALSE(tokens.accept(good.substr(0, i), request, kNow));
  }
}

TEST(ApiKeys, ComeFromAPrivateFile) {
  const std::string path = ::testing::TempDir() + "kvlane_api_keys." + std::to_string(::getpid());
  std::ofstream(path) << "# a comment\n\nfirst-key-0123456789\r\nsecond-key-0123456789\n";
  ::chmod(path.c_str(), 0644);
  std::string error;
  EXPECT_EQ(load_api_keys(path, &error).code(), Code::permission);
  EXPECT_NE(error.find("chmod 600"), std::string::npos) << error;
  ::chmod(path.c_str(), 0600);
  const auto keys = load_api_keys(path, &error);
  ASSERT_TRUE(keys.ok()) << error;
  EXPECT_EQ(*keys, (std::vector<std::string>{"first-key-0123456789", "second-key-0123456789"}));
  std::ofstream(path) << "precious\n";
  EXPECT_EQ(load_api_keys(path, &error).code(), Code::invalid_argument);
  EXPECT_EQ(error.find("precious"), std::string::npos) << error;
  std::ofstream(path) << "# none\n";
  EXPECT_EQ(load_api_keys(path, &error).code(), Code::invalid_argument);
  EXPECT_TRUE(load_api_keys("")->empty());
  ::unlink(path.c_str());
}

}  // namespace
}  // namespace kvl
