// The session: each step may fail and then ends it; the end is always the same clean one.
#include "tests/transport/fault_sweep/session.h"

#include <algorithm>
#include <optional>
#include <vector>

#include "tests/support/log_guard.h"

namespace kvl::conformance {
namespace {

// Thrown when a call has said that it failed: a legitimate end.
struct Reported {
  std::string what;
};

class Session {
 public:
  Session(const SessionOptions& options, Harness& harness) : options_(options), h_(harness) {
    ends_[0].side = &h_.a();
    ends_[1].side = &h_.b();
  }

  void run() {
    open();
    connect();
    name_memory();
    move();
  }
  // Ends whatever exists; faults may hit here, too.
  void clean_up();
  const std::vector<std::string>& reports() const { return reports_; }

 private:
  static constexpr std::uint64_t kBytes = 256 << 10;
  static constexpr std::uint32_t kPart = 64 << 10;
  struct Posted {
    BatchSpec spec;
    std::uint64_t part = 0;
  };

  // Makes the call again while it is exhausted and that is asked for; ends the session otherwise.
  template <typename F>
  auto must(const char* what, F call) {
    auto result = call();
    for (int tries = 0; options_.retry && result.code() == Code::exhausted && tries < 100;
         ++tries) {
      h_.pump_times(1);
      result = call();
    }
    if (!result.ok()) {
      throw Reported{std::string(what) + ": " + std::string(to_string(result.code()))};
    }
    if constexpr (!std::is_same_v<decltype(result), Status>) return std::move(result).value();
  }
  void note_event(const Event& event) {
    if (event.code == Code::ok) return;
    reports_.push_back("event: " + std::string(to_string(event.code)));
  }
  bool down(const End& end) { return h_.find_event(end, Event::Kind::peer_down) != nullptr; }

  void open();
  void connect();
  void name_memory();
  void move();
  void check_bytes();

