// The provider's objects: libfabric's structures with operations of our own.
#include "tests/transport/libfabric/fake_provider.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace kvl::test {
namespace {

FakeProvider* current = nullptr;

int no_bind(fid*, fid*, std::uint64_t) { return 0; }

template <typename T>
T* zeroed() {
  return static_cast<T*>(std::calloc(1, sizeof(T)));
}
char* copy(const char* text) { return text == nullptr ? nullptr : ::strdup(text); }

fi_info* dup_info(const fi_info* from) {
  fi_info* const info = zeroed<fi_info>();
  info->tx_attr = zeroed<fi_tx_attr>();
  info->rx_attr = zeroed<fi_rx_attr>();
  info->ep_attr = zeroed<fi_ep_attr>();
  info->domain_attr = zeroed<fi_domain_attr>();
  info->fabric_attr = zeroed<fi_fabric_attr>();
  if (from == nullptr) return info;
  info->caps = from->caps;
  info->mode = from->mode;
  *info->tx_attr = *from->tx_attr;
  *info->rx_attr = *from->rx_attr;
  *info->ep_attr = *from->ep_attr;
  *info->domain_attr = *from->domain_attr;
  *info->fabric_attr = *from->fabric_attr;
  info->domain_attr->name = copy(from->domain_attr->name);
  info->fabric_attr->name = copy(from->fabric_attr->name);
  info->fabric_attr->prov_name = copy(from->fabric_attr->prov_name);
  return info;
}

void free_info(fi_info* info) {
  if (info == nullptr) return;
  std::free(info->domain_attr->name);
  std::free(info->fabric_attr->name);
  std::free(info->fabric_attr->prov_name);
  std::free(info->tx_attr);
  std::free(info->rx_attr);
  std::free(info->ep_attr);
  std::free(info->domain_attr);
  std::free(info->fabric_attr);
  std::free(info);
}

int get_info(std::uint32_t, const char*, const char*, std::uint64_t, const fi_info* hints,
             fi_info** out) {
  FakeProvider& fake = *current;
  const std::string fabric = hints->fabric_attr->name ? hints->fabric_attr->name : "";
  const bool delivery = (hints->tx_attr->op_flags & FI_DELIVERY_COMPLETE) != 0;
  fake.asked.push_back({hints->mode, fabric, delivery});
  const bool direct = fabric == "efa-direct";
  if (delivery && !fake.offers_delivery_complete) return -FI_ENODATA;
  if (direct &&
      (!fake.offers_direct || (hints->mode & fake.direct_needs_mode) != fake.direct_needs_mode)) {
    return -FI_ENODATA;
  }
  fi_info* const info = dup_info(hints);
  info->tx_attr->size = info->rx_attr->size = 64;
  info->ep_attr->max_msg_size = 1 << 20;
  info->domain_attr->mr_key_size = 8;
  info->domain_attr->name = copy("fake0");
  if (!direct) info->fabric_attr->name = copy(fake.name.c_str());
  *out = info;
  return 0;
}

}  // namespace

struct FakeProvider::Cq {
  struct Entry {
    fi_cq_msg_entry entry{};
    int error = 0, provider_error = 0;
  };
  fid_cq fid{};
  std::deque<Entry> entries;
};
struct FakeProvider::Mr {
  fid_mr fid{};
  std::byte* data = nullptr;
  std::uint64_t bytes = 0;
};
struct FakeProvider::Ep {
  struct Receive {
    void* buffer;
    std::size_t bytes;
    void* context;
  };
  fid_ep fid{};
  std::uint64_t number = 0;
  Cq* cq = nullptr;
  std::deque<Receive> receives;
  std::deque<std::vector<std::byte>> unexpected;
  std::vector<Cq::Entry> rung_later;

