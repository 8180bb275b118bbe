// Records: what the bytes of an encrypted lane travel in. Frames are the plaintext; where a frame
// ends and where a record ends have nothing to do with each other. docs/wire/tcp.md has the layout.
//
// AES-128-OCB, a key for each direction and incarnation of a lane, the record's number as nonce: a
// record that was changed, repeated, left out or moved does not open, and nothing of it gets out.
#pragma once

#include <sys/uio.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "kvl/status.h"
#include "transport/base/crypto.h"

namespace kvl::tcp {

inline constexpr std::uint32_t kRecordMagic = 0x5256;  // "VR"

// Before the sealed bytes; authenticated with them.
struct RecordHeader {
  std::uint32_t bytes = 0;  // sealed, without the tag; 1 to kRecordBytesMax
  std::uint32_t magic = kRecordMagic;
};
static_assert(sizeof(RecordHeader) == 8);

// With the longest header block of a frame it still fits the buffer that frames are read from.
inline constexpr std::size_t kRecordBytesMax = (32 << 10) - 64;
inline constexpr std::size_t kRecordBytesAll =
    sizeof(RecordHeader) + kRecordBytesMax + crypto::kTagBytes;

// Lent to a lane while records are under way in one direction.
struct SealBuffer {
  static constexpr std::size_t kRecords = 8;
  std::array<std::byte, kRecords * kRecordBytesAll> bytes;
};

class Sealer {
 public:
  explicit Sealer(crypto::Bytes key) : aead_(crypto::Aead::Use::seal, key) {}

  // Takes as much of the vectors as fits the empty buffer; returns how much. 0: see exhausted().
  std::size_t seal(std::span<const iovec> vectors, SealBuffer& buffer);
  // Sealed and not sent.
  std::span<const std::byte> pending(const SealBuffer& buffer) const {
    return std::span(buffer.bytes).subspan(begin_, end_ - begin_);
  }
  bool idle() const { return begin_ == end_; }
  void sent(std::size_t bytes) { begin_ += bytes; }
  // No number is left: the lane must be replaced, which gives it new keys.
  bool exhausted() const { return number_ >= kNumbers; }

  static constexpr std::uint64_t kNumbers = std::uint64_t{1} << 36;

 private:
  crypto::Aead aead_;
  std::uint64_t number_ = 0;
  std::size_t begin_ = 0, end_ = 0;
};

class Opener {
 public:
  explicit Opener(crypto::Bytes key) : aead_(crypto::Aead::Use::open, key) {}

  // Where received bytes go; make it so that the rest of a record always fits.
  std::span<std::byte> room(SealBuffer& buffer);
  void received(std::size_t bytes) { end_ += bytes; }
  bool idle() const { return begin_ == end_; }
  // open() has something to say: a whole record, or one that can be none.
  bool ready(const SealBuffer& buffer) const;
  // Opens the next record to `to`, where kRecordBytesMax bytes fit. corrupt: it is not the record
  // that the peer sent next; what `to` holds then must not be looked at.
  Status open(const SealBuffer& buffer, std::byte* to, std::size_t& bytes);

 private:
  crypto::Aead aead_;
  std::uint64_t number_ = 0;
  std::size_t begin_ = 0, end_ = 0;
};

}  // namespace kvl::tcp