  const SessionOptions& options_;
  Harness& h_;
  End ends_[2];
  bool opened_[2] = {false, false}, has_peer_[2] = {false, false}, has_memory_[2] = {false, false};
  std::vector<Posted> posted_;
  std::vector<std::string> reports_;
};

void Session::open() {
  for (std::size_t i = 0; i < 2; ++i) {
    End& end = ends_[i];
    end.link = must("open", [&] { return end.side->call<&SideServer::open_link>(true); });
    opened_[i] = true;
    const auto kind = i == 0 && options_.device_memory ? BufferKind::device : BufferKind::shared;
    end.buffer = end.side->add_buffer(kind, kBytes + 2 * Harness::kGuard, 10 + i);
    end.model.resize(kBytes + 2 * Harness::kGuard);
    fill_pattern(end.model, 10 + i);
    end.memory = must("add_memory", [&] {
      return end.side->add_memory(end.link, end.buffer, Harness::kGuard, kBytes,
                                  Access::remote_all);
    });
    has_memory_[i] = true;
  }
}

void Session::connect() {
  for (std::size_t i = 0; i < 2; ++i) {
    End& end = ends_[i];
    const auto role = i == 0 ? PeerRole::active : PeerRole::passive;
    end.peer =
        must("open_peer", [&] { return end.side->call<&SideServer::open_peer>(end.link, role); });
    has_peer_[i] = true;
  }
  h_.route(ends_[0], ends_[1]);
  for (int i = 0; i < 2; ++i) {
    End& from = ends_[1 - i];
    const Blob offer = must("offer", [&] { return from.side->offer(from.link, from.peer); });
    must("accept", [&] { return ends_[i].side->accept(ends_[i].link, ends_[i].peer, offer); });
  }
  const auto up = [&](const End& end) {
    return h_.find_event(end, Event::Kind::peer_up) != nullptr;
  };
  h_.wait([&] { return (up(ends_[0]) && up(ends_[1])) || down(ends_[0]) || down(ends_[1]); },
          "peer_up or peer_down");
  if (down(ends_[0]) || down(ends_[1])) throw Reported{"connect: peer_down"};
}

void Session::name_memory() {
  for (int i = 0; i < 2; ++i) {
    End& owner = ends_[i];
    End& user = ends_[1 - i];
    const bool may_refuse = i == 0 && options_.device_memory;
    const Blob name = must("export_memory", [&]() -> Result<Blob> {
      auto blob = owner.side->export_memory(owner.link, owner.memory, owner.peer);
      if (may_refuse && blob.code() == Code::unsupported) return Blob{};
      return blob;
    });
    if (name.empty()) continue;
    user.remote =
        must("import_memory", [&] { return user.side->import_memory(user.link, user.peer, name); });
  }
}

void Session::move() {
  End& a = ends_[0];
  End& b = ends_[1];
  for (std::uint64_t i = 0; i < 4; ++i) {
    const std::uint64_t at = i * kPart;
    BatchSpec spec = h_.spec(a, i == 1 ? Direction::read : Direction::write,
                             {{0, 0, at, at, 256, kPart / 512, 512, 512}});
    if (i == 0) spec.note = {std::byte{1}};
    if (i == 2) spec.flag_at_least = 1;
    must("post", [&] { return a.side->post(a.link, spec); });
    posted_.push_back({spec, i});
  }
  h_.pump_times(2);
  a.side->set_flag(1);
  const Ticket last = posted_.back().spec.ticket;
  const auto cancel = [&] {
    const Status status = a.side->cancel(a.link, last);
    return status.code() == Code::not_found ? Status{} : status;  // it has ended
  };
  must("cancel", cancel);
  for (const Posted& posted : posted_) {
    const Event event = h_.wait_batch(a, posted.spec.ticket).event;
    if (!(posted.spec.ticket == last && event.code == Code::aborted)) note_event(event);
  }
  if (h_.find_batch(a, posted_[0].spec.ticket)->event.code == Code::ok) {
    h_.wait([&] { return h_.count(b, Event::Kind::note) == 1 || down(b); }, "note");
    if (h_.count(b, Event::Kind::note) == 0) reports_.emplace_back("no note, but peer_down");
  }
}

void Session::clean_up() {
  for (int i = 0; i < 2; ++i) {
    if (has_peer_[i] && !down(ends_[i])) ends_[i].side->close_peer(ends_[i].link, ends_[i].peer);
  }
  for (int i = 0; i < 2; ++i) {
    if (has_peer_[i]) h_.wait_event(ends_[i], Event::Kind::peer_down);
  }
  for (const Posted& posted : posted_) {
    h_.wait_batch(ends_[0], posted.spec.ticket);
    Harness::require(h_.count_batches(ends_[0], posted.spec.ticket) == 1, "a batch ended twice");
  }
  Harness::require(h_.count(ends_[1], Event::Kind::note) <= 1, "a note came twice");
  check_bytes();
  for (int i = 0; i < 2; ++i) {
    if (!has_memory_[i]) continue;
    Status status;
    h_.wait_for(
        [&] {
          status = ends_[i].side->remove_memory(ends_[i].link, ends_[i].memory);
          return status.ok();
        },
        1'000'000'000);
    Harness::require(status.ok(), "memory cannot be removed: " + status.to_string());
  }
  for (int i = 0; i < 2; ++i) {
    if (opened_[i]) ends_[i].side->close_link(ends_[i].link);
  }
}

// Parts whose batch is ok are right; parts of others hold old or new bytes; the rest is untouched.
void Session::check_bytes() {
  if (!has_memory_[0] || !has_memory_[1]) return;
  End& a = ends_[0];
  End& b = ends_[1];
  const std::vector<std::byte> old[2] = {a.model, b.model};
  for (const Posted& posted : posted_) Harness::apply(a, b, posted.spec);
  for (int i = 0; i < 2; ++i) {
    const auto now = ends_[i].side->call<&SideServer::read>(ends_[i].buffer);
    for (std::size_t k = 0; k < now.size(); ++k) {
      if (now[k] == ends_[i].model[k]) continue;
      const std::uint64_t part = (k - Harness::kGuard) / kPart;
      const auto posted = std::find_if(posted_.begin(), posted_.end(),
                                       [&](const Posted& p) { return p.part == part; });
      const bool may_be_old =
          posted == posted_.end() || h_.find_batch(a, posted->spec.ticket)->event.code != Code::ok;
      Harness::require(may_be_old && now[k] == old[i][k], "wrong bytes");
    }
  }
}

}  // namespace

SessionResult run_session(const SessionOptions& options,
                          std::shared_ptr<fault::FaultState> faults) {
  const test::ExpectLog expected("");  // Links may complain of what is done to them
  SessionResult result;
  Variant variant{options.transport, true, Mode::one_thread, {}, std::move(faults)};
  variant.flavour = options.flavour;
  std::function<std::string()> violations;
  try {
    Harness harness(variant, 1);
    violations = harness.violations();
    Session session(options, harness);
    std::vector<std::string> reports;
    try {
      session.run();
    } catch (const Reported& reported) {
      reports.push_back(reported.what);
    }
    session.clean_up();
    reports.insert(reports.end(), session.reports().begin(), session.reports().end());
    result.reported = !reports.empty();
    if (result.reported) result.first_report = reports.front();
  } catch (const Broken& broken) {
    result.broken = broken.why;
  }
  if (result.broken.empty()) result.broken = violations();
  return result;
}

}  // namespace kvl::conformance
