// The cluster of handoff tests.
#include "tests/kvcache/handoff/cluster.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <numeric>

namespace kvl::test {
namespace {

std::byte pattern(std::uint64_t room, std::uint32_t layer, KvPart part, std::uint64_t token,
                  std::uint32_t head, std::uint64_t at) {
  std::uint64_t value = room * 0x9e3779b97f4a7c15U + layer * 0x1000193U +
                        static_cast<std::uint64_t>(part) * 0x51ed27U + token * 0x27d4eb2fU +
                        head * 0x165667b1U + at * 0x85ebca6bU;
  value ^= value >> 29;
  value *= 0xbf58476d1ce4e5b9U;
  return static_cast<std::byte>(value >> 40);
}

}  // namespace

Cluster::Cluster(ClusterOptions cluster_options)
    : world(cluster_options.seed), options(std::move(cluster_options)) {
  prefill_count_ = std::size_t{options.prefill.tp_size} * options.prefill.pp_size;
  const std::size_t decodes = std::size_t{options.decode.tp_size} * options.decode.pp_size;
  for (std::size_t i = 0; i < prefill_count_ + decodes; ++i) {
    Node& node = nodes_.emplace_back();
    node.side = i < prefill_count_ ? HandoffSide::prefill : HandoffSide::decode;
    const bool sends = node.side == HandoffSide::prefill;
    node.rank = static_cast<std::uint32_t>(sends ? i : i - prefill_count_);
    const ParallelSizes& sizes = sends ? options.prefill : options.decode;
    const LayoutOptions& layout = sends ? options.prefill_layout : options.decode_layout;
    node.layout =
        make_layout(options.geometry, slice_at(sizes.tp_size, sizes.pp_size, node.rank), layout)
            .value();
    EXPECT_EQ(node.layout.region_count(), 1U);
    node.memory.assign(node.layout.region_bytes(0), std::byte{0x11});
    FakeEngine& engine = world.add_engine();
    Memory memory{node.memory.data(), node.memory.size()};
    memory.access = Access::remote_all;
    HandoffRank rank;
    rank.layout = node.layout;
    rank.regions = {{*engine.register_memory(memory), node.memory.data(), node.memory.size()}};
    rank.model = "tiny";
    rank.prefill = sends;
    rank.decode = !sends;
    node.endpoint = std::move(*HandoffEndpoint::open(engine, world.clock, rank, options.config));
    node.free_pages.resize(layout.page_count);
    std::iota(node.free_pages.begin(), node.free_pages.end(), 0U);
    std::ranges::shuffle(node.free_pages, world.random);
  }
  world.on_landed = [this](std::byte* at, std::uint64_t bytes) {
    const auto after = frozen_.upper_bound(at + bytes - 1);
    if (after == frozen_.begin()) return;
    if (std::prev(after)->second > at) ADD_FAILURE() << "bytes landed in pages that were released";
  };
  if (options.greet) greet_all();
}

void Cluster::greet_all() {
  for (std::size_t d = 0; d < decode_count(); ++d) {
    for (std::size_t p = 0; p < prefill_count_; ++p) {
      world.connect(decode_index(d), prefill_index(p));
    }
    if (d > 0) world.connect(decode_index(d), decode_index(0));
  }
  run();
}

std::byte* Cluster::byte_at(Node& node, std::uint32_t layer, KvPart part, std::uint32_t page,
                            std::uint32_t token, std::uint32_t head) {
  return node.memory.data() + node.layout.address(0, layer, part, page, token, head)->offset;
}

// f(first byte of a head of a token, layer, part, token, head) for all that the node holds.
template <typename F>
void Cluster::for_each_head(Node& node, const Request& request, std::uint64_t begin,
                            std::uint64_t end, F&& f) {
  const LayoutGroup& group = node.layout.groups()[0];
  const auto& pages = node.side == HandoffSide::prefill ? request.prefill_pages[node.rank]
                                                        : request.decode_pages[node.rank];
  for (std::uint32_t layer = group.layers.first; layer < group.layers.end(); ++layer) {
    for (const KvPart part : {KvPart::k, KvPart::v}) {
      if (group.mla && part == KvPart::v) continue;
      for (std::uint64_t token = begin; token < end; ++token) {
        const std::uint32_t page = pages[token / group.page_tokens];
        const auto in_page = static_cast<std::uint32_t>(token % group.page_tokens);
        for (std::uint32_t h = group.heads.first; h < group.heads.end(); ++h) {
          f(byte_at(node, layer, part, page, in_page, h), layer, part, token, h);
        }
      }
    }
  }
}

Request Cluster::make_request(std::uint64_t room, std::uint64_t tokens, std::uint64_t skip_tokens,
                              HandoffMode mode) {
  Request request;
  request.room = room;
  request.tokens = tokens;
  request.skip_tokens = skip_tokens;
  request.mode = mode;
  for (Node& node : nodes_) {
    const std::uint64_t page_tokens = node.layout.groups()[0].page_tokens;
    auto& pages = node.side == HandoffSide::prefill ? request.prefill_pages.emplace_back()
                                                    : request.decode_pages.emplace_back();
    for (std::uint64_t i = 0; i < (tokens + page_tokens - 1) / page_tokens; ++i) {
      EXPECT_FALSE(node.free_pages.empty());
      pages.push_back(node.free_pages.back());
      node.free_pages.pop_back();
    }
  }
  const std::uint64_t head_bytes = nodes_[0].layout.groups()[0].head_bytes();
  for (std::size_t p = 0; p < prefill_count_; ++p) {
    for_each_head(nodes_[p], request, 0, tokens,
                  [&](std::byte* at, std::uint32_t layer, KvPart part, std::uint64_t token,
                      std::uint32_t head) {
                    for (std::uint64_t b = 0; b < head_bytes; ++b) {
                      at[b] = pattern(room, layer, part, token, head, b);
                    }
                  });
  }
  for (std::size_t d = 0; d < decode_count(); ++d) {
    Node& node = decode(d);
    for_each_head(node, request, 0, tokens, [&](std::byte* at, auto...) { frozen_.erase(at); });
  }
  requests_[room] = request;
  return request;
}

DecodeOpen Cluster::decode_open(const Request& request, std::size_t rank) {
  DecodeOpen open;
  open.room = request.room;
  open.tokens = request.tokens;
  open.skip_tokens = request.skip_tokens;
  open.mode = request.mode;
  open.deadline_ms = request.deadline_ms;
  const auto routes = handoff_sources(options.geometry, options.prefill, options.decode,
                                      static_cast<std::uint32_t>(rank));
  for (const HandoffRoute& route : *routes) {
    open.sources.push_back({FakeWorld::handle(prefill_index(route.src_rank)), route.accepts});
  }
  // Only the pages from the first that is not skipped whole.
  const std::uint64_t page_tokens = decode(rank).layout.groups()[0].page_tokens;
  const std::uint64_t first = request.skip_tokens / page_tokens;
  const auto& pages = request.decode_pages[rank];
  open.pages.push_back(
      {{pages.begin() + static_cast<std::ptrdiff_t>(first), pages.end()}, first * page_tokens});
  open.group_rank = static_cast<std::uint32_t>(rank);
  open.group_size = static_cast<std::uint32_t>(decode_count());
  open.lead = FakeWorld::handle(decode_index(0));
  return open;
}

Status Cluster::open_prefill(const Request& request, std::size_t rank) {
  HandoffEndpoint& endpoint = *prefill(rank).endpoint;
  KVL_TRY(endpoint.open_prefill({request.room, request.tokens, request.deadline_ms}));
  const Status added = endpoint.add_pages(request.room, 0, request.prefill_pages[rank]);
  // Decode may have given up before we came: the room has failed already.
  return added.code() == Code::not_found ? Status{} : added;
}

Status Cluster::open_decode(const Request& request, std::size_t rank) {
  return decode(rank).endpoint->open_decode(decode_open(request, rank));
}

void Cluster::open_everywhere(const Request& request) {
  for (std::size_t p = 0; p < prefill_count_; ++p) EXPECT_TRUE(open_prefill(request, p).ok());
  for (std::size_t d = 0; d < decode_count(); ++d) {
    const Status status = open_decode(request, d);
    EXPECT_TRUE(status.ok()) << status.to_string();
  }
}

std::vector<std::byte> Cluster::metadata(const Request& request, std::size_t rank) {
  const std::string text = std::to_string(request.room) + "/" + std::to_string(rank);
  const auto bytes = std::as_bytes(std::span(text));
  return {bytes.begin(), bytes.end()};
}

void Cluster::finish_everywhere(const Request& request) {
  for (std::size_t p = 0; p < prefill_count_; ++p) {
    HandoffEndpoint& endpoint = *prefill(p).endpoint;
    const Status status =
        endpoint.ready(request.room, {0, options.geometry.layers}, request.tokens);
    EXPECT_TRUE(status.ok()) << status.to_string();
    (void)endpoint.finish(request.room, metadata(request, p));
  }
}

bool Cluster::pump() {
  bool any = false;
  for (std::size_t i = 0; i < nodes_.size(); ++i) {
    Node& node = nodes_[i];
    if (!node.alive) continue;
    std::vector<EngineEvent> events(8);
    while (const std::size_t count = world.engine(i).poll(events)) {
      any = true;
      for (std::size_t e = 0; e < count; ++e) node.endpoint->on_event(events[e]);
    }
    node.endpoint->step();
    std::vector<HandoffEvent> told(8);
    while (const std::size_t count = node.endpoint->poll(told)) {
      any = true;
      for (std::size_t e = 0; e < count; ++e) take(node, std::move(told[e]));
    }
  }
  return any;
}

void Cluster::run() {
  for (int quiet = 0; quiet < 2;) {
    const bool pumped = pump();
    const bool moved = world.step_in_order();
    quiet = pumped || moved ? 0 : quiet + 1;
  }
}

void Cluster::run_at_random(int steps) {
  for (int quiet = 0; quiet < 2 && steps > 0; --steps) {
    const bool pumped = world.random() % 4 == 0 || quiet > 0 ? pump() : true;
    const bool moved = world.step_at_random();
    quiet = pumped || moved ? 0 : quiet + 1;
  }
  pump();
}

void Cluster::kill(std::size_t index, bool fenced) {
  nodes_[index].alive = false;
  world.kill(index, fenced);
}

void Cluster::take(Node& node, HandoffEvent event) {
  using Kind = HandoffEvent::Kind;
  if (event.kind == Kind::peer_ready || event.kind == Kind::peer_refused) {
    node.peers.push_back(std::move(event));
    return;
  }
  EXPECT_EQ(event.side, node.side);
  Seen& seen = node.rooms[event.room];
  switch (event.kind) {
    case Kind::accepted:
      ++seen.accepted;
      seen.skip_tokens = event.skip_tokens;
      break;
    case Kind::layer_ready:
      EXPECT_EQ(seen.terminals(), 0) << "a layer after the end";
      seen.layers.push_back(event.layer);
      break;
    case Kind::committed:
      ++seen.committed;
      seen.bytes = event.bytes;
      seen.metadata = std::move(event.metadata);
      if (node.side == HandoffSide::decode) {
        EXPECT_EQ(wrong_bytes(requests_.at(event.room), node.rank), 0U) << "room " << event.room;
        EXPECT_EQ(seen.layers.size(), node.layout.groups()[0].layers.count);
      }
      seen.safe = true;
      break;
    case Kind::failed:
      ++seen.failed;
      seen.code = event.code;
      seen.reason = event.reason;
      seen.safe = event.pages_safe;
      EXPECT_NE(event.code, Code::ok);
      break;
    case Kind::pages_released:
      ++seen.released;
      EXPECT_EQ(seen.failed, 1);
      EXPECT_FALSE(seen.safe) << "released what was safe";
      seen.safe = true;
      break;
    default:
      ADD_FAILURE() << "unexpected event";
  }
  EXPECT_LE(seen.terminals(), 1) << "room " << event.room;
  EXPECT_LE(seen.released, 1);
  if (seen.safe && requests_.contains(event.room)) release(node, event.room);
}

// The next owner of the pages writes them; from now on nothing of the handoff may land there.
void Cluster::release(Node& node, std::uint64_t room) {
  const Request& request = requests_.at(room);
  const bool committed = node.rooms[room].committed > 0;
  const std::uint64_t head_bytes = node.layout.groups()[0].head_bytes();
  for_each_head(node, request, 0, request.tokens, [&](std::byte* at, auto...) {
    if (node.side == HandoffSide::decode) frozen_[at] = at + head_bytes;
    if (!committed || node.side == HandoffSide::prefill) std::memset(at, 0xee, head_bytes);
  });
}

std::uint64_t Cluster::wrong_bytes(const Request& request, std::size_t rank) {
  std::uint64_t wrong = 0;
  Node& node = decode(rank);
  const std::uint64_t head_bytes = node.layout.groups()[0].head_bytes();
  for_each_head(node, request, request.skip_tokens, request.tokens,
                [&](const std::byte* at, std::uint32_t layer, KvPart part, std::uint64_t token,
                    std::uint32_t head) {
                  for (std::uint64_t b = 0; b < head_bytes; ++b) {
                    wrong += at[b] != pattern(request.room, layer, part, token, head, b) ? 1 : 0;
                  }
                });
  return wrong;
}

void Cluster::expect_committed(const Request& request) {
  for (Node& node : nodes_) {
    const Seen& seen = node.rooms[request.room];
    EXPECT_EQ(seen.committed, 1) << to_string(node.side) << " " << node.rank << ": " << seen.reason;
    EXPECT_EQ(seen.failed, 0) << seen.reason;
  }
}

void Cluster::expect_failed(const Request& request, Code code) {
  for (Node& node : nodes_) {
    if (!node.alive) continue;
    const Seen& seen = node.rooms[request.room];
    EXPECT_EQ(seen.committed, 0) << to_string(node.side) << " " << node.rank;
    EXPECT_EQ(seen.failed, 1) << to_string(node.side) << " " << node.rank;
    EXPECT_EQ(seen.code, code) << to_string(node.side) << " " << node.rank << ": " << seen.reason;
  }
}

void Cluster::expect_nothing_open() {
  for (Node& node : nodes_) {
    if (!node.alive) continue;
    EXPECT_EQ(node.endpoint->open_rooms(), 0U) << to_string(node.side);
  }
}

}  // namespace kvl::test