  void ring() {
    current->run_longest = std::max(current->run_longest, rung_later.size());
    for (const Cq::Entry& entry : rung_later) cq->entries.push_back(entry);
    rung_later.clear();
  }
  void match() {
    while (!receives.empty() && !unexpected.empty()) {
      const Receive receive = receives.front();
      const std::vector<std::byte> bytes = unexpected.front();
      receives.pop_front();
      unexpected.pop_front();
      std::copy_n(bytes.begin(), std::min(bytes.size(), receive.bytes),
                  static_cast<std::byte*>(receive.buffer));
      cq->entries.push_back({{receive.context, FI_RECV, bytes.size()}});
    }
  }
};

namespace {

using Ep = FakeProvider::Ep;
using Cq = FakeProvider::Cq;
using Mr = FakeProvider::Mr;

// The first member of each object is its fid, which is how libfabric finds it again.
Ep* ep_of(fid_ep* ep) { return reinterpret_cast<Ep*>(ep); }

ssize_t rma(fid_ep* fid, const fi_msg_rma* message, std::uint64_t flags, bool write) {
  FakeProvider& fake = *current;
  const std::uint64_t number = fake.rma_tries++;
  if (std::count(fake.again_at.begin(), fake.again_at.end(), number) > 0) return -FI_EAGAIN;
  ++fake.rma_posts;
  Ep& ep = *ep_of(fid);
  Cq::Entry entry{{message->context, FI_RMA, 0}};
  const fi_rma_iov& target = message->rma_iov[0];
  const auto known = fake.keys.find(target.key);
  const auto at = known == fake.keys.end()
                      ? 0
                      : target.addr - reinterpret_cast<std::uintptr_t>(known->second->data);
  if (known == fake.keys.end() || at + target.len > known->second->bytes) {
    entry.error = FI_EIO;
    entry.provider_error = 7;
  } else if (fake.fail_error != 0) {
    entry.error = std::exchange(fake.fail_error, 0);
    entry.provider_error = fake.fail_provider_error;
  } else {
    std::byte* const there = known->second->data + at;
    void* const here = message->msg_iov[0].iov_base;
    std::memcpy(write ? there : here, write ? here : there, target.len);
  }
  ep.rung_later.push_back(entry);
  if ((flags & FI_MORE) == 0) ep.ring();
  return 0;
}

ssize_t send_message(fid_ep* fid, const fi_msg* message, std::uint64_t) {
  Ep& ep = *ep_of(fid);
  ep.rung_later.push_back({{message->context, FI_SEND, 0}});
  ep.ring();
  for (Ep* const other : current->endpoints) {
    if (other->number != message->addr) continue;
    const auto* const bytes = static_cast<const std::byte*>(message->msg_iov[0].iov_base);
    other->unexpected.emplace_back(bytes, bytes + message->msg_iov[0].iov_len);
    other->match();
  }
  return 0;
}

int close_ep(fid* object) {
  Ep* const ep = reinterpret_cast<Ep*>(object);
  std::erase(current->endpoints, ep);
  delete ep;
  return 0;
}
int close_cq(fid* object) {
  delete reinterpret_cast<Cq*>(object);
  return 0;
}
int close_mr(fid* object) {
  Mr* const mr = reinterpret_cast<Mr*>(object);
  current->keys.erase(mr->fid.key);
  delete mr;
  return 0;
}
template <typename T>
int close_plain(fid* object) {
  delete reinterpret_cast<T*>(object);
  return 0;
}

int bind_ep(fid* object, fid* other, std::uint64_t) {
  if (other->fclass == FI_CLASS_CQ) {
    reinterpret_cast<Ep*>(object)->cq = reinterpret_cast<Cq*>(other);
  }
  return 0;
}
int control(fid*, int command, void*) { return command == FI_ENABLE ? 0 : -FI_ENOSYS; }

template <typename T, int (*Close)(fid*)>
fi_ops* base_ops(int (*bind)(fid*, fid*, std::uint64_t) = no_bind) {
  static fi_ops ops{};
  ops.size = sizeof(ops);
  ops.close = Close;
  ops.bind = bind;
  ops.control = control;
  return &ops;
}

fi_ops_msg* message_ops() {
  static fi_ops_msg ops{};
  ops.size = sizeof(ops);
  ops.sendmsg = send_message;
  ops.recv = [](fid_ep* fid, void* buffer, std::size_t bytes, void*, fi_addr_t,
                void* context) -> ssize_t {
    ep_of(fid)->receives.push_back({buffer, bytes, context});
    ep_of(fid)->match();
    return 0;
  };
  return &ops;
}
fi_ops_rma* rma_ops() {
  static fi_ops_rma ops{};
  ops.size = sizeof(ops);
  ops.writemsg = [](fid_ep* ep, const fi_msg_rma* message, std::uint64_t flags) {
    return rma(ep, message, flags, true);
  };
  ops.readmsg = [](fid_ep* ep, const fi_msg_rma* message, std::uint64_t flags) {
    return rma(ep, message, flags, false);
  };
  return &ops;
}
fi_ops_ep* endpoint_ops() {
  static fi_ops_ep ops{};
  ops.size = sizeof(ops);
  ops.getopt = [](fid_t, int, int, void*, std::size_t*) { return -FI_ENOPROTOOPT; };
  ops.setopt = [](fid_t, int, int, const void*, std::size_t) { return -FI_ENOPROTOOPT; };
  return &ops;
}
fi_ops_cm* cm_ops() {
  static fi_ops_cm ops{};
  ops.size = sizeof(ops);
  ops.getname = [](fid_t object, void* address, std::size_t* bytes) {
    *bytes = sizeof(Ep::number);
    std::memcpy(address, &reinterpret_cast<Ep*>(object)->number, *bytes);
    return 0;
  };
  return &ops;
}
fi_ops_cq* cq_ops() {
  static fi_ops_cq ops{};
  ops.size = sizeof(ops);
  ops.read = [](fid_cq* fid, void* out, std::size_t count) -> ssize_t {
    Cq& cq = *reinterpret_cast<Cq*>(fid);
    if (cq.entries.empty()) return -FI_EAGAIN;
    std::size_t n = 0;
    for (; n < count && !cq.entries.empty() && cq.entries.front().error == 0; ++n) {
      static_cast<fi_cq_msg_entry*>(out)[n] = cq.entries.front().entry;
      cq.entries.pop_front();
    }
    return n > 0 ? static_cast<ssize_t>(n) : -FI_EAVAIL;
  };
  ops.readerr = [](fid_cq* fid, fi_cq_err_entry* out, std::uint64_t) -> ssize_t {
    Cq& cq = *reinterpret_cast<Cq*>(fid);
    if (cq.entries.empty() || cq.entries.front().error == 0) return -FI_EAGAIN;
    out->op_context = cq.entries.front().entry.op_context;
    out->err = cq.entries.front().error;
    out->prov_errno = cq.entries.front().provider_error;
    cq.entries.pop_front();
    return 1;
  };
  return &ops;
}
fi_ops_av* av_ops() {
  static fi_ops_av ops{};
  ops.size = sizeof(ops);
  ops.insert = [](fid_av*, const void* address, std::size_t, fi_addr_t* out, std::uint64_t, void*) {
    std::memcpy(out, address, sizeof(*out));
    return 1;
  };
  ops.remove = [](fid_av*, fi_addr_t*, std::size_t, std::uint64_t) { return 0; };
  return &ops;
}
fi_ops_mr* mr_ops() {
  static fi_ops_mr ops{};
  ops.size = sizeof(ops);
  ops.regattr = [](fid*, const fi_mr_attr* attributes, std::uint64_t, fid_mr** out) {
    Mr* const mr = new Mr;
    mr->fid.fid.fclass = FI_CLASS_MR;
    mr->fid.fid.ops = base_ops<Mr, close_mr>();
    mr->fid.key = current->next_key++;
    mr->data = static_cast<std::byte*>(attributes->mr_iov->iov_base);
    mr->bytes = attributes->mr_iov->iov_len;
    current->keys[mr->fid.key] = mr;
    *out = &mr->fid;
    return 0;
  };
  ops.reg = [](fid* domain, const void* data, std::size_t bytes, std::uint64_t access,
               std::uint64_t, std::uint64_t, std::uint64_t, fid_mr** out, void*) {
    const iovec range{const_cast<void*>(data), bytes};
    fi_mr_attr attributes{};
    attributes.mr_iov = &range;
    attributes.iov_count = 1;
    attributes.access = access;
    return mr_ops()->regattr(domain, &attributes, 0, out);
  };
  return &ops;
}
fi_ops_domain* domain_ops() {
  static fi_ops_domain ops{};
  ops.size = sizeof(ops);
  ops.av_open = [](fid_domain*, fi_av_attr*, fid_av** out, void*) {
    fid_av* const av = new fid_av{};
    av->fid.fclass = FI_CLASS_AV;
    av->fid.ops = base_ops<fid_av, close_plain<fid_av>>();
    av->ops = av_ops();
    *out = av;
    return 0;
  };
  ops.cq_open = [](fid_domain*, fi_cq_attr* attributes, fid_cq** out, void*) {
    if (attributes->wait_obj == FI_WAIT_FD) return -FI_ENOSYS;
    Cq* const cq = new Cq;
    cq->fid.fid.fclass = FI_CLASS_CQ;
    cq->fid.fid.ops = base_ops<Cq, close_cq>();
    cq->fid.ops = cq_ops();
    *out = &cq->fid;
    return 0;
  };
  ops.endpoint = [](fid_domain*, fi_info*, fid_ep** out, void*) {
    static std::uint64_t numbers = 0;
    Ep* const ep = new Ep;
    ep->number = ++numbers;
    ep->fid.fid.fclass = FI_CLASS_EP;
    ep->fid.fid.ops = base_ops<Ep, close_ep>(bind_ep);
    ep->fid.ops = endpoint_ops();
    ep->fid.cm = cm_ops();
    ep->fid.msg = message_ops();
    ep->fid.rma = rma_ops();
    current->endpoints.push_back(ep);
    *out = &ep->fid;
    return 0;
  };
  return &ops;
}
int open_fabric(fi_fabric_attr*, fid_fabric** out, void*) {
  static fi_ops_fabric ops{};
  ops.size = sizeof(ops);
  ops.domain = [](fid_fabric*, fi_info*, fid_domain** domain_out, void*) {
    fid_domain* const domain = new fid_domain{};
    domain->fid.fclass = FI_CLASS_DOMAIN;
    domain->fid.ops = base_ops<fid_domain, close_plain<fid_domain>>();
    domain->ops = domain_ops();
    domain->mr = mr_ops();
    *domain_out = domain;
    return 0;
  };
  fid_fabric* const fabric = new fid_fabric{};
  fabric->fid.fclass = FI_CLASS_FABRIC;
  fabric->fid.ops = base_ops<fid_fabric, close_plain<fid_fabric>>();
  fabric->ops = &ops;
  *out = fabric;
  return 0;
}

}  // namespace

FakeProvider::FakeProvider(std::string provider_name) : name(std::move(provider_name)) {
  current = this;
}
FakeProvider::~FakeProvider() {
  if (current == this) current = nullptr;
}

libfabric::FabricApi FakeProvider::api() const {
  libfabric::FabricApi api;
  api.version = []() -> std::uint32_t { return FI_VERSION(2, 1); };
  api.getinfo = get_info;
  api.freeinfo = free_info;
  api.dupinfo = dup_info;
  api.fabric = open_fabric;
  api.strerror = [](int) { return "fake"; };
  return api;
}

std::size_t FakeProvider::waiting() const {
  std::size_t count = 0;
  for (const Ep* const ep : endpoints) count += ep->rung_later.size();
  return count;
}

void FakeProvider::inject(const std::vector<std::byte>& bytes) {
  for (Ep* const ep : endpoints) {
    ep->unexpected.push_back(bytes);
    ep->match();
  }
}

}  // namespace kvl::test
