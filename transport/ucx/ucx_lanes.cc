// Reading ucp_ep_print_info(): a line of a lane is
//   lane[0]:  1:tcp/eth0.0 md[0]   -> md[0]/tcp/sysdev[255] rma_bw#0 am am_bw#0 wireup
#include "transport/ucx/ucx_lanes.h"

#include <cstdio>
#include <cstdlib>

namespace kvl::ucx {
namespace {

constexpr std::string_view kBlanks = " \t";

// The next word of `rest`, which it leaves behind.
std::string_view word(std::string_view& rest) {
  const std::size_t begin = rest.find_first_not_of(kBlanks);
  if (begin == std::string_view::npos) return rest = {};
  rest.remove_prefix(begin);
  const std::string_view found = rest.substr(0, rest.find_first_of(kBlanks));
  rest.remove_prefix(found.size());
  return found;
}

// "1:tcp/eth0.0" is tcp/eth0: without UCX's index and the path.
std::string_view resource(std::string_view found) {
  found.remove_prefix(std::min(found.size(), found.find(':') + 1));
  return found.substr(0, found.rfind('.'));
}

void add(std::string& list, std::string_view name) {
  if (("," + list + ",").find("," + std::string(name) + ",") != std::string::npos) return;
  list += (list.empty() ? "" : ",") + std::string(name);
}

bool meets_one(std::string_view wanted, std::string_view transport) {
  if (wanted == "all" || wanted == transport) return true;
  if (wanted == "rc_v") return transport == "rc_verbs";
  if (wanted == "rc_x") return transport == "rc_mlx5";
  const std::string_view family = transport.substr(0, transport.find('_'));
  if (wanted == "ib") return family == "rc" || family == "dc" || family == "ud";
  return wanted == family;
}

}  // namespace

Lanes parse_lanes(std::string_view text) {
  std::string rma, messages;
  while (!text.empty()) {
    std::string_view line = text.substr(0, text.find('\n'));
    text.remove_prefix(std::min(text.size(), line.size() + 1));
    const std::size_t lane = line.find("lane[");
    if (lane == std::string_view::npos) continue;
    line.remove_prefix(lane);
    word(line);  // lane[0]:
    const std::string_view name = resource(word(line));
    for (std::string_view use = word(line); !use.empty(); use = word(line)) {
      if (use == "rma" || use.starts_with("rma_bw")) add(rma, name);
      if (use == "am") add(messages, name);
    }
  }
  return rma.empty() ? Lanes{messages, !messages.empty()} : Lanes{rma, false};
}

Lanes lanes_of(const UcxApi& api, ucp_ep_h ep) {
  char* text = nullptr;
  std::size_t bytes = 0;
  std::FILE* const file = ::open_memstream(&text, &bytes);
  if (file == nullptr) return {};
  api.ep_print_info(ep, file);
  std::fclose(file);
  const Lanes lanes = parse_lanes({text, bytes});
  std::free(text);
  return lanes;
}

bool meets(std::string_view wanted, const Lanes& lanes) {
  std::string_view rest = lanes.pages;
  while (!rest.empty()) {
    const std::string_view one = rest.substr(0, rest.find(','));
    if (!meets_one(wanted, one.substr(0, one.find('/')))) return false;
    rest.remove_prefix(std::min(rest.size(), one.size() + 1));
  }
  return !lanes.pages.empty();
}

}  // namespace kvl::ucx
