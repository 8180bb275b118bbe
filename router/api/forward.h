// What changes in a message that passes through: hop-by-hop headers go, framing is ours, the rest
// stays as it was written.
#pragma once

#include <functional>
#include <string>
#include <string_view>

#include "router/http/head.h"

namespace kvl::router {

// "POST /generate HTTP/1.1\r\n"
std::string forward_request_line(const http::RequestHead& head);

// The client's headers that a worker may see; without Host, Content-Length and the empty line.
std::string forward_request_headers(const http::RequestHead& head);

// The name of a header that would choose the transfer session behind the router's back; "" if none.
std::string_view session_header(const http::RequestHead& head);

// Status line and the worker's headers that a client may see, without framing and empty line.
std::string forward_response_head(const http::ResponseHead& head);

// Calls `each` with every request id, as written, of the value of "rid" (a string or a list).
void for_each_rid(std::string_view rid, const std::function<void(std::string_view)>& each);

}  // namespace kvl::router
