// One watch: an answer of etcd that does not end, a line of JSON for each change.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "kvl/status.h"
#include "router/bootstrap/etcd_wire.h"
#include "router/http/upstream.h"

namespace kvl::bootstrap::etcd {

class Watch final : private http::UpstreamUser, private http::Timed {
 public:
  // What comes in: changes (perhaps none; the first answer says that the watch stands), or the end.
  // corrupt, permission (etcd refused the user), aborted (older than what etcd still has: list
  // anew), unavailable, peer_lost, timed_out. After the end nothing comes; the watch may be
  // destroyed then, but not from inside.
  using Changed = std::function<void(const WatchAnswer&)>;
  using Ended = std::function<void(const Status&)>;

  Watch(http::Loop& loop, Changed changed, Ended ended);
  ~Watch();

  // `headers`: complete lines. `start_secs`: until the watch must stand.
  void open(http::UpstreamPool& pool, const std::string& headers, const std::string& body,
            double start_secs);
  void close();

 private:
  bool on_head(const http::ResponseHead& head) override;
  void on_data(const http::Pieces& pieces, bool last) override;
  void on_broken(const Status& why) override;
  void on_deadline() override;
  bool take_line(std::string_view line);
  void end(const Status& why);

  Changed changed_;
  Ended ended_;
  std::string request_, line_;
  int status_ = 0;
  std::shared_ptr<http::Upstream> connection_;
};

}  // namespace kvl::bootstrap::etcd
