// Settings: a TOML file and values for every kind of row. What is accepted is in range, and prints
// as something that is accepted again.
#include <sys/mman.h>
#include <unistd.h>

#include <cmath>

#include "kvl/config.h"
#include "tests/fuzz/fuzz.h"
#include "transport/base/unique_fd.h"

namespace kvl::fuzz {
namespace {

struct Owner {
  bool flag = false;
  std::int64_t count = 3;
  std::uint16_t port = 1;
  double seconds = 1.5;
  std::string name = "x";
};

std::vector<Setting> rows() {
  return {setting<&Owner::flag>("flag", "", 0, 0, "a switch"),
          setting<&Owner::count>("part.count", "", 1, 1e6, "a number in a range"),
          setting<&Owner::port>("part.port", "", 0, 65535, "a smaller number"),
          setting<&Owner::seconds>("part.seconds", "s", 0.001, 3600, "a real number"),
          setting<&Owner::name>("name", "", 0, 0, "any text")};
}

void check(const Settings& settings) {
  const std::vector<Setting> all = rows();
  const auto owner = settings.read<Owner>(all);
  require(owner.count >= 1 && owner.count <= 1'000'000, "a number is in its range");
  require(owner.seconds >= 0.001 && owner.seconds <= 3600, "a real number is in its range");
  for (const Setting& row : all) {
    const std::string text = settings.value(row.name).text;
    require(row.parse(row, text, nullptr).ok(), "a value in force is a value");
  }
}

}  // namespace

void fuzz_settings(Bytes input) {
  if (input.size() > 16 << 10) return;
  const std::string_view text = text_of(input);
  std::string error;
  for (const Setting& row : rows()) {
    const Settings::Source source{.environment = false,
                                  .flags = {{std::string(row.name), std::string(text)}}};
    if (const auto settings = Settings::load(rows(), source, &error)) check(*settings);
  }
  static const UniqueFd file(::memfd_create("settings", MFD_CLOEXEC));
  require(::ftruncate(file.get(), 0) == 0 && ::pwrite(file.get(), input.data(), input.size(), 0) ==
                                                 static_cast<ssize_t>(input.size()),
          "a file in memory");
  const Settings::Source source{.file = "/proc/self/fd/" + std::to_string(file.get()),
                                .environment = false};
  error.clear();
  const auto settings = Settings::load(rows(), source, &error);
  if (settings.ok()) {
    check(*settings);
  } else {
    require(!error.empty(), "a refusal says why");
  }
}

Seeds seeds_settings() {
  return {seed("flag = true\nname = \"a\"\n[part]\ncount = 7\nport = \"80\"\nseconds = 2.5\n"),
          seed("part.count = \"64k\"\n"),
          seed("12m"),
          seed("0.25"),
          seed("yes"),
          seed("nan"),
          seed("-1"),
          seed("9223372036854775807g"),
          seed("[part]\nseconds = nan\ncount = 0x10\n")};
}

}  // namespace kvl::fuzz
