// Finding the library and its entry points.
#include "transport/ucx/ucx_api.h"

#include <dlfcn.h>

namespace kvl::ucx {
namespace {

constexpr std::uint32_t kOldest = UCP_VERSION(1, 13);

// libucp's own libraries: those beside it, not whichever the system has of another version.
void open_neighbours(const std::string& path) {
  const std::size_t slash = path.rfind('/');
  if (slash == std::string::npos) return;
  for (const char* name : {"libucm.so.0", "libucs.so.0", "libuct.so.0"}) {
    // Where there is none the loader finds the system's, or libucp does not open.
    [[maybe_unused]] void* const library =
        ::dlopen((path.substr(0, slash + 1) + name).c_str(), RTLD_NOW | RTLD_GLOBAL);
  }
}

}  // namespace

Result<UcxApi> load_ucx_api(const std::string& path, std::string* why) {
  open_neighbours(path);
  void* const library =
      ::dlopen(path.empty() ? "libucp.so.0" : path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    *why = path.empty() ? "libucp.so.0 is not installed: install libucx0, or set ucx.library"
                        : "ucx.library=" + path + " cannot be opened";
    return Status{Code::unavailable, "UCX cannot be opened"};
  }
  UcxApi api;
  bool whole = true;
#define KVL_UCP_FIND(name)                                                         \
  api.name = reinterpret_cast<decltype(api.name)>(::dlsym(library, "ucp_" #name)); \
  whole = whole && api.name != nullptr;
  KVL_UCP_FUNCTIONS(KVL_UCP_FIND)
#undef KVL_UCP_FIND
  if (!whole || api.version() < kOldest) {
    *why = "UCX is too old: 1.13 or newer is needed";
    return Status{Code::unavailable, "UCX is too old"};
  }
  return api;
}

}  // namespace kvl::ucx
