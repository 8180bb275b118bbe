// UCX, opened at run time: its entry points as a table of pointers, so that a test puts functions
// of its own in their place.
#pragma once

#include <ucp/api/ucp.h>

#include <cstdint>
#include <string>

#include "kvl/status.h"

namespace kvl::ucx {

// Every function of libucp that is called, by its name there.
#define KVL_UCP_FUNCTIONS(F)    \
  F(config_read)                \
  F(config_modify)              \
  F(config_release)             \
  F(get_version)                \
  F(init_version)               \
  F(cleanup)                    \
  F(context_query)              \
  F(worker_create)              \
  F(worker_destroy)             \
  F(worker_get_address)         \
  F(worker_release_address)     \
  F(worker_progress)            \
  F(worker_get_efd)             \
  F(worker_arm)                 \
  F(worker_set_am_recv_handler) \
  F(ep_create)                  \
  F(ep_close_nbx)               \
  F(ep_flush_nbx)               \
  F(ep_print_info)              \
  F(mem_map)                    \
  F(mem_unmap)                  \
  F(rkey_pack)                  \
  F(rkey_buffer_release)        \
  F(ep_rkey_unpack)             \
  F(rkey_destroy)               \
  F(put_nbx)                    \
  F(get_nbx)                    \
  F(am_send_nbx)                \
  F(request_check_status)       \
  F(request_free)

struct UcxApi {
#define KVL_UCP_MEMBER(name) decltype(&::ucp_##name) name = nullptr;
  KVL_UCP_FUNCTIONS(KVL_UCP_MEMBER)
#undef KVL_UCP_MEMBER

  // Major and minor of the library, as UCP_VERSION() makes them.
  std::uint32_t version() const {
    unsigned major = 0, minor = 0, release = 0;
    get_version(&major, &minor, &release);
    return UCP_VERSION(major, minor);
  }
};

// `path`: a file, or "" for the system's libucp.so.0. Stays open until the process ends: UCX has
// hooks that outlive any dlclose(). unavailable: not there, or too old; `why` says what to do.
Result<UcxApi> load_ucx_api(const std::string& path, std::string* why);

}  // namespace kvl::ucx
