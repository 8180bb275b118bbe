// KV without arithmetic: bytes that follow from what they stand for, so that a receiver can check
// every one of them. For load that is about transfer.
//
// A vector (the head_dim elements of one layer, part, token and head) is a run of 64-bit words
// derived from (chain hash of the token's block, layer, part, token in the block, head): the same
// bytes in every page size, layout and slice.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kvl/block_hash.h"
#include "worker/batch.h"
#include "worker/paged_kv.h"

namespace kvl::worker {

// The chain over block ids, each naming a block of block_tokens tokens (the last may be partial).
KvContent content_of_ids(std::span<const std::uint64_t> ids, std::uint32_t block_tokens);
// The chain over real tokens, in blocks of 16.
KvContent content_of_tokens(std::span<const std::int32_t> tokens);

// One key per full page of `tokens` tokens: equal keys, equal content from the first token on.
std::vector<BlockHash> page_keys(const KvContent& content, std::uint64_t tokens,
                                 std::uint32_t page_tokens);

// Whether pages and chain reach to the end of the range; all else below requires it.
Status check(const PagedKv& kv, const KvRange& range);

// One layer of this rank's slice.
void fill_layer(const PagedKv& kv, const KvRange& range, std::uint32_t layer);
// Indices into range.pages whose content differs in some byte, ascending.
std::vector<std::uint32_t> wrong_pages(const PagedKv& kv, const KvRange& range);

// The pseudo token that "decodes" at `index` of the output.
std::int32_t pseudo_token(const KvContent& content, std::uint32_t index);

}  // namespace kvl::worker
