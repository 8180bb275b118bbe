#include "kvcache/plan/segments.h"

#include <algorithm>
#include <span>

namespace kvl {
namespace {

// The ids that cover [first_token, end_token), after all checks but uniqueness.
Status ids_in_use(const LayoutGroup& group, std::span<const std::uint32_t> ids,
                  std::uint64_t list_first_token, std::uint64_t first_token,
                  std::uint64_t end_token, std::span<const std::uint32_t>& in_use) {
  if (list_first_token % group.page_tokens != 0) {
    return {Code::invalid_argument, "plan: page list does not begin at a page boundary"};
  }
  if (list_first_token > first_token) {
    return {Code::invalid_argument, "plan: page list begins after the first token to move"};
  }
  const std::uint64_t first = (first_token - list_first_token) / group.page_tokens;
  const std::uint64_t last = (end_token - 1 - list_first_token) / group.page_tokens;
  if (last >= ids.size()) {
    return {Code::invalid_argument, "plan: page list too short for the tokens"};
  }
  in_use = ids.subspan(first, last - first + 1);
  for (const std::uint32_t id : in_use) {
    if (id >= group.page_count) return {Code::invalid_argument, "plan: page id out of range"};
  }
  return {};
}

// Writing a page twice would make the result depend on the order of arrival.
Status check_unique(std::span<const std::uint32_t> ids, std::vector<std::uint32_t>& sorted) {
  if (std::adjacent_find(ids.begin(), ids.end(), std::greater_equal<>()) == ids.end()) return {};
  sorted.assign(ids.begin(), ids.end());
  std::sort(sorted.begin(), sorted.end());
  if (std::adjacent_find(sorted.begin(), sorted.end()) != sorted.end()) {
    return {Code::invalid_argument, "plan: destination page named twice"};
  }
  return {};
}

// Walks the pages of one side.
struct Cursor {
  const LayoutGroup& group;
  std::span<const std::uint32_t> ids;
  std::uint64_t token;  // in the current page
  std::size_t page = 0;

  std::uint64_t left() const { return group.page_tokens - token; }
  std::uint64_t offset() const {
    return ids[page] * group.page_stride + token * group.token_stride();
  }
  void advance(std::uint64_t tokens) {
    token += tokens;
    if (token == group.page_tokens) {
      token = 0;
      ++page;
    }
  }
};

// Adds a stretch: longer if it continues the last one, one more of the run if it repeats its step.
class RunBuilder {
 public:
  RunBuilder(const LayoutGroup& src, const LayoutGroup& dst, std::vector<SegmentRun>& out)
      : src_stride_(src.token_stride()),
        dst_stride_(dst.token_stride()),
        tokens_max_(std::max<std::uint64_t>(
            1, PageLayout::kTensorPageBytesMax / std::max(src_stride_, dst_stride_))),
        out_(out) {
    out_.clear();
  }

  void add(std::uint64_t src, std::uint64_t dst, std::uint64_t tokens) {
    if (stretch_.tokens > 0 && src == stretch_.src + stretch_.tokens * src_stride_ &&
        dst == stretch_.dst + stretch_.tokens * dst_stride_ &&
        stretch_.tokens + tokens <= tokens_max_) {
      stretch_.tokens += tokens;
      return;
    }
    flush();
    stretch_ = {.src = src, .dst = dst, .tokens = tokens};
  }

  void flush() {
    if (stretch_.tokens == 0) return;
    if (!extends_last()) {
      out_.push_back(stretch_);
    }
    stretch_.tokens = 0;
  }

 private:
  bool extends_last() {
    if (out_.empty()) return false;
    SegmentRun& run = out_.back();
    // Strides are unsigned: a run goes upward on both sides or is not one.
    if (run.tokens != stretch_.tokens || stretch_.src <= run.src || stretch_.dst <= run.dst) {
      return false;
    }
    const std::uint64_t src_step = stretch_.src - (run.src + (run.count - 1) * run.src_step);
    const std::uint64_t dst_step = stretch_.dst - (run.dst + (run.count - 1) * run.dst_step);
    if (run.count == 1) {
      run.src_step = src_step;
      run.dst_step = dst_step;
    } else if (run.src_step != src_step || run.dst_step != dst_step) {
      return false;
    }
    ++run.count;
    return true;
  }

  std::uint64_t src_stride_;
  std::uint64_t dst_stride_;
  std::uint64_t tokens_max_;  // so that a stretch stays within the bytes of one op
  std::vector<SegmentRun>& out_;
  SegmentRun stretch_;
};

}  // namespace

Status make_segments(const LayoutGroup& src, const LayoutGroup& dst, const GroupPages& pages,
                     std::uint64_t first_token, std::uint64_t end_token,
                     std::vector<SegmentRun>& out, std::vector<std::uint32_t>& ids) {
  std::span<const std::uint32_t> src_ids;
  std::span<const std::uint32_t> dst_ids;
  KVL_TRY(ids_in_use(src, pages.src, pages.src_first_token, first_token, end_token, src_ids));
  KVL_TRY(ids_in_use(dst, pages.dst, pages.dst_first_token, first_token, end_token, dst_ids));
  KVL_TRY(check_unique(dst_ids, ids));

  Cursor from{src, src_ids, first_token % src.page_tokens};
  Cursor to{dst, dst_ids, first_token % dst.page_tokens};
  RunBuilder builder(src, dst, out);
  for (std::uint64_t token = first_token; token < end_token;) {
    const std::uint64_t tokens = std::min({from.left(), to.left(), end_token - token});
    builder.add(from.offset(), to.offset(), tokens);
    from.advance(tokens);
    to.advance(tokens);
    token += tokens;
  }
  builder.flush();
  return {};
}

}  // namespace kvl
