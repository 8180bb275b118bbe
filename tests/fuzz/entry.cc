// The entry points that libFuzzer looks for. One binary holds every target; `--target=NAME`
// chooses.
#include "tests/fuzz/entry.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>

#include "kvl/log.h"

namespace kvl::fuzz {
namespace {

const Target* chosen = nullptr;

}  // namespace

void choose(std::string_view name) {
  for (const Target& target : targets()) {
    if (target.name == name) chosen = &target;
  }
  if (chosen == nullptr) {
    std::fprintf(stderr, "no fuzz target; there are:\n");
    for (const Target& target : targets()) {
      std::fprintf(stderr, "  %.*s\n", static_cast<int>(target.name.size()), target.name.data());
    }
    std::exit(2);
  }
  // Hosts of other tests are used here; what they expect must stop the run.
  GTEST_FLAG_SET(break_on_failure, true);
  set_log_levels("off");  // hostile input is reported, and that is not the question here
}

}  // namespace kvl::fuzz

extern "C" int LLVMFuzzerInitialize(int* argc, char*** argv) {
  constexpr std::string_view kOption = "--target=";
  std::string_view name;
  for (int i = 1; i < *argc; ++i) {
    const std::string_view word = (*argv)[i];
    if (word.starts_with(kOption)) name = word.substr(kOption.size());
  }
  kvl::fuzz::choose(name);
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  kvl::fuzz::chosen->run({reinterpret_cast<const std::byte*>(data), size});
  return 0;
}
