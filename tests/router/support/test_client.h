// A blocking HTTP client for tests: sends exactly the bytes it is given, reads with a deadline.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace kvl::test {

struct TestAnswer {
  int status = 0;  // 0: no complete head came
  std::string head, body;
  bool complete = false;  // the body ended as its framing said
  bool has(std::string_view text) const { return body.find(text) != std::string::npos; }
  bool head_has(std::string_view text) const { return head.find(text) != std::string::npos; }
};

class TestClient {
 public:
  explicit TestClient(std::uint16_t port);
  ~TestClient();
  TestClient(const TestClient&) = delete;
  TestClient& operator=(const TestClient&) = delete;

  bool send(std::string_view bytes);
  bool send_post(std::string_view path, std::string_view body, std::string_view headers = {});
  TestAnswer post(std::string_view path, std::string_view body, std::string_view headers = {});
  TestAnswer call(std::string_view method, std::string_view path);
  TestAnswer read_answer(bool head_only = false);
  // Reads until the text has been seen in the raw bytes; false at the end or after the deadline.
  bool read_until(std::string_view text);
  std::string_view raw() const { return buffer_; }
  // The other side has closed the connection, within the deadline.
  bool closed();
  void close();

 private:
  bool more();
  int fd_;
  std::string buffer_;
};

}  // namespace kvl::test
