// Lines of several processes become one request's life: which belong together, on which clock, and
// where the time went.
#include "tools/trace/timeline.h"

#include <gtest/gtest.h>

#include <random>
#include <sstream>

namespace kvl::tools::tracing {
namespace {

constexpr std::int64_t kMs = 1'000'000;

struct Process {
  std::string name;
  int pid = 0;
  std::int64_t mono_zero = 0;  // its monotonic clock at wall time 0
  std::int64_t skew = 0;       // of its wall clock
};

struct Said {
  std::int64_t at_ms = 0;
  std::string stage;
  std::uint64_t room = 0;
  std::string side;
  std::string more;  // `,"key":value`
};

std::string text_of(const Process& process, const Said& said) {
  std::ostringstream out;
  out << "{\"wall_ns\":" << said.at_ms * kMs + process.skew
      << ",\"mono_ns\":" << said.at_ms * kMs - process.mono_zero << ",\"pid\":" << process.pid
      << ",\"process\":\"" << process.name << "\",\"stage\":\"" << said.stage
      << "\",\"room\":" << said.room << ",\"side\":\"" << said.side << "\"" << said.more << "}\n";
  return out.str();
}

Traces read(const std::string& text) {
  Traces traces;
  std::istringstream in(text);
  traces.read(in);
  traces.align();
  return traces;
}

const Process kRouter{"router", 1, 1000 * kMs}, kPrefill{"worker prefill", 2, -500 * kMs},
    kDecode{"worker decode", 3, 77 * kMs};

// A good life of room 5, and what its spans are.
std::string good_life() {
  return text_of(kDecode, {2, "queued", 5, "decode", R"(,"rid":"r")"}) +
         text_of(kDecode, {3, "resolved", 5, "decode"}) +
         text_of(kDecode, {4, "reserved", 5, "decode"}) +
         text_of(kDecode, {12, "layer", 5, "decode", R"(,"layer":0,"layers":1)"}) +
         text_of(kDecode, {16, "layer", 5, "decode", R"(,"layer":1,"layers":1)"}) +
         text_of(kDecode, {17, "all_layers", 5, "decode"}) +
         text_of(kDecode, {18, "committed", 5, "decode"}) +
         text_of(kDecode, {19, "first_token", 5, "decode", R"(,"rid":"r")"}) +
         text_of(kDecode, {29, "ended", 5, "decode", R"(,"rid":"r")"}) +
         text_of(kRouter, {0, "received", 5, "router", R"(,"rid":"r")"}) +
         text_of(kRouter, {1, "forwarded", 5, "router", R"(,"rid":"r")"}) +
         text_of(kRouter, {30, "answered", 5, "router", R"(,"rid":"r","what":"200")"}) +
         text_of(kPrefill, {2, "queued", 5, "prefill", R"(,"rid":"r")"}) +
         text_of(kPrefill, {6, "prefill_started", 5, "prefill", R"(,"rid":"r")"}) +
         text_of(kPrefill, {14, "prefill_done", 5, "prefill", R"(,"rid":"r")"});
}

TEST(Timeline, AddsUpToTheWhole) {
  const Request request = read(good_life()).find("5").value();
  EXPECT_EQ(request.lines.size(), 15U);
  EXPECT_EQ(request.rid, "r");
  const Summary summary = summarize(request);
  EXPECT_EQ(summary.outcome, "ok");
  EXPECT_EQ(summary.total_ns, 30 * kMs);
  std::int64_t sum = 0;
  std::map<std::string, std::int64_t> until;
  for (const Span& span : summary.spans) {
    sum += span.ns;
    until[span.to] = span.ns / kMs;
  }
  EXPECT_EQ(sum, summary.total_ns);
  EXPECT_EQ(until["prefill prefill_started"], 2);
  EXPECT_EQ(until["prefill prefill_done"], 8);
  EXPECT_EQ(until["decode all_layers"], 3);
  EXPECT_EQ(until["decode ended"], 10);
  EXPECT_EQ(summary.layers, 2U);
  EXPECT_EQ(summary.layers_under_compute, 1U);
  EXPECT_TRUE(summary.notes.empty()) << summary.notes.front();
  const std::string text = render_text(request, summary);
  EXPECT_NE(text.find("computing the prompt"), std::string::npos) << text;
  EXPECT_NE(render_json(request, summary).find("\"outcome\":\"ok\""), std::string::npos);
  EXPECT_NE(render_chrome({request}).find("\"ph\":\"X\""), std::string::npos);
}

TEST(Timeline, TheOrderOfFilesDoesNotMatter) {
  std::vector<std::string> lines;
  std::istringstream in(good_life());
  for (std::string line; std::getline(in, line);) lines.push_back(line + "\n");
  const std::string expected = render_json(*read(good_life()).find("r"), {});
  const auto seed = std::random_device{}();
  std::mt19937 random(seed);
  for (int i = 0; i < 20; ++i) {
    std::shuffle(lines.begin(), lines.end(), random);
    std::string text;
    for (const std::string& line : lines) text += line;
    const Request request = *read(text).find("r");
    // Lines of one time may stand in any order.
    EXPECT_EQ(summarize(request).total_ns, 30 * kMs) << "seed " << seed;
    EXPECT_EQ(render_json(request, {}).size(), expected.size()) << "seed " << seed;
  }
}

TEST(Timeline, AttemptsAreOneRequest) {
  const std::string text =
      text_of(kRouter, {0, "received", 5, "router"}) +
      text_of(kPrefill, {1, "queued", 5, "prefill"}) +
      text_of(kRouter, {10, "received", 6, "router", R"(,"before":5)"}) +
      text_of(kRouter, {20, "answered", 6, "router", R"(,"code":"unavailable","what":"502")"}) +
      text_of(kRouter, {21, "received", 7, "router"});
  const Traces traces = read(text);
  for (const char* const room : {"5", "6"}) {
    const Request request = traces.find(room).value();
    EXPECT_EQ(request.rooms, (std::vector<std::uint64_t>{5, 6}));
    EXPECT_EQ(request.lines.size(), 4U);
    const Summary summary = summarize(request);
    EXPECT_EQ(summary.outcome, "unavailable");
    ASSERT_FALSE(summary.spans.empty());
    EXPECT_EQ(summary.spans[0].meaning, "earlier attempts");
  }
  EXPECT_EQ(traces.find("7").value().lines.size(), 1U);
  EXPECT_EQ(traces.all().size(), 2U);
  EXPECT_EQ(traces.find("8").code(), Code::not_found);
}

TEST(Timeline, AWallClockThatWasSetDoesNotTearAProcessApart) {
  Process late = kDecode;
  late.skew = 3'600'000 * kMs;  // an hour, for one line of three
  const std::string text = text_of(kDecode, {1, "queued", 5, "decode"}) +
                           text_of(late, {2, "reserved", 5, "decode"}) +
                           text_of(kDecode, {3, "opened", 5, "decode"});
  const Request request = read(text).find("5").value();
  EXPECT_EQ(summarize(request).total_ns, 2 * kMs);
  EXPECT_EQ(request.lines[1].stage, "reserved");
}

TEST(Timeline, ClocksThatDifferAreTold) {
  Process early = kPrefill;
  early.skew = -50 * kMs;
  const std::string text = text_of(kRouter, {10, "received", 5, "router"}) +
                           text_of(early, {12, "queued", 5, "prefill"});
  const Summary summary = summarize(read(text).find("5").value());
  ASSERT_EQ(summary.notes.size(), 1U);
  EXPECT_NE(summary.notes[0].find("48000 us before"), std::string::npos) << summary.notes[0];
}

TEST(Timeline, HostileLinesAreCountedAndLeftOut) {
  const std::string good = text_of(kRouter, {0, "received", 5, "router", R"(,"what":"\u001b[2J")"});
  const std::string bad[] = {"{",
                             "[]",
                             "null",
                             "{\"wall_ns\":1}",
                             good.substr(0, good.size() / 2),
                             std::string(100'000, '['),
                             std::string("\0\xff\xfe", 3),
                             R"({"wall_ns":"x","mono_ns":1,"pid":1,"process":"p","stage":"s",)"
                             R"("room":1,"side":"d"})",
                             R"({"wall_ns":1,"mono_ns":1,"pid":1,"process":"p","stage":"s",)"
                             R"("room":-1,"side":"d"})"};
  std::string text = "\n\n" + good;
  for (const std::string& line : bad) text += line + "\n";
  const Traces traces = read(text + good);
  EXPECT_EQ(traces.bad_lines(), std::size(bad));
  EXPECT_EQ(traces.lines(), 2U);
  const Request request = traces.find("5").value();
  EXPECT_EQ(render_text(request, summarize(request)).find('\x1b'), std::string::npos);
}

}  // namespace
}  // namespace kvl::tools::tracing
