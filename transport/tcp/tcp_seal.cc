// Sealing vectors into records, and opening records.
#include "transport/tcp/tcp_seal.h"

#include <algorithm>
#include <cstring>

namespace kvl::tcp {
namespace {

RecordHeader header_at(const std::byte* at) {
  RecordHeader header;
  std::memcpy(&header, at, sizeof(header));
  return header;
}

bool plausible(const RecordHeader& header) {
  return header.magic == kRecordMagic && header.bytes > 0 && header.bytes <= kRecordBytesMax;
}

}  // namespace

std::size_t Sealer::seal(std::span<const iovec> vectors, SealBuffer& buffer) {
  begin_ = end_ = 0;
  std::size_t taken = 0, vector = 0, within = 0;
  while (vector < vectors.size() && !exhausted() && end_ + kRecordBytesAll <= buffer.bytes.size()) {
    RecordHeader header;
    for (std::size_t i = vector, from = within; i < vectors.size(); ++i, from = 0) {
      const std::size_t left = kRecordBytesMax - header.bytes;
      header.bytes += static_cast<std::uint32_t>(std::min(vectors[i].iov_len - from, left));
      if (header.bytes == kRecordBytesMax) break;
    }
    std::byte* const at = buffer.bytes.data() + end_;
    std::memcpy(at, &header, sizeof(header));
    std::byte* const out = at + sizeof(header);
    if (!aead_.begin(number_++, {at, sizeof(header)}, out)) return 0;
    for (std::size_t left = header.bytes; left > 0;) {
      const auto* const from = static_cast<const std::byte*>(vectors[vector].iov_base) + within;
      const std::size_t bytes = std::min(vectors[vector].iov_len - within, left);
      if (!aead_.update({from, bytes})) return 0;
      left -= bytes;
      within += bytes;
      if (within == vectors[vector].iov_len) {
        ++vector;
        within = 0;
      }
    }
    if (!aead_.seal_end(out + header.bytes)) return 0;
    end_ += sizeof(header) + header.bytes + crypto::kTagBytes;
    taken += header.bytes;
  }
  return taken;
}

std::span<std::byte> Opener::room(SealBuffer& buffer) {
  if (begin_ == end_) begin_ = end_ = 0;
  if (buffer.bytes.size() - begin_ < kRecordBytesAll) {
    std::memmove(buffer.bytes.data(), buffer.bytes.data() + begin_, end_ - begin_);
    end_ -= begin_;
    begin_ = 0;
  }
  return std::span(buffer.bytes).subspan(end_);
}

bool Opener::ready(const SealBuffer& buffer) const {
  if (end_ - begin_ < sizeof(RecordHeader)) return false;
  const RecordHeader header = header_at(buffer.bytes.data() + begin_);
  return !plausible(header) || end_ - begin_ >= sizeof(header) + header.bytes + crypto::kTagBytes;
}

Status Opener::open(const SealBuffer& buffer, std::byte* to, std::size_t& bytes) {
  constexpr Status kBad{Code::corrupt, "a record on an encrypted lane does not open"};
  const std::byte* const at = buffer.bytes.data() + begin_;
  const RecordHeader header = header_at(at);
  if (!plausible(header)) return kBad;
  const std::byte* const sealed = at + sizeof(header);
  if (!aead_.begin(number_++, {at, sizeof(header)}, to) || !aead_.update({sealed, header.bytes}) ||
      !aead_.open_end(sealed + header.bytes)) {
    return kBad;
  }
  begin_ += sizeof(header) + header.bytes + crypto::kTagBytes;
  bytes = header.bytes;
  return {};
}

}  // namespace kvl::tcp
