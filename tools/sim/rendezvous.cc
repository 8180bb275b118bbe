// The rendezvous over the simulated network.
#include "tools/sim/rendezvous.h"

#include <utility>

#include "kvcache/bootstrap/wire.h"

namespace kvl::simulation {
namespace {

constexpr std::int64_t kCallTimeoutNs = 60 * kMs;
constexpr std::int64_t kRegisterAgainNs = 20 * kMs;
constexpr std::int64_t kAskAgainNs = 10 * kMs;

}  // namespace

bool WatchedStore::lives(bootstrap::LeaseId lease) const {
  const auto found = leases_.find(lease);
  return found != leases_.end() && clock_.now_ns() < found->second.ends_ns;
}

void WatchedStore::grant(std::uint32_t ttl_ms, Granted done) {
  store_.grant(ttl_ms, [&](const Result<bootstrap::LeaseId>& lease) {
    if (lease.ok()) {
      if (leases_.contains(*lease)) violate_("lease: an id was granted twice");
      leases_[*lease] = {ttl_ms * kMs, clock_.now_ns() + ttl_ms * kMs};
    }
    done(lease);
  });
}

void WatchedStore::keep_alive(bootstrap::LeaseId lease, Done done) {
  const bool lived = lives(lease);
  store_.keep_alive(lease, [&](const Status& status) {
    if (status.ok() != lived) {
      violate_(lived ? "lease: a living lease was not renewed" : "lease: renewed after its end");
    }
    if (status.ok()) leases_[lease].ends_ns = clock_.now_ns() + leases_[lease].ttl_ns;
    done(status);
  });
}

void WatchedStore::revoke(bootstrap::LeaseId lease, Done done) {
  leases_.erase(lease);
  store_.revoke(lease, std::move(done));
}

void WatchedStore::put(std::string_view key, std::string value, bootstrap::LeaseId lease,
                       std::uint64_t expected, Done done) {
  const std::uint64_t epoch = bootstrap::epoch_of(value);
  store_.put(key, std::move(value), lease, expected, [&](const Status& status) {
    if (status.ok()) check_put(key, lease, epoch);
    done(status);
  });
}

void WatchedStore::check_put(std::string_view key, bootstrap::LeaseId lease, std::uint64_t epoch) {
  if (!lives(lease)) violate_("lease: a key was put under an ended lease");
  Key& known = keys_[std::string(key)];
  if (lives(known.lease) && epoch < known.epoch) {
    violate_("epoch: an older life of " + std::string(key) + " pushed out its successor");
  }
  known = {lease, epoch};
}

void WatchedStore::check_read(const bootstrap::StoredValue& value) {
  const auto found = keys_.find(value.key);
  if (found == keys_.end() || !lives(found->second.lease)) {
    violate_("lease: " + value.key + " is still told after its lease has ended");
  }
}

Result<std::optional<bootstrap::StoredValue>> WatchedStore::get(std::string_view key) {
  auto value = store_.get(key);
  if (value.ok() && value->has_value()) check_read(**value);
  return value;
}

Result<std::vector<bootstrap::StoredValue>> WatchedStore::list(std::string_view prefix) {
  auto values = store_.list(prefix);
  if (values.ok()) {
    for (const bootstrap::StoredValue& value : *values) check_read(value);
  }
  return values;
}

RendezvousServer::RendezvousServer(sim::SimWorld& world, sim::NodeId node, const Clock& clock,
                                   const Scenario& scenario, Violate violate)
    : world_(world),
      node_(node),
      clock_(clock),
      options_({.lease_min_ms = 30, .lease_max_ms = scenario.lease_max_ms}),
      violate_(std::move(violate)) {
  start();
}

void RendezvousServer::start() {
  if (up()) return;
  if (lives_++ > 0) world_.restart(node_);
  store_ = std::make_unique<WatchedStore>(clock_, world_.options().seed + lives_, violate_);
  service_ = std::make_unique<bootstrap::Service>(*store_, clock_, options_);
}

void RendezvousServer::crash() {
  if (!up()) return;
  world_.crash(node_);
  service_.reset();
  store_.reset();
}

bootstrap::HttpAnswer RendezvousServer::handle(const bootstrap::Call& call) {
  const std::string_view target = call.path;
  const std::size_t mark = target.find('?');
  const std::string_view query =
      mark == std::string_view::npos ? std::string_view() : target.substr(mark + 1);
  // The memory store has done everything before it returns: so has the service.
  bootstrap::HttpAnswer out;
  service_->handle({call.method, target.substr(0, mark), query, call.body},
                   [&](bootstrap::ServiceAnswer answer) {
                     out = {answer.status, std::move(answer.body)};
                   });
  return out;
}

RendezvousClient::RendezvousClient(sim::SimWorld& world, RendezvousServer& server, sim::NodeId node,
                                   const Clock& clock, RankRecord record, std::uint32_t lease_ms)
    : world_(world),
      server_(server),
      port_(world.port(node, sim::Port::kControl)),
      clock_(clock),
      record_(std::move(record)),
      lease_ms_(lease_ms),
      keeper_(lease_ms) {}

// As an HTTP call: the request may be repeated by the way, answers are taken once.
void RendezvousClient::call(const bootstrap::Call& call, Answered answered) {
  const std::uint64_t id = ++calls_;
  pending_[id] = {clock_.now_ns() + kCallTimeoutNs, std::move(answered)};
  const sim::Port there = world_.port(server_.node(), sim::Port::kControl);
  world_.transmit(
      port_, there, 100 + call.body.size(),
      [&world = world_, &server = server_, self = self_, here = port_, there, call, id] {
        if (!server.up()) return;
        const auto answer = std::make_shared<bootstrap::HttpAnswer>(server.handle(call));
        world.transmit(
            there, here, 100 + answer->body.size(),
            [self, id, answer] {
              if (*self != nullptr) (*self)->on_answer(id, *answer);
            },
            [] {}, true);
      },
      [] {}, true);
}

void RendezvousClient::on_answer(std::uint64_t id, const Result<bootstrap::HttpAnswer>& answer) {
  const auto found = pending_.find(id);
  if (found == pending_.end()) return;  // too late, or a repeated one
  const Answered answered = std::move(found->second.answered);
  pending_.erase(found);
  answered(answer);
}

void RendezvousClient::keep(bootstrap::LeaseKeeper::Step step) {
  const bootstrap::Call request = step.call;
  call(request, [this, step = std::move(step)](const Result<bootstrap::HttpAnswer>& answer) {
    if (auto more = keeper_.on_answer(step, answer, clock_.now_ns())) keep(std::move(*more));
  });
}

void RendezvousClient::step() {
  const std::int64_t now_ns = clock_.now_ns();
  while (!pending_.empty() && pending_.begin()->second.deadline_ns <= now_ns) {
    on_answer(pending_.begin()->first, Status{Code::timed_out, "call the rendezvous"});
  }
  if (!registered_ && !registering_ && now_ns >= register_ns_) {
    registering_ = true;
    register_ns_ = now_ns + kRegisterAgainNs;
    call(bootstrap::register_call(record_, lease_ms_),
         [this](const Result<bootstrap::HttpAnswer>& answer) {
           registering_ = false;
           const auto lease = bootstrap::read_lease(answer);
           if (!lease.ok()) return;
           keeper_.add(record_, *lease, clock_.now_ns());
           registered_ = true;
         });
  }
  while (auto due = keeper_.next(now_ns)) keep(std::move(*due));
}

const std::vector<RankRecord>* RendezvousClient::find(const std::string& instance,
                                                      std::int64_t age_ns) {
  Instance& known = instances_[instance];
  const std::int64_t now_ns = clock_.now_ns();
  if (now_ns - known.known_ns > age_ns && now_ns - known.asked_ns > kAskAgainNs) {
    known.asked_ns = now_ns;
    call(bootstrap::ranks_call("sim", instance),
         [this, instance](const Result<bootstrap::HttpAnswer>& answer) {
           auto ranks = bootstrap::read_ranks(answer);
           if (!ranks.ok()) return;
           const RankRecord& first = ranks->front();
           if (ranks->size() < std::size_t{first.tp_size} * first.pp_size) return;
           Instance& entry = instances_[instance];
           entry.ranks = std::move(*ranks);
           entry.known_ns = clock_.now_ns();
         });
  }
  return known.ranks.empty() ? nullptr : &known.ranks;
}

}  // namespace kvl::simulation
