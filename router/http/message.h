// Text of answers: status lines, heads, error objects.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace kvl::http {

std::string_view reason_phrase(int status);

// "HTTP/1.1 200 OK\r\n"
std::string status_line(int status);

// JSON text with quotes. Bytes above 0x7f pass as they are.
std::string json_quote(std::string_view text);

// One error in the shapes that clients know: OpenAI's {"error":{…}} and SGLang's flat object.
std::string error_body(int status, std::string_view type, std::string_view message);

}  // namespace kvl::http
