// What is newer in libfabric than the oldest headers we build with (1.17): constants, and the tails
// of structures that a library of today reads or writes when it is asked with its own API. From its
// manual pages and headers; asked for only of a library that has it.
#pragma once

#include <rdma/fabric.h>
#include <rdma/fi_domain.h>
#include <rdma/fi_eq.h>

#include <array>
#include <cstddef>
#include <cstdint>

namespace kvl::libfabric {

// The newest API whose structures were read against these. Below 1.18 the provider leaves the RDMA
// of the first EFA devices off.
inline constexpr std::uint32_t kApiKnown = FI_VERSION(2, 1);

// fi_cq_readerr: src_addr behind it since 1.20.
struct CqError {
  fi_cq_err_entry entry{};
  std::array<std::byte, 64> tail{};
};
// fi_mr_regattr reads behind it: hmem_data since 1.19, page_size since 1.22, base_mr and sub_mr_cnt
// since 2.0; zero is "not given" for each.
struct MrAttributes {
  fi_mr_attr known{};
  std::array<std::byte, 64> tail{};
};
static_assert(offsetof(CqError, tail) == sizeof(fi_cq_err_entry));
static_assert(offsetof(MrAttributes, tail) == sizeof(fi_mr_attr));

// Registration by a dmabuf instead of by an address, where fi_mr_attr has its iovec.
struct MrDmabuf {
  int fd;
  std::uint64_t offset;
  std::size_t bytes;
  void* base;  // address of the dmabuf's beginning
};
struct NewMrFlag {
  std::uint32_t since;
  std::uint64_t flag;
};
inline constexpr NewMrFlag kMrDmabuf{FI_VERSION(1, 20), std::uint64_t{1} << 40};
inline void set_dmabuf(MrAttributes& attributes, const MrDmabuf& dmabuf) {
  attributes.known.mr_iov = reinterpret_cast<const iovec*>(&dmabuf);  // a union in newer headers
}

// Options of an endpoint, and the version of the library that has them.
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
