// Links that break one promise each.
#include "tests/transport/conformance/mutants.h"

#include <time.h>

#include <array>
#include <deque>
#include <map>
#include <set>
#include <utility>
#include <vector>

namespace kvl::conformance {
namespace {

constexpr std::uint64_t kOwnTicket = std::uint64_t{1} << 63;  // batches that the test never sees

class MutantLink final : public Link {
 public:
  MutantLink(Mutation mutation, std::unique_ptr<Link> inner)
      : mutation_(mutation), inner_(std::move(inner)) {}

  const Device& device() const override { return inner_->device(); }
  Result<PeerId> open_peer(PeerRole role) override { return inner_->open_peer(role); }
  Result<Blob> offer(PeerId peer) override { return inner_->offer(peer); }
  Status accept(PeerId peer, std::span<const std::byte> offer) override {
    return inner_->accept(peer, offer);
  }
  void close_peer(PeerId peer) override {
    if (mutation_ == Mutation::close_is_a_pretence && up_.contains(peer.value)) {
      Event event;
      event.kind = Event::Kind::peer_down;
      event.code = Code::aborted;
      event.peer = peer;
      extra_.push_back(event);
      pretended_.insert(peer.value);
      return;
    }
    inner_->close_peer(peer);
  }
  void on_control(PeerId peer, std::span<const std::byte> message) override {
    inner_->on_control(peer, message);
  }
  Result<MemoryId> add_memory(const Memory& given) override {
    Memory memory = given;
    if (mutation_ == Mutation::access_ignored) memory.access = Access::remote_all;
    return inner_->add_memory(memory);
  }
  Status remove_memory(MemoryId memory) override { return inner_->remove_memory(memory); }
  Result<Blob> export_memory(MemoryId memory, PeerId peer) override {
    return inner_->export_memory(memory, peer);
  }
  Result<RemoteId> import_memory(PeerId peer, std::span<const std::byte> blob) override {
    return inner_->import_memory(peer, blob);
  }
  void drop_memory(RemoteId remote) override { inner_->drop_memory(remote); }
  Status post(const Batch& given) override;
  Status cancel(Ticket ticket) override;
  std::size_t poll(std::span<Event> events) override;
  int wait_fd() const override { return inner_->wait_fd(); }
  bool arm() override { return extra_.empty() && inner_->arm(); }
  std::int64_t next_timer_ns() const override { return inner_->next_timer_ns(); }

 private:
  void take(const Event& event);
  void post_note(const Batch& batch) {
    Batch note = batch;
    note.ticket.value = kOwnTicket | ++own_tickets_;
    note.ops = {};
    note.begin = note.end = 0;
    note.note = note.note.first(std::min(note.note.size(), kNoteBytesMax));
    static_cast<void>(inner_->post(note).ok());
  }
  void say_batch(const Batch& batch, Code code) {
    Event event;
    event.code = code;
    event.peer = batch.peer;
    event.ticket = batch.ticket;
    extra_.push_back(event);
  }

