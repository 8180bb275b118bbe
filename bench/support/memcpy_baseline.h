// What one thread reaches that copies the same runs between two buffers of its own.
#pragma once

#include <cstddef>
#include <span>

#include "kvl/page_op.h"

namespace kvl::bench {

// Direction::write as seen from the ops: local to remote.
void memcpy_ops(std::byte* remote, const std::byte* local, std::span<const PageOp> ops);
// The other way round.
void memcpy_ops_back(std::byte* local, const std::byte* remote, std::span<const PageOp> ops);

}  // namespace kvl::bench
