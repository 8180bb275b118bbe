// What UCX has chosen for an endpoint, out of the text that it prints, and whether that is what was
// asked for.
#pragma once

#include <string>
#include <string_view>

#include "transport/ucx/ucx_api.h"

namespace kvl::ucx {

struct Lanes {
  std::string pages;      // the transports that carry puts and gets: "rc_mlx5/mlx5_0:1", "tcp/eth0"
  bool emulated = false;  // … as messages that a CPU copies at the target
};

// `text`: of ucp_ep_print_info(). No lanes in it: `pages` is empty.
Lanes parse_lanes(std::string_view text);
Lanes lanes_of(const UcxApi& api, ucp_ep_h ep);

// Whether every one of `pages` is what `wanted` means to UCX: "rc" is rc_verbs and rc_mlx5, "ib"
// whatever is InfiniBand's, "all" anything.
bool meets(std::string_view wanted, const Lanes& lanes);

}  // namespace kvl::ucx
