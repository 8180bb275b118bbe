// One member of etcd that is none: keys, leases and a watch in memory behind its JSON gateway, and
// at every moment as the test wants it. Written apart from the product's JSON on purpose.
#pragma once

#include <boost/json.hpp>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "tests/router/support/stub_worker.h"

namespace kvl::test {

class FakeEtcd {
 public:
  FakeEtcd() = default;
  ~FakeEtcd();
  std::string url() const { return stub_.url(); }

  // Behind the back of whoever is connected.
  void put(const std::string& key, const std::string& value, std::uint64_t lease = 0);
  void end_lease(std::uint64_t lease);
  std::string value(const std::string& key);  // "" when there is none

  void fail_reads(bool fail);
  void hold_watches(bool hold);                      // changes are told later
  void before_watch(std::function<void()> happens);  // once, when the next watch is asked for
  std::size_t calls(const std::string& path) { return stub_.requests(path).size(); }

 private:
  struct Value {
    std::string value;
    std::uint64_t revision = 0, lease = 0;
  };
  struct Change {
    std::string key, value;
    std::uint64_t revision = 0, lease = 0;
    bool deleted = false;
  };

  void serve(StubPeer& peer, const StubRequest& request);
  void watch(StubPeer& peer, std::uint64_t from);
  // The answers; with the lock.
  std::string range(const boost::json::object& in);
  std::string txn(const boost::json::object& in);
  void put_now(const std::string& key, const std::string& value, std::uint64_t lease);
  void erase_now(const std::string& key);
  bool end_now(std::uint64_t lease);
  boost::json::object header() const;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::string, Value> values_;
  std::set<std::uint64_t> leases_;
  std::vector<Change> history_;
  std::uint64_t revision_ = 1;
  bool reads_fail_ = false, hold_watches_ = false, stopping_ = false;
  std::function<void()> before_watch_;
  // Last: its threads use the rest.
  StubWorker stub_{[this](StubPeer& peer, const StubRequest& request) { serve(peer, request); }};
};

}  // namespace kvl::test
