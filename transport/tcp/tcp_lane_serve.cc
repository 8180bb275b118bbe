// Serving the peer's reads: data of the oldest request, then how it went.
#include <algorithm>
#include <cstring>

#include "transport/tcp/tcp_lane.h"

namespace kvl::tcp {

void Lane::append_done(const Serve& serve) {
  FrameHeader header;
  header.type = FrameType::read_done;
  header.code = static_cast<std::uint8_t>(serve.code);
  header.batch = serve.batch;
  header.data_bytes = serve.code == Code::ok ? serve.bytes : 0;
  write_wire(head(), header);
  commit_head(sizeof(header));
  core_.counters.frames_sent.add();
}

void Lane::pop_serve() {
  const Serve& serve = serves_.front();
  serve_first_ = (serve_first_ + serve.runs) & (kReadRunsMax - 1);
  serve_runs_ -= serve.runs;
  serves_.pop();
}

bool Lane::append_serve() {
  if (serves_.empty()) return false;
  Serve& serve = serves_.front();
  if (serve.code != Code::ok || serve.bytes == 0) {
    append_done(serve);
    pop_serve();
    return true;
  }
  FrameHeader header;
  header.type = FrameType::read_data;
  header.batch = serve.batch;
  header.data_bytes = serve.bytes;
  if (serve.bytes <= kCopyBytesMax && !serve.staged) {
    if (head_room() < serve.bytes + 2 * sizeof(header)) return false;
    write_wire(head(), header);
    if (!copy_small(serve)) return true;  // its memory is gone; next time it is answered so
    commit_head(sizeof(header) + serve.bytes);
    core_.counters.frames_sent.add();
    append_done(serve);
    pop_serve();
    return true;
  }
  write_wire(head(), header);
  commit_head(sizeof(header));
  core_.counters.frames_sent.add();
  tx_data_ = Data::read;
  tx_staged_ = serve.staged;
  tx_list_ = RunList(serve_views_.get(), serve.first, kReadRunsMax - 1, serve.runs);
  return true;
}

// Gathers a small answer behind its header, so that many of them go out in one call.
bool Lane::copy_small(Serve& serve) {
  RunList list(serve_views_.get(), serve.first, kReadRunsMax - 1, serve.runs);
  if (!core_.memory.enter(serve.epoch)) {
    const auto lock = core_.memory.lock();
    serve.epoch = core_.memory.epoch();
    if (core_.memory.revalidate(list)) serve.code = Code::permission;
    return false;
  }
  std::byte* to = head() + sizeof(FrameHeader);
  std::array<iovec, 32> parts;
  while (!list.done()) {
    const std::size_t count = list.fill(parts.data(), parts.size(), UINT64_MAX, core_.zeros.get());
    for (std::size_t i = 0; i < count; ++i) {
      std::memcpy(to, parts[i].iov_base, parts[i].iov_len);
      to += parts[i].iov_len;
    }
  }
  core_.memory.leave();
  return true;
}

// Memory was removed while vectors into it wait in the chunk: build them again, as zeros where
// their memory is gone, and tell the peer at the end of the data.
void Lane::revalidate_tx() {
  Serve& serve = serves_.front();
  RunList list(serve_views_.get(), serve.first, kReadRunsMax - 1, serve.runs);
  {
    const auto lock = core_.memory.lock();
    serve.epoch = core_.memory.epoch();
    if (!core_.memory.revalidate(list)) return;
  }
  if (tx_serve_over_ && tx_next_ + 1 == tx_count_) {  // all of its data went out before
    tx_ref_ = SIZE_MAX;
    return;
  }
  serve.code = Code::permission;
  // The vectors from tx_ref_ on are the last of the chunk, but for the read_done header.
  std::size_t end = tx_count_;
  if (tx_serve_over_) {
    tx_left_ -= tx_->vectors[--end].iov_len;
    tx_built_ -= tx_->vectors[end].iov_len;
    tx_head_ -= sizeof(FrameHeader);
    tx_serve_over_ = false;
  }
  const std::size_t from = std::max(tx_ref_, tx_next_);
  std::uint64_t unsent = 0;
  for (std::size_t i = from; i < end; ++i) unsent += tx_->vectors[i].iov_len;
  tx_left_ -= unsent;
  tx_built_ -= unsent;
  tx_list_.seek(tx_list_.position() - unsent);
  tx_data_ = Data::read;
  tx_count_ = from;
  tx_ref_ = SIZE_MAX;
  if (tx_left_ == 0) chunk_sent();
}

}  // namespace kvl::tcp
