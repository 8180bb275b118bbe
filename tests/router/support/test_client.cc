// Blocking sockets with a receive timeout.
#include "tests/router/support/test_client.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <utility>

#include "tests/router/support/stub_worker.h"

namespace kvl::test {

TestClient::TestClient(std::uint16_t port) : fd_(::socket(AF_INET, SOCK_STREAM, 0)) {
  const timeval patience{.tv_sec = kPatience.count(), .tv_usec = 0};
  ::setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
  ::setsockopt(fd_, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(port);
  if (::connect(fd_, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) close();
}

TestClient::~TestClient() { close(); }

void TestClient::close() {
  if (fd_ >= 0) ::close(fd_);
  fd_ = -1;
}

bool TestClient::send(std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t sent = ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent <= 0) return false;
    bytes.remove_prefix(static_cast<std::size_t>(sent));
  }
  return true;
}

bool TestClient::send_post(std::string_view path, std::string_view body, std::string_view headers) {
  std::string text = "POST " + std::string(path) + " HTTP/1.1\r\nHost: test\r\n";
  text.append(headers).append("Content-Length: ").append(std::to_string(body.size()));
  return send(text.append("\r\n\r\n").append(body));
}

TestAnswer TestClient::post(std::string_view path, std::string_view body,
                            std::string_view headers) {
  if (!send_post(path, body, headers)) return {};
  return read_answer();
}

TestAnswer TestClient::call(std::string_view method, std::string_view path) {
  std::string text(method);
  if (!send(text.append(" ").append(path).append(" HTTP/1.1\r\nHost: test\r\n\r\n"))) return {};
  return read_answer(method == "HEAD");
}

bool TestClient::more() {
  char bytes[65536];
  const ssize_t got = ::recv(fd_, bytes, sizeof(bytes), 0);
  if (got > 0) buffer_.append(bytes, static_cast<std::size_t>(got));
  return got > 0;
}

bool TestClient::read_until(std::string_view text) {
  while (buffer_.find(text) == std::string::npos) {
    if (!more()) return false;
  }
  return true;
}

bool TestClient::closed() {
  while (more()) {
  }
  char byte = 0;
  return ::recv(fd_, &byte, 1, 0) == 0 || errno == ECONNRESET;
}

TestAnswer TestClient::read_answer(bool head_only) {
  TestAnswer answer;
  if (!read_until("\r\n\r\n")) return answer;
  const std::size_t end = buffer_.find("\r\n\r\n") + 4;
  answer.head = buffer_.substr(0, end);
  buffer_.erase(0, end);
  answer.status = std::atoi(answer.head.c_str() + 9);
  if (head_only || answer.status < 200) return answer;
  if (answer.head_has("Transfer-Encoding: chunked")) {
    while (true) {
      if (!read_until("\r\n")) return answer;
      const std::size_t size = std::strtoull(buffer_.c_str(), nullptr, 16);
      const std::size_t line = buffer_.find("\r\n") + 2;
      while (buffer_.size() < line + size + 2) {
        if (!more()) return answer;
      }
      answer.body += buffer_.substr(line, size);
      buffer_.erase(0, line + size + 2);
      if (size == 0) break;
    }
  } else {
    const std::size_t at = answer.head.find("Content-Length: ");
    if (at == std::string::npos) {
      while (more()) {
      }
      answer.body = std::exchange(buffer_, {});
    } else {
      const std::size_t length = std::strtoull(answer.head.c_str() + at + 16, nullptr, 10);
      while (buffer_.size() < length) {
        if (!more()) {
          answer.body = buffer_;
          return answer;
        }
      }
      answer.body = buffer_.substr(0, length);
      buffer_.erase(0, length);
    }
  }
  answer.complete = true;
  return answer;
}

}  // namespace kvl::test
