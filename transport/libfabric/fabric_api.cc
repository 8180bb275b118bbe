// Finding the library and its entry points.
#include "transport/libfabric/fabric_api.h"

#include <dlfcn.h>

#include <vector>

#include "transport/libfabric/fabric_places.h"

namespace kvl::libfabric {
namespace {

// The version of each symbol that a program built with the oldest headers would be linked with: its
// structures are the ones that we know. A library that has only another is taken as it is.
template <typename F>
bool find(void* library, const char* name, const char* version, F& function) {
  void* symbol = ::dlvsym(library, name, version);
  if (symbol == nullptr) symbol = ::dlsym(library, name);
  function = reinterpret_cast<F>(symbol);
  return symbol != nullptr;
}

}  // namespace

Result<FabricApi> load_fabric_api(const std::string& path, std::string* why) {
  const std::vector<std::string> places =
      path.empty() ? library_names() : std::vector<std::string>{path};
  void* library = nullptr;
  for (const std::string& place : places) {
    library = ::dlopen(place.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library != nullptr) break;
  }
  if (library == nullptr) {
    *why = path.empty() ? "libfabric.so.1 is not installed: install libfabric1, or on AWS the EFA "
                          "installer"
                        : "libfabric.library=" + path + " cannot be opened";
    return Status{Code::unavailable, "libfabric cannot be opened"};
  }
  FabricApi api;
  const bool whole = find(library, "fi_version", "FABRIC_1.0", api.version) &&
                     find(library, "fi_getinfo", "FABRIC_1.3", api.getinfo) &&
                     find(library, "fi_freeinfo", "FABRIC_1.3", api.freeinfo) &&
                     find(library, "fi_dupinfo", "FABRIC_1.3", api.dupinfo) &&
                     find(library, "fi_fabric", "FABRIC_1.1", api.fabric) &&
                     find(library, "fi_strerror", "FABRIC_1.0", api.strerror);
  if (!whole || api.version() < FI_VERSION(1, 10)) {
    *why = "libfabric is too old: 1.10 or newer is needed";
    return Status{Code::unavailable, "libfabric is too old"};
  }
  return api;
}

}  // namespace kvl::libfabric
