// What plain process_vm_writev and process_vm_readv reach with the same runs: the bound for shm on
// memory that the engine did not allocate.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <span>

#include "kvl/page_op.h"
#include "kvl/status.h"
#include "kvl/transport.h"

namespace kvl::bench {

struct ForeignProcess {
  pid_t pid = 0;
  std::uint64_t base = 0;  // address of its arena, in its address space
};

// Moves the runs with up to 1,024 pieces a call. permission: the kernel forbids it (yama, another
// user); peer_lost: no such process.
Status process_vm_ops(const ForeignProcess& peer, std::byte* local, std::span<const PageOp> ops,
                      Direction direction);

}  // namespace kvl::bench
