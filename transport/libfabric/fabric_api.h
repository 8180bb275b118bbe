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
#include "transport/libfabric/fabric_abi.h"

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

// The API to ask for: the newest that we and the library both know, whatever the headers.
inline std::uint32_t negotiate(const FabricApi& api) {
  return api.version() < kApiKnown ? api.version() : kApiKnown;
}

}  // namespace kvl::libfabric
