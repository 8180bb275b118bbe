// Batches in flight.
#pragma once

#include <array>
#include <cstdint>

#include "kvl/transport.h"
#include "transport/base/batch_cursor.h"
#include "transport/base/slot_pool.h"

namespace kvl::shm {

inline constexpr std::uint32_t kNoBatch = kNoSlot;
using Cursor = BatchCursor;

struct BatchSlot {
  Batch batch;  // batch.note names `note`
  std::array<std::byte, kNoteBytesMax> note{};
  Cursor cursor;
  std::uint64_t bytes_done = 0;
  std::uint32_t windows = 0;  // asynchronous copies under way
  std::uint32_t next = kNoBatch, previous = kNoBatch;
  Code code = Code::ok;
  bool used = false;
  bool started = false;  // its ReadyToken was seen ready
  bool ending = false;   // no more is moved; `code` is its end
};

using BatchList = SlotList;
using BatchPool = SlotPool<BatchSlot>;

}  // namespace kvl::shm
