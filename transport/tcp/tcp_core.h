// What the lanes of one Link share: batches in flight, memory, events, buffers, counters.
#pragma once

#include <sys/uio.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "kvl/metrics.h"
#include "kvl/transport.h"
#include "transport/base/slot_map.h"
#include "transport/tcp/ring.h"
#include "transport/tcp/run_list.h"
#include "transport/tcp/tcp_config.h"
#include "transport/tcp/tcp_faults.h"
#include "transport/tcp/tcp_memory.h"
#include "transport/tcp/tcp_seal.h"
#include "transport/tcp/tcp_wire.h"

namespace kvl::tcp {

struct BatchList;

// A batch of ours, from post() to its event. Lies in exactly one list.
struct OutBatch {
  Batch batch;  // note: empty; the bytes are below
  std::uint64_t id = 0;
  std::array<std::byte, kNoteBytesMax> note{};
  std::uint8_t note_bytes = 0;
  Code code = Code::ok;  // the first failure
  bool begun = false;    // a byte of it has been handed to a lane
  bool cancelled = false;
  std::uint32_t requests_open = 0;          // read: asked and unanswered
  std::uint32_t lane = 0, incarnation = 0;  // of the lane it was begun on
  std::uint64_t total_bytes = 0;
  std::uint64_t bytes_done = 0;
  std::uint64_t sent_at = 0;      // write: position of the lane when its last byte is out
  RunCursor cursor;               // next frame to send or to ask for
  RunCursor landing;              // read: next frame to arrive
  std::uint64_t* load = nullptr;  // of the lane that has it
  BatchList* list = nullptr;
  OutBatch* previous = nullptr;
  OutBatch* next = nullptr;

  bool writes() const { return batch.direction == Direction::write; }
};

// A list without allocation; a batch knows the list it is in.
struct BatchList {
  OutBatch* first = nullptr;
  OutBatch* last = nullptr;

  bool empty() const { return first == nullptr; }
  void push(OutBatch& b);
  void push_front(OutBatch& b);
  static void remove(OutBatch& b);
};

// Lent to a lane while a frame is under way; an idle lane has none.
struct RxBuffers {
  static constexpr std::size_t kBytes = 64 << 10;
  static_assert(kBytes >= kHeadBytesMax);
  std::array<RunView, kFrameRunsMax> runs;
  std::array<iovec, 1024> vectors;
  std::array<std::byte, kBytes> bytes;
};
static_assert(kHeadBytesMax + kRecordBytesMax <= RxBuffers::kBytes);
struct TxBuffers {
  static constexpr std::size_t kHeadBytes = 72 << 10;
  static constexpr std::size_t kVectors = 1024;  // UIO_MAXIOV
  std::array<RunView, kFrameRunsMax> runs;
  std::array<iovec, kVectors> vectors;
  std::array<std::byte, kHeadBytes> head;
};
// Host memory that staged bytes (of memory a socket may not touch) go through.
struct Bounce {
  static constexpr std::size_t kBytes = 512 << 10;
  std::array<std::byte, kBytes> bytes;
};

template <typename T>
class Pool {
 public:
  T* take() {
    if (free_.empty()) {
      all_.push_back(std::unique_ptr<T>(new T));  // not value-initialised: untouched pages stay so
      return all_.back().get();
    }
    T* const one = free_.back();
    free_.pop_back();
    return one;
  }
  void give(T* one) { free_.push_back(one); }

 private:
  std::vector<std::unique_ptr<T>> all_;
  std::vector<T*> free_;
};

struct Counters {
  Counter bytes_sent, bytes_received, send_calls, receive_calls, frames_sent, frames_received;
  Counter batches_ok, runs_refused, frames_malformed, lanes_opened, copies, zerocopy_notices,
      records_refused;
  CountByFault greetings_refused, dials_failed;
  static constexpr std::size_t kCodes = static_cast<std::size_t>(Code::internal) + 1;
  using CountByCode = std::array<Counter, kCodes>;
  CountByCode batches_failed, lanes_lost;

  static void count(CountByCode& counters, Code code) {
    counters[std::min(static_cast<std::size_t>(code), kCodes - 1)].add();
  }
};

// A frame's worth of runs cut from a batch.
struct CutFrame {
  std::uint32_t runs = 0;
  std::uint64_t bytes = 0;
  bool staged = false;  // some local memory is not for sockets
  bool stale = false;   // a remote memory was dropped meanwhile: give the batch up
};

struct LinkCore {
  LinkCore(const TcpConfig& cfg, const LinkContext& ctx);

  void push_event(const Event& event) { events.push(event); }
  // Lanes stop reading beyond, until the owner has taken some.
  bool backlog() const { return events.size() >= kEventsBacklog; }
  // The one event; the batch leaves its list and its memory is free.
  void finish(OutBatch& b, Code code);
  // Cuts the next frame from `cursor`; fills `wire` and `views` where they are not null.
  CutFrame cut(const OutBatch& b, RunCursor& cursor, std::uint32_t runs_max, std::byte* wire,
               RunView* views);

  // A socket may not touch memory of this kind.
  bool staged(MemoryKind kind) const {
    return kind == MemoryKind::host ? host_staged : cuda_staged;
  }

  static constexpr std::size_t kEventsBacklog = 256;
  struct Remote {
    std::uint64_t peer = 0;
    MemoryName name;
  };

  const TcpConfig& config;
  const LinkContext& context;
  const bool host_staged, cuda_staged;
  MemoryTable memory;
  SlotMap<OutBatch> batches;
  SlotMap<Remote> remotes;
  std::uint32_t inflight = 0;  // accepted, event not yet taken
  std::uint32_t copies = 0;    // under way
  Ring<Event> events;
  Pool<RxBuffers> rx_pool;
  Pool<TxBuffers> tx_pool;
  Pool<Bounce> bounce_pool;
  Pool<SealBuffer> seal_pool;
  std::unique_ptr<std::byte[]> drain;  // bytes without a place end here …
  std::unique_ptr<std::byte[]> zeros;  // … and come from here; never written
  Counters counters;
};

}  // namespace kvl::tcp
