// The objects of the fake EFA: libfabric's structures, first in ours, so that either is found from
// the other.
#pragma once

#include <array>
#include <cstring>
#include <deque>
#include <memory>
#include <set>
#include <vector>

#include "tests/transport/libfabric/fake_provider.h"

namespace kvl::test::fake {

// As an EFA's: where, the number of a queue pair, which a restarted process may get again, and a
// random key of its life.
struct Address {
  FakePlace place;
  std::uint32_t number = 0;
  std::uint64_t key = 0;
  std::uint64_t pad = 0;
  friend bool operator==(const Address&, const Address&) = default;
};
static_assert(sizeof(Address) == 32);

struct Fabric {
  fid_fabric fid{};
  FakeProvider* world = nullptr;
  std::uint32_t host = 0;
};

struct Domain {
  fid_domain fid{};
  FakeProvider* world = nullptr;
  FakePlace place;
  bool direct = false, efa = true;
  bool needs_context = false, needs_desc = false;
  std::uint32_t version = 0;
  std::uint32_t objects = 0;  // not yet closed
  std::map<std::uint64_t, Mr*> keys;
};

struct Mr {
  fid_mr fid{};
  Domain* domain = nullptr;
  std::byte* data = nullptr;   // where its owner sees it
  std::byte* reach = nullptr;  // where the device does: what is known by a dmabuf it maps itself
  std::uint64_t bytes = 0;
  std::uint64_t access = 0;
  std::uint32_t uses = 0;  // operations under way with it as their local memory
};

struct Av {
  fid_av fid{};
  Domain* domain = nullptr;
  std::vector<std::pair<Address, bool>> entries;  // by fi_addr_t; false: removed
  Ep* ep = nullptr;
  bool knows(const Address& address) const;
};

struct Cq {
  struct Entry {
    fi_cq_data_entry entry{};
    int status = 0;
  };
  fid_cq fid{};
  Domain* domain = nullptr;
  fi_cq_format format = FI_CQ_FORMAT_MSG;
  std::size_t size = 0;
  std::deque<Entry> entries;
  int fd = -1;
  bool overrun = false;
  Ep* ep = nullptr;
  void push(const Entry& entry);
};

// An operation. While it is under way the provider owns the 64 bytes of its context.
struct Op {
  enum class Kind : std::uint8_t { write, read, send };
  Ep* ep = nullptr;  // null: its endpoint was closed, nothing of ours may be touched any more
  Address from, to;
  Kind kind = Kind::write;
  void* context = nullptr;
  std::byte* local = nullptr;
  Mr* mr = nullptr;
  std::uint64_t bytes = 0, remote = 0, key = 0;
  bool has_data = false;
  std::uint32_t data = 0;
  std::uint64_t left = 0;    // segments without an answer
  std::uint64_t placed = 0;  // … not yet there
  bool flushed = false;      // its device has died: it sends no more
  int status = 0;            // the first bad answer
  int tries = 0;             // of a message, for a receive
};

struct Ep {
  struct Receive {
    void* buffer;
    std::size_t bytes;
    void* context;
  };
  fid_ep fid{};
  Domain* domain = nullptr;
  Address address;
  Cq* cq = nullptr;
  Av* av = nullptr;
  std::deque<Receive> receives;
  std::set<std::shared_ptr<Op>> ops;  // under way, or without a doorbell
  std::vector<std::shared_ptr<Op>> unrung;
  std::size_t unrung_now = 0;                      // the same with an instant wire
  bool take(const void* data, std::size_t bytes);  // into a receive; false: there is none
  void ring();
};

// A mark in the context of whoever gives us one to keep.
void mark(FakeProvider& world, const Domain& domain, void* context);
void check_mark(FakeProvider& world, const Domain& domain, const void* context);

fi_info* dup_info(const fi_info* from);
void free_info(fi_info* info);
int open_fabric(FakeProvider& world, std::uint32_t host, fid_fabric** out);
fi_ops_msg* message_ops();
fi_ops_rma* rma_ops();
fi_ops_cq* cq_ops();

}  // namespace kvl::test::fake
