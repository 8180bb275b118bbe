// libstdc++ of Debian 12, linked in statically, takes its random bytes from arc4random(), which
// glibc has since 2.36. With one of our own the library loads where glibc is older.
#include <sys/random.h>

#include <cstdint>
#include <cstdlib>

extern "C" __attribute__((visibility("hidden"))) std::uint32_t arc4random() {
  std::uint32_t value = 0;
  // Four bytes come whole or not at all, and not at all only before the kernel has any.
  if (::getrandom(&value, sizeof(value), 0) != sizeof(value)) std::abort();
  return value;
}
