// Batches of ours: lists, frames cut from them, and their one event.
#include "transport/tcp/tcp_core.h"

#include <algorithm>

namespace kvl::tcp {

void BatchList::push(OutBatch& b) {
  b.list = this;
  b.previous = last;
  b.next = nullptr;
  (last == nullptr ? first : last->next) = &b;
  last = &b;
}

void BatchList::push_front(OutBatch& b) {
  b.list = this;
  b.previous = nullptr;
  b.next = first;
  (first == nullptr ? last : first->previous) = &b;
  first = &b;
}

void BatchList::remove(OutBatch& b) {
  if (b.list == nullptr) return;
  (b.previous == nullptr ? b.list->first : b.previous->next) = b.next;
  (b.next == nullptr ? b.list->last : b.next->previous) = b.previous;
  b.list = nullptr;
}

LinkCore::LinkCore(const TcpConfig& cfg, const LinkContext& ctx)
    : config(cfg),
      context(ctx),
      host_staged(!ctx.memory_ops.direct(MemoryKind::host)),
      cuda_staged(!ctx.memory_ops.direct(MemoryKind::cuda)),
      drain(new std::byte[kScratchBytes]),
      zeros(std::make_unique<std::byte[]>(kScratchBytes)) {}

void LinkCore::finish(OutBatch& b, Code code) {
  BatchList::remove(b);
  if (b.load != nullptr) *b.load -= b.total_bytes;
  memory.release(b.batch.locals);
  Event event;
  event.kind = Event::Kind::batch;
  event.code = code;
  event.peer = b.batch.peer;
  event.ticket = b.batch.ticket;
  event.bytes_done = code == Code::ok ? b.total_bytes : b.bytes_done;
  push_event(event);
  if (code == Code::ok) {
    counters.batches_ok.add();
  } else {
    Counters::count(counters.batches_failed, code);
  }
  batches.erase(b.id);
}

CutFrame LinkCore::cut(const OutBatch& b, RunCursor& cursor, std::uint32_t runs_max,
                       std::byte* wire, RunView* views) {
  CutFrame frame;
  const auto bytes_max = static_cast<std::uint64_t>(config.frame_bytes);
  std::uint32_t local_region = ~0U, remote_region = ~0U;
  Memory local;
  std::uint64_t remote = 0;
  const auto lock = memory.lock();
  Run run;
  while (frame.runs < runs_max && frame.bytes < bytes_max && !cursor.done() &&
         cursor.next(bytes_max - frame.bytes, frame.runs == 0, run)) {
    if (views != nullptr && run.local_region != local_region) {
      local_region = run.local_region;
      local = *memory.find(b.batch.locals[local_region].value);
      frame.staged |= staged(local.kind);
    }
    if (wire != nullptr && run.remote_region != remote_region) {
      remote_region = run.remote_region;
      const Remote* const known = remotes.find(b.batch.remotes[remote_region].value);
      if (known == nullptr) {
        frame.stale = true;
        return frame;
      }
      remote = known->name.memory;
    }
    if (views != nullptr) {
      RunView view{local.data + run.local_offset, run.local_stride, run.bytes, run.count,
                   b.batch.locals[local_region].value};
      if (view.count > 1 && view.stride == view.bytes &&
          std::uint64_t{view.bytes} * view.count <= UINT32_MAX) {
        view.bytes *= view.count;
        view.count = 1;
      }
      views[frame.runs] = view;
    }
    if (wire != nullptr) {
      write_wire(wire, WireRun{remote, run.remote_offset, run.remote_stride, run.bytes, run.count});
      wire += sizeof(WireRun);
    }
    frame.bytes += std::uint64_t{run.bytes} * run.count;
    ++frame.runs;
  }
  return frame;
}

}  // namespace kvl::tcp
