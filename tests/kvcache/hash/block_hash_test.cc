// Block hashes against vectors computed independently (make_vectors.py), streaming, refusals.
#include "kvl/block_hash.h"

#include <gtest/gtest.h>

#include <numeric>
#include <string>
#include <unordered_set>
#include <vector>

namespace kvl {
namespace {

using Tokens = std::vector<std::uint64_t>;

Tokens ramp(std::uint64_t first, std::size_t count) {
  Tokens tokens(count);
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

const Tokens kRamp = ramp(1, 40);
const Tokens kEdges = {0,      23,         24, 255, 256, 65535, 65536, 128000,
                       151643, 4294967295, 7,  24,  100, 1000,  10000, 1};
const Tokens kWide = {5, 6, 7, 8, 9, 4294967296, 11, 12, 13, 14, 15, 9223372036854775807,
                      1, 2, 3, 4};

ChainHasherOptions sglang(std::uint32_t block_tokens) {
  return {.scheme = HashScheme::sglang, .block_tokens = block_tokens};
}
ChainHasherOptions vllm(std::uint32_t block_tokens) {
  return {.scheme = HashScheme::vllm_sha256_cbor, .block_tokens = block_tokens};
}

std::vector<std::string> hashes(const ChainHasherOptions& options, const Tokens& tokens) {
  Result<ChainHasher> hasher = ChainHasher::open(options);
  EXPECT_TRUE(hasher.ok());
  std::vector<BlockHash> out;
  EXPECT_TRUE(hasher->append(tokens, out).ok());
  std::vector<std::string> text;
  for (const BlockHash& hash : out) text.push_back(hash.hex());
  return text;
}

using Vectors = std::vector<std::string>;

TEST(BlockHashVectors, Sglang) {
  EXPECT_EQ(hashes(sglang(16), kRamp),
            (Vectors{"77d735ce838418aa151bd96b5b1e78ee63860892e0a95c00fe34178442be9b07",
                     "1170426cf2449cebf4d17f087ce5bb43b6a910ce91b3f40922868e913e8ee91d"}));
  EXPECT_EQ(hashes(sglang(4), kEdges),
            (Vectors{"b152770914727e87f17be69271cbc1f23fea1cabe1811781b573f713b27f5d44",
                     "de7e1a6a649c065aa477e15afa66bc47d33f86b5bdc0b3f4ccc29c3032c3b355",
                     "71e627bbdaed862667ae8f96c1f8dcfe24376cbb5f8fba6eb2a61248a167d2ba",
                     "f2e057bff85b7eca98ecb06c605ab1e9ce72ca19ce5e9c7052b5d74a2a2d8e81"}));
  EXPECT_EQ(hashes(sglang(300), ramp(0, 300)),
            (Vectors{"31c4d357f4440759108dcb4b14645a7d75bc02cf3597e7c6e20d8173e33e0fc3"}));
}

TEST(BlockHashVectors, SglangWideIds) {
  EXPECT_EQ(hashes(sglang(4), kWide),
            (Vectors{"f3e0813c89d0991f07fbb5027a68c0cb809e1effc0c1e8974664bd2e57b50024",
                     "abd8f0854c793882545520d484c661b4600910a6a6ebabb9f5a8162ac11e18a2",
                     "5a8e465e85de0d44eabd416d0c066433e2dcbdaf66fc6b8740acbd7ab4b355a3",
                     "c0c7f07c9ad1cef670f7bc63194158494769a672c863f7a9df67f4ad1b0781d1"}));
}

TEST(BlockHashVectors, VllmSha256Cbor) {
  EXPECT_EQ(hashes(vllm(16), kRamp),
            (Vectors{"cd7c51bc5a8fc8643f383a2b9e01522fba7473c669e9270c7b0bf7bf7fd01682",
                     "2533ea50426b36e9e4d68296cac6bce8cf602e46957d0fe40b368b33d87bf3bf"}));
  EXPECT_EQ(hashes(vllm(4), kEdges),
            (Vectors{"dc7fbfd287fac7b6243222eb8a406c3a145df86542e11806ae74c52db0f7a8e2",
                     "bef2f648334b792d45948c5026da970204811028b180e781c3fcd9fa2202e0ad",
                     "669a1789285f7894b49283c5509d7b2ea295666065384343025bb389fd8d5f2f",
                     "152a4efb197a6af144a73dd459becc1641ef1d9ebdf203b32b54d22f18581928"}));
  EXPECT_EQ(hashes(vllm(4), kWide),
            (Vectors{"7a9ea33f0a9a1cbab1cbd87a5860708249a8967d331b09fad2b26fe774c57224",
                     "5870fc9fab106d9d109d0d22b78f54913537fbe47d3a2e7090353a2f517397d2",
                     "2c49898d79a650c3cbbfa895f85897bd81cc3da99bb09e0b6d0d23c5c4753471",
                     "02beb7e1b646fe9246b612a03322cae6dc2d77999b6f110f0678daa9030049f2"}));
}

// These two are also what vLLM's own hash_block_tokens(sha256_cbor, …) gives for the same tokens.
TEST(BlockHashVectors, VllmItself) {
  Tokens tokens;
  for (std::uint64_t i = 0; i < 300; ++i) tokens.push_back((i * 7919 + 13) % 152064);
  EXPECT_EQ(hashes(vllm(128), tokens),
            (Vectors{"3c922374e6fe67f3c64e75b88a3b8bd6185b538f7019674b72aefbf8dd8754f8",
                     "2e69fa8c8aebe362593b51b8b212f1aeb45f9bb56c4258c0bf2a94f1e384e2a5"}));
}

TEST(BlockHashVectors, VllmSeedOfTheEnvironment) {
  ChainHasherOptions options = vllm(16);
  options.vllm_seed = "0";
  EXPECT_EQ(hashes(options, kRamp),
            (Vectors{"202da172482d928bbc42ab25b0151e2b895f13f41002e27b2ceabcfae6d332ea",
                     "4a0a393805c6d2f0ed831000d41bb65980336c4c04895d5e26470bbec927f5bf"}));
  options = vllm(300);
  options.vllm_seed = "a seed longer than twenty-three bytes";
  EXPECT_EQ(hashes(options, ramp(0, 300)),
            (Vectors{"94eaf67ac344c8d65d1dc1f15e5390fd87cd5e7eba4d9d1542b3885aeaf1e676"}));
}

TEST(BlockHash, EventIds) {
  EXPECT_EQ(parse_block_hash("2533ea50426b36e9e4d68296cac6bce8cf602e46957d0fe40b368b33d87bf3bf")
                ->vllm_event_id(),
            807986237951177663U);
  EXPECT_EQ(parse_block_hash("1170426cf2449cebf4d17f087ce5bb43b6a910ce91b3f40922868e913e8ee91d")
                ->sglang_event_id(),
            1256577331724852459);
}

TEST(BlockHash, StreamingInAnyPiecesGivesTheSame) {
  const std::vector<std::uint32_t> tokens(kRamp.begin(), kRamp.end());
  for (const ChainHasherOptions& options : {sglang(8), vllm(8)}) {
    const auto whole = hash_blocks(options, tokens);
    ASSERT_TRUE(whole.ok());
    ASSERT_EQ(whole->size(), 5U);
    for (std::size_t piece = 1; piece <= tokens.size(); ++piece) {
      Result<ChainHasher> hasher = ChainHasher::open(options);
      std::vector<BlockHash> out;
      for (std::size_t at = 0; at < tokens.size(); at += piece) {
        const auto part = std::span(tokens).subspan(at, std::min(piece, tokens.size() - at));
        ASSERT_TRUE(hasher->append(part, out).ok());
        ASSERT_EQ(out.size(), (at + part.size()) / 8);
        ASSERT_EQ(hasher->pending_tokens(), (at + part.size()) % 8);
      }
      ASSERT_EQ(out, *whole);
    }
  }
}

TEST(BlockHash, GoesOnAfterAParent) {
  const std::vector<std::uint32_t> tokens(kRamp.begin(), kRamp.end());
  for (ChainHasherOptions options : {sglang(8), vllm(8)}) {
    const auto whole = hash_blocks(options, tokens);
    options.parent = (*whole)[1];
    const auto rest = hash_blocks(options, std::span(tokens).subspan(16));
    ASSERT_EQ(rest->size(), 3U);
    EXPECT_EQ((*rest)[0], (*whole)[2]);
    EXPECT_EQ((*rest)[2], (*whole)[4]);
  }
}

TEST(BlockHash, RefusesWhatIsOutOfRange) {
  EXPECT_EQ(ChainHasher::open(sglang(0)).code(), Code::invalid_argument);
  EXPECT_EQ(ChainHasher::open(sglang(0xFFFFFFFF)).code(), Code::invalid_argument);
  Result<ChainHasher> hasher = ChainHasher::open(sglang(1));
  std::vector<BlockHash> out;
  EXPECT_EQ(hasher->append(Tokens{1, std::uint64_t{1} << 63}, out).code(), Code::invalid_argument);
  EXPECT_TRUE(out.empty());
  EXPECT_EQ(hasher->pending_tokens(), 0U);
}

TEST(BlockHash, HexBothWays) {
  const std::string text = "77d735ce838418aa151bd96b5b1e78ee63860892e0a95c00fe34178442be9b07";
  EXPECT_EQ(parse_block_hash(text)->hex(), text);
  EXPECT_EQ(parse_block_hash("77D735" + text.substr(6))->hex(), text);
  EXPECT_EQ(parse_block_hash("").code(), Code::invalid_argument);
  EXPECT_EQ(parse_block_hash(text.substr(2)).code(), Code::invalid_argument);
  EXPECT_EQ(parse_block_hash("zz" + text.substr(2)).code(), Code::invalid_argument);
  const std::unordered_set<BlockHash> set{*parse_block_hash(text)};
  EXPECT_TRUE(set.contains(*parse_block_hash(text)));
}

}  // namespace
}  // namespace kvl
