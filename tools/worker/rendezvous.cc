// The bootstrap client behind a thread of its own.
#include "worker/rendezvous.h"

#include <algorithm>

namespace kvl::worker {
namespace {

constexpr std::chrono::milliseconds kAskAgain{100};
constexpr std::size_t kClientsMax = 256;  // services named by sessions

std::string name_of(const std::string& host, std::int64_t port) {
  return host + ":" + std::to_string(port);
}

// The ranks of one instance, checked: every flat rank exactly once, all of one shape.
Result<Instance> instance_of(const std::vector<RankRecord>& records) {
  Instance instance;
  if (records.empty()) return Status(Code::not_found, "no rank is registered");
  instance.sizes = {records[0].tp_size, records[0].pp_size};
  const std::size_t ranks = std::size_t{instance.sizes.tp_size} * instance.sizes.pp_size;
  // Also before memory is taken: a record may claim sixteen million ranks.
  if (records.size() < ranks) return Status(Code::unavailable, "not all ranks are registered");
  instance.addresses.resize(ranks);
  for (const RankRecord& record : records) {
    const ParallelSlice slice{record.tp_size, record.tp_rank, record.pp_size, record.pp_rank};
    if (!validate(slice).ok() || record.tp_size != instance.sizes.tp_size ||
        record.pp_size != instance.sizes.pp_size) {
      return Status(Code::corrupt, "registered ranks do not fit together");
    }
    instance.addresses[flat_rank(slice)] = record.address;
  }
  for (const std::string& address : instance.addresses) {
    if (address.empty()) return Status(Code::unavailable, "not all ranks are registered");
  }
  return instance;
}

}  // namespace

Rendezvous::Rendezvous(RendezvousOptions options) : options_(std::move(options)) {
  thread_ = std::thread([this] { serve(); });
}

Rendezvous::~Rendezvous() {
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
  }
  asked_.notify_all();
  thread_.join();
}

Result<BootstrapClient*> Rendezvous::client_of(const std::string& url) {
  const std::lock_guard lock(mutex_);
  if (!clients_.contains(url) && clients_.size() >= kClientsMax) {
    return Status(Code::exhausted, "sessions name too many bootstrap services");
  }
  std::unique_ptr<BootstrapClient>& client = clients_[url];
  if (client == nullptr) {
    BootstrapClientOptions options;
    options.url = url;
    options.token = options_.token;
    options.tls = options_.tls;
    Result<std::unique_ptr<BootstrapClient>> opened = BootstrapClient::open(std::move(options));
    if (!opened) {
      clients_.erase(url);  // what is no URL takes no place
      return opened.status();
    }
    client = *std::move(opened);
  }
  return client.get();
}

Status Rendezvous::add_rank(RankRecord record, const std::string& fallback_url) {
  const Result<BootstrapClient*> client =
      client_of(options_.url.empty() ? fallback_url : options_.url);
  if (!client) return client.status();
  record.cluster = options_.cluster;
  return (*client)->register_rank(record).status();
}

void Rendezvous::find(const std::string& host, std::int64_t port, Found found) {
  const std::string name = name_of(host, port);
  std::unique_lock lock(mutex_);
  if (const auto known = known_.find(name); known != known_.end() && !known->second.doubtful) {
    const Instance instance = known->second.instance;
    lock.unlock();
    return found(instance);
  }
  const Time now = std::chrono::steady_clock::now();
  const char* const scheme = options_.tls.ca.empty() ? "http://" : "https://";
  queries_.push_back({name, options_.url.empty() ? scheme + name : options_.url, std::move(found),
                      now, now + std::chrono::milliseconds(options_.wait_ms)});
  asked_.notify_one();
}

void Rendezvous::trust(const std::string& host, std::int64_t port, const std::string& address) {
  const std::lock_guard lock(mutex_);
  const auto known = known_.find(name_of(host, port));
  if (known != known_.end() && known->second.instance.addresses[0] == address) {
    known->second.doubtful = false;
  }
}

void Rendezvous::doubt(const std::string& host, std::int64_t port) {
  const std::lock_guard lock(mutex_);
  if (const auto known = known_.find(name_of(host, port)); known != known_.end()) {
    known->second.doubtful = true;
  }
}

void Rendezvous::doubt(const std::string& address) {
  const std::lock_guard lock(mutex_);
  for (auto& [name, known] : known_) {
    const std::vector<std::string>& addresses = known.instance.addresses;
    if (std::find(addresses.begin(), addresses.end(), address) != addresses.end()) {
      known.doubtful = true;
    }
  }
}

std::optional<Rendezvous::Query> Rendezvous::next(std::unique_lock<std::mutex>& lock) {
  for (;;) {
    if (closing_) return std::nullopt;
    const auto first =
        std::min_element(queries_.begin(), queries_.end(),
                         [](const Query& a, const Query& b) { return a.ask_at < b.ask_at; });
    if (first == queries_.end()) {
      asked_.wait(lock);
    } else if (first->ask_at > std::chrono::steady_clock::now()) {
      asked_.wait_until(lock, Time(first->ask_at));
    } else {
      Query query = std::move(*first);
      queries_.erase(first);
      return query;
    }
  }
}

// One attempt at a time, so that an instance which never comes holds nobody else up.
void Rendezvous::serve() {
  std::unique_lock lock(mutex_);
  while (std::optional<Query> query = next(lock)) {
    // Another query for the same instance may have been answered meanwhile.
    std::optional<Instance> known;
    bool trusted = false;
    if (const auto found = known_.find(query->instance); found != known_.end()) {
      known = found->second.instance;
      trusted = !found->second.doubtful;
    }
    lock.unlock();
    Result<Instance> answer = trusted ? Result<Instance>(*known) : ask(*query);
    const bool news = !trusted && answer.ok();
    // Away, or new and not told yet: whoever is at the old address answers or is lost again.
    if (!answer && known) answer = *std::move(known);
    const bool again = !answer &&
                       (answer.code() == Code::not_found || answer.code() == Code::unavailable ||
                        answer.code() == Code::exhausted) &&
                       std::chrono::steady_clock::now() < query->give_up_at;
    if (!again) query->found(answer);
    lock.lock();
    if (news) known_[query->instance] = {*answer};
    if (again) {
      query->ask_at = std::chrono::steady_clock::now() + kAskAgain;
      queries_.push_back(*std::move(query));
    }
  }
}

Result<Instance> Rendezvous::ask(const Query& query) {
  const Result<BootstrapClient*> client = client_of(query.url);
  if (!client) return client.status();
  const Result<std::vector<RankRecord>> records =
      (*client)->ranks(options_.cluster, query.instance);
  if (!records) return records.status();
  return instance_of(*records);
}

std::uint64_t Rendezvous::failed_renewals() {
  const std::lock_guard lock(mutex_);
  std::uint64_t sum = 0;
  for (const auto& [url, client] : clients_) sum += client->failed_renewals();
  return sum;
}

}  // namespace kvl::worker
