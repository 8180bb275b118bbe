// Prefill and decode ranks over a FakeWorld, with requests whose every byte is known. Checks as it
// runs: one terminal event per handoff, bytes at commit, and that nothing lands in pages that were
// reported safe (they are overwritten as their next owner would).
#pragma once

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kvl/handoff.h"
#include "tests/kvcache/handoff/fake_world.h"

namespace kvl::test {

struct ClusterOptions {
  ModelGeometry geometry{4, 4, 8, false, Dtype::bf16};
  ParallelSizes prefill{1, 1}, decode{1, 1};
  LayoutOptions prefill_layout{.page_tokens = 4, .page_count = 96};
  LayoutOptions decode_layout{.page_tokens = 4, .page_count = 96};
  HandoffConfig config;
  std::uint64_t seed = 1;
  bool greet = true;
};

struct Request {
  std::uint64_t room = 0;
  std::uint64_t tokens = 0, skip_tokens = 0;
  HandoffMode mode = HandoffMode::push;
  std::int64_t deadline_ms = 0;
  std::vector<std::vector<std::uint32_t>> prefill_pages, decode_pages;  // by rank
};

// What a node was told about a room.
struct Seen {
  int committed = 0, failed = 0, released = 0, accepted = 0;
  bool safe = false;  // pages are free again
  Code code = Code::ok;
  std::string reason;
  std::vector<std::uint32_t> layers;
  std::vector<std::vector<std::byte>> metadata;
  std::uint64_t bytes = 0, skip_tokens = 0;
  int terminals() const { return committed + failed; }
};

class Cluster {
 public:
  explicit Cluster(ClusterOptions options = {});

  struct Node {
    HandoffSide side = HandoffSide::prefill;
    std::uint32_t rank = 0;
    PageLayout layout;
    std::vector<std::byte> memory;
    std::unique_ptr<HandoffEndpoint> endpoint;
    std::map<std::uint64_t, Seen> rooms;
    std::vector<HandoffEvent> peers;  // peer_ready, peer_refused
    std::vector<std::uint32_t> free_pages;
    bool alive = true;
  };

  FakeWorld world;
  ClusterOptions options;

  std::size_t prefill_count() const { return prefill_count_; }
  std::size_t decode_count() const { return nodes_.size() - prefill_count_; }
  Node& prefill(std::size_t rank = 0) { return nodes_[rank]; }
  Node& decode(std::size_t rank = 0) { return nodes_[prefill_count_ + rank]; }
  std::size_t prefill_index(std::size_t rank = 0) const { return rank; }
  std::size_t decode_index(std::size_t rank = 0) const { return prefill_count_ + rank; }
  Seen& seen_prefill(std::uint64_t room, std::size_t rank = 0) { return prefill(rank).rooms[room]; }
  Seen& seen_decode(std::uint64_t room, std::size_t rank = 0) { return decode(rank).rooms[room]; }

  void greet_all();
  // Takes pages on every rank and writes the request's KV on the prefill side.
  Request make_request(std::uint64_t room, std::uint64_t tokens, std::uint64_t skip_tokens = 0,
                       HandoffMode mode = HandoffMode::push);
  DecodeOpen decode_open(const Request& request, std::size_t rank);
  Status open_prefill(const Request& request, std::size_t rank = 0);
  Status open_decode(const Request& request, std::size_t rank = 0);
  void open_everywhere(const Request& request);
  Status ready(const Request& request, std::size_t rank, Range layers, std::uint64_t tokens) {
    return prefill(rank).endpoint->ready(request.room, layers, tokens);
  }
  // All layers, and finish with metadata "room/rank".
  void finish_everywhere(const Request& request);
  static std::vector<std::byte> metadata(const Request& request, std::size_t rank);

  // Hands Engine events to endpoints and takes their events. True: there was something.
  bool pump();
  // Until nothing happens any more.
  void run();
  // As run(), each step chosen by the world's seed; at most `steps`.
  void run_at_random(int steps = 1 << 30);
  void advance_ms(std::int64_t ms) {
    world.clock.advance_ms(ms);
    run();
  }
  void kill(std::size_t index, bool fenced);

  // Bytes of tokens [skip, tokens) that differ from what prefill computed.
  std::uint64_t wrong_bytes(const Request& request, std::size_t rank);
  void expect_committed(const Request& request);
  void expect_failed(const Request& request, Code code);
  // No endpoint holds a room any more.
  void expect_nothing_open();

 private:
  std::byte* byte_at(Node& node, std::uint32_t layer, KvPart part, std::uint32_t page,
                     std::uint32_t token, std::uint32_t head);
  template <typename F>
  void for_each_head(Node& node, const Request& request, std::uint64_t begin, std::uint64_t end,
                     F&& f);
  void take(Node& node, HandoffEvent event);
  void release(Node& node, std::uint64_t room);

  std::size_t prefill_count_ = 0;
  std::vector<Node> nodes_;
  std::map<std::uint64_t, Request> requests_;
  std::map<const std::byte*, const std::byte*> frozen_;  // nothing may land here
};

}  // namespace kvl::test
