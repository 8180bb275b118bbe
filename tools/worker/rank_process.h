// The other end: the life of one rank process.
#pragma once

#include <cstdint>

#include "worker/process_host.h"

namespace kvl::worker {

// Serves the rank until the worker's end of the socket closes. An exit status.
int run_rank_process(int fd, std::uint32_t rank, std::uint32_t tp_size, const OpenRank& open_rank);

}  // namespace kvl::worker
