// Where libfabric.so.1 is looked for. Needs no header of libfabric's.
#pragma once

#include <array>
#include <string>
#include <vector>

namespace kvl::libfabric {

// The EFA installer's, first.
inline constexpr std::array kInstallerPlaces{"/opt/amazon/efa/lib/libfabric.so.1",
                                             "/opt/amazon/efa/lib64/libfabric.so.1"};
// Then what the dynamic linker finds by this name, as a rule in one of these.
inline constexpr const char* kLibraryName = "libfabric.so.1";
inline constexpr std::array kSystemPlaces{
    "/usr/lib/x86_64-linux-gnu/libfabric.so.1", "/usr/lib/aarch64-linux-gnu/libfabric.so.1",
    "/usr/lib64/libfabric.so.1", "/usr/local/lib/libfabric.so.1"};

// What is handed to dlopen(), in this order.
inline std::vector<std::string> library_names() {
  std::vector<std::string> names(kInstallerPlaces.begin(), kInstallerPlaces.end());
  names.emplace_back(kLibraryName);
  return names;
}
// Files that may be there, in this order.
inline std::vector<std::string> library_files() {
  std::vector<std::string> files(kInstallerPlaces.begin(), kInstallerPlaces.end());
  files.insert(files.end(), kSystemPlaces.begin(), kSystemPlaces.end());
  return files;
}

}  // namespace kvl::libfabric
