// Handoff messages: what decodes encodes to the same bytes, and small inputs stay small.
#include <algorithm>

#include "kvcache/handoff/wire.h"
#include "kvl/page_layout.h"
#include "tests/fuzz/fuzz.h"

namespace kvl::fuzz {

void fuzz_handoff_wire(Bytes input) {
  const auto message = handoff::decode(input);
  if (!message.ok()) return;
  require(handoff::is_handoff_message(input), "a message is known by its first bytes");
  require(std::ranges::equal(handoff::encode(*message), input), "a message encodes to itself");
  if (const auto* const hello = std::get_if<handoff::Hello>(&message->body)) {
    const auto layout = PageLayout::decode(hello->layout);
    require(!layout.ok() || layout->encode() == hello->layout, "a hello's layout");
  }
}

Seeds seeds_handoff_wire() {
  using handoff::Message;
  using handoff::Part;
  const LayoutOptions options{.page_count = 4};
  const auto layout = make_layout(find_geometry("tiny").value(), {}, options);
  handoff::Hello hello{.prefill = true, .model = "tiny", .layout = layout->encode()};
  hello.regions = {{MemoryHandle{1}, 1 << 20}, {MemoryHandle{2}, 4096}};
  handoff::Accept accept{.tokens = 1000, .skip_tokens = 64, .accepts = 2};
  accept.groups = {{64, {3, 1, 4}}, {0, {}}};
  handoff::SegmentMessage segment{.seq = 3, .layers = {0, 4}, .token_end = 128, .bytes = 4096};
  segment.pages = {{0, {7, 8}}};
  segment.crcs = {0xdeadbeef, 1};
  handoff::SegmentMessage readable = segment;
  readable.readable = true;
  Seeds seeds;
  const auto add = [&](Part to, handoff::Body body) {
    seeds.push_back(handoff::encode(Message{to, 5, 6, std::move(body)}));
  };
  add(Part::prefill, hello);
  add(Part::decode, handoff::Verdict{Code::unsupported, "other layers"});
  add(Part::prefill, accept);
  add(Part::decode, handoff::Offer{{handoff::CrcMode::sampled, 16}});
  add(Part::decode, segment);
  add(Part::decode, readable);
  add(Part::decode, handoff::Finish{3, seed("first token")});
  add(Part::prefill, handoff::Done{});
  add(Part::prefill, handoff::Abort{Code::timed_out, true, "late"});
  add(Part::prefill, handoff::Quiet{true});
  add(Part::lead, handoff::Join{1, 4});
  add(Part::lead, handoff::Vote{});
  add(Part::member, handoff::Commit{});
  add(Part::member, handoff::Committed{});
  return seeds;
}

}  // namespace kvl::fuzz
