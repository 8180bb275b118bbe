// The event queue and the fate of packets.
#include "transport/sim/sim_world.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>

#include "transport/sim/sim_control_net.h"
#include "transport/sim/sim_link.h"

namespace kvl::sim {

SimWorld::SimWorld(const SimOptions& options) : options_(options), random_(options.seed) {}

SimWorld::~SimWorld() {
  for (const auto& [pid, fd] : watched_) ::close(fd);
}

bool SimWorld::step() {
  if (queue_.empty()) return false;
  std::pop_heap(queue_.begin(), queue_.end());
  Scheduled next = std::move(queue_.back());
  queue_.pop_back();
  clock_.now_ns_.store(next.at_ns, std::memory_order_relaxed);
  next.action();
  return true;
}

void SimWorld::run_until(std::int64_t at_ns) {
  while (next_event_ns() <= at_ns) step();
  if (now_ns() < at_ns) clock_.now_ns_.store(at_ns, std::memory_order_relaxed);
}

std::int64_t SimWorld::next_event_ns() const {
  return queue_.empty() ? INT64_MAX : queue_.front().at_ns;
}

void SimWorld::after(std::int64_t delay_ns, Action action) {
  queue_.push_back(
      {now_ns() + std::max<std::int64_t>(delay_ns, 0), sequence_++, std::move(action)});
  std::push_heap(queue_.begin(), queue_.end());
}

void SimWorld::partition(NodeId a, NodeId b) {
  partition_one_way(a, b);
  partition_one_way(b, a);
}

void SimWorld::heal(NodeId a, NodeId b) {
  cut_.erase({a, b});
  cut_.erase({b, a});
}

void SimWorld::break_lanes(NodeId a, NodeId b) {
  for (const auto& [id, link] : links_) {
    if (link->port().node == a) link->on_lanes_broken(b);
  }
  stir(a);
}

void SimWorld::kill_device(NodeId node, std::uint32_t device) {
  dead_devices_.insert({node, device});
  stir(node);
  for (const auto& [id, link] : links_) {
    if (link->port().node == node && link->port().device == device) link->on_device_dead();
  }
}

void SimWorld::crash(NodeId node, Crash kind) {
  const Port here = port(node, Port::kControl);
  record(kind == Crash::process ? "crash" : "machine down", here, here, here.life);
  SimControlNet* const control = net(node);
  if (control != nullptr && kind == Crash::process) control->close_all();
  std::erase_if(watched_, [died = pid(node)](const auto& watch) {
    if (watch.first != died) return false;
    const std::uint64_t one = 1;
    [[maybe_unused]] const ssize_t n = ::write(watch.second, &one, sizeof(one));
    ::close(watch.second);
    return true;
  });
  nodes_[node].up = false;
}

std::int32_t SimWorld::pid(NodeId node) const {
  const auto found = nodes_.find(node);
  const std::uint32_t life = found == nodes_.end() ? 1 : found->second.life;
  return static_cast<std::int32_t>(node * 1000 + life);
}

int SimWorld::open_process(std::int32_t pid) {
  const auto node = static_cast<NodeId>(pid) / 1000;
  const auto found = nodes_.find(node);
  const bool lives = found == nodes_.end() || (found->second.up && this->pid(node) == pid);
  const int fd = ::eventfd(lives ? 0 : 1, EFD_NONBLOCK | EFD_CLOEXEC);
  if (fd >= 0 && lives) watched_.emplace_back(pid, ::dup(fd));
  return fd;
}

void SimWorld::restart(NodeId node) {
  Node& state = nodes_[node];
  state.up = true;
  ++state.life;
}

double SimWorld::uniform() { return static_cast<double>(random_() >> 11) * 0x1p-53; }

std::uint64_t SimWorld::below(std::uint64_t bound) {
  return static_cast<std::uint64_t>(uniform() * static_cast<double>(bound));
}

Port SimWorld::port(NodeId node, std::uint32_t device) { return {node, device, nodes_[node].life}; }

bool SimWorld::alive(const Port& port) const {
  const auto found = nodes_.find(port.node);
  return found != nodes_.end() && found->second.up && found->second.life == port.life;
}

bool SimWorld::passes(const Port& from, const Port& to) const {
  return alive(to) && outlives(from) && !cut_.contains({from.node, to.node}) &&
         !dead_devices_.contains({from.node, from.device}) &&
         !dead_devices_.contains({to.node, to.device});
}

void SimWorld::transmit(const Port& from, const Port& to, std::uint64_t bytes, Action arrived,
                        Action lost, bool repeats) {
  attempt(from, to, bytes, std::move(arrived), std::move(lost), 1, repeats);
}

void SimWorld::attempt(const Port& from, const Port& to, std::uint64_t bytes, Action arrived,
                       Action lost, int tries, bool repeats) {
  if (!alive(from)) return;
  // The port sends one packet after the other; then the path delays each on its own.
  std::int64_t& busy_until = busy_until_[{from.node, from.device}];
  busy_until = std::max(busy_until, now_ns());
  if (options_.bytes_per_second != 0) {
    busy_until += static_cast<std::int64_t>(static_cast<double>(bytes) * 1e9 /
                                            static_cast<double>(options_.bytes_per_second));
  }
  std::int64_t leaves = busy_until;
  const auto clog = clogged_until_.find({from.node, to.node});
  if (clog != clogged_until_.end()) leaves = std::max(leaves, clog->second);
  const auto tail = static_cast<double>(options_.delay_mean_ns - options_.delay_min_ns);
  std::int64_t delay = options_.delay_min_ns;
  delay += static_cast<std::int64_t>(std::min(-std::log(1.0 - uniform()), 20.0) * tail);
  if (uniform() < options_.reorder) {
    delay += static_cast<std::int64_t>(below(static_cast<std::uint64_t>(options_.reorder_ns)));
  }
  const bool dropped = uniform() < options_.drop;
  after(leaves - now_ns() + delay,
        [this, from, to, bytes, dropped, tries, repeats, arrived = std::move(arrived),
         lost = std::move(lost)]() mutable {
          if (!dropped && passes(from, to)) {
            record("arrive", from, to, bytes);
            if (repeats && options_.duplicate > 0 && uniform() < options_.duplicate) {
              after(options_.retransmit_ns, [this, from, to, arrived]() mutable {
                if (!passes(from, to)) return;
                record("again", from, to, 0);
                arrived();
                stir(to.node);
              });
            }
            arrived();
            stir(to.node);
            return;
          }
          record("drop", from, to, static_cast<std::uint64_t>(tries));
          if (!alive(from)) return;
          if (tries >= options_.tries_max) {
            lost();
            stir(from.node);
            return;
          }
          after(options_.retransmit_ns << (tries - 1),
                [this, from, to, bytes, tries, repeats, arrived = std::move(arrived),
                 lost = std::move(lost)]() mutable {
                  attempt(from, to, bytes, std::move(arrived), std::move(lost), tries + 1, repeats);
                });
        });
}

void SimWorld::record(std::string_view what, const Port& from, const Port& to,
                      std::uint64_t value) {
  for (const char c : what) fold(static_cast<std::uint64_t>(c));
  fold(static_cast<std::uint64_t>(now_ns()));
  fold(std::uint64_t{from.node} << 32 | from.device);
  fold(std::uint64_t{to.node} << 32 | to.device);
  fold(value);
  if (!options_.trace || !options_.trace_packets) return;
  const auto name = [](const Port& p) {
    return std::to_string(p.node) +
           (p.device == Port::kControl ? std::string(".control") : "." + std::to_string(p.device));
  };
  trace_line(name(from) + " -> " + name(to) + "  " + std::string(what) + " " +
             std::to_string(value));
}

void SimWorld::trace_line(const std::string& text) {
  std::array<char, 32> time{};
  std::snprintf(time.data(), time.size(), "%12.3f us  ", static_cast<double>(now_ns()) / 1e3);
  trace_.push_back(time.data() + text);
}

std::uint64_t SimWorld::add_link(SimLink* link) {
  links_[++links_added_] = link;
  return links_added_;
}

SimLink* SimWorld::link(std::uint64_t id) const {
  const auto found = links_.find(id);
  return found == links_.end() ? nullptr : found->second;
}

void SimWorld::remove_net(NodeId node, SimControlNet* net) {
  const auto found = nets_.find(node);
  if (found != nets_.end() && found->second == net) nets_.erase(found);
}

SimControlNet* SimWorld::net(NodeId node) const {
  const auto found = nets_.find(node);
  return found == nets_.end() ? nullptr : found->second;
}

}  // namespace kvl::sim
