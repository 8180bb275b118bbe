// Opening, binding and closing the objects, in the only order that an EFA allows.
#include "tests/transport/libfabric/fake_objects.h"

#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>

namespace kvl::test::fake {
namespace {

constexpr std::uint64_t kPage = 4096;

template <typename T>
T& as(void* object) {
  return *static_cast<T*>(object);  // its fid is its first member
}

int no_bind(fid*, fid*, std::uint64_t) { return 0; }
int no_control(fid*, int, void*) { return -FI_ENOSYS; }

template <int (*Close)(fid*), int (*Bind)(fid*, fid*, std::uint64_t) = no_bind,
          int (*Control)(fid*, int, void*) = no_control>
fi_ops* base_ops() {
  static fi_ops ops = [] {
    fi_ops made{};
    made.size = sizeof(made);
    made.close = Close;
    made.bind = Bind;
    made.control = Control;
    return made;
  }();
  return &ops;
}

int close_fabric(fid* object) {
  delete &as<Fabric>(object);
  return 0;
}

int close_domain(fid* object) {
  Domain& domain = as<Domain>(object);
  {
    const auto guard = domain.world->lock();
    if (domain.objects > 0) {
      domain.world->violate("a domain was closed before its objects");
      return -FI_EBUSY;
    }
  }
  delete &domain;
  return 0;
}

int close_av(fid* object) {
  Av& av = as<Av>(object);
  {
    const auto guard = av.domain->world->lock();
    if (av.ep != nullptr)
      av.domain->world->violate("an address vector was closed before its endpoint");
    --av.domain->objects;
  }
  delete &av;
  return 0;
}

int close_cq(fid* object) {
  Cq& cq = as<Cq>(object);
  {
    const auto guard = cq.domain->world->lock();
    if (cq.ep != nullptr)
      cq.domain->world->violate("a completion queue was closed before its endpoint");
    if (cq.fd >= 0) ::close(cq.fd);
    --cq.domain->objects;
  }
  delete &cq;
  return 0;
}

int close_mr(fid* object) {
  Mr& mr = as<Mr>(object);
  {
    const auto guard = mr.domain->world->lock();
    if (mr.uses > 0) mr.domain->world->violate("memory was deregistered under an operation");
    mr.domain->keys.erase(mr.fid.key);
    if (mr.reach != mr.data) {
      const std::uint64_t inset = reinterpret_cast<std::uintptr_t>(mr.reach) % kPage;
      ::munmap(mr.reach - inset, mr.bytes + inset);
    }
    --mr.domain->objects;
  }
  delete &mr;
  return 0;
}

// Nothing of its operations touches our memory any more; what has left still lands elsewhere.
int close_ep(fid* object) {
  Ep& ep = as<Ep>(object);
  {
    FakeProvider& world = *ep.domain->world;
    const auto guard = world.lock();
    for (const auto& [address, live] : ep.av->entries) {
      if (live && ep.domain->direct) world.violate("an endpoint was closed before av_remove");
    }
    for (const std::shared_ptr<Op>& op : ep.ops) {
      op->ep = nullptr;
      if (op->mr != nullptr) --op->mr->uses;
    }
    ep.av->ep = nullptr;
    ep.cq->ep = nullptr;
    std::erase(world.endpoints, &ep);
    --ep.domain->objects;
  }
  delete &ep;
  return 0;
}

int bind_ep(fid* object, fid* other, std::uint64_t) {
  Ep& ep = as<Ep>(object);
  if (other->fclass == FI_CLASS_CQ) {
    ep.cq = &as<Cq>(other);
    ep.cq->ep = &ep;
  } else if (other->fclass == FI_CLASS_AV) {
    ep.av = &as<Av>(other);
    ep.av->ep = &ep;
  }
  return 0;
}
int control_ep(fid* object, int command, void*) {
  if (command != FI_ENABLE) return -FI_ENOSYS;
  Ep& ep = as<Ep>(object);
  const auto guard = ep.domain->world->lock();
  ep.domain->world->endpoints.push_back(&ep);
  return 0;
}
int control_cq(fid* object, int command, void* out) {
  if (command != FI_GETWAIT || as<Cq>(object).fd < 0) return -FI_ENOSYS;
  *static_cast<int*>(out) = as<Cq>(object).fd;
  return 0;
}

int set_option(fid_t object, int, int name, const void* value, std::size_t bytes) {
  Ep& ep = as<Ep>(object);
  const auto guard = ep.domain->world->lock();
  if (!ep.domain->efa || bytes != sizeof(bool)) return -FI_ENOPROTOOPT;
  ep.domain->world->set_options[name] = *static_cast<const bool*>(value);
  return 0;
}

int get_option(fid_t object, int, int name, void* value, std::size_t* bytes) {
  Ep& ep = as<Ep>(object);
  FakeProvider& world = *ep.domain->world;
  const auto guard = world.lock();
  const bool rdma = world.device_rdma(ep.domain->version);
  const auto give = [&](auto given) {
    if (*bytes < sizeof(given)) return -FI_ETOOSMALL;
    std::memcpy(value, &given, *bytes = sizeof(given));
    return 0;
  };
  if (name == libfabric::kMaxRmaBytes.name) return give(world.options.rma_bytes_max);
  if (!ep.domain->efa) return -FI_ENOPROTOOPT;
  if (name == libfabric::kEfaEmulatedRead.name) return give(!rdma || !world.options.rma_read);
  if (name == libfabric::kEfaEmulatedWrite.name) return give(!rdma || !world.options.rma_write);
  return -FI_ENOPROTOOPT;
}

fi_ops_ep* endpoint_ops() {
  static fi_ops_ep ops = [] {
    fi_ops_ep made{};
    made.size = sizeof(made);
    made.getopt = get_option;
    made.setopt = set_option;
    return made;
  }();
  return &ops;
}

fi_ops_cm* cm_ops() {
  static fi_ops_cm ops = [] {
    fi_ops_cm made{};
    made.size = sizeof(made);
    made.getname = [](fid_t object, void* address, std::size_t* bytes) {
      std::memcpy(address, &as<Ep>(object).address, *bytes = sizeof(Address));
      return 0;
    };
    return made;
  }();
  return &ops;
}

int open_ep(fid_domain* owner, fi_info*, fid_ep** out, void*) {
  Domain& domain = as<Domain>(owner);
  FakeProvider& world = *domain.world;
  const auto guard = world.lock();
  Ep* const ep = new Ep;
  ep->domain = &domain;
  ep->address.place = domain.place;
  // The lowest number that is free on this device, so that a restarted process gets its old one.
  const auto taken = [&](std::uint32_t number) {
    return std::any_of(world.endpoints.begin(), world.endpoints.end(), [&](const Ep* other) {
      return other->address.place == domain.place && other->address.number == number;
    });
  };
  while (taken(++ep->address.number)) {
  }
  ep->address.key = world.next_key++ * 0x9E3779B97F4A7C15U;
  ep->fid.fid.fclass = FI_CLASS_EP;
  ep->fid.fid.ops = base_ops<close_ep, bind_ep, control_ep>();
  ep->fid.ops = endpoint_ops();
  ep->fid.cm = cm_ops();
  ep->fid.msg = message_ops();
  ep->fid.rma = rma_ops();
  ++domain.objects;
  *out = &ep->fid;
  return 0;
}

int insert_address(fid_av* object, const void* from, std::size_t count, fi_addr_t* out,
                   std::uint64_t, void*) {
  Av& av = as<Av>(object);
  const auto guard = av.domain->world->lock();
  if (count != 1) return -FI_EINVAL;
  Address address;
  std::memcpy(&address, from, sizeof(address));
  if (address.number == 0 || address.pad != 0) {
    *out = FI_ADDR_NOTAVAIL;
    return 0;
  }
  for (std::size_t i = 0; i < av.entries.size(); ++i) {
    if (av.entries[i] == std::pair{address, true}) {
      *out = i;
      return 1;
    }
  }
  *out = av.entries.size();
  av.entries.emplace_back(address, true);
  return 1;
}
int remove_address(fid_av* object, fi_addr_t* addresses, std::size_t count, std::uint64_t) {
  Av& av = as<Av>(object);
  const auto guard = av.domain->world->lock();
  if (av.ep == nullptr) av.domain->world->violate("av_remove after its endpoint was closed");
  for (std::size_t i = 0; i < count; ++i) {
    if (addresses[i] >= av.entries.size()) return -FI_EINVAL;
    av.entries[addresses[i]].second = false;
  }
  return 0;
}

int open_av(fid_domain* owner, fi_av_attr* attributes, fid_av** out, void*) {
  Domain& domain = as<Domain>(owner);
  const auto guard = domain.world->lock();
  if (attributes->type != FI_AV_TABLE) return -FI_ENOSYS;
  static fi_ops_av ops = [] {
    fi_ops_av made{};
    made.size = sizeof(made);
    made.insert = insert_address;
    made.remove = remove_address;
    return made;
  }();
  Av* const av = new Av;
  av->domain = &domain;
  av->fid.fid.fclass = FI_CLASS_AV;
  av->fid.fid.ops = base_ops<close_av>();
  av->fid.ops = &ops;
  ++domain.objects;
  *out = &av->fid;
  return 0;
}

int open_cq(fid_domain* owner, fi_cq_attr* attributes, fid_cq** out, void*) {
  Domain& domain = as<Domain>(owner);
  const auto guard = domain.world->lock();
  const bool wakes = attributes->wait_obj == FI_WAIT_FD;
  if (wakes && !domain.world->options.wakes) return -FI_ENOSYS;
  Cq* const cq = new Cq;
  cq->domain = &domain;
  cq->format = attributes->format;
  cq->size = attributes->size;
  if (wakes) cq->fd = ::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  cq->fid.fid.fclass = FI_CLASS_CQ;
  cq->fid.fid.ops = base_ops<close_cq, no_bind, control_cq>();
  cq->fid.ops = cq_ops();
  ++domain.objects;
  *out = &cq->fid;
  return 0;
}

int register_memory(fid* owner, const fi_mr_attr* attributes, std::uint64_t flags, fid_mr** out) {
  Domain& domain = as<Domain>(owner);
  FakeProvider& world = *domain.world;
  const auto guard = world.lock();
  iovec range = *attributes->mr_iov;
  void* mapped = nullptr;
  std::uint64_t inset = 0;
  if ((flags & libfabric::kMrDmabuf.flag) != 0) {
    const auto& dmabuf = *reinterpret_cast<const libfabric::MrDmabuf*>(attributes->mr_iov);
    if (domain.version < libfabric::kMrDmabuf.since) return -FI_EINVAL;
    if (!world.options.takes_dmabuf || ::fcntl(dmabuf.fd, F_GETFD) < 0) return -FI_EOPNOTSUPP;
    range = {static_cast<std::byte*>(dmabuf.base) + dmabuf.offset, dmabuf.bytes};
    inset = dmabuf.offset % kPage;
    mapped = ::mmap(nullptr, dmabuf.bytes + inset, PROT_READ | PROT_WRITE, MAP_SHARED, dmabuf.fd,
                    static_cast<off_t>(dmabuf.offset - inset));
    if (mapped == MAP_FAILED) return -FI_EOPNOTSUPP;
  } else if (attributes->iface != FI_HMEM_SYSTEM && world.options.takes_dmabuf) {
    return -FI_EINVAL;  // memory of a GPU by its address, where it is known by a dmabuf
  }
  const std::size_t bytes = range.iov_len;
  if (attributes->iov_count != 1 || bytes == 0) return -FI_EINVAL;
  const int refused = domain.keys.size() >= world.options.registrations_max ? -FI_ENOMEM
                      : bytes > world.options.registration_bytes_max        ? -FI_EINVAL
                                                                            : 0;
  if (refused != 0) {
    if (mapped != nullptr) ::munmap(mapped, bytes + inset);
    return refused;
  }
  Mr* const mr = new Mr;
  mr->domain = &domain;
  mr->fid.fid.fclass = FI_CLASS_MR;
  mr->fid.fid.ops = base_ops<close_mr>();
  mr->fid.key = world.next_key++;  // of the provider's choosing
  mr->fid.mem_desc = mr;
  mr->data = mr->reach = static_cast<std::byte*>(range.iov_base);
  world.dmabufs += (flags & libfabric::kMrDmabuf.flag) != 0 ? 1 : 0;
  if (mapped != nullptr) mr->reach = static_cast<std::byte*>(mapped) + inset;
  mr->bytes = bytes;
  mr->access = attributes->access;
  domain.keys[mr->fid.key] = mr;
  ++domain.objects;
  *out = &mr->fid;
  return 0;
}

fi_ops_mr* mr_ops() {
  static fi_ops_mr ops = [] {
    fi_ops_mr made{};
    made.size = sizeof(made);
    made.regattr = register_memory;
    made.reg = [](fid* domain, const void* data, std::size_t bytes, std::uint64_t access,
                  std::uint64_t, std::uint64_t, std::uint64_t, fid_mr** out, void*) {
      const iovec range{const_cast<void*>(data), bytes};
      fi_mr_attr attributes{};
      attributes.mr_iov = &range;
      attributes.iov_count = 1;
      attributes.access = access;
      return register_memory(domain, &attributes, 0, out);
    };
    return made;
  }();
  return &ops;
}

int open_domain(fid_fabric* owner, fi_info* info, fid_domain** out, void*) {
  static fi_ops_domain ops = [] {
    fi_ops_domain made{};
    made.size = sizeof(made);
    made.av_open = open_av;
    made.cq_open = open_cq;
    made.endpoint = open_ep;
    return made;
  }();
  Fabric& fabric = as<Fabric>(owner);
  const auto guard = fabric.world->lock();
  Domain* const domain = new Domain;
  domain->world = fabric.world;
  const std::string name = info->domain_attr->name;
  const auto digits = name.find_first_of("0123456789");
  domain->place =
      fabric.world->place(fabric.host, static_cast<std::uint32_t>(std::stoul(name.substr(digits))));
  domain->efa = fabric.world->options.provider == "efa";
  domain->direct = std::string(info->fabric_attr->name) == "efa-direct";
  domain->needs_context = domain->direct || !domain->efa;
  domain->needs_desc = domain->direct || !domain->efa;
  domain->version = fabric.world->asked.back().version;
  domain->fid.fid.fclass = FI_CLASS_DOMAIN;
  domain->fid.fid.ops = base_ops<close_domain>();
  domain->fid.ops = &ops;
  domain->fid.mr = mr_ops();
  *out = &domain->fid;
  return 0;
}

// Somebody must look at a queue for packets to move: nobody sleeps meanwhile.
int try_wait(fid_fabric* object, fid** fids, int count) {
  FakeProvider& world = *as<Fabric>(object).world;
  const auto guard = world.lock();
  bool pending = world.busy();
  for (int i = 0; i < count; ++i) pending = pending || !as<Cq>(fids[i]).entries.empty();
  return pending ? -FI_EAGAIN : 0;
}

}  // namespace

int open_fabric(FakeProvider& world, std::uint32_t host, fid_fabric** out) {
  static fi_ops_fabric ops = [] {
    fi_ops_fabric made{};
    made.size = sizeof(made);
    made.domain = open_domain;
    made.trywait = try_wait;
    return made;
  }();
  Fabric* const fabric = new Fabric;
  fabric->world = &world;
  fabric->host = host;
  fabric->fid.fid.fclass = FI_CLASS_FABRIC;
  fabric->fid.fid.ops = base_ops<close_fabric>();
  fabric->fid.ops = &ops;
  *out = &fabric->fid;
  return 0;
}

}  // namespace kvl::test::fake
