// The KV memory of one simulated rank: what every byte should be, and who may touch it now. This is
// the checkers' own book; the product's page pool is asked apart.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "kvl/page_layout.h"
#include "tools/sim/scenario.h"
#include "transport/sim/sim_world.h"

namespace kvl::simulation {

// Who has a page, in the eyes of the checkers.
struct PageUse {
  const Request* request = nullptr;  // null: nobody, and nothing may touch it
  bool sends = false;                // a source page
  bool closed = false;               // committed: no byte may land any more
  bool given_up = false;             // its user is gone, but a peer may still reach it
};

class KvMemory {
 public:
  explicit KvMemory(const PageLayout& layout);

  std::byte* data() { return bytes_.data(); }
  std::uint64_t size() const { return bytes_.size(); }

  // Every function that checks answers "" or what is wrong.
  // The pages must be nobody's and as they were left.
  std::string take(std::span<const std::uint32_t> pages, const Request& request, bool sends);
  void close(std::span<const std::uint32_t> pages);
  void give_up(std::span<const std::uint32_t> pages);
  void free(std::span<const std::uint32_t> pages);
  // Of pages that nobody has.
  std::string check_free() const;

  // pages[i] holds the tokens from first_token + i * page_tokens on.
  void compute(const Request& request, std::span<const std::uint32_t> pages, std::uint32_t layer,
               std::uint64_t begin, std::uint64_t end);
  std::string check(const Request& request, std::span<const std::uint32_t> pages,
                    std::uint64_t first_token, Range layers) const;

  // The fabric reads or writes here; `other` is a prefill (or decode) rank of that instance.
  std::string touch(sim::Touch touch, const std::byte* data, std::uint64_t bytes,
                    bool other_prefills, std::uint32_t other_instance) const;

 private:
  static constexpr std::uint64_t kGrain = 8;  // bytes: heads are multiples
  template <typename F>  // f(the head's first word, its number) for all heads of a token in a layer
  void for_each_head(std::uint32_t layer, std::uint32_t page, std::uint64_t token, F&& f) const;
  std::uint64_t stamp(std::uint32_t page, std::uint64_t at) const {
    return (std::uint64_t{page} << 32 | generations_[page]) * 0x9E3779B97F4A7C15U + at;
  }

  const PageLayout layout_;
  std::uint32_t page_tokens_, layer_first_, layers_, head_first_, heads_;
  std::uint64_t head_words_ = 0;
  std::vector<std::uint64_t> rows_;     // word of (layer, part, token, head) in page 0
  std::uint64_t page_stride_ = 0;       // words
  std::vector<std::uint32_t> page_of_;  // by word; UINT32_MAX: no page
  std::vector<std::vector<std::uint64_t>> words_of_;  // of each page
  std::vector<PageUse> uses_;
  std::vector<std::uint32_t> generations_;
  std::vector<std::byte> bytes_;
};

}  // namespace kvl::simulation
