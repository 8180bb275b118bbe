// Control messages to and from bytes. Everything decoded here is hostile.
#include "transport/core/handshake.h"

#include <algorithm>

#include "transport/base/wire.h"

namespace kvl::control {
namespace {

constexpr std::size_t kNameBytesMax = 256;
const Status kMalformed{Code::invalid_argument, "malformed control message"};

void put_pair(WireWriter& out, PairRef pair) {
  out.put(pair.dialer_rail).put(pair.listener_rail).put(pair.incarnation);
}

PairRef get_pair(WireReader& in) {
  PairRef pair;
  pair.dialer_rail = in.get<std::uint16_t>();
  pair.listener_rail = in.get<std::uint16_t>();
  pair.incarnation = in.get<std::uint32_t>();
  return pair;
}

}  // namespace

std::vector<std::byte> encode(const Hello& hello) {
  WireWriter out;
  out.put(Type::hello).put(kMagic).put(kVersion).raw(hello.id).put(hello.epoch);
  out.text(hello.address).put(hello.pid);
  out.put(static_cast<std::uint16_t>(hello.rails.size()));
  for (const RailName& rail : hello.rails) {
    out.text(rail.transport).text(rail.device).text(rail.domain);
  }
  for (const RailName& rail : hello.rails) out.put(rail.nearness);
  return out.take();
}

Result<Hello> decode_hello(std::span<const std::byte> body) {
  WireReader in(body);
  Hello hello;
  if (in.get<std::uint32_t>() != kMagic) {
    return Status{Code::invalid_argument, "not a kvlane control connection"};
  }
  if (in.get<std::uint16_t>() != kVersion) {
    return Status{Code::unsupported, "the peer speaks another control version; use equal releases"};
  }
  const auto id = in.raw(hello.id.size());
  if (in.ok()) std::copy(id.begin(), id.end(), hello.id.begin());
  hello.epoch = in.get<std::uint64_t>();
  hello.address = in.text(kNameBytesMax);
  hello.pid = in.get<std::int32_t>();
  const auto count = in.get<std::uint16_t>();
  if (count > kRailsMax) return kMalformed;
  for (std::size_t i = 0; i < count && in.ok(); ++i) {
    RailName rail;
    rail.transport = in.text(kNameBytesMax);
    rail.device = in.text(kNameBytesMax);
    rail.domain = in.text(kNameBytesMax);
    hello.rails.push_back(std::move(rail));
  }
  // Absent: all are near.
  if (!in.finished()) {
    for (RailName& rail : hello.rails) rail.nearness = in.get<std::uint8_t>();
  }
  if (!in.finished()) return kMalformed;
  return hello;
}

std::vector<std::byte> encode(Type type, PairRef pair, std::span<const std::byte> blob) {
  WireWriter out;
  out.put(type);
  put_pair(out, pair);
  return out.blob(blob).take();
}

Result<PairMessage> decode_pair(std::span<const std::byte> body) {
  WireReader in(body);
  PairMessage message;
  message.pair = get_pair(in);
  message.blob = in.blob(kBlobBytesMax);
  if (!in.finished()) return kMalformed;
  return message;
}

std::vector<std::byte> encode_memory(Type type, std::uint64_t handle) {
  return WireWriter().put(type).put(handle).take();
}

Result<std::uint64_t> decode_memory(std::span<const std::byte> body) {
  WireReader in(body);
  const auto handle = in.get<std::uint64_t>();
  if (!in.finished()) return kMalformed;
  return handle;
}

std::vector<std::byte> encode_export(PairRef pair, std::uint64_t handle,
                                     std::span<const std::byte> blob) {
  WireWriter out;
  out.put(Type::memory_export);
  put_pair(out, pair);
  return out.put(handle).blob(blob).take();
}

Result<ExportMessage> decode_export(std::span<const std::byte> body) {
  WireReader in(body);
  ExportMessage message;
  message.pair = get_pair(in);
  message.handle = in.get<std::uint64_t>();
  message.blob = in.blob(kBlobBytesMax);
  if (!in.finished()) return kMalformed;
  return message;
}

std::vector<std::byte> encode_user(std::span<const std::byte> message) {
  return WireWriter().put(Type::user).raw(message).take();
}

std::vector<std::byte> encode(Type type) { return WireWriter().put(type).take(); }

}  // namespace kvl::control
