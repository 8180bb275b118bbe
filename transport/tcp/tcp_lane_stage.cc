// Staging: memory that a socket may not touch is reached through two bounce buffers per direction,
// one of which is copied while the other one is on the socket.
#include <algorithm>
#include <cstring>

#include "transport/tcp/tcp_lane.h"

namespace kvl::tcp {

// Starts to copy what comes next: from the runs into an empty stage, or the rest of a stage to the
// runs. False: not now.
bool Lane::start_copy(Stage& stage, RunList& list, bool to_runs, std::uint64_t& epoch, Code& code) {
  if (stage.bounce == nullptr) stage.bounce = core_.bounce_pool.take();
  std::byte* const staging = stage.bounce->bytes.data() + (to_runs ? stage.copied : 0);
  const std::uint64_t bytes_max = to_runs ? stage.bytes - stage.copied : Bounce::kBytes;
  std::array<CopyPiece, 1024> pieces;
  const RunList before = list;
  std::uint64_t bytes = 0;
  std::size_t count = 0;
  {
    const auto lock = core_.memory.lock();
    if (core_.memory.epoch() != epoch) {
      epoch = core_.memory.epoch();
      if (core_.memory.revalidate(list) && code == Code::ok) code = Code::permission;
    }
    // What another transfer has left in the buffer must not travel instead of missing memory.
    if (!to_runs && code != Code::ok) std::memset(staging, 0, Bounce::kBytes);
    stage.first_run = list.run();
    count = list.fill_copies(pieces.data(), pieces.size(), bytes_max, staging, to_runs, bytes);
    stage.last_run = list.done() ? list.count() - 1 : list.run();
    for (std::uint32_t i = stage.first_run; i <= stage.last_run; ++i) {
      if (list.view(i).at != nullptr) core_.memory.pin(list.view(i).memory);
    }
  }
  Result<CopyTicket> ticket{CopyTicket{}};
  if (count > 0) ticket = core_.context.memory_ops.copy({pieces.data(), count});
  stage.copying = true;
  ++core_.copies;
  stage.ticket = ticket ? *ticket : CopyTicket{};
  if (!ticket) {
    copy_done(stage, list);
    list = before;
    if (ticket.code() != Code::exhausted) fault_ = ticket.status();
    return false;
  }
  if (to_runs) {
    stage.copied += bytes;
  } else {
    stage.bytes = bytes;
  }
  core_.counters.copies.add();
  if (stage.ticket.value == 0) copy_done(stage, list);
  return true;
}

// True: the copy of this stage, if there was one, is over.
bool Lane::copy_done(Stage& stage, RunList& list) {
  if (!stage.copying) return true;
  if (stage.ticket.value != 0 && !core_.context.memory_ops.done(stage.ticket)) return false;
  const auto lock = core_.memory.lock();
  for (std::uint32_t i = stage.first_run; i <= stage.last_run; ++i) {
    if (list.view(i).at != nullptr) core_.memory.unpin(list.view(i).memory);
  }
  stage.copying = false;
  --core_.copies;
  return true;
}

// Puts the oldest copied stage into the chunk and keeps copies under way. True: the data of the
// frame is out.
bool Lane::append_stage() {
  std::uint64_t own_epoch = core_.memory.epoch();  // memory of a batch of ours cannot be removed
  Code own_code = Code::ok;
  const bool ours = tx_data_ == Data::write;
  for (unsigned i = 0; i < 2; ++i) {
    Stage& stage = tx_stages_[(tx_stage_first_ + i) & 1U];
    if (!copy_done(stage, tx_list_)) continue;
    if (stage.idle() && !tx_list_.done() &&
        !start_copy(stage, tx_list_, false, ours ? own_epoch : serves_.front().epoch,
                    ours ? own_code : serves_.front().code)) {
      break;
    }
  }
  Stage& oldest = tx_stages_[tx_stage_first_];
  if (oldest.copying) return false;
  if (oldest.bytes == 0) {
    if (!tx_list_.done()) return false;
    drop_stages(tx_stages_);
    return true;
  }
  tx_vector(oldest.bounce->bytes.data(), oldest.bytes);
  tx_stage_ = static_cast<int>(tx_stage_first_);
  return false;
}

void Lane::pump_rx_stages() {
  // When both are sealed, the one to be filled next is the older one.
  for (unsigned i = 0; i < 2; ++i) {
    Stage& stage = rx_stages_[(rx_stage_ + i) & 1U];
    if (!stage.sealed) continue;
    while (copy_done(stage, rx_list_) && stage.copied < stage.bytes) {
      if (!start_copy(stage, rx_list_, true, rx_epoch_, in_code_)) return;
    }
    if (!stage.copying && stage.copied == stage.bytes) stage.reset();
    if (stage.copied < stage.bytes) return;  // its runs come before those of the other one
  }
}

// Data of a staged frame: from the buffer into a stage, from there to its place.
Status Lane::consume_staged() {
  while (true) {
    Stage& filling = rx_stages_[rx_stage_];
    if (!filling.sealed && filling.bytes > 0 &&
        (filling.bytes == Bounce::kBytes || rx_left_ == 0)) {
      filling.sealed = true;
      rx_stage_ ^= 1U;
    }
    pump_rx_stages();
    if (rx_left_ == 0) {
      if (!rx_stages_[0].idle() || !rx_stages_[1].idle()) {
        rx_held_ = true;  // the bytes are not at their place yet
        return {};
      }
      rx_in_data_ = false;
      drop_stages(rx_stages_);
      return finish_frame();
    }
    Stage& stage = rx_stages_[rx_stage_];
    if (stage.sealed) {
      rx_held_ = true;
      return {};
    }
    if (stage.bounce == nullptr) stage.bounce = core_.bounce_pool.take();
    const std::uint64_t bytes =
        std::min<std::uint64_t>({rx_end_ - rx_begin_, rx_left_, Bounce::kBytes - stage.bytes});
    if (bytes > 0) {
      std::memcpy(stage.bounce->bytes.data() + stage.bytes, rx_->bytes.data() + rx_begin_, bytes);
      rx_begin_ += bytes;
      stage.bytes += bytes;
      rx_left_ -= bytes;
    }
    if (stage.bytes < Bounce::kBytes && rx_left_ > 0) return {};  // the socket has the rest
  }
}

bool Lane::stages_busy() const {
  const auto busy = [](const Stage& stage) { return stage.copying; };
  return std::any_of(tx_stages_.begin(), tx_stages_.end(), busy) ||
         std::any_of(rx_stages_.begin(), rx_stages_.end(), busy);
}

void Lane::drop_stages(std::array<Stage, 2>& stages) {
  for (Stage& stage : stages) {
    if (stage.bounce != nullptr) core_.bounce_pool.give(stage.bounce);
    stage.bounce = nullptr;
    stage.reset();
  }
}

void Lane::drop_stages() {
  drop_stages(tx_stages_);
  drop_stages(rx_stages_);
}

}  // namespace kvl::tcp
