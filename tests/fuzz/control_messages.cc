// Control messages: what decodes encodes to the same bytes.
#include <algorithm>

#include "tests/fuzz/fuzz.h"
#include "transport/core/handshake.h"

namespace kvl::fuzz {
namespace {

using control::Type;

bool same(Bytes body, const std::vector<std::byte>& message) {
  return std::ranges::equal(body, Bytes(message).subspan(1));
}

control::Hello hello() {
  control::Hello hello;
  hello.epoch = 7;
  hello.address = "10.0.0.1:4711";
  hello.pid = 42;
  hello.rails = {{"tcp", "eth0", "net"}, {"shm", "shm0", "boot"}};
  return hello;
}

}  // namespace

void fuzz_control_messages(Bytes input) {
  if (input.empty()) return;
  const auto type = static_cast<Type>(input[0]);
  const Bytes body = input.subspan(1);
  if (const auto decoded = control::decode_hello(body)) {
    require(decoded->rails.size() <= control::kRailsMax, "rails of a hello are bounded");
    // How near rails are may be left out: then all are near.
    std::vector<std::byte> whole(body.begin(), body.end());
    if (control::encode(*decoded).size() != body.size() + 1) {
      whole.resize(body.size() + decoded->rails.size());
    }
    require(same(whole, control::encode(*decoded)), "a hello encodes to what it came from");
  }
  if (const auto decoded = control::decode_pair(body)) {
    require(decoded->blob.size() <= control::kBlobBytesMax, "blobs are bounded");
    require(same(body, control::encode(type, decoded->pair, decoded->blob)), "a pair message");
  }
  if (const auto decoded = control::decode_memory(body)) {
    require(same(body, control::encode_memory(type, *decoded)), "a memory message");
  }
  if (const auto decoded = control::decode_export(body)) {
    require(same(body, control::encode_export(decoded->pair, decoded->handle, decoded->blob)),
            "an export message");
  }
}

Seeds seeds_control_messages() {
  const std::vector<std::byte> blob = seed("offer of a link");
  return {control::encode(hello()),
          control::encode(Type::rail_offer, {1, 2, 3}, blob),
          control::encode(Type::rail_close, {0, 0, 9}, seed("closed")),
          control::encode_memory(Type::memory_add, 77),
          control::encode_export({0, 1, 1}, 77, blob),
          control::encode_user(seed("hello"))};
}

}  // namespace kvl::fuzz
