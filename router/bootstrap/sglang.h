// SGLang's bootstrap protocol: where the ranks of one prefill instance are, and which data-parallel
// rank serves which room. One instance per service, as SGLang has it.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>

#include "kvl/bootstrap_server.h"
#include "kvl/clock.h"
#include "router/bootstrap/store.h"

namespace kvl::bootstrap {

struct SglangAnswer {
  int status = 200;
  std::string body = "OK";
};

// The ranks are records of the store without a lease, since SGLang's ranks renew nothing: key
// "sglang/rank/DP.CP.TP.PP", value how many ranks there are, the shape and the address, a line
// each. The shape in force is that of the rank put last; ranks of another shape are left over from
// an earlier start. Rooms are kept here, and in the store as well where other servers share it.
// The paths of this protocol.
inline bool is_sglang_path(std::string_view path) {
  return path == "/route" || path == "/register_dp_rank" || path == "/query_dp_ranks";
}

class SglangTable {
 public:
  using Answered = std::function<void(const SglangAnswer&)>;

  SglangTable(Store& store, const Clock& clock, const BootstrapServerOptions& options)
      : store_(store), clock_(clock), options_(options) {}

  // PUT /route: a prefill rank says where it is. The same rank again replaces itself and is counted
  // once. A registered rank that comes back with another shape starts the table anew (the instance
  // was restarted differently); a rank that was never there must fit.
  void put_route(std::string_view body, Answered answered);
  // GET /route: the instance's shape (all four -1) or one rank's address.
  SglangAnswer get_route(std::string_view query) const;
  void register_dp_rank(std::string_view body, Answered answered);
  SglangAnswer query_dp_ranks(std::string_view body);

 private:
  struct Rank {
    std::string key;
    std::string shape;    // what all ranks of an instance agree on: the answer to "all four -1"
    std::string address;  // the answer for one rank, as JSON
    std::uint64_t ranks_expected = 0;
  };
  // The ranks of the shape in force, and how many there must be.
  struct Instance {
    std::string shape;
    std::uint64_t ranks = 0, ranks_expected = 0;
    std::vector<std::string> left_over;  // keys of ranks with another shape
    bool ready() const { return ranks > 0 && ranks >= ranks_expected; }
  };
  static bool read_rank(std::string_view body, Rank& rank, std::string& wrong);
  Result<Instance> instance() const;
  void put_rank(Rank rank, int tries, Answered answered);
  void drop_left_over();
  void expire_rooms();
  void share_room(std::uint64_t room, std::uint32_t dp_rank, Answered answered);
  void put_room(std::uint64_t room, std::uint32_t dp_rank, Answered answered);
  std::optional<std::uint32_t> shared_room(std::uint64_t room) const;

  Store& store_;
  const Clock& clock_;
  const BootstrapServerOptions& options_;

  struct RoomRank {
    std::int64_t dp_rank = 0;
    std::int64_t deadline_ns = 0;
  };
  std::unordered_map<std::uint64_t, RoomRank> rooms_;
  std::deque<std::pair<std::int64_t, std::uint64_t>> room_deadlines_;
  // Rooms share leases: one is granted for those of a span of time.
  LeaseId room_lease_ = kNoLease;
  std::int64_t room_lease_until_ns_ = 0;
};

}  // namespace kvl::bootstrap
