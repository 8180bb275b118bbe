// Encoding and checks of names of memory.
#include "transport/ucx/ucx_wire.h"

#include <cstring>

#include "transport/base/wire.h"

namespace kvl::ucx {
namespace {

constexpr std::uint32_t kNameMagic = 0x5846564b;  // "KVFX"

}  // namespace

Blob encode(const RemoteName& name, const PeerToken& owner) {
  WireWriter out;
  out.put(kNameMagic).put(kPeerWireVersion).put(name.access).put(name.serial).put(name.base);
  out.put(name.bytes).blob(name.key);
  return seal(out.view(), owner);
}

Result<RemoteName> decode_name(std::span<const std::byte> blob) {
  WireReader in(blob);
  const bool known =
      in.get<std::uint32_t>() == kNameMagic && in.get<std::uint16_t>() == kPeerWireVersion;
  RemoteName name;
  name.access = in.get<Access>();
  name.serial = in.get<std::uint64_t>();
  name.base = in.get<std::uint64_t>();
  name.bytes = in.get<std::uint64_t>();
  const auto key = in.blob(kKeyBytesMax);
  name.key.assign(key.begin(), key.end());
  in.raw(kSealBytes);
  std::uint64_t end = 0;
  if (!known || !in.finished() || static_cast<std::uint8_t>(name.access) > 3 || name.bytes == 0 ||
      __builtin_add_overflow(name.base, name.bytes, &end)) {
    return Status{Code::invalid_argument, "not a UCX memory of this version"};
  }
  return name;
}

bool decode(std::span<const std::byte> header, std::size_t data_bytes, RunHeader& run) {
  if (header.size() != sizeof(run)) return false;
  std::memcpy(&run, header.data(), sizeof(run));
  const auto type = static_cast<std::uint8_t>(run.type);
  const bool carries =
      run.type == RunType::write || (run.type == RunType::fetched && run.code == Code::ok);
  return run.magic == RunHeader::kMagic && run.version == kPeerWireVersion && type >= 1 &&
         type <= static_cast<std::uint8_t>(RunType::fenced) && run.code <= Code::internal &&
         data_bytes == (carries ? run.bytes : 0) && (!carries || run.bytes > 0);
}

}  // namespace kvl::ucx
