// Cutting a list of runs into pieces.
#include "transport/core/stripe.h"

#include <algorithm>

namespace kvl {

void cut(std::span<const PageOp> ops, const StripeLimits& limits, std::vector<PieceRange>& pieces) {
  PieceRange piece;
  for (std::uint32_t index = 0; index < ops.size(); ++index) {
    const std::uint64_t total = ops[index].total_bytes();
    const bool whole = ops[index].count > 1 && ops[index].bytes <= limits.piece_bytes;
    const std::uint64_t unit = whole ? ops[index].bytes : 1;
    std::uint64_t at = 0;
    while (at < total) {
      if (limits.piece_bytes - piece.bytes < unit) {
        pieces.push_back(piece);
        piece = PieceRange{};
      }
      if (piece.op_count == 0) {
        piece.op_begin = index;
        piece.begin = at;
      }
      const std::uint64_t room = limits.piece_bytes - piece.bytes;
      std::uint64_t take = std::min(total - at, room - room % unit);
      // Do not leave a crumb: a rest below half a piece joins this one.
      if (total - at - take < limits.piece_bytes / 2) take = total - at;
      at += take;
      ++piece.op_count;
      piece.bytes += take;
      piece.end = at == total ? 0 : at;
      if (piece.bytes + unit > limits.piece_bytes || piece.op_count >= limits.piece_runs) {
        pieces.push_back(piece);
        piece = PieceRange{};
      }
    }
  }
  if (piece.op_count > 0) pieces.push_back(piece);
}

}  // namespace kvl
