// Secrets: where they may come from, what is refused, that nothing prints them; and which listeners
// must have one.
#include "kvl/security.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstdlib>
#include <fstream>

namespace kvl {
namespace {

const std::string kOld = "an old secret of forty characters 0123456";
const std::string kNew = "the newest secret, forty characters 78901";

std::string write_file(const std::string& name, const std::string& text, mode_t mode) {
  const std::string path = ::testing::TempDir() + name;
  std::ofstream(path) << text;
  EXPECT_EQ(::chmod(path.c_str(), mode), 0);
  return path;
}

Settings load(std::vector<std::pair<std::string, std::string>> flags) {
  return Settings::load(security_settings(), {.environment = false, .flags = std::move(flags)})
      .value();
}

TEST(Secrets, FileHasOneALineNewestFirst) {
  const std::string path =
      write_file("kvlane_secret", "# rotated in May\n" + kNew + "\r\n\n  " + kOld + "\n", 0600);
  const auto secrets = load_secrets(load({{"secret_file", path}}));
  ASSERT_TRUE(secrets.ok()) << secrets.status().to_string();
  ASSERT_EQ(secrets->size(), 2U);
  EXPECT_EQ((*secrets)[0], kNew);
  EXPECT_EQ((*secrets)[1], kOld);
}

TEST(Secrets, FileThatOthersCanReadIsRefusedWithTheCommand) {
  for (const mode_t mode : {0604U, 0602U, 0620U, 0666U}) {
    const std::string path = write_file("kvlane_secret_open", kNew, mode);
    std::string error;
    EXPECT_EQ(load_secrets(load({{"secret_file", path}}), &error).code(), Code::permission);
    EXPECT_NE(error.find("chmod 600 " + path), std::string::npos) << error;
  }
  std::string error;
  EXPECT_EQ(load_secrets(load({{"secret_file", "/nonexistent/secret"}}), &error).code(),
            Code::not_found);
  EXPECT_NE(error.find("/nonexistent/secret"), std::string::npos) << error;
}

TEST(Secrets, ShortLongDoubleAndManyAreRefusedWithoutBeingPrinted) {
  const std::string five = kNew + "a\n" + kNew + "b\n" + kNew + "c\n" + kNew + "d\n" + kNew + "e\n";
  for (const std::string& text : {std::string("short-but-precious"), kNew + "\n" + kNew, five,
                                  std::string(kSecretBytesMax + 1, 'x')}) {
    std::string error;
    EXPECT_EQ(Secrets::parse(text, &error).code(), Code::invalid_argument);
    EXPECT_FALSE(error.empty());
    EXPECT_EQ(error.find("precious"), std::string::npos) << error;
    EXPECT_EQ(error.find(kNew), std::string::npos) << error;
  }
  EXPECT_EQ(Secrets::parse("# nothing\n\n").value().size(), 0U);
  const std::string path = write_file("kvlane_secret_empty", "# nothing\n", 0600);
  EXPECT_EQ(load_secrets(load({{"secret_file", path}})).code(), Code::invalid_argument);
}

TEST(Secrets, EnvironmentIsReadAndNeverShown) {
  ::setenv("KVLANE_SECRET", kNew.c_str(), 1);
  const auto settings = Settings::load(security_settings(), {});
  ::unsetenv("KVLANE_SECRET");
  ASSERT_TRUE(settings.ok());
  EXPECT_EQ(settings->value("secret").text, "set");
  EXPECT_EQ(settings->value("secret").origin, "env KVLANE_SECRET");
  const auto secrets = load_secrets(*settings);
  ASSERT_TRUE(secrets.ok());
  ASSERT_EQ(secrets->size(), 1U);
  EXPECT_EQ((*secrets)[0], kNew);
}

TEST(Secrets, FlagsAndConfigurationFilesAreRefusedWithoutEcho) {
  std::string error;
  EXPECT_EQ(Settings::load(security_settings(), {.environment = false, .flags = {{"secret", kNew}}},
                           &error)
                .code(),
            Code::invalid_argument);
  EXPECT_EQ(error.find(kNew), std::string::npos) << error;
  EXPECT_NE(error.find("secret_file"), std::string::npos) << error;
  const std::string toml = write_file("kvlane_secret.toml", "secret = \"" + kNew + "\"\n", 0600);
  EXPECT_EQ(
      Settings::load(security_settings(), {.file = toml, .environment = false}, &error).code(),
      Code::invalid_argument);
  EXPECT_EQ(error.find(kNew), std::string::npos) << error;
}

TEST(Secrets, TwoSourcesContradict) {
  SecurityConfig config;
  config.secret = kNew;
  config.secret_file = write_file("kvlane_secret_two", kOld, 0600);
  std::string error;
  EXPECT_EQ(load_secrets(config, &error).code(), Code::invalid_argument);
  EXPECT_NE(error.find("both"), std::string::npos) << error;
}

TEST(Listeners, LoopbackNeedsNoSecretOthersDo) {
  for (const char* address : {"127.0.0.1", "127.0.0.1:80", "127.3.2.1:0", "[::1]:80", "[::1]",
                              "::1", "localhost:0", "localhost"}) {
    EXPECT_TRUE(is_loopback(address)) << address;
    EXPECT_TRUE(check_listener("listen", address, false, false).ok()) << address;
  }
  for (const char* address : {"0.0.0.0", "0.0.0.0:0", "::", "[::]:80", "10.1.2.3:1", "192.0.2.1",
                              "", "not an address", "[2001:db8::1]:80"}) {
    EXPECT_FALSE(is_loopback(address)) << address;
    std::string error;
    EXPECT_EQ(check_listener("router.host", address, false, false, &error).code(),
              Code::permission);
    for (const char* word : {"router.host", "secret_file", "KVLANE_SECRET", "insecure=true"}) {
      EXPECT_NE(error.find(word), std::string::npos) << error;
    }
    EXPECT_TRUE(check_listener("listen", address, true, false).ok());
    EXPECT_TRUE(check_listener("listen", address, false, true).ok());
  }
  EXPECT_EQ(check_listener("listen", "0.0.0.0:0", load({})).code(), Code::permission);
  EXPECT_TRUE(check_listener("listen", "0.0.0.0:0", load({{"insecure", "true"}})).ok());
  EXPECT_TRUE(check_listener("listen", "0.0.0.0:0", load({{"secret_file", "/some/file"}})).ok());
}

}  // namespace
}  // namespace kvl
