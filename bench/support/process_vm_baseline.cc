// The cross-memory-attach baseline.
#include "bench/support/process_vm_baseline.h"

#include <sys/uio.h>

#include <array>
#include <cerrno>

namespace kvl::bench {
namespace {

constexpr std::size_t kPieces = 1024;  // IOV_MAX

struct Vectors {
  std::array<iovec, kPieces> local;
  std::array<iovec, kPieces> remote;
  std::size_t pieces = 0;
  std::size_t bytes = 0;
};

Status flush(const ForeignProcess& peer, Vectors& vectors, Direction direction) {
  if (vectors.pieces == 0) return {};
  const auto call = direction == Direction::write ? ::process_vm_writev : ::process_vm_readv;
  const ssize_t moved = call(peer.pid, vectors.local.data(), vectors.pieces, vectors.remote.data(),
                             vectors.pieces, 0);
  if (moved < 0) {
    const int error = errno;
    const Code code = error == EPERM   ? Code::permission
                      : error == ESRCH ? Code::peer_lost
                                       : Code::internal;
    return {code, "process_vm call on the other process", error};
  }
  if (static_cast<std::size_t>(moved) != vectors.bytes) {
    return {Code::internal, "process_vm call moved less than asked"};
  }
  vectors.pieces = vectors.bytes = 0;
  return {};
}

}  // namespace

Status process_vm_ops(const ForeignProcess& peer, std::byte* local, std::span<const PageOp> ops,
                      Direction direction) {
  Vectors vectors;
  for (const PageOp& op : ops) {
    for (std::uint64_t i = 0; i < op.count; ++i) {
      vectors.local[vectors.pieces] = {local + op.local_offset + i * op.local_stride, op.bytes};
      // An address of the other process: never dereferenced here.
      vectors.remote[vectors.pieces] = {
          reinterpret_cast<void*>(peer.base + op.remote_offset + i * op.remote_stride),  // NOLINT
          op.bytes};
      vectors.bytes += op.bytes;
      if (++vectors.pieces == kPieces) KVL_TRY(flush(peer, vectors, direction));
    }
  }
  return flush(peer, vectors, direction);
}

}  // namespace kvl::bench
