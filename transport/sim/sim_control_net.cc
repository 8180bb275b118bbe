// Control connections over the simulated network.
#include "transport/sim/sim_control_net.h"

#include <charconv>
#include <memory>
#include <utility>

namespace kvl::sim {
namespace {

constexpr std::uint64_t kSmallBytes = 64;  // what opening and closing put on the wire

}  // namespace

SimControlNet::SimControlNet(SimWorld& world, NodeId node)
    : world_(world), port_(world.port(node, Port::kControl)) {
  world_.add_net(node, this);
}

SimControlNet::~SimControlNet() {
  close_all();
  world_.remove_net(port_.node, this);
}

SimControlNet* SimControlNet::find(SimWorld& world, const Port& port) {
  SimControlNet* const net = world.net(port.node);
  return net != nullptr && net->port_.life == port.life && world.alive(port) ? net : nullptr;
}

template <typename F>
// NOLINTNEXTLINE(performance-unnecessary-value-param): `lost` is moved, which a template hides
void SimControlNet::at_remote(const Port& to, std::uint64_t bytes, F f, SimWorld::Action lost) {
  world_.transmit(
      port_, to, bytes,
      [&world = world_, to, f = std::move(f)]() mutable {
        if (SimControlNet* const net = find(world, to)) f(*net);
      },
      std::move(lost));
}

Result<ConnId> SimControlNet::connect(std::string_view address) {
  constexpr std::string_view kPrefix = "sim:";
  NodeId node = 0;
  if (!address.starts_with(kPrefix)) return Status{Code::invalid_argument, "not a sim: address"};
  address.remove_prefix(kPrefix.size());
  const auto [end, error] = std::from_chars(address.data(), address.data() + address.size(), node);
  if (error != std::errc{} || end != address.data() + address.size()) {
    return Status{Code::invalid_argument, "not a sim: address"};
  }
  const std::uint64_t id = ++ids_;
  const Port remote = world_.port(node, Port::kControl);
  ends_[id].remote = remote;
  const auto fail = [&world = world_, me = port_, id] {
    if (SimControlNet* const net = find(world, me)) {
      net->lose(id, {Code::timed_out, "connect: no answer"});
    }
  };
  // A node without a listener refuses: that answer travels as well.
  world_.transmit(
      port_, remote, kSmallBytes,
      [&world = world_, me = port_, remote, id] {
        if (SimControlNet* const net = find(world, remote)) {
          net->on_connect(me, id);
          return;
        }
        world.transmit(
            remote, me, kSmallBytes,
            [&world, me, id] {
              if (SimControlNet* const net = find(world, me)) {
                net->lose(id, {Code::unavailable, "connect: refused"});
              }
            },
            [] {});
      },
      fail);
  return ConnId{id};
}

void SimControlNet::on_connect(const Port& from, std::uint64_t from_id) {
  const std::uint64_t id = ++ids_;
  End& end = ends_[id];
  end.remote = from;
  end.remote_id = from_id;
  events_.push_back({ControlEvent::Kind::accepted, ConnId{id}, {}, {}, address_of(from.node)});
  at_remote(
      from, kSmallBytes, [from_id, id](SimControlNet& net) { net.on_accepted(from_id, id); },
      [&world = world_, me = port_, id] {
        if (SimControlNet* const net = find(world, me)) net->lose(id, {Code::peer_lost, "accept"});
      });
}

void SimControlNet::on_accepted(std::uint64_t id, std::uint64_t remote_id) {
  const auto found = ends_.find(id);
  if (found == ends_.end()) return;
  End& end = found->second;
  const bool first = end.remote_id == 0;  // the peer's messages may have overtaken this
  end.remote_id = remote_id;
  if (!first) return;
  events_.push_back(
      {ControlEvent::Kind::connected, ConnId{id}, {}, {}, address_of(end.remote.node)});
  flush(id, end);
}

Status SimControlNet::send(ConnId conn, std::span<const std::byte> message) {
  const auto found = ends_.find(conn.value);
  if (found == ends_.end()) return {Code::not_found, "control connection is closed"};
  if (message.size() > kMessageBytesMax) return {Code::invalid_argument, "control message size"};
  End& end = found->second;
  if (end.queued_bytes + message.size() > world_.options().control_queue_bytes_max) {
    return {Code::exhausted, "control peer does not read"};
  }
  end.queue.emplace_back(message.begin(), message.end());
  end.queued_bytes += message.size();
  flush(conn.value, end);
  return {};
}

void SimControlNet::flush(std::uint64_t id, End& end) {
  if (end.sending || end.remote_id == 0 || end.queue.empty()) return;
  end.sending = true;
  const auto burst = std::make_shared<Messages>(std::move(end.queue));
  const std::uint64_t bytes = end.queued_bytes;
  end.queue.clear();
  end.queued_bytes = 0;
  ++end.bursts_sent;
  at_remote(
      end.remote, bytes,
      [me = port_, id, remote_id = end.remote_id, burst](SimControlNet& net) {
        net.on_messages(remote_id, me, id, std::move(*burst));
        // The sender's next burst may follow: what arrived cannot be overtaken any more.
        if (SimControlNet* const sender = find(net.world_, me)) sender->on_sent(id);
      },
      [&world = world_, me = port_, id] {
        if (SimControlNet* const net = find(world, me)) {
          net->lose(id, {Code::peer_lost, "control connection: no acknowledgement"});
        }
      });
}

void SimControlNet::on_messages(std::uint64_t id, const Port& from, std::uint64_t from_id,
                                Messages messages) {
  const auto found = ends_.find(id);
  if (found == ends_.end()) {  // closed here meanwhile: a reset
    tell_closed(from, from_id);
    return;
  }
  on_accepted(id, from_id);
  ++found->second.bursts_received;
  deliver(id, std::move(messages));
  finish_close(id, found->second);
}

void SimControlNet::deliver(std::uint64_t id, Messages messages) {
  for (std::vector<std::byte>& message : messages) {
    events_.push_back({ControlEvent::Kind::message, ConnId{id}, {}, std::move(message), {}});
  }
}

void SimControlNet::on_close(std::uint64_t id, std::uint64_t bursts_before, Messages last) {
  const auto found = ends_.find(id);
  if (found == ends_.end()) return;
  End& end = found->second;
  end.ending = true;
  end.ends_after = bursts_before;
  end.last = std::move(last);
  finish_close(id, end);
}

void SimControlNet::finish_close(std::uint64_t id, End& end) {
  if (!end.ending || end.bursts_received < end.ends_after) return;
  deliver(id, std::move(end.last));
  lose(id, {Code::peer_lost, "closed by peer"});
}

void SimControlNet::on_sent(std::uint64_t id) {
  const auto found = ends_.find(id);
  if (found == ends_.end()) return;
  found->second.sending = false;
  flush(id, found->second);
}

void SimControlNet::lose(std::uint64_t id, Status status) {
  if (ends_.erase(id) == 0) return;
  events_.push_back({ControlEvent::Kind::closed, ConnId{id}, status, {}, {}});
}

void SimControlNet::tell_closed(const Port& to, std::uint64_t remote_id) {
  at_remote(
      to, kSmallBytes,
      [remote_id](SimControlNet& net) {
        net.lose(remote_id, {Code::peer_lost, "closed by peer"});
      },
      [] {});
}

void SimControlNet::close(ConnId conn) {
  const auto found = ends_.find(conn.value);
  if (found == ends_.end()) return;
  const End end = std::move(found->second);
  ends_.erase(found);
  if (end.remote_id == 0) return;
  // As a socket: what was sent before the close still arrives before the end.
  const auto last = std::make_shared<Messages>(end.queue);
  at_remote(
      end.remote, kSmallBytes + end.queued_bytes,
      [remote_id = end.remote_id, bursts = end.bursts_sent, last](SimControlNet& net) {
        net.on_close(remote_id, bursts, std::move(*last));
      },
      [] {});
}

void SimControlNet::close_all() {
  while (!ends_.empty()) close(ConnId{ends_.begin()->first});
}

void SimControlNet::poll(std::vector<ControlEvent>& events) {
  if (!world_.alive(port_)) return;
  for (ControlEvent& event : events_) events.push_back(std::move(event));
  events_.clear();
}

}  // namespace kvl::sim
