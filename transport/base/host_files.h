// Short files by which the kernel tells of a host: /sys, /proc.
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>

namespace kvl {

// The first line of a file; `fallback` when it cannot be read.
inline std::string first_line(const std::filesystem::path& path, std::string fallback = {}) {
  std::ifstream file(path);
  std::string line;
  return std::getline(file, line) ? line : std::move(fallback);
}

// A row of /proc/meminfo, in the unit of that row; -1 when there is none such.
inline std::int64_t meminfo(std::string_view wanted,
                            const std::filesystem::path& path = "/proc/meminfo") {
  std::ifstream file(path);
  std::string key, rest;
  for (std::int64_t value = 0; file >> key >> value; std::getline(file, rest)) {
    if (key.size() == wanted.size() + 1 && key.starts_with(wanted)) return value;
  }
  return -1;
}

}  // namespace kvl