  const Mutation mutation_;
  std::deque<Event> extra_;
  std::set<std::uint64_t> up_, pretended_, told_;
  // Copies of what batches point to: a mutant that ends them early must not crash instead.
  struct Owned {
    std::vector<PageOp> ops;
    std::vector<MemoryId> locals;
    std::vector<RemoteId> remotes;
  };
  std::map<std::uint64_t, Owned> owned_;
  std::uint64_t own_tickets_ = 0, batches_ = 0, notes_ = 0;
  bool was_exhausted_ = false, was_long_ = false;
  const std::unique_ptr<Link> inner_;  // gone before what its batches point to
};

Status MutantLink::post(const Batch& given) {
  Batch batch = given;
  if (mutation_ == Mutation::token_ignored) batch.after = {};
  if (mutation_ == Mutation::cuts_ignored && !batch.ops.empty()) batch.begin = batch.end = 0;
  Owned& owned = owned_[batch.ticket.value];
  owned.ops.assign(batch.ops.begin(), batch.ops.end());
  owned.locals.assign(batch.locals.begin(), batch.locals.end());
  owned.remotes.assign(batch.remotes.begin(), batch.remotes.end());
  batch.ops = owned.ops;
  batch.locals = owned.locals;
  batch.remotes = owned.remotes;
  if (mutation_ == Mutation::byte_too_many && !batch.ops.empty() && batch.ops.back().count == 1) {
    ++owned.ops.back().bytes;
    if (batch.end != 0) ++batch.end;
  }
  if (mutation_ == Mutation::note_early && !batch.note.empty() && up_.contains(batch.peer.value)) {
    post_note(batch);
    batch.note = {};
  }
  if (mutation_ == Mutation::early_posts_lost && !up_.contains(batch.peer.value)) {
    say_batch(batch, Code::ok);
    return {};
  }
  if (mutation_ == Mutation::exhausted_for_ever && was_exhausted_) {
    return {Code::exhausted, "mutant"};
  }
  const Status status = inner_->post(batch);
  if (status.code() == Code::exhausted) was_exhausted_ = true;
  if (status.code() == Code::invalid_argument) {
    if (mutation_ == Mutation::stale_peer_taken && !up_.contains(batch.peer.value)) return {};
    if (mutation_ == Mutation::refused_but_done && !batch.note.empty()) post_note(batch);
  }
  if (mutation_ == Mutation::event_early && status.ok()) {
    say_batch(batch, Code::ok);
    told_.insert(batch.ticket.value);
  }
  return status;
}

Status MutantLink::cancel(Ticket ticket) {
  if (mutation_ != Mutation::cancel_is_too_quick) return inner_->cancel(ticket);
  if (!told_.insert(ticket.value).second) return {Code::not_found, "mutant"};
  Batch batch;
  batch.ticket = ticket;
  say_batch(batch, Code::aborted);
  return {};
}

std::size_t MutantLink::poll(std::span<Event> events) {
  if (mutation_ == Mutation::poll_without_bound && !owned_.empty() &&
      !std::exchange(was_long_, true)) {
    timespec t{};
    for (std::int64_t cpu_ns = 0, start_ns = -1; cpu_ns < 500'000'000;) {
      ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
      const std::int64_t now_ns = std::int64_t{t.tv_sec} * 1'000'000'000 + t.tv_nsec;
      if (start_ns < 0) start_ns = now_ns;
      cpu_ns = now_ns - start_ns;
    }
  }
  std::array<Event, 64> taken;
  const std::size_t count = inner_->poll(taken);
  for (std::size_t i = 0; i < count; ++i) take(taken.at(i));
  std::size_t shown = 0;
  while (shown < events.size() && !extra_.empty()) {
    events[shown++] = extra_.front();
    extra_.pop_front();
  }
  return shown;
}

void MutantLink::take(const Event& event) {
  using Kind = Event::Kind;
  if (event.kind == Kind::peer_up) up_.insert(event.peer.value);
  if (event.kind == Kind::peer_down) {
    up_.erase(event.peer.value);
    if (mutation_ == Mutation::peer_down_lost || pretended_.contains(event.peer.value)) return;
  }
  if (event.kind == Kind::batch) {
    if ((event.ticket.value & kOwnTicket) != 0 || told_.contains(event.ticket.value)) return;
    if (mutation_ == Mutation::event_lost && ++batches_ % 5 == 0) return;
  }
  if (event.kind == Kind::note) {
    if (pretended_.contains(event.peer.value)) return;
    if (mutation_ == Mutation::note_lost && ++notes_ % 5 == 0) return;
  }
  extra_.push_back(event);
  const bool twice = (mutation_ == Mutation::event_twice && event.kind == Kind::batch) ||
                     (mutation_ == Mutation::note_twice && event.kind == Kind::note);
  if (twice) extra_.push_back(event);
}

}  // namespace

std::string_view name_of(Mutation mutation) {
  static constexpr std::array<std::string_view, 19> kNames{
      "none",
      "event_twice",
      "event_lost",
      "event_early",
      "byte_too_many",
      "cuts_ignored",
      "note_early",
      "note_twice",
      "note_lost",
      "stale_peer_taken",
      "refused_but_done",
      "exhausted_for_ever",
      "early_posts_lost",
      "token_ignored",
      "access_ignored",
      "cancel_is_too_quick",
      "close_is_a_pretence",
      "peer_down_lost",
      "poll_without_bound",
  };
  static_assert(kNames.size() == static_cast<std::size_t>(Mutation::poll_without_bound) + 1);
  return kNames.at(static_cast<std::size_t>(mutation));
}

std::unique_ptr<Link> make_mutant(Mutation mutation, std::unique_ptr<Link> inner) {
  return std::make_unique<MutantLink>(mutation, std::move(inner));
}

}  // namespace kvl::conformance
