// Registration: in parts where a device does not take all at once, by a dmabuf where there is one.
#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "tests/transport/libfabric/fabric_fixture.h"
#include "transport/fabric/peer_wire.h"

namespace kvl::libfabric {
namespace {

using test::FakeOptions;

constexpr std::uint64_t kMiB = 1 << 20;

class FabricMemoryTest : public test::FabricFixture {
 protected:
  // Takes another memory than the fixture's on both sides.
  void use(std::uint64_t bytes) {
    here.assign(bytes, std::byte{});
    there.assign(bytes, std::byte{});
    for (std::size_t i = 0; i < here.size(); ++i) here[i] = static_cast<std::byte>(i * 7 + i / 997);
    a->id = a->link->add_memory({here.data(), bytes, MemoryKind::host, 0}).value();
    b->id =
        b->link->add_memory({there.data(), bytes, MemoryKind::host, 0, Access::remote_all}).value();
    a->remote =
        a->link->import_memory(a->peer, b->link->export_memory(b->id, b->peer).value()).value();
  }
  std::vector<std::byte> here, there;
};

TEST_F(FabricMemoryTest, LongMemoryIsRegisteredInParts) {
  for (const bool told : {false, true}) {
    FakeOptions options = calm();
    if (!told) options.registration_bytes_max = kMiB;  // … which the device does not say before
    adjust = [&](FabricConfig& changed) { changed.mr_bytes = told ? kMiB : 0; };
    open(options, 4 << 20);
    const std::uint64_t bytes = 3 * kMiB + 5000;
    use(bytes);
    fake->options.rma_bytes_max = 64 << 20;
    // Pieces that end and begin in other parts on the two sides, and one over all of them.
    op = {0, 0, kMiB - 700, 2 * kMiB - 300, 1000, 1, 0, 0};
    EXPECT_EQ(end_of(post_op()), Code::ok);
    EXPECT_TRUE(std::equal(here.begin() + kMiB - 700, here.begin() + kMiB + 300,
                           there.begin() + 2 * kMiB - 300));
    op = {0, 0, 0, 0, static_cast<std::uint32_t>(bytes), 1, 0, 0};
    EXPECT_EQ(end_of(post_op()), Code::ok);
    EXPECT_EQ(here, there);
    std::fill(here.begin(), here.end(), std::byte{});
    Batch batch = batch_of_op();
    batch.direction = Direction::read;
    ASSERT_TRUE(a->link->post(batch).ok());
    EXPECT_EQ(end_of(batch.ticket), Code::ok);
    EXPECT_EQ(here, there);
    EXPECT_TRUE(a->link->remove_memory(a->id).ok());
    EXPECT_TRUE(b->link->remove_memory(b->id).ok());
  }
}

// A name in parts is hostile, too.
TEST_F(FabricMemoryTest, NamesInPartsAreChecked) {
  RemoteName name;
  name.bytes = 5 * kMiB;
  name.part_bytes = 2 * kMiB;
  name.more_keys = {2, 3};
  name.key = 1;
  const PeerToken token;
  const auto decoded = decode_name(encode(name, token));
  ASSERT_TRUE(decoded.ok());
  EXPECT_EQ(decoded->key_at(4 * kMiB), 3U);
  EXPECT_EQ(decoded->address_at(4 * kMiB + 5), 5U);
  EXPECT_EQ(decoded->stretch_at(kMiB), kMiB);
  name.more_keys = {2};
  EXPECT_FALSE(decode_name(encode(name, token)).ok()) << "a key is missing";
  name.more_keys = {2, 3, 4};
  EXPECT_FALSE(decode_name(encode(name, token)).ok()) << "a key too many";
  name.more_keys = {};
  name.part_bytes = name.bytes;
  EXPECT_FALSE(decode_name(encode(name, token)).ok()) << "one part is none";
  name.part_bytes = 4096;
  EXPECT_FALSE(decode_name(encode(name, token)).ok()) << "parts too small";
  name.bytes = UINT64_MAX / 2;
  name.part_bytes = kMiB;
  EXPECT_FALSE(decode_name(encode(name, token)).ok()) << "parts without end";
}

TEST_F(FabricMemoryTest, DmabufComesFirst) {
  const auto buffer = SharedBuffer::open(3 * kMiB);  // any descriptor will do for this device
  Memory memory = (*buffer)->memory(Access::remote_all);
  memory.kind = MemoryKind::cuda;
  adjust = [](FabricConfig& changed) { changed.hmem = true; };
  FakeOptions options = calm();
  open(options);
  ASSERT_TRUE(a->link->add_memory(memory).ok());
  EXPECT_EQ(fake->dmabufs, 1U);
  options.registration_bytes_max = kMiB;
  open(options);
  ASSERT_TRUE(a->link->add_memory(memory).ok());
  EXPECT_EQ(fake->dmabufs, 3U) << "in parts, each by the dmabuf";
  // Where the device takes none, or the library is older, the provider asks the driver.
  options.registration_bytes_max = SIZE_MAX;
  options.takes_dmabuf = false;
  open(options);
  EXPECT_TRUE(a->link->add_memory(memory).ok());
  EXPECT_EQ(fake->dmabufs, 0U);
  options.version = FI_VERSION(1, 19);
  open(options);
  EXPECT_TRUE(a->link->add_memory(memory).ok());
  EXPECT_EQ(fake->dmabufs, 0U);
}

}  // namespace
}  // namespace kvl::libfabric
