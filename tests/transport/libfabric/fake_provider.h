// A fake EFA behind libfabric's table of entry points: datagrams that are reliable and in no order,
// seeded. Its hosts share one wire; what a device of Amazon's forbids is a violation here.
//
//   fake_info.cc         what fi_getinfo answers
//   fake_objects.{h,cc}  fabric, domain, memory, address vector, queues: opening, closing, options
//   fake_operations.cc   posts, doorbells, completions
//   fake_wire.cc         segments on their way, and what the target's device says of them
//
// Thread-safe: any number of Links, in any number of threads. Outlives its Links.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "transport/libfabric/fabric_api.h"

namespace kvl::test {

namespace fake {
struct Cq;
struct Domain;
struct Ep;
struct Mr;
struct Op;
}  // namespace fake

// A device, in one life of its host.
struct FakePlace {
  std::uint32_t host = 0, device = 0, life = 0;
  friend auto operator<=>(const FakePlace&, const FakePlace&) = default;
};

// Who carries packets; without one the provider does, some at each look at a completion queue.
class FakeWire {
 public:
  virtual ~FakeWire() = default;
  virtual FakePlace place(std::uint32_t host, std::uint32_t device) = 0;
  virtual bool usable(const FakePlace& place) = 0;
  // Exactly one of the two runs, once, or none: the packet was swallowed.
  virtual void carry(const FakePlace& from, const FakePlace& to, std::uint64_t bytes,
                     std::function<void()> arrived, std::function<void()> lost) = 0;
};

struct FakeOptions {
  std::uint64_t seed = 1;
  std::string provider = "efa";
  std::uint32_t devices = 1;  // of each host
  std::uint32_t version = FI_VERSION(2, 1);
  bool direct = true;                      // offers the fabric efa-direct
  std::uint64_t direct_mode = 0;           // … to who has this mode bit
  bool delivery_complete = false;          // the fabric efa offers it
  bool rma_read = true, rma_write = true;  // the device has them; else efa emulates, direct hides
  std::uint32_t rdma_since = 0;            // … only for who asks with this API or newer
  std::uint32_t cq_data_bytes = 4;         // 0: no immediates
  bool unsolicited = true;                 // an immediate needs no receive
  std::size_t tx_size = 64, rx_size = 64;
  std::size_t message_bytes_max = 8192, rma_bytes_max = 1 << 20;
  std::size_t registrations_max = SIZE_MAX, registration_bytes_max = SIZE_MAX;
  bool takes_dmabuf = true;
  bool wakes = true;  // FI_WAIT_FD
  // The wire.
  bool instant = false;  // no packets at all: for measurements
  std::uint64_t segment_bytes = 8192;
  std::uint32_t delay_max = 8;  // looks at a queue until a packet arrives
  double late = 0.05;           // … and many more, for one in so many
  double again = 0.02;          // a post is refused though there is room
  int receive_retries = 40;     // until status 10
};

// For measurements: no packets, no refusals, queues of a device's size.
inline FakeOptions measured() {
  FakeOptions options;
  options.instant = true;
  options.tx_size = 1024;
  options.rx_size = 256;
  options.again = 0;
  return options;
}

class FakeProvider {
 public:
  explicit FakeProvider(FakeOptions given = {}, FakeWire* wire = nullptr);
  ~FakeProvider();
  FakeProvider(const FakeProvider&) = delete;
  FakeProvider& operator=(const FakeProvider&) = delete;

  libfabric::FabricApi api(std::uint32_t host = 0);

  // May be changed before an object is opened; what the wire does, at any time.
  FakeOptions options;

  // How getinfo was asked.
  struct Asked {
    std::uint32_t version;
    std::uint64_t mode, caps;
    int mr_mode;
    std::string fabric;
    bool delivery_complete;
  };
  std::vector<Asked> asked;
  std::map<int, bool> set_options;  // of endpoints: by name

