// A provider in memory behind libfabric's table of entry points: endpoints of one process, posts
// that wait for their doorbell, and failures on demand. One at a time; it must outlive its Links.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <string>
#include <vector>

#include "transport/libfabric/fabric_api.h"

namespace kvl::test {

class FakeProvider {
 public:
  explicit FakeProvider(std::string name);
  ~FakeProvider();
  FakeProvider(const FakeProvider&) = delete;
  FakeProvider& operator=(const FakeProvider&) = delete;

  libfabric::FabricApi api() const;

  // How getinfo was asked, and what it should not know.
  struct Asked {
    std::uint64_t mode;
    std::string fabric;
    bool delivery_complete;
  };
  std::vector<Asked> asked;
  bool offers_direct = true;  // the fabric efa-direct
  bool offers_delivery_complete = true;
  std::uint64_t direct_needs_mode = 0;  // … only to who has this mode bit

  // The next RMA posts fail with EAGAIN: those whose number (from now on, 0 the next) is listed.
  std::vector<std::uint64_t> again_at;
  // The next RMA operation completes with this error.
  int fail_error = 0, fail_provider_error = 0;

  std::uint64_t rma_posts = 0;  // taken
  std::uint64_t rma_tries = 0;  // … or not
  std::size_t run_longest = 0;  // operations behind one doorbell
  std::size_t waiting() const;  // posted with FI_MORE and without a doorbell yet
  // Arrives at every endpoint, from nobody.
  void inject(const std::vector<std::byte>& bytes);

  struct Ep;
  struct Cq;
  struct Mr;
  std::vector<Ep*> endpoints;
  std::map<std::uint64_t, Mr*> keys;
  std::uint64_t next_key = 1;
  const std::string name;
};

}  // namespace kvl::test
