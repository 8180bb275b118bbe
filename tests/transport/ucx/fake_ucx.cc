// UCX's objects, as little of them as a Link can see.
#include "tests/transport/ucx/fake_ucx.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace kvl::test {
namespace {

FakeUcx* current = nullptr;
constexpr std::size_t kRequestBytes = 100;

}  // namespace

struct FakeUcx::Ep {
  Worker* worker = nullptr;
  Worker* remote = nullptr;
  ucp_err_handler_t handler{};
  std::deque<Pending> pending;
  ucs_status_t failure = UCS_OK;
  bool told = false;
  bool closed = false;
};
struct FakeUcx::Worker {
  std::uint64_t number = 0;
  std::map<unsigned, ucp_am_handler_param_t> handlers;
  std::deque<Message> arrived;
  std::vector<Ep*> eps;
};

namespace {

using Ep = FakeUcx::Ep;
using Worker = FakeUcx::Worker;

Worker* worker_of(ucp_worker_h worker) { return reinterpret_cast<Worker*>(worker); }
Ep* ep_of(ucp_ep_h ep) { return reinterpret_cast<Ep*>(ep); }

ucs_status_t config_read(const char*, const char*, ucp_config_t** config) {
  *config = static_cast<ucp_config_t*>(std::malloc(1));
  return UCS_OK;
}
ucs_status_t config_modify(ucp_config_t*, const char* name, const char* value) {
  current->modified.push_back(std::string(name) + "=" + value);
  return UCS_OK;
}
void config_release(ucp_config_t* config) { std::free(config); }
void get_version(unsigned* major, unsigned* minor, unsigned* release) {
  *major = 1;
  *minor = current->minor;
  *release = 0;
}
ucs_status_t init_version(unsigned, unsigned, const ucp_params_t*, const ucp_config_t*,
                          ucp_context_h* context) {
  *context = static_cast<ucp_context_h>(std::malloc(1));
  return UCS_OK;
}
void cleanup(ucp_context_h context) { std::free(context); }
ucs_status_t context_query(ucp_context_h, ucp_context_attr_t* attributes) {
  attributes->request_size = kRequestBytes;
  return UCS_OK;
}
ucs_status_t worker_create(ucp_context_h, const ucp_worker_params_t*, ucp_worker_h* out) {
  static std::uint64_t numbers = 0;
  auto* const worker = new Worker;
  worker->number = ++numbers;
  current->workers.push_back(worker);
  *out = reinterpret_cast<ucp_worker_h>(worker);
  return UCS_OK;
}
void worker_destroy(ucp_worker_h handle) {
  Worker* const worker = worker_of(handle);
  std::erase(current->workers, worker);
  for (Worker* const other : current->workers) {
    for (Ep* const ep : other->eps) {
      if (ep->remote == worker) ep->remote = nullptr;
    }
  }
  for (Ep* const ep : worker->eps) delete ep;
  delete worker;
}
ucs_status_t worker_get_address(ucp_worker_h worker, ucp_address_t** address, std::size_t* bytes) {
  *bytes = sizeof(Worker::number);
  *address = static_cast<ucp_address_t*>(std::malloc(*bytes));
  std::memcpy(static_cast<void*>(*address), &worker_of(worker)->number, *bytes);
  return UCS_OK;
}
void worker_release_address(ucp_worker_h, ucp_address_t* address) { std::free(address); }
ucs_status_t worker_get_efd(ucp_worker_h, int*) { return UCS_ERR_UNSUPPORTED; }
ucs_status_t worker_arm(ucp_worker_h) { return UCS_OK; }
ucs_status_t set_handler(ucp_worker_h worker, const ucp_am_handler_param_t* param) {
  worker_of(worker)->handlers[param->id] = *param;
  return UCS_OK;
}

unsigned deliver(Worker& worker) {
  unsigned count = 0;
  while (!worker.arrived.empty()) {
    FakeUcx::Message message = std::move(worker.arrived.front());
    worker.arrived.pop_front();
    const auto handler = worker.handlers.find(message.id);
    ++count;
    if (handler == worker.handlers.end()) continue;
    const ucp_am_recv_param_t param{};
    handler->second.cb(handler->second.arg, message.header.data(), message.header.size(),
                       message.data.data(), message.data.size(), &param);
  }
  return count;
}
unsigned worker_progress(ucp_worker_h handle) {
  Worker& worker = *worker_of(handle);
  unsigned count = deliver(worker);
  for (Ep* const ep : worker.eps) {
    if (ep->failure != UCS_OK && !ep->told) {
      ep->told = true;
      ep->handler.cb(ep->handler.arg, reinterpret_cast<ucp_ep_h>(ep), ep->failure);
    }
    // In the order of posting, until one is held back.
    while (!ep->pending.empty()) {
      const FakeUcx::Pending next = ep->pending.front();
      const bool hold = !ep->closed && ep->failure == UCS_OK &&
                        ((next.put && current->hold_puts) || (next.flush && current->hold_flushes));
      if (hold) break;
      ep->pending.pop_front();
      next.done(next.request, ep->failure != UCS_OK ? ep->failure : next.status, next.user_data);
      ++count;
    }
  }
  return count;
}

ucs_status_t ep_create(ucp_worker_h handle, const ucp_ep_params_t* params, ucp_ep_h* out) {
  if (current->connect_status != UCS_OK) return current->connect_status;
  std::uint64_t number = 0;
  std::memcpy(&number, static_cast<const void*>(params->address), sizeof(number));
  auto* const ep = new Ep;
  ep->worker = worker_of(handle);
  ep->handler = params->err_handler;
  for (Worker* const worker : current->workers) {
    if (worker->number == number) ep->remote = worker;
  }
  ep->worker->eps.push_back(ep);
  *out = reinterpret_cast<ucp_ep_h>(ep);
  return UCS_OK;
}
ucs_status_ptr_t ep_close(ucp_ep_h handle, const ucp_request_param_t*) {
  Ep* const ep = ep_of(handle);
  ep->closed = true;
  for (const FakeUcx::Pending& each : ep->pending) {
    each.done(each.request, UCS_ERR_CANCELED, each.user_data);
  }
  ep->pending.clear();
  return current->hold_closes ? ep : nullptr;
}
void ep_print_info(ucp_ep_h, std::FILE* stream) {
  std::fprintf(stream, "# UCP endpoint\n#  lane[0]:  1:%s.0 md[0]  -> md[0]/x/sysdev[255] %s\n",
               current->lane.c_str(), current->uses.c_str());
}

ucs_status_t mem_map(ucp_context_h, const ucp_mem_map_params_t*, ucp_mem_h* out) {
  *out = static_cast<ucp_mem_h>(std::malloc(1));
  return UCS_OK;
}
ucs_status_t mem_unmap(ucp_context_h, ucp_mem_h memory) {
  std::free(memory);
  return UCS_OK;
}
ucs_status_t rkey_pack(ucp_context_h, ucp_mem_h, void** out, std::size_t* bytes) {
  *bytes = sizeof(current->keys);
  *out = std::malloc(*bytes);
  ++current->keys;
  std::memcpy(*out, &current->keys, *bytes);
  return UCS_OK;
}
void rkey_buffer_release(void* buffer) { std::free(buffer); }
ucs_status_t rkey_unpack(ucp_ep_h, const void*, ucp_rkey_h* out) {
  *out = static_cast<ucp_rkey_h>(std::malloc(1));
  return UCS_OK;
}
void rkey_destroy(ucp_rkey_h key) { std::free(key); }

ucs_status_ptr_t pend(Ep& ep, const ucp_request_param_t& param, ucs_status_t status, bool put,
                      bool flush) {
  ep.pending.push_back({param.request, param.cb.send, param.user_data, status, put, flush});
  return param.request;
}
ucs_status_ptr_t rma(ucp_ep_h handle, void* local, std::size_t bytes, std::uint64_t remote,
                     const ucp_request_param_t& param, bool put) {
  FakeUcx& fake = *current;
  const std::uint64_t number = fake.tries++;
  if (std::find(fake.again_at.begin(), fake.again_at.end(), number) != fake.again_at.end()) {
    return UCS_STATUS_PTR(UCS_ERR_NO_RESOURCE);
  }
  ++fake.rma_posts;
  fake.order.emplace_back(put ? "put" : "get");
  const ucs_status_t status = std::exchange(fake.fail_next, UCS_OK);
  void* const target = reinterpret_cast<void*>(remote);
  if (status == UCS_OK) std::memcpy(put ? target : local, put ? local : target, bytes);
  return pend(*ep_of(handle), param, status, put, false);
}
ucs_status_ptr_t put_nbx(ucp_ep_h ep, const void* data, std::size_t bytes, std::uint64_t remote,
                         ucp_rkey_h, const ucp_request_param_t* param) {
  return rma(ep, const_cast<void*>(data), bytes, remote, *param, true);
}
ucs_status_ptr_t get_nbx(ucp_ep_h ep, void* data, std::size_t bytes, std::uint64_t remote,
                         ucp_rkey_h, const ucp_request_param_t* param) {
  return rma(ep, data, bytes, remote, *param, false);
}
ucs_status_ptr_t flush_nbx(ucp_ep_h ep, const ucp_request_param_t* param) {
  current->order.emplace_back("flush");
  if (ep_of(ep)->pending.empty() && !current->hold_flushes) return nullptr;
  return pend(*ep_of(ep), *param, UCS_OK, false, true);
}
ucs_status_ptr_t am_send(ucp_ep_h handle, unsigned id, const void* header, std::size_t header_bytes,
                         const void* data, std::size_t bytes, const ucp_request_param_t*) {
  Ep& ep = *ep_of(handle);
  if (ep.failure != UCS_OK) return UCS_STATUS_PTR(ep.failure);
  current->order.emplace_back("am");
  const auto* const head = static_cast<const std::byte*>(header);
  const auto* const body = static_cast<const std::byte*>(data);
  if (ep.remote != nullptr) {
    ep.remote->arrived.push_back({id, {head, head + header_bytes}, {body, body + bytes}});
  }
  return nullptr;
}
ucs_status_t check_status(void*) { return current->hold_closes ? UCS_INPROGRESS : UCS_OK; }
void request_free(void*) {}

}  // namespace

FakeUcx::FakeUcx() { current = this; }
FakeUcx::~FakeUcx() {
  if (current == this) current = nullptr;
}

ucx::UcxApi FakeUcx::api() const {
  return {config_read,
          config_modify,
          config_release,
          get_version,
          init_version,
          cleanup,
          context_query,
          worker_create,
          worker_destroy,
          worker_get_address,
          worker_release_address,
          worker_progress,
          worker_get_efd,
          worker_arm,
          set_handler,
          ep_create,
          ep_close,
          flush_nbx,
          ep_print_info,
          mem_map,
          mem_unmap,
          rkey_pack,
          rkey_buffer_release,
          rkey_unpack,
          rkey_destroy,
          put_nbx,
          get_nbx,
          am_send,
          check_status,
          request_free};
}

void FakeUcx::lose_peers(ucs_status_t status) {
  for (Worker* const worker : workers) {
    for (Ep* const ep : worker->eps) ep->failure = status;
  }
}

void FakeUcx::inject(unsigned id, const std::vector<std::byte>& header,
                     const std::vector<std::byte>& data) {
  for (Worker* const worker : workers) worker->arrived.push_back({id, header, data});
}

}  // namespace kvl::test