  // Failures on demand. The next RMA posts fail with EAGAIN: those whose number (from now on, 0 the
  // next) is listed. The next RMA operation completes with this status of the device.
  std::vector<std::uint64_t> again_at;
  int fail_status = 0;
  // Packets between two hosts, one way: never answered (status 13), refused by the network (15),
  // or never heard of again. A lost packet may have landed: then only its answer is lost.
  enum class Path : std::uint8_t { lost, answers_lost, refused, swallowed };
  void cut(std::uint32_t from, std::uint32_t to, Path path);
  void heal();
  void kill_device(std::uint32_t host, std::uint32_t device);
  void revive_device(std::uint32_t host, std::uint32_t device);

  std::uint64_t rma_posts = 0;  // taken
  std::uint64_t rma_tries = 0;  // … or not
  std::uint64_t message_posts = 0;
  std::uint64_t immediates = 0;  // arrived
  std::uint64_t dmabufs = 0;     // registered
  std::size_t run_longest = 0;   // operations behind one doorbell
  std::size_t waiting();         // posted with FI_MORE and without a doorbell yet
  // Arrives at every endpoint, from nobody.
  void inject(const std::vector<std::byte>& bytes);
  // An immediate from nobody.
  void inject_immediate(std::uint32_t value);
  // What was done that an EFA forbids; empty: nothing.
  std::vector<std::string> violations();

  // For the objects.
  using Lock = std::unique_lock<std::recursive_mutex>;
  Lock lock() { return Lock(mutex_); }
  void violate(const std::string& what) { violations_.push_back(what); }
  bool chance(double p);
  std::uint64_t below(std::uint64_t bound) { return random_() % bound; }
  FakePlace place(std::uint32_t host, std::uint32_t device);
  bool usable(const FakePlace& place);
  bool busy() const { return !packets_.empty(); }
  void tick();
  void launch(const std::shared_ptr<fake::Op>& op);
  void launch_now(fake::Op& op);
  void finish(const std::shared_ptr<fake::Op>& op);
  int get_info(std::uint32_t host, std::uint32_t version, const fi_info* hints, fi_info** out);
  bool device_rdma(std::uint32_t version) const { return version >= options.rdma_since; }

  std::vector<fake::Ep*> endpoints;
  std::uint64_t next_key = 1;

 private:
  struct Packet {
    std::uint64_t due = 0, number = 0;
    std::function<void()> action;
    bool operator<(const Packet& other) const {  // for a heap with the earliest on top
      return due != other.due ? due > other.due : number > other.number;
    }
  };
  void carry(const FakePlace& from, const FakePlace& to, std::uint64_t bytes,
             std::function<void()> arrived, std::function<void()> lost);
  void after(std::uint64_t ticks, std::function<void()> action);
  void send_segment(const std::shared_ptr<fake::Op>& op, std::uint64_t offset, std::uint64_t bytes);
  void send_message(const std::shared_ptr<fake::Op>& op);
  void answer(const std::shared_ptr<fake::Op>& op, int status);
  void read_back(const std::shared_ptr<fake::Op>& op, std::uint64_t offset, std::uint64_t bytes);
  void segment_done(const std::shared_ptr<fake::Op>& op, int status);
  void deliver_immediate(fake::Ep& target, std::uint32_t value);
  fake::Ep* find_endpoint(const fake::Op& op);
  // 0 or the device's status. `there`: where the bytes are.
  int admit(const fake::Op& op, fake::Ep*& target);
  int admit_memory(const fake::Op& op, const fake::Ep& target, std::byte*& there);

  std::recursive_mutex mutex_;
  std::mt19937_64 random_;
  FakeWire* const wire_;
  std::vector<std::size_t> slots_;  // of the table of entry points
  std::vector<Packet> packets_;
  std::uint64_t tick_ = 0, packet_numbers_ = 0;
  std::map<std::pair<std::uint32_t, std::uint32_t>, Path> cuts_;
  std::set<std::pair<std::uint32_t, std::uint32_t>> dead_devices_;
  std::vector<std::string> violations_;
};

}  // namespace kvl::test
