// libfabric, opened at run time: the few entry points that are not inline calls through an object's
// own operations. A table of pointers, so that a test puts a provider of its own in its place.
#pragma once

#include <rdma/fabric.h>
#include <rdma/fi_cm.h>
#include <rdma/fi_domain.h>
#include <rdma/fi_endpoint.h>
#include <rdma/fi_eq.h>
#include <rdma/fi_errno.h>
#include <rdma/fi_rma.h>

#include <cstdint>
#include <string>

#include "kvl/status.h"

namespace kvl::libfabric {

struct FabricApi {
  std::uint32_t (*version)() = nullptr;
  int (*getinfo)(std::uint32_t version, const char* node, const char* service, std::uint64_t flags,
                 const fi_info* hints, fi_info** info) = nullptr;
  void (*freeinfo)(fi_info* info) = nullptr;
  fi_info* (*dupinfo)(const fi_info* info) = nullptr;
  int (*fabric)(fi_fabric_attr* attributes, fid_fabric** fabric, void* context) = nullptr;
  const char* (*strerror)(int code) = nullptr;
};

// `path`: a file, or "" for the usual places, EFA's own first. Stays open until the process ends:
// libfabric starts threads and hooks that outlive any dlclose(). unavailable: not there, or too
// old; `why` says what to do.
Result<FabricApi> load_fabric_api(const std::string& path, std::string* why);

// The API to ask for: what the headers of this build and the library both know.
inline std::uint32_t negotiate(const FabricApi& api) {
  constexpr std::uint32_t kHeaders = FI_VERSION(FI_MAJOR_VERSION, FI_MINOR_VERSION);
  return api.version() < kHeaders ? api.version() : kHeaders;
}

// From libfabric's manual pages: options of an endpoint that are newer than the oldest headers we
// build with, and the version of the library that has them. Asked only of such a library.
struct NewOption {
  std::uint32_t since;
  int name;
};
inline constexpr NewOption kCudaApiPermitted{FI_VERSION(1, 18), 10};       // bool
inline constexpr NewOption kSharedMemoryPermitted{FI_VERSION(1, 20), 11};  // bool
inline constexpr NewOption kMaxMessageBytes{FI_VERSION(2, 0), 12};         // size_t
inline constexpr NewOption kMaxRmaBytes{FI_VERSION(2, 0), 14};             // size_t
inline constexpr int kEfaOptions = -(0xefa << 16);
inline constexpr NewOption kEfaEmulatedRead{FI_VERSION(1, 18), kEfaOptions + 1};   // bool
inline constexpr NewOption kEfaEmulatedWrite{FI_VERSION(1, 18), kEfaOptions + 2};  // bool

}  // namespace kvl::libfabric
