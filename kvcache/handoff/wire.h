// The handoff's messages and their wire form, version 2: docs/wire/handoff.md.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "kvl/handoff.h"
#include "kvl/status.h"

namespace kvl::handoff {

inline constexpr std::uint32_t kMagic = 0x4f48564b;  // "KVHO"
inline constexpr std::uint8_t kVersion = 2;
inline constexpr std::size_t kHeaderBytes = 24;

// Bounds of the decoder: what a message may claim before memory is taken for it.
inline constexpr std::uint32_t kAcceptsMax = 65536;
inline constexpr std::uint32_t kGroupSizeMax = 65536;
inline constexpr std::uint32_t kPagesMax = 1u << 20;  // of one group in one message
inline constexpr std::uint32_t kCrcsMax = 1u << 17;   // of one segment
inline constexpr std::uint64_t kTokensMax = std::uint64_t{1} << 40;
inline constexpr std::size_t kModelBytesMax = 256;
inline constexpr std::size_t kPathBytesMax = 128;

// Wire values: append only.
enum class MessageType : std::uint8_t {
  hello = 1,
  verdict = 2,
  accept = 3,
  offer = 4,
  delivered = 5,  // push: the bytes of a segment are in the destination pages
  readable = 6,   // pull: the bytes of a segment may be read
  finish = 7,
  done = 8,
  abort = 9,
  quiet = 10,
  join = 11,
  vote = 12,
  commit = 13,
  committed = 14,
  again = 15,  // push: a segment failed its checksum, write it once more
};

// Who a message is for: one endpoint may play several parts in one room.
enum class Part : std::uint8_t { prefill = 0, decode = 1, lead = 2, member = 3 };

// automatic: a wish only, never an answer; its sample is what suits its rank (1: all).
enum class CrcMode : std::uint8_t { off = 0, sampled = 1, all = 2, automatic = 3 };
struct CrcChoice {
  CrcMode mode = CrcMode::off;
  std::uint32_t sample = 1;  // one run in so many
  friend bool operator==(const CrcChoice&, const CrcChoice&) = default;
};

struct Hello {
  EngineId engine{};  // of this life of the process
  bool prefill = false, decode = false;
  std::string model;
  std::vector<std::byte> layout;
  struct Region {
    MemoryHandle handle;
    std::uint64_t bytes = 0;
    friend bool operator==(const Region&, const Region&) = default;
  };
  std::vector<Region> regions;
  friend bool operator==(const Hello&, const Hello&) = default;
};
struct Verdict {
  Code code = Code::ok;
  std::string reason;
  friend bool operator==(const Verdict&, const Verdict&) = default;
};
struct Accept {
  std::uint64_t tokens = 0, skip_tokens = 0;
  HandoffMode mode = HandoffMode::push;
  CrcChoice crc;
  std::uint32_t accepts = 1;
  struct Group {
    std::uint64_t first_token = 0;
    std::vector<std::uint32_t> pages;
    friend bool operator==(const Group&, const Group&) = default;
  };
  std::vector<Group> groups;
  friend bool operator==(const Accept&, const Accept&) = default;
};
struct Offer {
  CrcChoice crc;
  friend bool operator==(const Offer&, const Offer&) = default;
};
// delivered and readable.
struct SegmentMessage {
  bool readable = false;
  std::uint32_t seq = 0;
  Range layers;
  std::uint64_t token_begin = 0, token_end = 0;
  std::uint64_t bytes = 0;
  // Source pages that the receiver has not been told yet, per group: ids from `first` on.
  struct Pages {
    std::uint32_t first = 0;
    std::vector<std::uint32_t> ids;
    friend bool operator==(const Pages&, const Pages&) = default;
  };
  std::vector<Pages> pages;
  std::vector<std::uint32_t> crcs;  // of the chosen runs, in the order of the plan
  std::string path;                 // delivered: "tcp/eth0", what carried it. For people
  friend bool operator==(const SegmentMessage&, const SegmentMessage&) = default;
};
// Asks for segment `seq` once more, by another path where there is one.
struct Again {
  std::uint32_t seq = 0;
  friend bool operator==(const Again&, const Again&) = default;
};
struct Finish {
  std::uint32_t segments = 0;
  std::vector<std::byte> metadata;
  friend bool operator==(const Finish&, const Finish&) = default;
};
struct Done {
  friend bool operator==(const Done&, const Done&) = default;
};
struct Abort {
  Code code = Code::aborted;
  bool quiet = false;  // as in Quiet: no separate one follows
  std::string reason;
  friend bool operator==(const Abort&, const Abort&) = default;
};
struct Quiet {
  bool quiescent = false;
  friend bool operator==(const Quiet&, const Quiet&) = default;
};
struct Join {
  std::uint32_t rank = 0, size = 0;
  friend bool operator==(const Join&, const Join&) = default;
};
struct Vote {
  friend bool operator==(const Vote&, const Vote&) = default;
};
struct Commit {
  friend bool operator==(const Commit&, const Commit&) = default;
};
struct Committed {
  friend bool operator==(const Committed&, const Committed&) = default;
};

using Body = std::variant<Hello, Verdict, Accept, Offer, SegmentMessage, Finish, Done, Abort, Quiet,
                          Join, Vote, Commit, Committed, Again>;

struct Message {
  Part to = Part::prefill;
  std::uint64_t room = 0;   // 0 for hello and verdict
  std::uint64_t nonce = 0;  // of the decode rank's attempt at the room
  Body body;
};

// True when the bytes begin as a message of this protocol, of any version.
bool is_handoff_message(std::span<const std::byte> bytes);
std::vector<std::byte> encode(const Message& message);
// corrupt: not a whole, well-formed message. unsupported: a version or type that is not known.
Result<Message> decode(std::span<const std::byte> bytes);

}  // namespace kvl::handoff
