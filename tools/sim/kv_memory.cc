// The checkers' book of one rank's memory.
#include "tools/sim/kv_memory.h"

#include <cassert>
#include <cstring>

namespace kvl::simulation {
namespace {

std::uint64_t content(const Request& request, std::uint32_t layer, std::uint32_t part,
                      std::uint64_t token, std::uint32_t head) {
  std::uint64_t x = request.content ^ (std::uint64_t{layer} << 48 | std::uint64_t{part} << 40 |
                                       std::uint64_t{head} << 24 | token);
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9U;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBU;
  return x ^ (x >> 31);
}

}  // namespace

KvMemory::KvMemory(const PageLayout& layout) : layout_(layout) {
  const LayoutGroup& group = layout_.groups()[0];
  page_tokens_ = group.page_tokens;
  layer_first_ = group.layers.first;
  layers_ = group.layers.count;
  head_first_ = group.heads.first;
  heads_ = group.heads.count;
  head_words_ = group.head_bytes() / kGrain;
  bytes_.resize(layout_.region_bytes(0));
  uses_.resize(group.page_count);
  generations_.resize(group.page_count, 0);
  words_of_.resize(group.page_count);
  page_of_.assign(bytes_.size() / kGrain, UINT32_MAX);
  const auto word = [&](std::uint32_t layer, KvPart part, std::uint32_t page, std::uint32_t token,
                        std::uint32_t head) {
    return layout_.address(0, layer, part, page, token, head)->offset / kGrain;
  };
  for (std::uint32_t l = 0; l < layers_; ++l) {
    for (const KvPart part : {KvPart::k, KvPart::v}) {
      for (std::uint32_t t = 0; t < page_tokens_; ++t) {
        for (std::uint32_t h = 0; h < heads_; ++h) {
          rows_.push_back(word(layer_first_ + l, part, 0, t, head_first_ + h));
        }
      }
    }
  }
  if (group.page_count > 1) {
    page_stride_ = word(layer_first_, KvPart::k, 1, 0, head_first_) - rows_[0];
  }
  for (std::uint32_t page = 0; page < group.page_count; ++page) {
    for (const std::uint64_t row : rows_) {
      for (std::uint64_t w = 0; w < head_words_; ++w) {
        const std::uint64_t at = row + page * page_stride_ + w;
        assert(page_of_[at] == UINT32_MAX);
        page_of_[at] = page;
        words_of_[page].push_back(at);
      }
    }
    const std::uint32_t one[] = {page};
    free(one);
  }
}

std::string KvMemory::take(std::span<const std::uint32_t> pages, const Request& request,
                           bool sends) {
  for (const std::uint32_t page : pages) {
    if (uses_[page].request != nullptr) {
      return "page owned twice: page " + std::to_string(page) + " of room " +
             std::to_string(uses_[page].request->room) + " was given to room " +
             std::to_string(request.room);
    }
    for (const std::uint64_t at : words_of_[page]) {
      std::uint64_t here = 0;
      std::memcpy(&here, &bytes_[at * kGrain], kGrain);
      if (here != stamp(page, at)) {
        return "write into a free page: page " + std::to_string(page) +
               " has changed while nobody had it";
      }
    }
    uses_[page] = {&request, sends, false, false};
  }
  return {};
}

void KvMemory::close(std::span<const std::uint32_t> pages) {
  for (const std::uint32_t page : pages) uses_[page].closed = true;
}

void KvMemory::give_up(std::span<const std::uint32_t> pages) {
  for (const std::uint32_t page : pages) uses_[page].given_up = true;
}

void KvMemory::free(std::span<const std::uint32_t> pages) {
  for (const std::uint32_t page : pages) {
    uses_[page] = {};
    ++generations_[page];
    for (const std::uint64_t at : words_of_[page]) {
      const std::uint64_t mark = stamp(page, at);
      std::memcpy(&bytes_[at * kGrain], &mark, kGrain);
    }
  }
}

std::string KvMemory::check_free() const {
  for (std::uint32_t page = 0; page < uses_.size(); ++page) {
    if (uses_[page].request != nullptr) continue;
    for (const std::uint64_t at : words_of_[page]) {
      std::uint64_t here = 0;
      std::memcpy(&here, &bytes_[at * kGrain], kGrain);
      if (here != stamp(page, at)) {
        return "write into a free page: page " + std::to_string(page) + " has changed";
      }
    }
  }
  return {};
}

template <typename F>
void KvMemory::for_each_head(std::uint32_t layer, std::uint32_t page, std::uint64_t token,
                             F&& f) const {
  const std::uint64_t in_page = token % page_tokens_;
  for (std::uint32_t part = 0; part < 2; ++part) {
    const std::uint64_t row =
        ((std::uint64_t{layer - layer_first_} * 2 + part) * page_tokens_ + in_page) * heads_;
    for (std::uint32_t h = 0; h < heads_; ++h) {
      f(rows_[row + h] + page * page_stride_, part, head_first_ + h);
    }
  }
}

void KvMemory::compute(const Request& request, std::span<const std::uint32_t> pages,
                       std::uint32_t layer, std::uint64_t begin, std::uint64_t end) {
  if (layer < layer_first_ || layer >= layer_first_ + layers_) return;
  for (std::uint64_t token = begin; token < end; ++token) {
    for_each_head(layer, pages[token / page_tokens_], token,
                  [&](std::uint64_t at, std::uint32_t part, std::uint32_t head) {
                    std::uint64_t word = content(request, layer, part, token, head);
                    for (std::uint64_t w = 0; w < head_words_; ++w, ++word) {
                      std::memcpy(&bytes_[(at + w) * kGrain], &word, kGrain);
                    }
                  });
  }
}

std::string KvMemory::check(const Request& request, std::span<const std::uint32_t> pages,
                            std::uint64_t first_token, Range layers) const {
  std::string wrong;
  for (std::uint32_t layer = layers.first; layer < layers.end(); ++layer) {
    for (std::uint64_t token = request.skip_tokens; token < request.tokens; ++token) {
      for_each_head(layer, pages[(token - first_token) / page_tokens_], token,
                    [&](std::uint64_t at, std::uint32_t part, std::uint32_t head) {
                      const std::uint64_t word = content(request, layer, part, token, head);
                      for (std::uint64_t w = 0; w < head_words_; ++w) {
                        std::uint64_t here = 0;
                        std::memcpy(&here, &bytes_[(at + w) * kGrain], kGrain);
                        if (here == word + w || !wrong.empty()) continue;
                        wrong = "layer " + std::to_string(layer) + " token " +
                                std::to_string(token) + " head " + std::to_string(head);
                      }
                    });
    }
  }
  return wrong;
}

std::string KvMemory::touch(sim::Touch touch, const std::byte* data, std::uint64_t bytes,
                            bool other_prefills, std::uint32_t other_instance) const {
  using sim::Touch;
  if (data < bytes_.data() || data + bytes > bytes_.data() + bytes_.size()) {
    return "out of bounds: the fabric reaches outside the registered memory";
  }
  const auto offset = static_cast<std::uint64_t>(data - bytes_.data());
  const bool writes = touch == Touch::remote_write || touch == Touch::local_write;
  const bool pull = touch == Touch::remote_read || touch == Touch::local_write;
  for (std::uint64_t w = offset / kGrain; w * kGrain < offset + bytes; ++w) {
    const std::uint32_t page = page_of_[w];
    const auto name = [&] { return "page " + std::to_string(page); };
    if (page == UINT32_MAX) return "out of bounds: the fabric touches bytes of no page";
    const PageUse& use = uses_[page];
    if (use.request == nullptr) {
      return std::string(writes ? "write into a free page: " : "read of a free page: ") + name();
    }
    const Request& r = *use.request;
    if (use.sends == writes) return "wrong direction: " + name();
    if ((r.mode == HandoffMode::pull) != pull) return "wrong mode: " + name();
    if (writes && use.closed) {
      return "write after commit: " + name() + " of room " + std::to_string(r.room);
    }
    if (other_prefills != writes || other_instance != (writes ? r.prefill : r.decode)) {
      return "stranger: " + name() + " of room " + std::to_string(r.room) +
             " is touched by a rank that has no part in it";
    }
  }
  return {};
}

}  // namespace kvl::simulation
