// What frames mean: every byte of a header block is hostile until it has been checked here.
#include <algorithm>
#include <cstring>

#include "transport/tcp/tcp_lane.h"

namespace kvl::tcp {
namespace {

constexpr Status kMalformed{Code::corrupt, "malformed frame on a data lane"};

}  // namespace

Status Lane::begin_frame(const FrameHeader& header, const std::byte* body) {
  switch (header.type) {
    case FrameType::write:
      return begin_write(header, body);
    case FrameType::read_request:
      return on_read_request(header, body);
    case FrameType::read_data:
      return begin_read_data(header);
    case FrameType::read_done:
      return on_read_done(header);
    case FrameType::ack:
      return on_acks(header, body);
  }
  return kMalformed;
}

Status Lane::begin_write(const FrameHeader& header, const std::byte* body) {
  if (!in_write_) {
    in_write_ = true;
    in_batch_ = header.batch;
    in_bytes_ = 0;
    in_code_ = Code::ok;
  } else if (header.batch != in_batch_) {
    return kMalformed;  // batches do not interleave on a lane
  }
  rx_header_ = header;
  rx_staged_ = false;
  std::uint64_t sum = 0;
  {
    const auto lock = core_.memory.lock();
    rx_epoch_ = core_.memory.epoch();
    MemoryTable::Seen seen;
    for (std::uint32_t i = 0; i < header.count; ++i) {
      const auto run = read_wire<WireRun>(body + i * sizeof(WireRun));
      if (run.bytes == 0 || run.count == 0) return kMalformed;
      sum += std::uint64_t{run.bytes} * run.count;
      if (sum > header.data_bytes) return kMalformed;
      Code code = Code::ok;
      std::byte* const at = core_.memory.target(run, peer, Access::remote_write, seen, code);
      rx_->runs[i] = RunView{at, run.stride, run.bytes, run.count, seen.id};
      if (at == nullptr) {
        core_.counters.runs_refused.add();
        if (in_code_ == Code::ok) in_code_ = code;
      } else {
        rx_staged_ |= core_.staged(seen.memory->kind);
      }
    }
  }
  if (sum != header.data_bytes) return kMalformed;
  std::memcpy(rx_note_.data(), body + header.count * sizeof(WireRun), header.note_bytes);
  rx_list_ = RunList(rx_->runs.data(), 0, ~0U, header.count);
  rx_left_ = header.data_bytes;
  rx_next_ = rx_count_ = 0;
  if ((header.flags & kFlagAbandoned) != 0 && in_code_ == Code::ok) in_code_ = Code::aborted;
  rx_in_data_ = rx_left_ > 0;
  return rx_in_data_ ? Status{} : finish_write();
}

Status Lane::finish_frame() {
  return rx_header_.type == FrameType::write ? finish_write() : Status{};
}

Status Lane::finish_write() {
  if (in_code_ == Code::ok) {
    in_bytes_ += rx_header_.data_bytes;
  } else {
    for (std::uint32_t i = 0; i < rx_list_.count(); ++i) {
      const RunView& view = rx_list_.view(i);
      if (view.at != nullptr) in_bytes_ += std::uint64_t{view.bytes} * view.count;
    }
  }
  if ((rx_header_.flags & kFlagEnd) == 0) return {};
  in_write_ = false;
  // More answers due than the peer said it would have batches under way: not a peer of ours.
  if (acks_.size() >= peer_inflight_max) return kMalformed;
  acks_.push({in_batch_, in_bytes_, static_cast<std::uint32_t>(in_code_), 0});
  if (rx_header_.note_bytes > 0 && in_code_ == Code::ok) {
    Event event;
    event.kind = Event::Kind::note;
    event.peer = PeerId{peer};
    event.note_bytes = rx_header_.note_bytes;
    event.note = rx_note_;
    core_.push_event(event);
  }
  return {};
}

Status Lane::on_read_request(const FrameHeader& header, const std::byte* body) {
  if (serves_.size() >= kReadRequestsMax || serve_runs_ + header.count > kReadRunsMax) {
    return kMalformed;
  }
  if (serve_views_ == nullptr) serve_views_ = std::make_unique<RunView[]>(kReadRunsMax);
  Serve serve;
  serve.batch = header.batch;
  serve.bytes = header.data_bytes;
  serve.first = (serve_first_ + serve_runs_) & (kReadRunsMax - 1);
  serve.runs = header.count;
  std::uint64_t sum = 0;
  const auto lock = core_.memory.lock();
  serve.epoch = core_.memory.epoch();
  MemoryTable::Seen seen;
  for (std::uint32_t i = 0; i < header.count; ++i) {
    const auto run = read_wire<WireRun>(body + i * sizeof(WireRun));
    if (run.bytes == 0 || run.count == 0) return kMalformed;
    sum += std::uint64_t{run.bytes} * run.count;
    if (sum > header.data_bytes) return kMalformed;
    Code code = Code::ok;
    std::byte* const at = core_.memory.target(run, peer, Access::remote_read, seen, code);
    serve_views_[(serve.first + i) & (kReadRunsMax - 1)] =
        RunView{at, run.stride, run.bytes, run.count, seen.id};
    if (at == nullptr) {
      core_.counters.runs_refused.add();
      if (serve.code == Code::ok) serve.code = code;
    } else {
      serve.staged |= core_.staged(seen.memory->kind);
    }
  }
  if (sum != header.data_bytes) return kMalformed;
  serve_runs_ += serve.runs;
  serves_.push(serve);
  return {};
}

Status Lane::begin_read_data(const FrameHeader& header) {
  if (asked_.empty()) return kMalformed;
  Asked& asked = asked_.front();
  OutBatch* const b = core_.batches.find(asked.batch);
  if (b == nullptr || asked.arrived || header.batch != asked.batch || header.data_bytes == 0 ||
      header.data_bytes != asked.bytes) {
    return kMalformed;
  }
  // The destinations are ours: only the amount was the peer's to get wrong.
  const CutFrame cut = core_.cut(*b, b->landing, asked.runs, nullptr, rx_->runs.data());
  asked.arrived = true;
  rx_header_ = header;
  rx_staged_ = cut.staged;
  rx_epoch_ = core_.memory.epoch();
  rx_list_ = RunList(rx_->runs.data(), 0, ~0U, cut.runs);
  rx_left_ = header.data_bytes;
  rx_next_ = rx_count_ = 0;
  rx_in_data_ = true;
  return {};
}

Status Lane::on_read_done(const FrameHeader& header) {
  if (asked_.empty() || header.batch != asked_.front().batch) return kMalformed;
  const Asked asked = asked_.front();
  OutBatch* const b = core_.batches.find(asked.batch);
  const Code code = code_from_wire(header.code);
  if (b == nullptr || (code == Code::ok && !asked.arrived && asked.bytes > 0)) return kMalformed;
  asked_.pop();
  asked_runs_ -= asked.runs;
  if (!asked.arrived) core_.cut(*b, b->landing, asked.runs, nullptr, nullptr);
  if (code == Code::ok) {
    b->bytes_done += asked.bytes;
  } else if (b->code == Code::ok) {
    b->code = code;
  }
  --b->requests_open;
  if (b->code != Code::ok && b->list == &reads_) {  // it has failed: ask for no more
    BatchList::remove(*b);
    waiting_.push(*b);
  }
  if (b->requests_open > 0 || b->list == &reads_) return {};
  const bool cut_short = b->cancelled && !b->cursor.done();
  core_.finish(*b, b->code != Code::ok ? b->code : cut_short ? Code::aborted : Code::ok);
  return {};
}

Status Lane::on_acks(const FrameHeader& header, const std::byte* body) {
  for (std::uint32_t i = 0; i < header.count; ++i) {
    const auto ack = read_wire<WireAck>(body + i * sizeof(WireAck));
    OutBatch* const b = core_.batches.find(ack.batch);
    // Only what is out completely can have landed; its memory is the caller's again from here on.
    if (b == nullptr || b->list != &waiting_ || !b->writes() || b->sent_at > tx_sent_) {
      return kMalformed;
    }
    b->bytes_done = std::min(ack.bytes, b->total_bytes);
    const Code code = code_from_wire(ack.code);
    core_.finish(*b, b->code != Code::ok ? b->code : code);
  }
  return {};
}

}  // namespace kvl::tcp
