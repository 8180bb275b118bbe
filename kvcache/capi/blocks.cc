#include "kvcache/capi/blocks.h"

#include <cstdint>

namespace kvl::capi {
namespace {

constexpr std::uint64_t kPieceBytesMax = UINT32_MAX;

// `next` goes on where `op` ends: directly on both sides, or with the op's stride.
bool extends(PageOp& op, const PageOp& next) {
  if (op.local_region != next.local_region || op.remote_region != next.remote_region) return false;
  if (next.local_offset < op.local_offset || next.remote_offset < op.remote_offset) return false;
  const std::uint64_t steps = op.count - 1;
  const std::uint64_t local = next.local_offset - (op.local_offset + steps * op.local_stride);
  const std::uint64_t remote = next.remote_offset - (op.remote_offset + steps * op.remote_stride);
  if (op.count == 1 && local == op.bytes && remote == op.bytes &&
      std::uint64_t{op.bytes} + next.bytes <= kPieceBytesMax) {
    op.bytes += next.bytes;
    return true;
  }
  // Pieces of an op are equal and go forward without overlap.
  if (next.bytes != op.bytes || local < op.bytes || remote < op.bytes) return false;
  if (op.count == 1) {
    op.local_stride = local;
    op.remote_stride = remote;
  } else if (local != op.local_stride || remote != op.remote_stride) {
    return false;
  }
  if (op.count == UINT32_MAX) return false;
  ++op.count;
  return true;
}

}  // namespace

Status merge_blocks(const kvl_transfer& t, std::vector<PageOp>& ops) {
  const auto bad = [](const char* why) { return Status{Code::invalid_argument, why}; };
  if (t.count == 0 || t.local_offsets == nullptr || t.remote_offsets == nullptr) {
    return bad("a transfer needs blocks, and the offsets of both sides");
  }
  if (t.locals == nullptr || t.local_count == 0 || t.remotes == nullptr || t.remote_count == 0) {
    return bad("a transfer needs memory of both sides");
  }
  ops.clear();
  for (std::uint64_t i = 0; i < t.count; ++i) {
    const std::uint64_t bytes = t.bytes != nullptr ? t.bytes[i] : t.block_bytes;
    PageOp op;
    op.local_region = t.local_index != nullptr ? t.local_index[i] : 0;
    op.remote_region = t.remote_index != nullptr ? t.remote_index[i] : 0;
    if (bytes == 0 || bytes > kPieceBytesMax) return bad("a block has 1 to 4 GiB - 1 bytes");
    if (op.local_region >= t.local_count || op.remote_region >= t.remote_count) {
      return bad("a block's index is beyond the handles given");
    }
    op.bytes = static_cast<std::uint32_t>(bytes);
    op.local_offset = t.local_offsets[i];
    op.remote_offset = t.remote_offsets[i];
    if (ops.empty() || !extends(ops.back(), op)) ops.push_back(op);
  }
  return {};
}

}  // namespace kvl::capi
