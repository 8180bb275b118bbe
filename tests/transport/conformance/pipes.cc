// Pipes, models and the naive copier.
#include <algorithm>
#include <cstring>

#include "tests/transport/conformance/harness.h"

namespace kvl::conformance {

void Harness::open_peers(End& a, End& b) {
  a.peer = a.side->open_peer(a.link, PeerRole::active);
  b.peer = b.side->open_peer(b.link, PeerRole::passive);
  route(a, b);
}

void Harness::route(End& a, End& b) {
  a.side->call<&SideServer::route>(a.link, a.peer, Address{b.side->index_, b.link, b.peer});
  b.side->call<&SideServer::route>(b.link, b.peer, Address{a.side->index_, a.link, a.peer});
}

void Harness::exchange_offers(End& a, End& b) {
  const auto offer_a = a.side->offer(a.link, a.peer);
  const auto offer_b = b.side->offer(b.link, b.peer);
  require(offer_a.ok() && offer_b.ok(), "offer refused");
  const Status accept_a = a.side->accept(a.link, a.peer, *offer_b);
  require(accept_a.ok(), "accept: " + accept_a.to_string());
  const Status accept_b = b.side->accept(b.link, b.peer, *offer_a);
  require(accept_b.ok(), "accept: " + accept_b.to_string());
}

void Harness::share_memory(End& a, End& b, const PipeOptions& options) {
  for (End* const end : {&a, &b}) {
    const std::uint64_t seed = ++buffers_;
    const std::uint64_t bytes = options.bytes + 2 * kGuard;
    const BufferKind kind = end == &b ? options.b_kind.value_or(options.kind) : options.kind;
    end->buffer = end->side->add_buffer(kind, bytes, seed);
    end->model.resize(bytes);
    fill_pattern(end->model, seed);
    const auto memory =
        end->side->add_memory(end->link, end->buffer, kGuard, options.bytes, options.access);
    require(memory.ok(), "add_memory: " + memory.status().to_string());
    end->memory = *memory;
  }
  const auto name = [](End& owner, End& user, BufferKind kind) {
    const auto blob = owner.side->export_memory(owner.link, owner.memory, owner.peer);
    if (kind == BufferKind::device && blob.code() == Code::unsupported) return;
    require(blob.ok(), "export_memory: " + blob.status().to_string());
    const auto remote = user.side->import_memory(user.link, user.peer, *blob);
    require(remote.ok(), "import_memory: " + remote.status().to_string());
    user.remote = *remote;
  };
  name(a, b, options.kind);
  name(b, a, options.b_kind.value_or(options.kind));
}

Pipe Harness::make_pipe(PipeOptions options) {
  for (Side* const side : {&a(), &b()}) {
    if (side->seen_.empty())
      side->seen_[side->open_link(options.kind == BufferKind::device ||
                                  options.b_kind == BufferKind::device)];
  }
  return make_pipe(a(), b(), options);
}

Pipe Harness::make_pipe(Side& from, Side& to, PipeOptions options) {
  Pipe pipe;
  pipe.bytes = options.bytes;
  pipe.a.side = &from;
  pipe.a.link = options.a_link;
  pipe.b.side = &to;
  pipe.b.link = options.b_link;
  from.seen_[options.a_link];
  to.seen_[options.b_link];
  open_peers(pipe.a, pipe.b);
  exchange_offers(pipe.a, pipe.b);
  wait_event(pipe.a, Event::Kind::peer_up);
  wait_event(pipe.b, Event::Kind::peer_up);
  share_memory(pipe.a, pipe.b, options);
  return pipe;
}

BatchSpec Harness::spec(const End& from, Direction direction, std::vector<PageOp> ops) {
  BatchSpec spec;
  spec.ticket = next_ticket();
  spec.peer = from.peer;
  spec.direction = direction;
  spec.ops = std::move(ops);
  spec.locals = {from.memory};
  spec.remotes = {from.remote};
  return spec;
}

Ticket Harness::post(End& from, const BatchSpec& spec) {
  const Status status = from.side->post(from.link, spec);
  require(status.ok(), "post: " + status.to_string());
  return spec.ticket;
}

void Harness::apply(End& from, End& to, const BatchSpec& spec) {
  for (std::size_t i = 0; i < spec.ops.size(); ++i) {
    const PageOp& op = spec.ops[i];
    const std::uint64_t begin = i == 0 ? spec.begin : 0;
    const std::uint64_t end =
        i + 1 == spec.ops.size() && spec.end != 0 ? spec.end : op.total_bytes();
    for (std::uint64_t position = begin; position < end;) {
      const std::uint64_t piece = position / op.bytes, in_piece = position % op.bytes;
      const std::uint64_t length = std::min(op.bytes - in_piece, end - position);
      std::byte* const here =
          from.model.data() + kGuard + op.local_offset + piece * op.local_stride + in_piece;
      std::byte* const there =
          to.model.data() + kGuard + op.remote_offset + piece * op.remote_stride + in_piece;
      std::memcpy(spec.direction == Direction::write ? there : here,
                  spec.direction == Direction::write ? here : there, length);
      position += length;
    }
  }
}

void Harness::move(End& from, End& to, const BatchSpec& spec) {
  post(from, spec);
  apply(from, to, spec);
  const Event& event = wait_batch(from, spec.ticket).event;
  require(event.code == Code::ok, "batch ended with " + std::string(to_string(event.code)));
}

void Harness::verify(End& end, const std::string& when) {
  if (end.side->hash(end.buffer) == hash_bytes(end.model)) return;
  const auto bytes = end.side->call<&SideServer::read>(end.buffer);
  const auto wrong = std::mismatch(bytes.begin(), bytes.end(), end.model.begin());
  const auto at = static_cast<std::uint64_t>(wrong.first - bytes.begin());
  std::uint64_t count = 0;
  for (std::size_t i = 0; i < bytes.size(); ++i) count += bytes[i] != end.model[i];
  const bool guard = at < kGuard || at >= bytes.size() - kGuard;
  throw Broken{when + ": " + std::to_string(count) + " wrong bytes, the first at " +
               std::to_string(at) + (guard ? " (outside registered memory)" : "")};
}

std::vector<PageOp> Harness::random_ops(std::uint64_t bytes, std::size_t count_max) {
  // Slots of equal size on both sides, permuted: each op stays within its own, so no two overlap.
  const std::size_t count = 1 + below(count_max);
  const std::uint64_t slot = bytes / count;
  std::vector<std::uint64_t> there(count);
  for (std::size_t i = 0; i < count; ++i) there[i] = i * slot;
  std::shuffle(there.begin(), there.end(), random_);
  std::vector<PageOp> ops;
  for (std::size_t i = 0; i < count; ++i) {
    PageOp op;
    op.count = 1;
    if (below(3) != 0)
      op.count += static_cast<std::uint32_t>(below(std::min<std::uint64_t>(slot / 2, 40)));
    const std::uint64_t room = slot / op.count;  // for one piece and its gap
    op.bytes = static_cast<std::uint32_t>(1 + below(room));
    const auto stride = [&] { return op.bytes + below(room - op.bytes + 1); };
    op.local_stride = stride();
    op.remote_stride = stride();
    const auto span = [&](std::uint64_t s) { return (op.count - 1) * s + op.bytes; };
    op.local_offset = i * slot + below(slot - span(op.local_stride) + 1);
    op.remote_offset = there[i] + below(slot - span(op.remote_stride) + 1);
    if (op.count == 1 && below(2) == 0) op.local_stride = op.remote_stride = random_();
    ops.push_back(op);
  }
  return ops;
}

void Harness::cut(BatchSpec& spec) {
  if (below(2) == 0) spec.begin = below(spec.ops.front().total_bytes());
  const std::uint64_t least = spec.ops.size() == 1 ? spec.begin : 0;
  if (below(2) == 0) spec.end = least + 1 + below(spec.ops.back().total_bytes() - least);
}

void Harness::ping(Pipe& pipe) {
  for (const bool there : {true, false}) {
    End& from = there ? pipe.a : pipe.b;
    End& to = there ? pipe.b : pipe.a;
    BatchSpec note = spec(from, Direction::write, {});
    note.note = {std::byte{'p'}, std::byte{'i'}, std::byte{'n'}, std::byte{'g'}};
    const std::size_t notes = count(to, Event::Kind::note);
    post(from, note);
    wait([&] { return count(to, Event::Kind::note) > notes; }, "ping");
    wait_batch(from, note.ticket);
  }
}

}  // namespace kvl::conformance
