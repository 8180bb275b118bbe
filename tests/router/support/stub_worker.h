// A worker for tests: a small blocking HTTP server, written apart from router/http on purpose,
// whose answers are a script.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

namespace kvl::test {

// No test waits longer for anything.
constexpr std::chrono::seconds kPatience(20);

struct StubRequest {
  std::string method, path, head, body;
  int connection = 0;  // counted from 1
};

// The connection on which a request came, for its script. Calls after the stub's end fail quietly.
class StubPeer {
 public:
  explicit StubPeer(int fd) : fd_(fd) {}

  bool send(std::string_view bytes) const;  // blocks; false: the other side is gone
  void answer(int status, std::string_view body, std::string_view type = "application/json") const;
  void begin_events() const;  // head of a chunked event stream
  bool event(std::string_view data) const;
  void end_events() const;
  // The other side closes the connection (true) or kPatience passes.
  bool wait_closed() const;
  void close();  // after the script
  void reset();  // likewise, with RST
  bool wants_close() const { return close_; }

 private:
  int fd_;
  bool close_ = false;
};

class StubWorker {
 public:
  using Script = std::function<void(StubPeer&, const StubRequest&)>;

  // GET /health is answered 200 and not recorded; so is POST /abort_request, but recorded. All else
  // goes to the script.
  explicit StubWorker(Script script = answer_name("stub"));
  ~StubWorker();
  StubWorker(const StubWorker&) = delete;
  StubWorker& operator=(const StubWorker&) = delete;

  static Script answer_name(std::string name);  // 200 {"name":…}

  std::uint16_t port() const { return port_; }
  std::string url() const { return "http://127.0.0.1:" + std::to_string(port_); }
  void set_script(Script script);
  void stop();  // closes everything; connections are refused from now on

  std::vector<StubRequest> requests(std::string_view path = {});
  // True when that many requests to `path` ("" any) have come within kPatience.
  bool wait_requests(std::size_t count, std::string_view path = {});
  int connections();

 private:
  void accept_all();
  void serve(int fd, int number);
  bool read_request(int fd, std::string& buffer, StubRequest& request);

  int listen_fd_;
  std::uint16_t port_ = 0;
  std::mutex mutex_;
  std::condition_variable changed_;
  Script script_;
  std::vector<StubRequest> requests_;
  std::set<int> open_;
  std::vector<std::thread> threads_;
  int connections_ = 0;
  bool stopping_ = false;
  std::thread acceptor_;
};

// Opens once; scripts wait for it.
class Gate {
 public:
  void open();
  bool wait();  // false: kPatience has passed

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool open_ = false;
};

}  // namespace kvl::test
