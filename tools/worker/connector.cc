// The connector's thread: engines, endpoints, and the inbox that wakes it.
#include "worker/connector.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <utility>

namespace kvl::worker {
namespace {

constexpr std::int64_t kSleepMostMs = 100;
constexpr std::int64_t kForgetAfterNs = 60'000'000'000;

}  // namespace

Result<std::unique_ptr<Connector>> Connector::open(const ConnectorOptions& options,
                                                   const std::vector<ConnectorRank>& ranks,
                                                   RankEventSink sink, std::string* error) {
  std::unique_ptr<Connector> connector(new Connector(std::move(sink)));
  connector->wake_fd_ = ::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  if (connector->wake_fd_ < 0) return Status(Code::exhausted, "eventfd", errno);
  for (const ConnectorRank& rank : ranks) KVL_TRY(connector->add_port(options, rank, error));
  for (const std::unique_ptr<Port>& port : connector->ports_) {
    const auto& memory = ranks[static_cast<std::size_t>(&port - connector->ports_.data())].memory;
    connector->sink_(RankUp{port->rank, port->engine->address(), port->engine->epoch(),
                            memory->kv().layout().encode()});
  }
  connector->thread_ = std::thread([self = connector.get()] { self->loop(); });
  return connector;
}

Status Connector::add_port(const ConnectorOptions& options, const ConnectorRank& rank,
                           std::string* error) {
  auto port = std::make_unique<Port>();
  port->rank = rank.rank;
  Result<std::unique_ptr<Engine>> engine = Engine::open(*options.settings, error);
  if (!engine) return engine.status();
  port->engine = *std::move(engine);
  Result<std::vector<HandoffRegion>> regions = rank.memory->register_with(*port->engine);
  if (!regions) return regions.status();
  const auto config = options.settings->read<HandoffConfig>(handoff_settings());
  Result<std::unique_ptr<HandoffEndpoint>> endpoint =
      HandoffEndpoint::open(*port->engine, clock_,
                            {.layout = rank.memory->kv().layout(),
                             .regions = *std::move(regions),
                             .model = options.model,
                             .prefill = options.prefill,
                             .decode = options.decode,
                             .index = rank.rank},
                            config, error);
  if (!endpoint) return endpoint.status();
  port->endpoint = *std::move(endpoint);
  ports_.push_back(std::move(port));
  return {};
}

Connector::~Connector() {
  closing_ = true;
  if (thread_.joinable()) {
    const std::uint64_t one = 1;
    [[maybe_unused]] const ssize_t written = ::write(wake_fd_, &one, sizeof(one));
    thread_.join();
  }
  // Engines first: their transfers read the endpoints' plans.
  for (const std::unique_ptr<Port>& port : ports_) port->engine.reset();
  if (wake_fd_ >= 0) ::close(wake_fd_);
}

void Connector::post(Command command) { put(std::move(command)); }

void Connector::ready(std::uint32_t rank, std::uint64_t room, std::uint32_t layer,
                      std::uint64_t tokens) {
  put(Ready{rank, room, layer, tokens});
}

void Connector::put(Message message) {
  bool wake = false;
  {
    const std::lock_guard lock(mutex_);
    wake = inbox_.empty();
    inbox_.push_back(std::move(message));
  }
  if (!wake) return;
  const std::uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = ::write(wake_fd_, &one, sizeof(one));
}

void Connector::loop() {
  while (!closing_) {
    sleep();
    drain_inbox();
    for (const std::unique_ptr<Port>& port : ports_) drain_port(*port);
  }
}

void Connector::sleep() {
  std::vector<pollfd> fds{{wake_fd_, POLLIN, 0}};
  std::int64_t timeout_ms = kSleepMostMs;
  for (const std::unique_ptr<Port>& port : ports_) {
    fds.push_back({port->engine->event_fd(), POLLIN, 0});
    timeout_ms = port->endpoint->wait_ms(timeout_ms);
  }
  ::poll(fds.data(), fds.size(), static_cast<int>(std::clamp<std::int64_t>(timeout_ms, 0, 100)));
  std::uint64_t count = 0;
  if (fds[0].revents != 0) {
    [[maybe_unused]] const ssize_t taken = ::read(wake_fd_, &count, sizeof(count));
  }
}

void Connector::drain_inbox() {
  std::vector<Message> messages;
  {
    const std::lock_guard lock(mutex_);
    messages.swap(inbox_);
  }
  for (const Message& message : messages) {
    for (const std::unique_ptr<Port>& port : ports_) {
      if (const auto* const ready = std::get_if<Ready>(&message)) {
        if (ready->rank == port->rank) handle(*port, *ready);
      } else {
        std::visit([&](const auto& command) { handle(*port, command); },
                   std::get<Command>(message));
      }
    }
  }
}

void Connector::drain_port(Port& port) {
  std::array<EngineEvent, 32> events;
  for (std::size_t count = events.size(); count == events.size();) {
    count = port.engine->poll(events);
    for (std::size_t i = 0; i < count; ++i) on_engine_event(port, events[i]);
  }
  port.endpoint->step();
  std::array<HandoffEvent, 32> handoffs;
  for (std::size_t count = handoffs.size(); count == handoffs.size();) {
    count = port.endpoint->poll(handoffs);
    for (std::size_t i = 0; i < count; ++i) {
      HandoffEvent& event = handoffs[i];
      using Kind = HandoffEvent::Kind;
      if (event.kind != Kind::committed && event.kind != Kind::failed &&
          event.kind != Kind::pages_released) {
        continue;
      }
      RoomEvent room{port.rank,   event.kind,       event.side,
                     event.code,  event.pages_safe, event.room,
                     event.bytes, event.elapsed_ns, std::move(event.reason),
                     {}};
      if (!event.metadata.empty()) room.metadata = std::move(event.metadata.front());
      sink_(std::move(room));
    }
  }
  forget_lost_peers(port);
}

void Connector::on_engine_event(Port& port, EngineEvent& event) {
  using Kind = EngineEvent::Kind;
  const bool taken = port.endpoint->on_event(event);
  if (event.kind == Kind::peer_up || event.kind == Kind::peer_down) {
    std::string address;
    for (auto& [name, dialed] : port.dialed) {
      if (!(dialed.peer == event.peer)) continue;
      address = name;
      dialed.up = event.kind == Kind::peer_up;
      dialed.down_since_ns = dialed.up ? 0 : clock_.now_ns();
      if (dialed.up) {
        for (const auto& bytes : dialed.unsent) (void)port.engine->send(dialed.peer, bytes);
      }
      dialed.unsent.clear();
    }
    if (event.kind == Kind::peer_down && port.rank == 0) {
      sink_(PeerLost{event.peer, std::move(address), event.code});
    }
  } else if (event.kind == Kind::message && !taken && port.rank == 0) {
    sink_(PeerMessage{event.peer, std::move(event.data)});
  }
}

// An engine dials for ever; an address that nobody has answered for a minute was a worker that is
// gone (the next one listens elsewhere).
void Connector::forget_lost_peers(Port& port) {
  if (port.endpoint->open_rooms() != 0) return;
  const std::int64_t now_ns = clock_.now_ns();
  for (auto it = port.dialed.begin(); it != port.dialed.end();) {
    const Port::Dialed& dialed = it->second;
    if (dialed.down_since_ns == 0 || now_ns - dialed.down_since_ns < kForgetAfterNs ||
        !port.engine->disconnect(dialed.peer).ok()) {
      ++it;
    } else {
      it = port.dialed.erase(it);
    }
  }
}

void Connector::visit_metrics(MetricVisitor& visitor) const {
  for (const std::unique_ptr<Port>& port : ports_) port->engine->visit_metrics(visitor);
}

}  // namespace kvl::worker
