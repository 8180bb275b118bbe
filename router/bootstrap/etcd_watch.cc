// Lines are cut out of the pieces as they come.
#include "router/bootstrap/etcd_watch.h"

#include <utility>

namespace kvl::bootstrap::etcd {
namespace {

constexpr std::size_t kLineBytesMax = 256 << 20;

}  // namespace

Watch::Watch(http::Loop& loop, Changed changed, Ended ended)
    : changed_(std::move(changed)), ended_(std::move(ended)) {
  loop.watch(*this);
}

Watch::~Watch() { close(); }

void Watch::open(http::UpstreamPool& pool, const std::string& headers, const std::string& body,
                 double start_secs) {
  close();
  request_ = "POST /v3/watch HTTP/1.1\r\nHost: " + pool.url().authority() +
             "\r\nContent-Type: application/json\r\n" + headers +
             "Content-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body;
  line_.clear();
  status_ = 0;
  connection_ = pool.take();
  set_deadline(http::after_seconds(start_secs));
  http::Parts parts;
  parts.add(request_);
  connection_->send(*this, parts, start_secs);
}

void Watch::close() {
  clear_deadline();
  if (const auto connection = std::exchange(connection_, nullptr)) connection->abandon();
}

bool Watch::on_head(const http::ResponseHead& head) {
  status_ = head.status;
  return false;
}

void Watch::on_data(const http::Pieces& pieces, bool last) {
  for (std::size_t i = 0; i < pieces.count; ++i) {
    std::string_view piece = pieces.list[i];
    while (!piece.empty()) {
      const std::size_t mark = piece.find('\n');
      if (line_.size() + std::min(mark, piece.size()) > kLineBytesMax) {
        return end({Code::corrupt, "a line of etcd's watch is too long"});
      }
      line_.append(piece.substr(0, mark));
      if (mark == std::string_view::npos) break;
      piece.remove_prefix(mark + 1);
      const std::string line = std::exchange(line_, {});
      if (!take_line(line)) return;
    }
  }
  if (status_ != 200 && last) {
    const Failure failure = decode_failure(line_);
    const bool refused = failure.grpc_code == 7 || failure.grpc_code == 16 || status_ == 401;
    return end({refused ? Code::permission : Code::unavailable, "open a watch"});
  }
  if (last) return end({Code::peer_lost, "etcd ended the watch"});
  connection_->consumed();
}

// False: the watch is over.
bool Watch::take_line(std::string_view line) {
  if (line.empty() || status_ != 200) {
    line_ = line;  // of an error, see on_data()
    return true;
  }
  const Result<WatchAnswer> answer = decode_watch(line);
  if (!answer.ok()) {
    end(answer.status());
  } else if (answer->canceled && answer->compact_revision != 0) {
    end({Code::aborted, "etcd has compacted what the watch asks for"});
  } else if (answer->canceled || !answer->error.empty()) {
    const bool refused = answer->error.find("ermission") != std::string::npos ||
                         answer->error.find("auth") != std::string::npos;
    end({refused ? Code::permission : Code::unavailable, "etcd canceled the watch"});
  } else {
    clear_deadline();  // it stands
    changed_(*answer);
  }
  return connection_ != nullptr;
}

void Watch::on_broken(const Status& why) {
  connection_.reset();
  clear_deadline();
  ended_(why);
}

void Watch::on_deadline() { end({Code::timed_out, "open a watch"}); }

void Watch::end(const Status& why) {
  close();
  ended_(why);
}

}  // namespace kvl::bootstrap::etcd
