// A request's life as a table, as JSON, and for trace viewers.
#include <boost/json/serialize.hpp>
#include <boost/json/value.hpp>
#include <cstdio>

#include "tools/trace/timeline.h"

namespace kvl::tools::tracing {
namespace {

namespace json = boost::json;

double ms(std::int64_t ns) { return static_cast<double>(ns) / 1e6; }

template <typename... Values>
std::string format(const char* pattern, Values... values) {
  char text[512];
  std::snprintf(text, sizeof(text), pattern, values...);
  return text;
}

// What a line says beside its stage.
std::string detail(const Line& line) {
  std::string text;
  const auto add = [&text](const std::string& more) { text += (text.empty() ? "" : " ") + more; };
  if (line.layers == 1) add("layer " + std::to_string(line.layer));
  if (line.layers > 1) {
    add("layers " + std::to_string(line.layer) + "-" +
        std::to_string(line.layer + line.layers - 1));
  }
  if (line.rank != 0) add("rank " + std::to_string(line.rank));
  if (!line.code.empty()) add(line.code);
  if (!line.what.empty()) add(line.what);
  return text;
}

// For a terminal: what other processes wrote must not steer it.
std::string printable(std::string text) {
  for (char& c : text) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
  }
  return text;
}

json::object line_object(const Line& line, std::int64_t begin_ns) {
  json::object object{{"at_ms", ms(line.at_ns - begin_ns)},
                      {"process", line.process},
                      {"pid", line.pid},
                      {"side", line.side},
                      {"stage", line.stage},
                      {"room", line.room}};
  if (line.rank != 0) object["rank"] = line.rank;
  if (line.layers != 0) {
    object["layer"] = line.layer;
    object["layers"] = line.layers;
  }
  if (!line.code.empty()) object["code"] = line.code;
  if (!line.what.empty()) object["what"] = line.what;
  return object;
}

}  // namespace

std::string render_text(const Request& request, const Summary& summary) {
  std::string text = "request " + (request.rid.empty() ? "(no id)" : printable(request.rid));
  for (const std::uint64_t room : request.rooms) text += ", room " + std::to_string(room);
  text += format("\noutcome %s, %.3f ms from the first line to the last\n\n",
                 summary.outcome.c_str(), ms(summary.total_ns));
  text += format("%12s  %-24s %-16s %s\n", "ms", "process", "stage", "");
  const std::int64_t begin_ns = request.lines.empty() ? 0 : request.lines.front().at_ns;
  for (const Line& line : request.lines) {
    text += format("%12.3f  %-24s %-16s %s\n", ms(line.at_ns - begin_ns),
                   printable(line.name()).c_str(), printable(line.stage).c_str(),
                   printable(detail(line)).c_str());
  }
  text += "\nwhere the time went\n";
  for (const Span& span : summary.spans) {
    const double share = summary.total_ns > 0 ? 100.0 * ms(span.ns) / ms(summary.total_ns) : 0.0;
    text += format("%12.3f  %5.1f %%  %s (until %s)\n", ms(span.ns), share, span.meaning.c_str(),
                   span.to.c_str());
  }
  if (summary.layers > 0) {
    text += format("%u layers arrived, %u of them while prefill was still computing\n",
                   summary.layers, summary.layers_under_compute);
  }
  for (const std::string& note : summary.notes) text += "note: " + note + "\n";
  return text;
}

std::string render_json(const Request& request, const Summary& summary) {
  json::array rooms, lines, spans, notes;
  for (const std::uint64_t room : request.rooms) rooms.emplace_back(room);
  const std::int64_t begin_ns = request.lines.empty() ? 0 : request.lines.front().at_ns;
  for (const Line& line : request.lines) lines.emplace_back(line_object(line, begin_ns));
  for (const Span& span : summary.spans) {
    spans.emplace_back(json::object{
        {"from", span.from}, {"to", span.to}, {"meaning", span.meaning}, {"ms", ms(span.ns)}});
  }
  for (const std::string& note : summary.notes) notes.emplace_back(note);
  return json::serialize(json::object{{"rid", request.rid},
                                      {"rooms", std::move(rooms)},
                                      {"outcome", summary.outcome},
                                      {"total_ms", ms(summary.total_ns)},
                                      {"layers", summary.layers},
                                      {"layers_under_compute", summary.layers_under_compute},
                                      {"spans", std::move(spans)},
                                      {"notes", std::move(notes)},
                                      {"timeline", std::move(lines)}}) +
         "\n";
}

// Trace Event Format: one instant per line, a slice per span, a track per request and process.
std::string render_chrome(const std::vector<Request>& requests) {
  json::array events;
  std::int64_t track = 0;
  for (const Request& request : requests) {
    ++track;
    const std::string title = request.rid.empty() && !request.rooms.empty()
                                  ? "room " + std::to_string(request.rooms.front())
                                  : request.rid;
    for (const Line& line : request.lines) {
      events.emplace_back(json::object{{"ph", "i"},
                                       {"s", "t"},
                                       {"name", line.side + " " + line.stage},
                                       {"ts", static_cast<double>(line.at_ns) / 1e3},
                                       {"pid", line.pid},
                                       {"tid", track},
                                       {"args", {{"request", title}, {"detail", detail(line)}}}});
    }
    std::int64_t at_ns = request.lines.empty() ? 0 : request.lines.front().at_ns;
    for (const Span& span : summarize(request).spans) {
      events.emplace_back(json::object{{"ph", "X"},
                                       {"name", span.meaning},
                                       {"ts", static_cast<double>(at_ns) / 1e3},
                                       {"dur", static_cast<double>(span.ns) / 1e3},
                                       {"pid", 0},
                                       {"tid", track},
                                       {"args", {{"request", title}, {"until", span.to}}}});
      at_ns += span.ns;
    }
  }
  return json::serialize(json::object{{"traceEvents", std::move(events)}}) + "\n";
}

}  // namespace kvl::tools::tracing
