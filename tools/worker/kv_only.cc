// KV without arithmetic. Compiled optimised in every build (CMakeLists.txt): it runs at the speed
// of the transfer that it loads.
#include "worker/kv_only.h"

#include <algorithm>
#include <cstring>

#include "worker/mix.h"

namespace kvl::worker {
namespace {

constexpr std::uint32_t kTokenBlock = 16;

std::uint64_t vector_key(std::uint64_t chain, std::uint32_t layer, KvPart part,
                         std::uint32_t token_in_block, std::uint32_t head) {
  const std::uint64_t place = std::uint64_t{layer} << 48 | std::uint64_t(part) << 47 |
                              std::uint64_t{token_in_block} << 16 | head;
  return mix64(chain + place * 0x9e3779b97f4a7c15ULL);
}

// One multiplication per word; the key carries the entropy, this only keeps words apart.
inline std::uint64_t word(std::uint64_t key, std::uint64_t index) {
  const std::uint64_t x = key + index * 0x9e3779b97f4a7c15ULL;
  return (x ^ x >> 32) * 0xd6e8feb86659fd93ULL;
}

struct FillVector {
  void operator()(std::uint64_t key, std::uint32_t bytes, std::byte* at) const {
    std::uint32_t done = 0;
    for (std::uint64_t i = 0; done + 8 <= bytes; ++i, done += 8) {
      const std::uint64_t value = word(key, i);
      std::memcpy(at + done, &value, 8);
    }
    const std::uint64_t value = word(key, done / 8);
    std::memcpy(at + done, &value, bytes - done);
  }
};

struct CompareVector {
  std::uint64_t difference = 0;
  void operator()(std::uint64_t key, std::uint32_t bytes, const std::byte* at) {
    std::uint32_t done = 0;
    std::uint64_t found = 0;
    std::uint64_t differs = 0;
    for (std::uint64_t i = 0; done + 8 <= bytes; ++i, done += 8) {
      std::memcpy(&found, at + done, 8);
      differs |= found ^ word(key, i);
    }
    const std::uint64_t value = word(key, done / 8);
    if (std::memcmp(at + done, &value, bytes - done) != 0) differs = 1;
    difference |= differs;
  }
};

// Calls `each` for every vector of page `index` of the range, in the order of memory.
template <typename Each>
void visit_page(const PagedKv& kv, const KvRange& range, std::uint32_t layer, std::uint32_t index,
                Each&& each) {
  const LayoutGroup& group = kv.group();
  const std::uint32_t page_first = index * group.page_tokens;
  const std::uint32_t first = std::max(range.first_token, page_first);
  const std::uint32_t end = std::min(range.end_token, page_first + group.page_tokens);
  const auto bytes = static_cast<std::uint32_t>(group.head_bytes());
  const std::uint32_t block_tokens = range.content.block_tokens;
  const auto visit = [&](KvPart part, std::uint32_t token, std::uint32_t head, std::byte* base) {
    const std::uint64_t chain = range.content.chain[token / block_tokens];
    each(vector_key(chain, layer, part, token % block_tokens, head), bytes,
         base + (token - page_first) * group.token_stride());
  };
  for (const KvPart part : {KvPart::k, KvPart::v}) {
    if (group.mla && part == KvPart::v) return;
    const Range heads = group.heads;
    std::byte* const base = kv.at(layer, part, range.pages[index], heads.first);
    if (group.token_order == TokenOrder::nhd) {
      for (std::uint32_t token = first; token < end; ++token) {
        for (std::uint32_t h = 0; h < heads.count; ++h) {
          visit(part, token, heads.first + h, base + h * group.head_stride());
        }
      }
    } else {
      for (std::uint32_t h = 0; h < heads.count; ++h) {
        for (std::uint32_t token = first; token < end; ++token) {
          visit(part, token, heads.first + h, base + h * group.head_stride());
        }
      }
    }
  }
}

// [first, end) of the page indices that the range touches.
Range touched_pages(const PagedKv& kv, const KvRange& range) {
  const std::uint32_t page_tokens = kv.group().page_tokens;
  const std::uint32_t first = range.first_token / page_tokens;
  return {first, (range.end_token + page_tokens - 1) / page_tokens - first};
}

}  // namespace

KvContent content_of_ids(std::span<const std::uint64_t> ids, std::uint32_t block_tokens) {
  KvContent content{block_tokens, {}};
  content.chain.reserve(ids.size());
  std::uint64_t hash = 0;
  for (const std::uint64_t id : ids) {
    hash = mix64(hash ^ mix64(id));
    content.chain.push_back(hash);
  }
  return content;
}

KvContent content_of_tokens(std::span<const std::int32_t> tokens) {
  std::vector<std::uint64_t> ids;
  ids.reserve(tokens.size() / kTokenBlock + 1);
  for (std::size_t at = 0; at < tokens.size(); at += kTokenBlock) {
    std::uint64_t id = 0;
    for (std::size_t i = at; i < std::min(tokens.size(), at + kTokenBlock); ++i) {
      id = mix64(id ^ static_cast<std::uint32_t>(tokens[i]));
    }
    ids.push_back(id);
  }
  return content_of_ids(ids, kTokenBlock);
}

std::vector<BlockHash> page_keys(const KvContent& content, std::uint64_t tokens,
                                 std::uint32_t page_tokens) {
  std::vector<BlockHash> keys;
  keys.reserve(tokens / page_tokens);
  for (std::uint64_t end = page_tokens; end <= tokens; end += page_tokens) {
    const std::uint64_t last = end - 1;
    const std::uint64_t place = last % content.block_tokens;
    std::uint64_t key = mix64(content.chain[last / content.block_tokens] ^ mix64(place));
    BlockHash& hash = keys.emplace_back();
    for (std::size_t at = 0; at < hash.bytes.size(); at += sizeof(key), key = mix64(key)) {
      std::memcpy(&hash.bytes[at], &key, sizeof(key));
    }
  }
  return keys;
}

Status check(const PagedKv& kv, const KvRange& range) {
  if (range.first_token >= range.end_token || range.content.block_tokens == 0) {
    return {Code::invalid_argument, "an empty range of tokens or blocks"};
  }
  const std::uint64_t end = range.end_token;
  if (end > std::uint64_t{range.pages.size()} * kv.group().page_tokens ||
      end > std::uint64_t{range.content.chain.size()} * range.content.block_tokens) {
    return {Code::invalid_argument, "a range of tokens longer than its pages or blocks"};
  }
  for (const std::uint32_t page : range.pages) {
    if (page >= kv.group().page_count) return {Code::invalid_argument, "page out of range"};
  }
  return {};
}

void fill_layer(const PagedKv& kv, const KvRange& range, std::uint32_t layer) {
  const Range pages = touched_pages(kv, range);
  for (std::uint32_t p = pages.first; p < pages.end(); ++p) {
    visit_page(kv, range, layer, p, FillVector{});
  }
}

std::vector<std::uint32_t> wrong_pages(const PagedKv& kv, const KvRange& range) {
  std::vector<std::uint32_t> wrong;
  const Range pages = touched_pages(kv, range);
  const Range layers = kv.group().layers;
  for (std::uint32_t p = pages.first; p < pages.end(); ++p) {
    CompareVector compare;
    for (std::uint32_t layer = layers.first; layer < layers.end(); ++layer) {
      visit_page(kv, range, layer, p, compare);
    }
    if (compare.difference != 0) wrong.push_back(p);
  }
  return wrong;
}

std::int32_t pseudo_token(const KvContent& content, std::uint32_t index) {
  const std::uint64_t prompt = content.chain.empty() ? 0 : content.chain.back();
  return 'a' + static_cast<std::int32_t>(mix64(prompt ^ mix64(index)) % 26);
}

}  // namespace kvl::worker
