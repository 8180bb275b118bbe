// Files that hold a secret: a key, a password.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "kvl/status.h"

namespace kvl {

// The whole file. permission: others can read or change it (its group may read it); not_found;
// invalid_argument: no regular file, or longer than `bytes_max`. `error` (optional) receives a
// sentence that names `setting`, the file and what to do.
Result<std::string> read_private_file(const std::string& path, std::string_view setting,
                                      std::size_t bytes_max, std::string* error);

}  // namespace kvl
