// The worker's HTTP front over real sockets: SGLang's endpoints, streams, and what is not HTTP.
#include <algorithm>
#include <boost/json/parse.hpp>
#include <boost/json/value.hpp>
#include <cstdlib>

#include "tests/tools/worker/http_client.h"
#include "tests/tools/worker/worker_rig.h"

namespace kvl::worker::test {
namespace {

class Http : public ::testing::Test {
 protected:
  void SetUp() override {
    WorkerOptions options;
    options.tp = 2;
    options.pages = 32;
    options.page_tokens = 16;
    worker_ = open_worker(options);
    ASSERT_NE(worker_, nullptr);
  }
  HttpConnection::Answer call(std::string_view method, std::string_view path,
                              std::string_view body = "") {
    return test::call(worker_->port(), method, path, body);
  }
  double metric(const std::string& name) {
    const std::string text = "\n" + call("GET", "/metrics").body;
    double sum = -1;  // over all labels
    for (std::size_t at = 0; (at = text.find("\n" + name, at)) != std::string::npos; ++at) {
      const std::size_t end = at + 1 + name.size();
      if (text[end] != ' ' && text[end] != '{') continue;
      const std::size_t line_end = text.find('\n', end);
      sum = std::max(sum, 0.0) + std::atof(text.c_str() + text.rfind(' ', line_end));
    }
    return sum;
  }
  std::unique_ptr<WorkerServer> worker_;
};

const char* const kGreedy =
    R"({"text": "Hello", "sampling_params": {"max_new_tokens": 6, "temperature": 0}})";

TEST_F(Http, GenerateAndItsStreamSayTheSame) {
  const HttpConnection::Answer whole = call("POST", "/generate", kGreedy);
  ASSERT_EQ(whole.status, 200) << whole.body;
  const boost::json::value json = boost::json::parse(whole.body);
  const boost::json::value& ids = json.at("output_ids");
  EXPECT_EQ(ids.as_array().size(), 6U);
  EXPECT_EQ(json.at("meta_info").at("finish_reason").at("type").as_string(), "length");

  std::string streamed = kGreedy;
  streamed.insert(streamed.size() - 1, R"(, "stream": true)");
  const HttpConnection::Answer stream = call("POST", "/generate", streamed);
  EXPECT_NE(stream.head.find("text/event-stream"), std::string::npos);
  const std::size_t last = stream.body.rfind("data: {");
  ASSERT_NE(last, std::string::npos);
  const std::string event = stream.body.substr(last + 6, stream.body.find('\n', last) - last - 6);
  EXPECT_EQ(boost::json::parse(event).at("output_ids"), ids);
  EXPECT_NE(stream.body.find("data: [DONE]\n\n"), std::string::npos);
}

TEST_F(Http, EveryEndpointAnswers) {
  const std::pair<const char*, const char*> gets[] = {
      {"/health", ""},
      {"/health_generate", ""},
      {"/get_model_info", R"("model_path":"demo")"},
      {"/get_server_info", R"("tp_size":2)"},
      {"/server_info", R"("pages_free")"},
      {"/v1/models", R"("id":"demo")"},
      {"/flush_cache", "flushed"},
      {"/metrics", "kvlane_worker_pages_free"},
  };
  for (const auto& [path, part] : gets) {
    const HttpConnection::Answer answer = call("GET", path);
    EXPECT_EQ(answer.status, 200) << path;
    EXPECT_NE(answer.body.find(part), std::string::npos) << path << "\n" << answer.body;
  }
  const HttpConnection::Answer chat = call(
      "POST", "/v1/chat/completions",
      R"({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, "logprobs": true})");
  EXPECT_EQ(chat.status, 200);
  EXPECT_NE(chat.body.find(R"("object":"chat.completion")"), std::string::npos) << chat.body;
  const HttpConnection::Answer list =
      call("POST", "/v1/completions", R"({"prompt": ["a", "b"], "max_tokens": 2})");
  EXPECT_NE(list.body.find(R"("index":1)"), std::string::npos) << list.body;
  EXPECT_EQ(call("POST", "/abort_request", R"({"rid": "nobody"})").status, 200);
}

TEST_F(Http, ErrorsAreTypedJson) {
  const struct {
    const char *method, *path, *body, *type;
    int status;
  } cases[] = {
      {"POST", "/generate", "{", "invalid_argument", 400},
      {"POST", "/generate", R"({"text": "x", "model": "gpt"})", "not_found", 404},
      {"GET", "/generate", "", "invalid_argument", 405},
      {"GET", "/nothing", "", "not_found", 404},
      {"POST", "/abort_request", "{}", "invalid_argument", 400},
      {"POST", "/generate", R"({"input_ids": [300]})", "invalid_argument", 400},
      {"POST", "/generate", R"({"text": "x", "sampling_params": {"max_new_tokens": 5000}})",
       "invalid_argument", 400},
      {"POST", "/generate", R"({"text": "x", "bootstrap_host": "h", "bootstrap_room": 1})",
       "unsupported", 400},
  };
  for (const auto& c : cases) {
    const HttpConnection::Answer answer = call(c.method, c.path, c.body);
    EXPECT_EQ(answer.status, c.status) << c.path << c.body;
    EXPECT_NE(answer.body.find(std::string(R"("type":")") + c.type), std::string::npos)
        << answer.body;
  }
}

TEST_F(Http, KeepAliveAndPipelining) {
  HttpConnection connection(worker_->port());
  for (int i = 0; i < 3; ++i) {
    connection.send_request("POST", "/generate", kGreedy);
    EXPECT_EQ(connection.read_answer().status, 200);
  }
  connection.send_request("POST", "/generate", kGreedy);
  connection.send_request("GET", "/health", "");
  EXPECT_EQ(connection.read_answer().body.find("{\"text\""), 0U);
  EXPECT_EQ(connection.read_answer().status, 200);
}

TEST_F(Http, AClientThatAsksFirstIsToldToGoOn) {
  HttpConnection connection(worker_->port());
  connection.send("POST /generate HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: " +
                  std::to_string(std::string_view(kGreedy).size()) + "\r\n\r\n");
  EXPECT_EQ(connection.read_answer().status, 100);
  connection.send(kGreedy);
  EXPECT_EQ(connection.read_answer().status, 200);
}

TEST_F(Http, GarbageIsRefusedAndCounted) {
  const std::string lines[] = {"\x16\x03\x01 hello\r\n\r\n", "GET\r\n\r\n",
                               "POST / HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
                               "POST / HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n",
                               "GET / HTTP/1.1\r\nX: " + std::string(100'000, 'x') + "\r\n\r\n"};
  for (const std::string& line : lines) {
    HttpConnection connection(worker_->port());
    connection.send(line);
    const int status = connection.read_answer().status;
    EXPECT_TRUE(status == 400 || status == 413 || status == 431) << status;
  }
  EXPECT_EQ(metric("kvlane_worker_http_refused_total"), 5);
  EXPECT_EQ(call("GET", "/health").status, 200);
}

TEST_F(Http, AClientThatLeavesFreesItsPages) {
  HttpConnection connection(worker_->port());
  connection.send_request("POST", "/generate", R"({"text": "x", "stream": true, "sampling_params":
      {"max_new_tokens": 400, "ignore_eos": true}})");
  EXPECT_NE(connection.read_until("data: {").find("200 OK"), std::string::npos);
  connection.close();
  const auto limit = std::chrono::steady_clock::now() + std::chrono::seconds(30);
  while (metric("kvlane_worker_requests_running") != 0 &&
         std::chrono::steady_clock::now() < limit) {
  }
  EXPECT_EQ(metric("kvlane_worker_requests_running"), 0);
  EXPECT_EQ(metric("kvlane_worker_requests_failed_total"), 1);
}

TEST_F(Http, AbortByRid) {
  HttpConnection connection(worker_->port());
  connection.send_request("POST", "/generate", R"({"text": "x", "rid": "mine", "sampling_params":
      {"max_new_tokens": 400, "ignore_eos": true}})");
  while (metric("kvlane_worker_requests_running") != 1) {
  }
  call("POST", "/abort_request", R"({"rid": "mine"})");
  const HttpConnection::Answer answer = connection.read_answer();
  EXPECT_EQ(answer.status, 499);
  EXPECT_NE(answer.body.find("aborted"), std::string::npos);
}

TEST(WorkerOpen, SaysWhatIsWrong) {
  const auto code = [](auto change, const char* part) {
    WorkerOptions options;
    options.pages = 4;
    change(options);
    std::string error;
    const auto worker = WorkerServer::open(options, &error);
    EXPECT_NE(error.find(part), std::string::npos) << error;
    return worker.status().code();
  };
  EXPECT_EQ(code([](WorkerOptions& o) { o.model = "gpt"; }, "no model 'gpt'"), Code::not_found);
  EXPECT_EQ(code([](WorkerOptions& o) { o.model = "qwen3-32b"; }, "--kv-only"), Code::unsupported);
  EXPECT_EQ(code([](WorkerOptions& o) { o.tp = 3; }, "tp"), Code::invalid_argument);
  EXPECT_EQ(code([](WorkerOptions& o) { o.dtype = "f64"; }, "dtype"), Code::invalid_argument);
  EXPECT_EQ(code([](WorkerOptions& o) { o.dtype = "fp8"; }, "f32 or bf16"), Code::unsupported);
  EXPECT_EQ(code([](WorkerOptions& o) { o.role = EngineRole::prefill; }, "rendezvous"),
            Code::invalid_argument);
  EXPECT_EQ(code([](WorkerOptions& o) { o.host = "nowhere"; }, "IP address"),
            Code::invalid_argument);
  const std::unique_ptr<WorkerServer> first = open_worker({});
  EXPECT_EQ(code([&](WorkerOptions& o) { o.port = first->port(); }, "in use"), Code::unavailable);
}

}  // namespace
}  // namespace kvl::worker::test
