// The list of targets, from CMakeLists.txt.
#include <cstdio>
#include <cstdlib>

#include "tests/fuzz/fuzz.h"

namespace kvl::fuzz {

#define KVL_FUZZ_TARGET(name) \
  void fuzz_##name(Bytes);    \
  Seeds seeds_##name();
#include "fuzz_targets.inc"
#undef KVL_FUZZ_TARGET

std::span<const Target> targets() {
#define KVL_FUZZ_TARGET(name) {#name, fuzz_##name, seeds_##name},
  static const Target all[] = {
#include "fuzz_targets.inc"
  };
#undef KVL_FUZZ_TARGET
  return all;
}

void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "property violated: %s\n", what);
  std::abort();
}

}  // namespace kvl::fuzz
