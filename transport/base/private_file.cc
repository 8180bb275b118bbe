// What others can read is no secret.
#include "transport/base/private_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <utility>

#include "transport/base/unique_fd.h"

namespace kvl {

Result<std::string> read_private_file(const std::string& path, std::string_view setting,
                                      std::size_t bytes_max, std::string* error) {
  const std::string what = std::string(setting) + " " + path;
  const auto fail = [&](Code code, const char* context, std::string sentence, int reason = 0) {
    if (error != nullptr) *error = std::move(sentence);
    return Status{code, context, reason};
  };
  const UniqueFd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!file) {
    const int reason = errno;
    return fail(reason == ENOENT ? Code::not_found : Code::permission, "open a file with a secret",
                what + " cannot be opened: " + std::strerror(reason), reason);
  }
  struct stat info {};
  if (::fstat(file.get(), &info) != 0 || !S_ISREG(info.st_mode)) {
    return fail(Code::invalid_argument, "a secret is not in a file",
                what + " is not a regular file");
  }
  if ((info.st_mode & (S_IROTH | S_IWOTH | S_IWGRP)) != 0) {
    return fail(Code::permission, "a file with a secret is open to others; chmod 600",
                what + " can be read or changed by others: chmod 600 " + path);
  }
  if (static_cast<std::uint64_t>(info.st_size) > bytes_max) {
    return fail(Code::invalid_argument, "a file with a secret is too long",
                what + " is too long for what it should hold");
  }
  std::string text(static_cast<std::size_t>(info.st_size), '\0');
  std::size_t have = 0;
  while (have < text.size()) {
    const ssize_t n = ::read(file.get(), text.data() + have, text.size() - have);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) break;
    have += static_cast<std::size_t>(n);
  }
  text.resize(have);
  return text;
}

}  // namespace kvl
