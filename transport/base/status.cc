// Names of status codes and the one-line form that logs and programs print.
#include "kvl/status.h"

#include <cstring>

namespace kvl {

std::string_view to_string(Code code) {
  switch (code) {
    case Code::ok:
      return "ok";
    case Code::invalid_argument:
      return "invalid_argument";
    case Code::not_found:
      return "not_found";
    case Code::unsupported:
      return "unsupported";
    case Code::exhausted:
      return "exhausted";
    case Code::unavailable:
      return "unavailable";
    case Code::peer_lost:
      return "peer_lost";
    case Code::timed_out:
      return "timed_out";
    case Code::aborted:
      return "aborted";
    case Code::permission:
      return "permission";
    case Code::corrupt:
      return "corrupt";
    case Code::internal:
      return "internal";
  }
  return "unknown";
}

std::string Status::to_string() const {
  std::string text(kvl::to_string(code_));
  if (context_[0] != '\0') text.append(": ").append(context_);
  if (os_error_ != 0) text.append(" (").append(std::strerror(os_error_)).append(")");
  return text;
}

}  // namespace kvl
