// A blocking HTTP client for tests: raw enough to say what no client should.
#pragma once

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

namespace kvl::worker::test {

// One connection to 127.0.0.1. Every wait ends after a minute.
class HttpConnection {
 public:
  explicit HttpConnection(std::uint16_t port) : fd_(::socket(AF_INET, SOCK_STREAM, 0)) {
    const timeval limit{60, 0};
    ::setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    connected_ = ::connect(fd_, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0;
  }
  ~HttpConnection() { close(); }
  HttpConnection(const HttpConnection&) = delete;
  HttpConnection& operator=(const HttpConnection&) = delete;

  bool connected() const { return connected_; }
  void close() {
    if (fd_ >= 0) ::close(std::exchange(fd_, -1));
  }
  void send(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t sent = ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (sent <= 0) return;
      bytes.remove_prefix(static_cast<std::size_t>(sent));
    }
  }
  void send_request(std::string_view method, std::string_view path, std::string_view body) {
    send(std::string(method) + " " + std::string(path) + " HTTP/1.1\r\nHost: test\r\n" +
         "Content-Length: " + std::to_string(body.size()) + "\r\n\r\n" + std::string(body));
  }
  // Until `mark` is in what was received, or the end; what was received.
  const std::string& read_until(std::string_view mark) {
    while (received_.find(mark) == std::string::npos && more()) {
    }
    return received_;
  }
  // The other side closes.
  const std::string& read_to_end() {
    while (more()) {
    }
    return received_;
  }

  struct Answer {
    int status = 0;
    std::string head, body;
  };
  // Reads one answer, chunked or not.
  Answer read_answer() {
    Answer answer;
    const std::size_t split = read_until("\r\n\r\n").find("\r\n\r\n");
    if (split == std::string::npos) return answer;
    answer.head = received_.substr(0, split + 4);
    received_.erase(0, split + 4);
    if (answer.head.size() > 12) answer.status = std::atoi(answer.head.c_str() + 9);
    if (answer.status == 100) return answer;
    const std::size_t length = answer.head.find("Content-Length: ");
    if (length != std::string::npos) {
      const auto bytes = static_cast<std::size_t>(std::atol(answer.head.c_str() + length + 16));
      while (received_.size() < bytes && more()) {
      }
      answer.body = received_.substr(0, bytes);
      received_.erase(0, bytes);
      return answer;
    }
    for (;;) {
      const std::size_t line = read_until("\r\n").find("\r\n");
      if (line == std::string::npos) return answer;
      const std::size_t bytes = std::stoul(received_, nullptr, 16);
      while (received_.size() < line + 2 + bytes + 2 && more()) {
      }
      answer.body += received_.substr(line + 2, bytes);
      received_.erase(0, line + 2 + bytes + 2);
      if (bytes == 0) return answer;
    }
  }

 private:
  bool more() {
    char buffer[65536];
    const ssize_t got = ::recv(fd_, buffer, sizeof(buffer), 0);
    if (got <= 0) return false;
    received_.append(buffer, static_cast<std::size_t>(got));
    return true;
  }
  int fd_;
  bool connected_ = false;
  std::string received_;
};

inline HttpConnection::Answer call(std::uint16_t port, std::string_view method,
                                   std::string_view path, std::string_view body = "") {
  HttpConnection connection(port);
  connection.send_request(method, path, body);
  return connection.read_answer();
}

}  // namespace kvl::worker::test
