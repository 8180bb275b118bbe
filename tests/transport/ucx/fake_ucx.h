// A UCX in memory behind the table of entry points: workers of one process, operations that end
// when their worker makes progress, and failures on demand. One at a time; it must outlive its
// Links.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <string>
#include <vector>

#include "transport/ucx/ucx_api.h"

namespace kvl::test {

class FakeUcx {
 public:
  FakeUcx();
  ~FakeUcx();
  FakeUcx(const FakeUcx&) = delete;
  FakeUcx& operator=(const FakeUcx&) = delete;

  ucx::UcxApi api() const;

  // What UCX says that it has chosen: "rc_verbs/mlx5_0:1" with uses "rma am wireup".
  std::string lane = "rc_verbs/mlx5_0:1";
  std::string uses = "am rma wireup";
  unsigned minor = 13;
  ucs_status_t connect_status = UCS_OK;
  std::vector<std::string> modified;  // "TLS=rc"

  // The next puts and gets answer NO_RESOURCE: those whose number (from now on, 0 the next) is
  // listed.
  std::vector<std::uint64_t> again_at;
  std::uint64_t tries = 0;
  std::uint64_t rma_posts = 0;  // taken
  // The next put or get that is taken completes with this.
  ucs_status_t fail_next = UCS_OK;
  bool hold_flushes = false;  // they do not complete
  bool hold_puts = false;
  bool hold_closes = false;
  std::vector<std::string> order;  // "put", "get", "flush", "am"

  // Every endpoint of every worker hears that its peer is lost.
  void lose_peers(ucs_status_t status);
  // Arrives at every worker, from nobody.
  void inject(unsigned id, const std::vector<std::byte>& header,
              const std::vector<std::byte>& data = {});

  struct Worker;
  struct Ep;
  struct Pending {
    void* request;
    ucp_send_nbx_callback_t done;
    void* user_data;
    ucs_status_t status;
    bool put, flush;
  };
  struct Message {
    unsigned id;
    std::vector<std::byte> header, data;
  };
  std::vector<Worker*> workers;
  std::uint64_t keys = 0;
};

}  // namespace kvl::test
