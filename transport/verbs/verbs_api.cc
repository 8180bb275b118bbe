// Finding the library and its entry points.
#include "transport/verbs/verbs_api.h"

#include <dlfcn.h>

namespace kvl::verbs {
namespace {

// The version of each symbol whose structures are those of our headers: others are older.
template <typename F>
bool find(void* library, const char* name, const char* version, F& function) {
  function = reinterpret_cast<F>(::dlvsym(library, name, version));
  return function != nullptr;
}

bool find_devices(void* library, VerbsApi& api) {
  return find(library, "ibv_get_device_list", "IBVERBS_1.1", api.get_device_list) &&
         find(library, "ibv_free_device_list", "IBVERBS_1.1", api.free_device_list) &&
         find(library, "ibv_get_device_name", "IBVERBS_1.1", api.get_device_name) &&
         find(library, "ibv_open_device", "IBVERBS_1.1", api.open_device) &&
         find(library, "ibv_close_device", "IBVERBS_1.1", api.close_device) &&
         find(library, "ibv_query_device", "IBVERBS_1.1", api.query_device) &&
         find(library, "ibv_query_port", "IBVERBS_1.1", api.query_port) &&
         find(library, "_ibv_query_gid_table", "IBVERBS_1.11", api.query_gid_table) &&
         find(library, "ibv_get_async_event", "IBVERBS_1.1", api.get_async_event) &&
         find(library, "ibv_ack_async_event", "IBVERBS_1.1", api.ack_async_event) &&
         find(library, "ibv_wc_status_str", "IBVERBS_1.1", api.wc_status_str);
}

bool find_objects(void* library, VerbsApi& api) {
  find(library, "ibv_reg_dmabuf_mr", "IBVERBS_1.12", api.reg_dmabuf_mr);
  return find(library, "ibv_alloc_pd", "IBVERBS_1.1", api.alloc_pd) &&
         find(library, "ibv_dealloc_pd", "IBVERBS_1.1", api.dealloc_pd) &&
         find(library, "ibv_reg_mr_iova2", "IBVERBS_1.8", api.reg_mr) &&
         find(library, "ibv_dereg_mr", "IBVERBS_1.1", api.dereg_mr) &&
         find(library, "ibv_create_comp_channel", "IBVERBS_1.0", api.create_comp_channel) &&
         find(library, "ibv_destroy_comp_channel", "IBVERBS_1.0", api.destroy_comp_channel) &&
         find(library, "ibv_create_cq", "IBVERBS_1.1", api.create_cq) &&
         find(library, "ibv_destroy_cq", "IBVERBS_1.1", api.destroy_cq) &&
         find(library, "ibv_get_cq_event", "IBVERBS_1.1", api.get_cq_event) &&
         find(library, "ibv_ack_cq_events", "IBVERBS_1.1", api.ack_cq_events) &&
         find(library, "ibv_create_srq", "IBVERBS_1.1", api.create_srq) &&
         find(library, "ibv_destroy_srq", "IBVERBS_1.1", api.destroy_srq) &&
         find(library, "ibv_create_qp", "IBVERBS_1.1", api.create_qp) &&
         find(library, "ibv_modify_qp", "IBVERBS_1.1", api.modify_qp) &&
         find(library, "ibv_destroy_qp", "IBVERBS_1.1", api.destroy_qp);
}

}  // namespace

Result<VerbsApi> load_verbs_api(const std::string& path, std::string* why) {
  const std::string file = path.empty() ? "libibverbs.so.1" : path;
  void* const library = ::dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    *why = path.empty() ? "libibverbs.so.1 is not installed: install libibverbs1 and "
                          "ibverbs-providers (rdma-core)"
                        : "verbs.library=" + path + " cannot be opened";
    return Status{Code::unavailable, "libibverbs cannot be opened"};
  }
  VerbsApi api;
  if (!find_devices(library, api) || !find_objects(library, api)) {
    *why = "libibverbs is too old: rdma-core 32 or newer is needed";
    return Status{Code::unavailable, "libibverbs is too old"};
  }
  return api;
}

}  // namespace kvl::verbs
