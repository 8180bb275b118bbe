// A small request of our own (health check, abort) over a pool: one short answer, one deadline.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "router/http/upstream.h"

namespace kvl::http {

struct OneShotRequest {
  std::string_view method = "GET";
  std::string_view path;
  std::string headers;  // complete lines, each ended by CRLF
  std::string body;     // JSON, "" for none
  double timeout_secs = 5;
  std::size_t answer_bytes_max = 64 << 10;  // of the body; what is beyond is cut off
};

// Calls `done` exactly once, later, from the loop: with the status and the first bytes of the
// body, or with status 0 and the reason. The pool may go before that.
using OneShotDone = std::function<void(int status, std::string_view body, const Status& why)>;
void call_once(Loop& loop, UpstreamPool& pool, const OneShotRequest& request, OneShotDone done);

}  // namespace kvl::http
