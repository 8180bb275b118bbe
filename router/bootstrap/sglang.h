// SGLang's bootstrap protocol: where the ranks of one prefill instance are, and which data-parallel
// rank serves which room. One instance per service, as SGLang has it.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <string>
#include <string_view>
#include <tuple>
#include <unordered_map>

#include "kvl/bootstrap_server.h"
#include "kvl/clock.h"

namespace kvl::bootstrap {

struct SglangAnswer {
  int status = 200;
  std::string body = "OK";
};

class SglangTable {
 public:
  SglangTable(const Clock& clock, const BootstrapServerOptions& options)
      : clock_(clock), options_(options) {}

  // PUT /route: a prefill rank says where it is. The same rank again replaces itself and is counted
  // once. A registered rank that comes back with another shape starts the table anew (the instance
  // was restarted differently); a rank that was never there must fit.
  SglangAnswer put_route(std::string_view body);
  // GET /route: the instance's shape (all four -1) or one rank's address.
  SglangAnswer get_route(std::string_view query) const;
  SglangAnswer register_dp_rank(std::string_view body);
  SglangAnswer query_dp_ranks(std::string_view body);

  std::size_t ranks() const { return ranks_.size(); }
  std::uint64_t ranks_expected() const;

 private:
  using Key =
      std::tuple<std::uint32_t, std::uint32_t, std::uint32_t, std::uint32_t>;  // dp cp tp pp
  // What all ranks of an instance must agree on.
  struct Shape {
    std::uint32_t dp_size = 0, cp_size = 0, tp_size = 0, pp_size = 0;
    std::string details;  // the constant part of the answer to "all four -1", as JSON members
    bool operator==(const Shape&) const = default;
  };
  struct Rank {
    Key key;
    Shape shape;
    std::string address;  // the answer for one rank, as JSON
  };
  static bool read_rank(std::string_view body, Rank& rank, std::string& wrong);
  bool ready() const { return !ranks_.empty() && ranks_.size() >= ranks_expected(); }
  void expire_rooms();

  const Clock& clock_;
  const BootstrapServerOptions& options_;
  Shape shape_;
  std::map<Key, std::string> ranks_;

  struct RoomRank {
    std::int64_t dp_rank = 0;
    std::int64_t deadline_ns = 0;
  };
  std::unordered_map<std::uint64_t, RoomRank> rooms_;
  std::deque<std::pair<std::int64_t, std::uint64_t>> room_deadlines_;
};

}  // namespace kvl::bootstrap
