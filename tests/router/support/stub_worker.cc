// Blocking sockets, a thread per connection.
#include "tests/router/support/stub_worker.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <utility>

namespace kvl::test {

bool StubPeer::send(std::string_view bytes) const {
  while (!bytes.empty()) {
    const ssize_t sent = ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent <= 0) return false;
    bytes.remove_prefix(static_cast<std::size_t>(sent));
  }
  return true;
}

void StubPeer::answer(int status, std::string_view body, std::string_view type) const {
  std::string text = "HTTP/1.1 " + std::to_string(status) + " X\r\nContent-Type: ";
  text.append(type).append("\r\nContent-Length: ").append(std::to_string(body.size()));
  send(text.append("\r\n\r\n").append(body));
}

void StubPeer::begin_events() const {
  send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n");
}

bool StubPeer::event(std::string_view data) const {
  const std::string text = "data: " + std::string(data) + "\n\n";
  char size[32];
  std::snprintf(size, sizeof(size), "%zx\r\n", text.size());
  return send(size + text + "\r\n");
}

void StubPeer::end_events() const { send("0\r\n\r\n"); }

bool StubPeer::wait_closed() const {
  pollfd poll{.fd = fd_, .events = POLLRDHUP, .revents = 0};
  const auto patience = std::chrono::duration_cast<std::chrono::milliseconds>(kPatience);
  return ::poll(&poll, 1, static_cast<int>(patience.count())) > 0;
}

void StubPeer::close() { close_ = true; }

void StubPeer::reset() {
  const linger hard{.l_onoff = 1, .l_linger = 0};
  ::setsockopt(fd_, SOL_SOCKET, SO_LINGER, &hard, sizeof(hard));
  close_ = true;
}

StubWorker::Script StubWorker::answer_name(std::string name) {
  return [name = std::move(name)](StubPeer& peer, const StubRequest&) {
    peer.answer(200, "{\"name\":\"" + name + "\"}");
  };
}

StubWorker::StubWorker(Script script)
    : listen_fd_(::socket(AF_INET, SOCK_STREAM, 0)), script_(std::move(script)) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  auto* const generic = reinterpret_cast<sockaddr*>(&address);
  if (::bind(listen_fd_, generic, size) != 0 || ::listen(listen_fd_, 128) != 0 ||
      ::getsockname(listen_fd_, generic, &size) != 0) {
    std::abort();
  }
  port_ = ntohs(address.sin_port);
  acceptor_ = std::thread([this] { accept_all(); });
}

StubWorker::~StubWorker() { stop(); }

void StubWorker::stop() {
  {
    const std::lock_guard lock(mutex_);
    if (stopping_) return;
    stopping_ = true;
    for (const int fd : open_) ::shutdown(fd, SHUT_RDWR);
  }
  ::shutdown(listen_fd_, SHUT_RDWR);
  acceptor_.join();
  ::close(listen_fd_);
  for (std::thread& thread : threads_) thread.join();
}

void StubWorker::set_script(Script script) {
  const std::lock_guard lock(mutex_);
  script_ = std::move(script);
}

void StubWorker::accept_all() {
  while (true) {
    const int fd = ::accept(listen_fd_, nullptr, nullptr);
    if (fd < 0) return;
    const int one = 1;
    ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    const std::lock_guard lock(mutex_);
    if (stopping_) {
      ::close(fd);
      return;
    }
    open_.insert(fd);
    const int number = ++connections_;
    threads_.emplace_back([this, fd, number] { serve(fd, number); });
  }
}

void StubWorker::serve(int fd, int number) {
  std::string buffer;
  StubRequest request;
  request.connection = number;
  while (read_request(fd, buffer, request)) {
    StubPeer peer(fd);
    if (request.method == "GET" && request.path == "/health") {
      peer.answer(200, "OK", "text/plain");
      continue;
    }
    Script script;
    {
      const std::lock_guard lock(mutex_);
      requests_.push_back(request);
      script = script_;
    }
    changed_.notify_all();
    if (request.path == "/abort_request") {
      peer.answer(200, "{}");
    } else {
      script(peer, request);
    }
    if (peer.wants_close()) break;
  }
  const std::lock_guard lock(mutex_);
  open_.erase(fd);
  ::close(fd);
}

bool StubWorker::read_request(int fd, std::string& buffer, StubRequest& request) {
  const auto more = [&] {
    char bytes[65536];
    const ssize_t got = ::recv(fd, bytes, sizeof(bytes), 0);
    if (got > 0) buffer.append(bytes, static_cast<std::size_t>(got));
    return got > 0;
  };
  std::size_t end = 0;
  while ((end = buffer.find("\r\n\r\n")) == std::string::npos) {
    if (!more()) return false;
  }
  end += 4;
  request.head = buffer.substr(0, end);
  const std::size_t blank = request.head.find(' ');
  request.method = request.head.substr(0, blank);
  request.path = request.head.substr(blank + 1, request.head.find(' ', blank + 1) - blank - 1);
  const std::size_t at = request.head.find("Content-Length: ");
  const std::size_t length =
      at == std::string::npos ? 0 : std::strtoull(request.head.c_str() + at + 16, nullptr, 10);
  while (buffer.size() < end + length) {
    if (!more()) return false;
  }
  request.body = buffer.substr(end, length);
  buffer.erase(0, end + length);
  return true;
}

std::vector<StubRequest> StubWorker::requests(std::string_view path) {
  const std::lock_guard lock(mutex_);
  std::vector<StubRequest> found;
  for (const StubRequest& request : requests_) {
    if (path.empty() || request.path == path) found.push_back(request);
  }
  return found;
}

bool StubWorker::wait_requests(std::size_t count, std::string_view path) {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, kPatience, [&] {
    std::size_t found = 0;
    for (const StubRequest& request : requests_) {
      if (path.empty() || request.path == path) ++found;
    }
    return found >= count;
  });
}

int StubWorker::connections() {
  const std::lock_guard lock(mutex_);
  return connections_;
}

void Gate::open() {
  const std::lock_guard lock(mutex_);
  open_ = true;
  changed_.notify_all();
}

bool Gate::wait() {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, kPatience, [this] { return open_; });
}

}  // namespace kvl::test
