// Settings: precedence of sources, real booleans, ranges, unknown keys.
#include "kvl/config.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>

namespace kvl {
namespace {

struct Sample {
  bool force = false;
  std::int64_t lanes = 2;
  std::string congestion = "cubic";
  double ratio = 0.5;
};

std::vector<Setting> rows() {
  return {setting<&Sample::force>("force_sample", "", 0, 0, "help", "MC_FORCE_SAMPLE"),
          setting<&Sample::lanes>("sample.lanes", "", 1, 64, "help"),
          setting<&Sample::congestion>("sample.congestion", "", 0, 0, "help"),
          setting<&Sample::ratio>("sample.ratio", "", 0, 1, "help")};
}

TEST(Settings, DefaultsComeFromTheStruct) {
  const auto table = rows();
  const Settings settings = Settings::load(table, {.environment = false}).value();
  EXPECT_EQ(settings.value("sample.lanes").text, "2");
  EXPECT_EQ(settings.value("sample.lanes").origin, "default");
  EXPECT_EQ(settings.read<Sample>(table).congestion, "cubic");
}

TEST(Settings, FlagBeatsEnvironmentBeatsFile) {
  const std::string file = ::testing::TempDir() + "kvlane_config_test.toml";
  std::ofstream(file) << "[sample]\nlanes = 4\ncongestion = \"reno\"\nratio = 0.25\n";
  ::setenv("KVLANE_SAMPLE_LANES", "8", 1);
  const auto table = rows();
  auto settings = Settings::load(table, {.file = file, .flags = {{"sample.ratio", "1"}}});
  ::unsetenv("KVLANE_SAMPLE_LANES");
  ASSERT_TRUE(settings.ok());
  const Sample sample = settings->read<Sample>(table);
  EXPECT_EQ(sample.lanes, 8);
  EXPECT_EQ(sample.congestion, "reno");
  EXPECT_EQ(sample.ratio, 1);
  EXPECT_EQ(settings->value("sample.lanes").origin, "env KVLANE_SAMPLE_LANES");
}

TEST(Settings, NumbersAreFinite) {
  for (const char* text : {"nan", "-nan", "inf", "1e999", "1.5x"}) {
    const auto settings =
        Settings::load(rows(), {.environment = false, .flags = {{"sample.ratio", text}}});
    EXPECT_EQ(settings.code(), Code::invalid_argument) << text;
  }
}

TEST(Settings, LettersOutsideAsciiBelongInCommentLines) {
  const std::string file = ::testing::TempDir() + "kvlane_config_foreign.toml";
  std::string error;
  const auto load = [&](const char* text) {
    std::ofstream(file) << text;
    return Settings::load(rows(), {.file = file, .environment = false}, &error);
  };
  EXPECT_TRUE(load("  # \u00e9t\u00e9\n[sample]\nlanes = 4\ncongestion = \"\\u00e9\"\n").ok())
      << error;
  EXPECT_EQ(load("[sample]\n\u01de\n").code(), Code::invalid_argument);
  EXPECT_NE(error.find("line 2"), std::string::npos) << error;
}

// An assertion inside the library, or worse without it.
TEST(Settings, ATableThatBeginsWithNoKeyIsRefused) {
  const std::string file = ::testing::TempDir() + "kvlane_config_table.toml";
  for (const char* text : {"[%x]\n", "[\x1b]\n", "[.a]\n", "[a.%]\n", "%=1\n", "[[%]]\n"}) {
    std::ofstream(file) << text;
    std::string error;
    EXPECT_EQ(Settings::load(rows(), {.file = file, .environment = false}, &error).code(),
              Code::invalid_argument)
        << text;
    EXPECT_FALSE(error.empty());
  }
}

TEST(Settings, BooleansAreRealAndTheOwnNameBeatsTheAlias) {
  const auto table = rows();
  for (const auto& [text, expected] : std::vector<std::pair<const char*, bool>>{{"True", true},
                                                                                {"YES", true},
                                                                                {"on", true},
                                                                                {"1", true},
                                                                                {"0", false},
                                                                                {"False", false},
                                                                                {"no", false},
                                                                                {"OFF", false}}) {
    ::setenv("MC_FORCE_SAMPLE", text, 1);
    EXPECT_EQ(Settings::load(table, {}).value().read<Sample>(table).force, expected) << text;
  }
  ::setenv("KVLANE_FORCE_SAMPLE", "true", 1);
  EXPECT_TRUE(Settings::load(table, {}).value().read<Sample>(table).force);
  ::setenv("KVLANE_FORCE_SAMPLE", "maybe", 1);
  std::string error;
  EXPECT_EQ(Settings::load(table, {}, &error).code(), Code::invalid_argument);
  EXPECT_NE(error.find("not a boolean"), std::string::npos) << error;
  ::unsetenv("KVLANE_FORCE_SAMPLE");
  ::unsetenv("MC_FORCE_SAMPLE");
}

struct Neighbour {
  std::string text = "mine";
};

TEST(Settings, RowsOfAnotherStructAreLeftAlone) {
  std::vector<Setting> table = rows();
  table.push_back(setting<&Neighbour::text>("neighbour.text", "", 0, 0, "help"));
  const Settings settings =
      Settings::load(table, {.environment = false,
                             .flags = {{"neighbour.text", "theirs"}, {"sample.lanes", "9"}}})
          .value();
  const Sample sample = settings.read<Sample>(table);
  EXPECT_EQ(sample.lanes, 9);
  EXPECT_EQ(sample.congestion, "cubic");
  EXPECT_EQ(settings.read<Neighbour>(table).text, "theirs");
}

TEST(Settings, RefusesUnknownKeysAndBadNumbers) {
  for (const auto& [name, text] :
       std::vector<std::pair<std::string, std::string>>{{"sample.lane", "1"},
                                                        {"sample.lanes", "0"},
                                                        {"sample.lanes", "65"},
                                                        {"sample.lanes", ""},
                                                        {"sample.lanes", "4x"},
                                                        {"sample.lanes", "99999999999999g"},
                                                        {"sample.ratio", "two"}}) {
    std::string error;
    EXPECT_EQ(
        Settings::load(rows(), {.environment = false, .flags = {{name, text}}}, &error).code(),
        Code::invalid_argument);
    EXPECT_NE(error.find(name), std::string::npos) << error;
  }
}

}  // namespace
}  // namespace kvl
