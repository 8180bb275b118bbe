// Encodes and decodes handoff messages. Bytes to decode() come from anywhere.
#include "kvcache/handoff/wire.h"

#include <algorithm>
#include <type_traits>
#include <utility>

#include "transport/base/wire.h"

namespace kvl::handoff {
namespace {

constexpr std::uint64_t kLayoutBytesMax = 1u << 20;

std::span<const std::byte> bytes_of(const std::vector<std::uint32_t>& values) {
  return std::as_bytes(std::span(values));
}

void write_numbers(WireWriter& out, const std::vector<std::uint32_t>& values) {
  out.put(static_cast<std::uint32_t>(values.size())).raw(bytes_of(values));
}

bool read_numbers(WireReader& in, std::uint32_t most, std::vector<std::uint32_t>& values) {
  const auto count = in.get<std::uint32_t>();
  if (!in.ok() || count > most) return false;
  const auto raw = in.raw(std::size_t{count} * sizeof(std::uint32_t));
  if (!in.ok()) return false;
  values.resize(count);
  if (count != 0) std::memcpy(values.data(), raw.data(), raw.size());
  return true;
}

bool read_bool(WireReader& in, bool& value) {
  const auto raw = in.get<std::uint8_t>();
  value = raw != 0;
  return raw <= 1;
}

bool read_code(WireReader& in, Code& code) {
  const auto raw = in.get<std::uint8_t>();
  code = static_cast<Code>(raw);
  return raw <= static_cast<std::uint8_t>(Code::internal);
}

void write_crc(WireWriter& out, const CrcChoice& crc) { out.put(crc.mode).put(crc.sample); }
bool read_crc(WireReader& in, CrcChoice& crc) {
  const auto mode = in.get<std::uint8_t>();
  crc.mode = static_cast<CrcMode>(mode);
  crc.sample = in.get<std::uint32_t>();
  return mode <= static_cast<std::uint8_t>(CrcMode::automatic) && crc.sample >= 1;
}

// Each body: what follows the header, in the order of docs/wire/handoff.md.
MessageType type_of(const Hello&) { return MessageType::hello; }
void write(WireWriter& out, const Hello& hello) {
  out.raw(hello.engine);
  out.put(static_cast<std::uint8_t>((hello.prefill ? 1 : 0) | (hello.decode ? 2 : 0)));
  out.text(hello.model).blob(hello.layout);
  out.put(static_cast<std::uint32_t>(hello.regions.size()));
  for (const Hello::Region& region : hello.regions) {
    out.put(region.handle.value).put(region.bytes);
  }
}
bool read(WireReader& in, Hello& hello) {
  const auto engine = in.raw(hello.engine.size());
  std::ranges::copy(engine, hello.engine.begin());
  const auto roles = in.get<std::uint8_t>();
  hello.prefill = (roles & 1U) != 0;
  hello.decode = (roles & 2U) != 0;
  hello.model = in.text(kModelBytesMax);
  const auto layout = in.blob(kLayoutBytesMax);
  hello.layout.assign(layout.begin(), layout.end());
  const auto count = in.get<std::uint32_t>();
  if (!in.ok() || roles > 3 || count > PageLayout::kRegionsMax) return false;
  hello.regions.resize(count);
  for (Hello::Region& region : hello.regions) {
    region.handle.value = in.get<std::uint64_t>();
    region.bytes = in.get<std::uint64_t>();
  }
  return true;
}

MessageType type_of(const Verdict&) { return MessageType::verdict; }
void write(WireWriter& out, const Verdict& verdict) {
  out.put(verdict.code).text(std::string_view(verdict.reason).substr(0, kHandoffReasonBytesMax));
}
bool read(WireReader& in, Verdict& verdict) {
  if (!read_code(in, verdict.code)) return false;
  verdict.reason = in.text(kHandoffReasonBytesMax);
  return true;
}

MessageType type_of(const Accept&) { return MessageType::accept; }
void write(WireWriter& out, const Accept& accept) {
  out.put(accept.tokens).put(accept.skip_tokens).put(accept.mode);
  write_crc(out, accept.crc);
  out.put(accept.accepts).put(static_cast<std::uint32_t>(accept.groups.size()));
  for (const Accept::Group& group : accept.groups) {
    out.put(group.first_token);
    write_numbers(out, group.pages);
  }
}
bool read(WireReader& in, Accept& accept) {
  accept.tokens = in.get<std::uint64_t>();
  accept.skip_tokens = in.get<std::uint64_t>();
  const auto mode = in.get<std::uint8_t>();
  accept.mode = static_cast<HandoffMode>(mode);
  if (mode > 1 || !read_crc(in, accept.crc)) return false;
  accept.accepts = in.get<std::uint32_t>();
  const auto groups = in.get<std::uint32_t>();
  if (!in.ok() || accept.tokens > kTokensMax || accept.skip_tokens >= accept.tokens ||
      accept.accepts == 0 || accept.accepts > kAcceptsMax || groups > PageLayout::kGroupsMax) {
    return false;
  }
  accept.groups.resize(groups);
  return std::ranges::all_of(accept.groups, [&in](Accept::Group& group) {
    group.first_token = in.get<std::uint64_t>();
    return read_numbers(in, kPagesMax, group.pages);
  });
}

MessageType type_of(const Offer&) { return MessageType::offer; }
void write(WireWriter& out, const Offer& offer) { write_crc(out, offer.crc); }
bool read(WireReader& in, Offer& offer) {
  return read_crc(in, offer.crc) && offer.crc.mode != CrcMode::automatic;
}

MessageType type_of(const SegmentMessage& segment) {
  return segment.readable ? MessageType::readable : MessageType::delivered;
}
void write(WireWriter& out, const SegmentMessage& segment) {
  out.put(segment.seq).put(segment.layers.first).put(segment.layers.count);
  out.put(segment.token_begin).put(segment.token_end).put(segment.bytes);
  out.put(static_cast<std::uint32_t>(segment.pages.size()));
  for (const SegmentMessage::Pages& pages : segment.pages) {
    out.put(pages.first);
    write_numbers(out, pages.ids);
  }
  write_numbers(out, segment.crcs);
  out.text(std::string_view(segment.path).substr(0, kPathBytesMax));
}
bool read(WireReader& in, SegmentMessage& segment) {
  segment.seq = in.get<std::uint32_t>();
  segment.layers.first = in.get<std::uint32_t>();
  segment.layers.count = in.get<std::uint32_t>();
  segment.token_begin = in.get<std::uint64_t>();
  segment.token_end = in.get<std::uint64_t>();
  segment.bytes = in.get<std::uint64_t>();
  const auto groups = in.get<std::uint32_t>();
  if (!in.ok() || groups > PageLayout::kGroupsMax || segment.token_end > kTokensMax ||
      segment.token_begin >= segment.token_end || segment.layers.count == 0 ||
      segment.layers.first >= PageLayout::kLayersMax ||
      segment.layers.count > PageLayout::kLayersMax - segment.layers.first) {
    return false;
  }
  segment.pages.resize(groups);
  for (SegmentMessage::Pages& pages : segment.pages) {
    pages.first = in.get<std::uint32_t>();
    if (!read_numbers(in, kPagesMax, pages.ids)) return false;
  }
  if (!read_numbers(in, kCrcsMax, segment.crcs)) return false;
  segment.path = in.text(kPathBytesMax);
  // It is shown in logs and metrics: printable, no blanks.
  return std::ranges::all_of(segment.path, [](char c) { return c > ' ' && c < 0x7f; });
}

MessageType type_of(const Again&) { return MessageType::again; }
void write(WireWriter& out, const Again& again) { out.put(again.seq); }
bool read(WireReader& in, Again& again) {
  again.seq = in.get<std::uint32_t>();
  return true;
}

MessageType type_of(const Finish&) { return MessageType::finish; }
void write(WireWriter& out, const Finish& finish) {
  out.put(finish.segments).blob(finish.metadata);
}
bool read(WireReader& in, Finish& finish) {
  finish.segments = in.get<std::uint32_t>();
  const auto metadata = in.blob(kHandoffMetadataBytesMax);
  finish.metadata.assign(metadata.begin(), metadata.end());
  return true;
}

MessageType type_of(const Abort&) { return MessageType::abort; }
void write(WireWriter& out, const Abort& abort) {
  out.put(abort.code).put(static_cast<std::uint8_t>(abort.quiet));
  out.text(std::string_view(abort.reason).substr(0, kHandoffReasonBytesMax));
}
bool read(WireReader& in, Abort& abort) {
  if (!read_code(in, abort.code) || abort.code == Code::ok || !read_bool(in, abort.quiet)) {
    return false;
  }
  abort.reason = in.text(kHandoffReasonBytesMax);
  return true;
}

MessageType type_of(const Quiet&) { return MessageType::quiet; }
void write(WireWriter& out, const Quiet& quiet) {
  out.put(static_cast<std::uint8_t>(quiet.quiescent));
}
bool read(WireReader& in, Quiet& quiet) { return read_bool(in, quiet.quiescent); }

MessageType type_of(const Join&) { return MessageType::join; }
void write(WireWriter& out, const Join& join) { out.put(join.rank).put(join.size); }
bool read(WireReader& in, Join& join) {
  join.rank = in.get<std::uint32_t>();
  join.size = in.get<std::uint32_t>();
  return join.size <= kGroupSizeMax && join.rank < join.size;
}

// Bodies without a field.
MessageType type_of(const Done&) { return MessageType::done; }
MessageType type_of(const Vote&) { return MessageType::vote; }
MessageType type_of(const Commit&) { return MessageType::commit; }
MessageType type_of(const Committed&) { return MessageType::committed; }
template <typename T>
requires std::is_empty_v<T>
void write(WireWriter&, const T&) {}
template <typename T>
requires std::is_empty_v<T>
bool read(WireReader&, T&) { return true; }

template <typename T>
Result<Message> read_body(WireReader& in, Message message, T body) {
  if (!read(in, body) || !in.finished()) return Status{Code::corrupt, "handoff message body"};
  message.body = std::move(body);
  return message;
}

}  // namespace

bool is_handoff_message(std::span<const std::byte> bytes) {
  return WireReader(bytes).get<std::uint32_t>() == kMagic;
}

std::vector<std::byte> encode(const Message& message) {
  WireWriter out;
  const MessageType type = std::visit([](const auto& body) { return type_of(body); }, message.body);
  out.put(kMagic).put(kVersion).put(type).put(message.to).put(std::uint8_t{0});
  out.put(message.room).put(message.nonce);
  std::visit([&out](const auto& body) { write(out, body); }, message.body);
  return out.take();
}

Result<Message> decode(std::span<const std::byte> bytes) {
  WireReader in(bytes);
  const auto magic = in.get<std::uint32_t>();
  const auto version = in.get<std::uint8_t>();
  const auto type = in.get<std::uint8_t>();
  const auto to = in.get<std::uint8_t>();
  const auto zero = in.get<std::uint8_t>();
  Message message;
  message.to = static_cast<Part>(to);
  message.room = in.get<std::uint64_t>();
  message.nonce = in.get<std::uint64_t>();
  if (!in.ok() || magic != kMagic) return Status{Code::corrupt, "handoff message header"};
  if (version != kVersion) return Status{Code::unsupported, "handoff message version"};
  if (to > static_cast<std::uint8_t>(Part::member) || zero != 0) {
    return Status{Code::corrupt, "handoff message header"};
  }
  switch (static_cast<MessageType>(type)) {
    case MessageType::hello:
      return read_body(in, std::move(message), Hello{});
    case MessageType::verdict:
      return read_body(in, std::move(message), Verdict{});
    case MessageType::accept:
      return read_body(in, std::move(message), Accept{});
    case MessageType::offer:
      return read_body(in, std::move(message), Offer{});
    case MessageType::delivered:
      return read_body(in, std::move(message), SegmentMessage{.readable = false});
    case MessageType::readable:
      return read_body(in, std::move(message), SegmentMessage{.readable = true});
    case MessageType::finish:
      return read_body(in, std::move(message), Finish{});
    case MessageType::done:
      return read_body(in, std::move(message), Done{});
    case MessageType::abort:
      return read_body(in, std::move(message), Abort{});
    case MessageType::quiet:
      return read_body(in, std::move(message), Quiet{});
    case MessageType::join:
      return read_body(in, std::move(message), Join{});
    case MessageType::vote:
      return read_body(in, std::move(message), Vote{});
    case MessageType::commit:
      return read_body(in, std::move(message), Commit{});
    case MessageType::committed:
      return read_body(in, std::move(message), Committed{});
    case MessageType::again:
      return read_body(in, std::move(message), Again{});
  }
  return Status{Code::unsupported, "handoff message type"};
}

}  // namespace kvl::handoff
