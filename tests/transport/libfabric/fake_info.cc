// What fi_getinfo answers, and the tables of entry points: one for each host of each provider.
#include <array>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "tests/transport/libfabric/fake_objects.h"

namespace kvl::test {
namespace fake {
namespace {

constexpr int kEfaMrMode = FI_MR_LOCAL | FI_MR_VIRT_ADDR | FI_MR_ALLOCATED | FI_MR_PROV_KEY;

template <typename T>
T* zeroed() {
  return static_cast<T*>(std::calloc(1, sizeof(T)));
}
char* copy(const char* text) { return text == nullptr ? nullptr : ::strdup(text); }
std::string text(const char* chars) { return chars == nullptr ? "" : chars; }

}  // namespace

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
  while (info != nullptr) {
    fi_info* const next = info->next;
    std::free(info->domain_attr->name);
    std::free(info->fabric_attr->name);
    std::free(info->fabric_attr->prov_name);
    std::free(info->tx_attr);
    std::free(info->rx_attr);
    std::free(info->ep_attr);
    std::free(info->domain_attr);
    std::free(info->fabric_attr);
    std::free(info);
    info = next;
  }
}

}  // namespace fake

int FakeProvider::get_info(std::uint32_t host, std::uint32_t version, const fi_info* hints,
                           fi_info** out) {
  const Lock guard = lock();
  const std::string fabric = fake::text(hints->fabric_attr->name);
  const bool delivery = (hints->tx_attr->op_flags & FI_DELIVERY_COMPLETE) != 0;
  asked.push_back(
      {version, hints->mode, hints->caps, hints->domain_attr->mr_mode, fabric, delivery});
  if (version > options.version) return -FI_ENOSYS;
  const bool efa = options.provider == "efa";
  const bool direct = fabric == "efa-direct";
  const bool rdma = device_rdma(version);
  // An immediate that takes a receive: only for who says that it knows.
  const std::uint64_t direct_mode = options.direct_mode | (options.unsolicited ? 0 : FI_RX_CQ_DATA);
  const int mr_mode = hints->domain_attr->mr_mode;
  if (fake::text(hints->fabric_attr->prov_name) != options.provider) return -FI_ENODATA;
  if ((hints->caps & FI_HMEM) != 0 && (mr_mode & FI_MR_HMEM) == 0) return -FI_ENODATA;
  if (delivery && (direct || !options.delivery_complete)) return -FI_ENODATA;
  if (direct) {
    const std::uint64_t mode = FI_CONTEXT2 | direct_mode;
    if (!options.direct || (hints->mode & mode) != mode) return -FI_ENODATA;
    if (!rdma || !options.rma_read || !options.rma_write) return -FI_ENODATA;
  }
  if (efa && (mr_mode & fake::kEfaMrMode) != fake::kEfaMrMode) return -FI_ENODATA;
  *out = nullptr;
  for (std::uint32_t device = options.devices; device-- > 0;) {
    if (!usable(place(host, device))) continue;
    fi_info* const info = fake::dup_info(hints);
    info->mode = direct ? FI_CONTEXT2 | direct_mode : 0;
    info->tx_attr->size = options.tx_size;
    info->rx_attr->size = options.rx_size;
    info->tx_attr->rma_iov_limit = 1;
    info->ep_attr->max_msg_size = direct ? options.message_bytes_max : SIZE_MAX;
    info->domain_attr->mr_key_size = 8;
    info->domain_attr->cq_data_size = options.cq_data_bytes;
    info->domain_attr->name = fake::copy(
        (options.provider + std::to_string(device) + (direct ? "-direct" : "-rdm")).c_str());
    if (!direct) info->fabric_attr->name = fake::copy(options.provider.c_str());
    info->next = *out;
    *out = info;
  }
  return *out == nullptr ? -FI_ENODATA : 0;
}

namespace {

// Entry points know no object: each host has its own.
constexpr std::size_t kSlots = 64;
struct Slot {
  FakeProvider* provider = nullptr;
  std::uint32_t host = 0;
};
std::mutex slots_mutex;
std::array<Slot, kSlots> slots;

template <std::size_t N>
libfabric::FabricApi table() {
  libfabric::FabricApi api;
  api.version = []() -> std::uint32_t { return slots[N].provider->options.version; };
  api.getinfo = [](std::uint32_t version, const char*, const char*, std::uint64_t,
                   const fi_info* hints, fi_info** out) {
    return slots[N].provider->get_info(slots[N].host, version, hints, out);
  };
  api.freeinfo = fake::free_info;
  api.dupinfo = fake::dup_info;
  api.fabric = [](fi_fabric_attr*, fid_fabric** out, void*) {
    return fake::open_fabric(*slots[N].provider, slots[N].host, out);
  };
  api.strerror = [](int) { return "fake"; };
  return api;
}

template <std::size_t... N>
libfabric::FabricApi table_of(std::size_t slot, std::index_sequence<N...>) {
  static const std::array<libfabric::FabricApi, sizeof...(N)> tables{table<N>()...};
  return tables.at(slot);
}

}  // namespace

libfabric::FabricApi FakeProvider::api(std::uint32_t host) {
  const std::lock_guard guard(slots_mutex);
  for (std::size_t i = 0; i < kSlots; ++i) {
    if (slots[i].provider == this && slots[i].host == host) {
      return table_of(i, std::make_index_sequence<kSlots>{});
    }
  }
  std::size_t free = 0;
  while (slots.at(free).provider != nullptr) ++free;
  slots[free] = {this, host};
  slots_.push_back(free);
  return table_of(free, std::make_index_sequence<kSlots>{});
}

FakeProvider::~FakeProvider() {
  const std::lock_guard guard(slots_mutex);
  for (const std::size_t slot : slots_) slots[slot] = {};
}

}  // namespace kvl::test
