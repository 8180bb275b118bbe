// The engine: opening, threads, the user's poll and wait.
#include "kvl/engine.h"

#include <poll.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <time.h>

#include <algorithm>
#include <cerrno>

#include "kvl/failure.h"
#include "kvl/log.h"
#include "kvl/security.h"
#include "transport/base/word_list.h"
#include "transport/core/engine_impl.h"
#include "transport/core/placement.h"
#include "transport/core/secure_control_net.h"
#include "transport/core/tcp_control_net.h"
#include "transport/core/topology.h"

namespace kvl {
namespace {

// How often progress = caller looks at the control connections while data flows.
constexpr std::int64_t kControlEveryNs = 100'000;

std::string first_part(const std::string& text) { return text.substr(0, text.find(':')); }

// "libfabric:efa" (or "efa*"): its name begins so. "libfabric:efa:rdmap16s27": and has this in it.
bool device_wanted(const Device& device, std::string_view require) {
  const auto next = [&require] {
    const std::string_view part = require.substr(0, require.find(':'));
    require.remove_prefix(std::min(require.size(), part.size() + 1));
    return part.substr(0, part.find('*'));
  };
  next();  // the transport
  const std::string_view provider = next();
  return device.name.starts_with(provider) && device.name.find(next()) != std::string::npos;
}

bool listed(const std::string& list, std::string_view name) {
  return list == "all" || has_word(list, name);
}

Status fail(std::string* error, Code code, const char* context, std::string sentence) {
  if (error != nullptr) *error = std::move(sentence);
  return {code, context};
}

}  // namespace

std::vector<Setting> engine_settings() {
  using C = EngineConfig;
  std::vector<Setting> rows{
      setting<&C::listen>("listen", "", 0, 0,
                          "address of the control listener, HOST:PORT; beyond loopback it needs "
                          "secret_file, KVLANE_SECRET or insecure"),
      setting<&C::advertise>("advertise", "", 0, 0, "address told to peers; empty: from listen"),
      setting<&C::force_tcp>("force_tcp", "", 0, 0, "use tcp only, whatever else is there",
                             "MC_FORCE_TCP"),
      setting<&C::require>("require", "", 0, 0, "transport[:device]: fail rather than use another"),
      setting<&C::transports>("transports", "", 0, 0, "comma list of transports that may be used"),
      setting<&C::progress>("progress", "", 0, 0, "thread | caller: who drives the rails"),
      setting<&C::rails_per_device>("rails_per_device", "", 1, 64, "Links, each with a thread"),
      setting<&C::piece_bytes>("piece_bytes", "bytes", 4096, 1 << 30,
                               "a transfer is cut into pieces of about this size"),
      setting<&C::piece_runs>("piece_runs", "", 1, 65536, "most runs in a piece"),
      setting<&C::stripe_bytes>("stripe_bytes", "bytes", 4096, 1 << 30,
                                "over several rails pieces are smaller, so that all have work, but "
                                "not smaller than this"),
      setting<&C::rail_stall_ms>("rail_stall_ms", "ms", 100, 600000,
                                 "a path on which nothing ends for so long is given up, while the "
                                 "peer is heard and another path is up"),
      setting<&C::near>("near", "", 0, 0,
                        "GPU or network device (name or PCI address) or numa:N that the memory is "
                        "near to: its nearest devices carry everything while one of them is up; "
                        "empty: all devices alike"),
      setting<&C::topology_file>("topology_file", "", 0, 0,
                                 "topology of the host (lstopo --whole-io FILE.xml), where a "
                                 "container does not show it; empty: as found"),
      setting<&C::register_threads>("register_threads", "", 1, 64,
                                    "devices that large memory is registered with at once"),
      setting<&C::pieces_inflight>("pieces_inflight", "", 1, 1024, "pieces per rail and peer"),
      setting<&C::transfers_max>("transfers_max", "", 1, 8192, "transfers in flight"),
      setting<&C::peers_max>("peers_max", "", 1, 65536, "peers, both directions together"),
      setting<&C::strangers_max>(
          "strangers_max", "", 1, 4096,
          "control connections without a hello; beyond, the one silent longest goes"),
      setting<&C::strangers_per_address_max>(
          "strangers_per_address_max", "", 1, 4096,
          "of these from one address; beyond, new ones are closed"),
      setting<&C::peer_memories_max>("peer_memories_max", "", 1, 1 << 20,
                                     "memories that one peer may announce; beyond it is let go"),
      setting<&C::connect_timeout_ms>(
          "connect_timeout_ms", "ms", 10, 600000,
          "from dialing to the first rail; for a stranger to say hello"),
      setting<&C::transfer_timeout_ms>("transfer_timeout_ms", "ms", 1, 86400000,
                                       "deadline of a transfer that names none"),
      setting<&C::heartbeat_ms>("heartbeat_ms", "ms", 10, 60000, "pause between heartbeats"),
      setting<&C::peer_timeout_ms>("peer_timeout_ms", "ms", 50, 600000,
                                   "silence after which a peer is lost"),
      setting<&C::reconnect_ms>("reconnect_ms", "ms", 1, 60000,
                                "first pause before dialing again; doubles up to 5 s"),
  };
  for (const Setting& row : security_settings()) rows.push_back(row);
  return rows;
}

Result<std::unique_ptr<Engine>> Engine::open(const Settings& settings, std::string* error) {
  return open(settings, EngineWorld{}, error);
}

Result<std::unique_ptr<Engine>> Engine::open(const Settings& settings, EngineWorld world,
                                             std::string* error) {
  const auto config = settings.read<EngineConfig>(engine_settings());
  if (config.progress != "thread" && config.progress != "caller") {
    return fail(error, Code::invalid_argument, "progress",
                "progress must be thread or caller, not '" + config.progress + "'");
  }
  if (config.force_tcp && !config.require.empty() && first_part(config.require) != "tcp") {
    return fail(error, Code::invalid_argument, "force_tcp contradicts require",
                "force_tcp is set, but require=" + config.require + " wants another transport");
  }
  auto engine = std::make_unique<EngineImpl>(config, std::move(world));
  KVL_TRY(engine->start(settings, error));
  return std::unique_ptr<Engine>(std::move(engine));
}

EngineImpl::EngineImpl(const EngineConfig& config, EngineWorld world)
    : config_(config),
      threaded_(config.progress == "thread"),
      world_(std::move(world)),
      clock_(world_.clock != nullptr ? *world_.clock : steady_clock_) {}

Status EngineImpl::start(const Settings& settings, std::string* error) {
  std::uint64_t seed = world_.seed;
  if (seed == 0 && ::getrandom(&seed, sizeof(seed), 0) != sizeof(seed)) {
    return {Code::internal, "getrandom", errno};
  }
  random_.seed(seed);
  for (std::size_t i = 0; i < id_.size(); i += sizeof(std::uint64_t)) {
    const std::uint64_t word = random_();
    std::copy_n(reinterpret_cast<const std::byte*>(&word), sizeof(word),
                id_.begin() + static_cast<std::ptrdiff_t>(i));
  }
  // Wall time orders the starts of processes on one host; the simulator's clock starts at 0.
  timespec wall{};
  ::clock_gettime(CLOCK_REALTIME, &wall);
  epoch_ = world_.clock != nullptr ? static_cast<std::uint64_t>(clock_.now_ns()) + 1
                                   : static_cast<std::uint64_t>(wall.tv_sec) * 1'000'000'000U +
                                         static_cast<std::uint64_t>(wall.tv_nsec);
  control_wake_.reset(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
  event_fd_.reset(threaded_ ? ::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)
                            : ::epoll_create1(EPOLL_CLOEXEC));
  if (!control_wake_ || !event_fd_) return {Code::exhausted, "engine descriptors", errno};
  KVL_TRY(open_control(settings, error));
  address_ = world_.control->address();
  KVL_TRY(open_rails(settings, error));
  if (threaded_) {
    start_rail_threads();
    const auto reserve = [](const control::RailName& rail) { return rail.nearness != 0; };
    if (std::ranges::any_of(rail_names_, reserve)) {
      registrar_thread_ = std::thread([this] { register_reserves(); });
      ::pthread_setname_np(registrar_thread_.native_handle(), "kvl-registrar");
    }
    control_thread_ = std::thread([this] { control_loop(); });
    ::pthread_setname_np(control_thread_.native_handle(), "kvl-control");
    return {};
  }
  const auto watch = [this](int fd) {
    if (fd < 0) return;
    epoll_event event{EPOLLIN, {.fd = fd}};
    ::epoll_ctl(event_fd_.get(), EPOLL_CTL_ADD, fd, &event);
  };
  watch(world_.control->wait_fd());
  watch(control_wake_.get());
  for (const RailState& state : rails_) {
    watch(state.rail->wait_fd());
    watch(state.rail->wake_fd());
  }
  return {};
}

// The listener, behind the guard that knows the secret.
Status EngineImpl::open_control(const Settings& settings, std::string* error) {
  const auto security = settings.read<SecurityConfig>(security_settings());
  SecureControlNet::Options options;
  auto secrets = load_secrets(security, error);
  if (!secrets) return secrets.status();
  options.secrets = std::move(*secrets);
  options.encrypt = security.encrypt;
  options.handshake_ms = config_.connect_timeout_ms;
  if (options.encrypt && options.secrets.empty()) {
    return fail(error, Code::invalid_argument, "encrypt needs a secret",
                "encrypt=on needs a secret: set secret_file or KVLANE_SECRET");
  }
  if (world_.seed != 0) {
    options.random = [random = std::mt19937_64(world_.seed)](std::span<std::byte> out) mutable {
      for (std::byte& b : out) b = static_cast<std::byte>(random());
    };
  }
  if (!world_.control) {
    KVL_TRY(check_listener("listen", config_.listen, !options.secrets.empty(), security.insecure,
                           error));
    same_host_ = is_loopback(config_.listen);
    auto net = TcpControlNet::open(
        config_.listen, config_.advertise,
        {.max = static_cast<std::size_t>(config_.strangers_max),
         .per_address_max = static_cast<std::size_t>(config_.strangers_per_address_max)});
    if (!net) {
      return fail(error, net.code(), "control listener",
                  "cannot listen on " + config_.listen + ": " + net.status().to_string());
    }
    world_.control = std::move(*net);
  }
  world_.control =
      std::make_unique<SecureControlNet>(std::move(world_.control), std::move(options), clock_);
  return {};
}

// A rail's thread lives on the NUMA node of its device, where the device knows one.
void EngineImpl::start_rail_threads() {
  const bool placed = std::any_of(rails_.begin(), rails_.end(), [](const RailState& state) {
    return state.rail->device().numa_node >= 0;
  });
  const bool known = topology_.numa_nodes() > 0;
  Result<Topology> topology = placed && !known ? Topology::discover() : topology_;
  for (std::size_t i = 0; i < rails_.size(); ++i) {
    Rail& rail = *rails_[i].rail;
    rail.start_thread("kvl-rail-" + std::to_string(i),
                      topology ? topology->cpus(rail.device().numa_node) : std::vector<int>{});
  }
}

Status EngineImpl::open_rails(const Settings& settings, std::string* error) {
  transports_ = std::move(world_.transports);
  if (transports_.empty()) transports_ = make_transports(settings);
  const std::string required = config_.force_tcp ? "tcp" : first_part(config_.require);
  std::string missing = "transport '" + required + "' is not built in; kvlane info lists them";
  std::optional<TopologyDevice> place;
  if (!config_.near.empty()) {
    auto topology = config_.topology_file.empty() ? Topology::discover()
                                                  : Topology::from_xml(config_.topology_file);
    if (!topology) {
      return fail(error, topology.code(), "topology_file",
                  "cannot read the topology: " + topology.status().to_string());
    }
    topology_ = std::move(*topology);
    std::string why;
    auto found = find_near(topology_, config_.near, &why);
    if (!found) return fail(error, found.code(), "near", why);
    place = std::move(*found);
  }
  for (const auto& transport : transports_) {
    const std::string name(transport->name());
    const bool wanted = required.empty() ? listed(config_.transports, name) : name == required;
    if (!wanted) {
      unusable_.push_back({name, "", false,
                           required.empty() ? "not in transports=" + config_.transports
                                            : "only " + required + " may be used"});
      continue;
    }
    std::vector<Device> devices = transport->devices();
    if (devices.empty()) {
      missing = name + ": " + transport->why_unusable();
      unusable_.push_back({name, "", false, transport->why_unusable()});
    }
    std::erase_if(devices, [&](const Device& device) {
      const bool wanted_device = device_wanted(device, config_.require);
      if (!wanted_device) missing = name + " has no device '" + config_.require + "'";
      return !wanted_device;
    });
    const std::vector<Nearness> near =
        place ? nearness(topology_, *place, devices) : std::vector<Nearness>(devices.size(), 0);
    for (const Device& device : devices) {
      for (std::int64_t copy = 0; copy < config_.rails_per_device; ++copy) {
        const std::size_t index = rails_.size();
        RailState& state = rails_.emplace_back();
        state.control = std::make_unique<RailControl>(*this, index);
        state.rail = std::make_unique<Rail>(index, *this, *transport, device);
        state.rate = RailRate(device.bytes_per_second);
        const Status status =
            state.rail->open(*state.control, world_.make_memory_ops(), clock_, same_host_);
        if (!status.ok()) {
          rails_refused_.add({name, to_string(status.code())}, {device.name});
          log(LogLevel::warning, "rail.open_failed",
              {{"transport", name},
               {"device", device.name},
               {"code", to_string(status.code())},
               {"why", status.to_string()},
               {"hint", "run kvlane doctor; leave it out with transports= if it is not wanted"}});
          missing = name + ": " + status.to_string();
          unusable_.push_back({name, device.name, false, status.to_string()});
          rails_.pop_back();
          break;
        }
        const Nearness rail_near = near[static_cast<std::size_t>(&device - devices.data())];
        rail_names_.push_back({name, device.name, device.domain, rail_near});
      }
    }
  }
  if (rails_.empty()) {
    return fail(error, Code::unavailable, "no transport can be used",
                required.empty() ? "no transport can be used; kvlane info says why"
                                 : "required transport: " + missing);
  }
  return {};
}

EngineImpl::~EngineImpl() {
  stopping_.store(true);
  control_sleeping_.store(true);
  wake_control();
  if (control_thread_.joinable()) control_thread_.join();
  if (registrar_thread_.joinable()) {
    {
      const Lock lock(mutex_);
      registrar_.notify_all();
    }
    registrar_thread_.join();
  }
  for (RailState& state : rails_) {
    if (state.rail) state.rail->stop_thread();
  }
  if (world_.control) {
    peers_.for_each([this](std::uint64_t, Peer& peer) {
      if (peer.conn.value == 0) return;
      // The peer learns at once; if the message does not get out, the closed connection tells it.
      [[maybe_unused]] const Status status =
          world_.control->send(peer.conn, control::encode(control::Type::bye));
      world_.control->close(peer.conn);
    });
  }
  rails_.clear();  // Links end what is in flight
}

void EngineImpl::wake_control() {
  if (!control_sleeping_.exchange(false, std::memory_order_seq_cst)) return;
  const std::uint64_t one = 1;
  [[maybe_unused]] const ssize_t n = ::write(control_wake_.get(), &one, sizeof(one));
}

bool EngineImpl::control_step() {
  const std::int64_t now_ns = clock_.now_ns();
  control_events_.clear();
  world_.control->poll(control_events_);
  std::vector<ConnId> hang_up;
  {
    const Lock lock(mutex_);
    for (ControlEvent& event : control_events_) on_control(event);
    if (now_ns >= next_timer_ns_) peer_timers(now_ns);
    if (now_ns >= next_deadline_ns_) transfer_timers(now_ns);
    sending_.swap(outbox_);
    hang_up.swap(hang_up_);
    has_outbox_.store(false, std::memory_order_relaxed);
  }
  const bool busy = !control_events_.empty() || !sending_.empty();
  for (auto& [conn, bytes] : sending_) {
    const Status status = world_.control->send(conn, bytes);
    if (status.ok() || status.code() == Code::not_found) continue;
    const Lock lock(mutex_);
    const auto found = connections_.find(conn.value);
    Peer* const peer = found == connections_.end() ? nullptr : peers_.find(found->second);
    if (peer != nullptr) peer_lost(*peer, Code::peer_lost, status.context());
  }
  sending_.clear();
  for (const ConnId conn : hang_up) world_.control->close(conn);
  return busy;
}

std::int64_t EngineImpl::control_sleep_ms(std::int64_t max_ms) {
  const Lock lock(mutex_);
  if (!outbox_.empty()) return 0;
  const std::int64_t at = std::min(next_timer_ns_, next_deadline_ns_);
  if (at == INT64_MAX) return max_ms;
  return std::clamp<std::int64_t>((at - clock_.now_ns() + 999'999) / 1'000'000, 0, max_ms);
}

void EngineImpl::control_loop() {
  while (!stopping_.load(std::memory_order_acquire)) {
    if (control_step()) continue;
    control_sleeping_.store(true, std::memory_order_seq_cst);
    const std::int64_t sleep_ms = control_sleep_ms(1000);
    if (sleep_ms > 0 && !stopping_.load()) {
      pollfd waits[2] = {{world_.control->wait_fd(), POLLIN, 0}, {control_wake_.get(), POLLIN, 0}};
      ::poll(waits, 2, static_cast<int>(sleep_ms));
    }
    control_sleeping_.store(false, std::memory_order_relaxed);
    std::uint64_t count = 0;
    [[maybe_unused]] const ssize_t n = ::read(control_wake_.get(), &count, sizeof(count));
  }
}

void EngineImpl::drive(bool control) {
  const std::unique_lock<std::mutex> driving(drive_mutex_, std::try_to_lock);
  if (!driving.owns_lock()) return;
  for (RailState& state : rails_) state.rail->step();
  const std::int64_t now_ns = clock_.now_ns();
  if (control || has_outbox_.load(std::memory_order_relaxed) ||
      now_ns - control_polled_ns_ >= kControlEveryNs) {
    control_polled_ns_ = now_ns;
    control_step();
  }
}

void EngineImpl::emit(EngineEvent event) {
  events_.push_back(std::move(event));
  if (!threaded_ || signalled_) return;
  signalled_ = true;
  const std::uint64_t one = 1;
  [[maybe_unused]] const ssize_t n = ::write(event_fd_.get(), &one, sizeof(one));
}

std::size_t EngineImpl::poll(std::span<EngineEvent> events) {
  if (!threaded_) {
    const bool slept = armed_.load(std::memory_order_relaxed);
    disarm();
    drive(slept || world_.clock != nullptr);
  }
  const Lock lock(mutex_);
  std::size_t count = 0;
  while (count < events.size() && !events_.empty()) {
    events[count++] = std::move(events_.front());
    events_.pop_front();
  }
  if (threaded_ && signalled_ && events_.empty()) {
    signalled_ = false;
    std::uint64_t value = 0;
    [[maybe_unused]] const ssize_t n = ::read(event_fd_.get(), &value, sizeof(value));
  }
  return count;
}

bool EngineImpl::has_events() const {
  const Lock lock(mutex_);
  return !events_.empty();
}

std::int64_t EngineImpl::arm(std::int64_t most_ms) {
  if (has_events()) return 0;
  if (threaded_) return most_ms;
  drive(true);
  if (has_events() || most_ms <= 0) return 0;
  std::int64_t sleep_ms = std::min<std::int64_t>(most_ms, control_sleep_ms(100));
  const std::lock_guard<std::mutex> driving(drive_mutex_);
  armed_.store(true, std::memory_order_relaxed);
  control_sleeping_.store(true, std::memory_order_seq_cst);
  for (RailState& state : rails_) {
    if (!state.rail->arm()) return 0;
    sleep_ms = state.rail->sleep_ms(state.rail->wait_fd() < 0 ? std::min<std::int64_t>(1, sleep_ms)
                                                              : sleep_ms);
  }
  return has_outbox_.load(std::memory_order_seq_cst) ? 0 : sleep_ms;
}

// After a sleep: what woke us must not keep event_fd() readable.
void EngineImpl::disarm() {
  if (!armed_.exchange(false, std::memory_order_relaxed)) return;
  const std::lock_guard<std::mutex> driving(drive_mutex_);
  for (RailState& state : rails_) state.rail->woken();
  control_sleeping_.store(false, std::memory_order_relaxed);
  std::uint64_t count = 0;
  [[maybe_unused]] const ssize_t n = ::read(control_wake_.get(), &count, sizeof(count));
}

bool EngineImpl::wait(std::int64_t timeout_ms) {
  if (has_events()) return true;
  if (const std::int64_t sleep_ms = arm(timeout_ms); sleep_ms > 0) {
    pollfd waits{event_fd_.get(), POLLIN, 0};
    ::poll(&waits, 1, static_cast<int>(std::min<std::int64_t>(sleep_ms, INT32_MAX)));
  }
  if (threaded_) return has_events();
  disarm();
  drive(true);
  return has_events();
}

std::vector<RailInfo> EngineImpl::rails() const {
  std::vector<RailInfo> all;
  for (const control::RailName& rail : rail_names_) all.push_back({rail.transport, rail.device});
  return all;
}

void EngineImpl::visit_metrics(MetricVisitor& visitor) const {
  // A series appears with its first; the one of `always` is there from the beginning.
  const auto by_code = [&](std::string_view name, std::string_view help, const char* label,
                           MetricLabels labels, Code always, const CountByCode& counters) {
    labels.emplace_back(label, "");
    for (std::size_t i = 0; i < kCodes; ++i) {
      const auto code = static_cast<Code>(i);
      if (code != always && counters[i].value() == 0) continue;
      labels.back().second = std::string(to_string(code));
      visitor.counter(name, help, labels, static_cast<double>(counters[i].value()));
    }
  };
  const Lock lock(mutex_);
  for (std::size_t i = 0; i < rails_.size(); ++i) {
    const RailState& state = rails_[i];
    const MetricLabels labels{{"rail", std::to_string(i)},
                              {"transport", rail_names_[i].transport},
                              {"device", rail_names_[i].device}};
    const auto count = [&](std::string_view name, std::string_view help, const Counter& counter) {
      visitor.counter(name, help, labels, static_cast<double>(counter.value()));
    };
    count("kvlane_rail_bytes_total", "Bytes moved by transfers of this engine.", state.bytes);
    count("kvlane_rail_pieces_total", "Pieces completed.", state.pieces);
    count("kvlane_rail_notes_total", "Notes received.", state.notes);
    visitor.counter("kvlane_rail_registered_bytes_total", "Bytes of memory registered.", labels,
                    static_cast<double>(state.registered_bytes.value()));
    visitor.counter("kvlane_rail_registration_seconds_total", "Time that registering has taken.",
                    labels, static_cast<double>(state.registration_ns.value()) / 1e9);
    by_code("kvlane_rail_piece_failures_total", "Pieces that ended with an error, by cause.",
            "cause", labels, Code::unavailable, state.failures);
    by_code("kvlane_rail_pairs_lost_total",
            "Paths to peers that were lost while the peer was not, by cause.", "cause", labels,
            Code::peer_lost, state.pairs_lost);
    by_code("kvlane_rail_pairs_refused_total", "Paths to peers that did not come up, by cause.",
            "cause", labels, Code::unavailable, state.pairs_refused);
    state.rail->link().visit_metrics(visitor, labels);
  }
  world_.control->visit_metrics(visitor);
  visitor.gauge("kvlane_peers", "Peers known.", {}, static_cast<double>(peers_.size()));
  visitor.gauge("kvlane_transfers_inflight", "Transfers not ended.", {},
                static_cast<double>(transfers_.size()));
  Refusals::Counts refusals{};
  refusals_.add_to(refusals);
  world_.control->count_refusals(refusals);
  visit_refusals(visitor, refusals);
  visitor.counter("kvlane_piece_retries_total", "Pieces posted again on another path.", {},
                  static_cast<double>(retries_.value()));
  by_code("kvlane_transfers_ended_total", "Transfers ended, by outcome.", "outcome", {}, Code::ok,
          transfers_ended_);
  visitor.counter("kvlane_peers_left_total", "Peers that said goodbye.", {},
                  static_cast<double>(peers_left_.value()));
  peers_lost_.visit(visitor);
  peers_unreachable_.visit(visitor);
  peers_degraded_.visit(visitor);
  rails_refused_.visit(visitor);
}

std::vector<TransportInfo> probe_transports(const Settings& settings) {
  std::vector<TransportInfo> all;
  for (const auto& transport : make_transports(settings)) {
    TransportInfo info{std::string(transport->name()), transport->rank(), transport->devices(), {}};
    if (info.devices.empty()) info.why_unusable = transport->why_unusable();
    all.push_back(std::move(info));
  }
  std::sort(all.begin(), all.end(),
            [](const TransportInfo& a, const TransportInfo& b) { return a.rank < b.rank; });
  return all;
}

}  // namespace kvl
