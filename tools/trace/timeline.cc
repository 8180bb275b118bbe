// Reading trace files, one clock for all, and which lines belong to one request.
#include "tools/trace/timeline.h"

#include <algorithm>
#include <boost/json/parse.hpp>
#include <boost/json/value.hpp>
#include <charconv>
#include <numeric>

namespace kvl::tools::tracing {
namespace {

namespace json = boost::json;

constexpr std::size_t kLineBytesMax = 1u << 16;

template <typename Number>
bool take(const json::object& object, std::string_view key, Number& to) {
  const json::value* const value = object.if_contains(key);
  if (value == nullptr) return false;
  boost::system::error_code error;
  to = value->to_number<Number>(error);
  return !error;
}

bool take(const json::object& object, std::string_view key, std::string& to) {
  const json::value* const value = object.if_contains(key);
  if (value == nullptr || !value->is_string()) return false;
  to = value->get_string();
  return true;
}

bool parse(const std::string& text, Line& line) {
  boost::system::error_code error;
  const json::value value = json::parse(text, error);
  if (error || !value.is_object()) return false;
  const json::object& object = value.get_object();
  const bool whole = take(object, "wall_ns", line.wall_ns) &&
                     take(object, "mono_ns", line.mono_ns) && take(object, "pid", line.pid) &&
                     take(object, "process", line.process) && take(object, "stage", line.stage) &&
                     take(object, "room", line.room) && take(object, "side", line.side);
  take(object, "before", line.before);
  take(object, "rank", line.rank);
  take(object, "layer", line.layer);
  take(object, "layers", line.layers);
  take(object, "rid", line.rid);
  take(object, "code", line.code);
  take(object, "what", line.what);
  return whole;
}

// Which of several things are one: each points to another, the last to itself.
class Groups {
 public:
  explicit Groups(std::size_t count) : parent_(count) {
    std::iota(parent_.begin(), parent_.end(), std::size_t{0});
  }
  std::size_t of(std::size_t index) {
    while (parent_[index] != index) index = parent_[index] = parent_[parent_[index]];
    return index;
  }
  void join(std::size_t a, std::size_t b) { parent_[of(b)] = of(a); }

 private:
  std::vector<std::size_t> parent_;
};

}  // namespace

void Traces::read(std::istream& in) {
  for (std::string text; std::getline(in, text);) {
    if (text.empty()) continue;
    Line line;
    if (text.size() > kLineBytesMax || !parse(text, line)) {
      ++bad_lines_;
    } else {
      lines_.push_back(std::move(line));
    }
  }
}

void Traces::align() {
  std::map<std::string, std::vector<std::int64_t>> offsets;
  for (const Line& line : lines_) offsets[line.name()].push_back(line.wall_ns - line.mono_ns);
  for (auto& [process, values] : offsets) {
    const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
    std::nth_element(values.begin(), middle, values.end());
    values = {*middle};
  }
  for (Line& line : lines_) line.at_ns = line.mono_ns + offsets[line.name()].front();
  std::ranges::stable_sort(lines_, {}, &Line::at_ns);
}

std::vector<Request> Traces::gather() const {
  // Lines are one request by their room, by a room that names the one before it, or by their id.
  Groups groups(lines_.size());
  std::map<std::uint64_t, std::size_t> by_room;
  std::map<std::string, std::size_t> by_rid;
  for (std::size_t i = 0; i < lines_.size(); ++i) {
    const Line& line = lines_[i];
    for (const std::uint64_t room : {line.room, line.before}) {
      if (room != 0) groups.join(by_room.try_emplace(room, i).first->second, i);
    }
    if (!line.rid.empty()) groups.join(by_rid.try_emplace(line.rid, i).first->second, i);
  }
  std::map<std::size_t, std::size_t> places;
  std::vector<Request> requests;
  for (std::size_t i = 0; i < lines_.size(); ++i) {
    const Line& line = lines_[i];
    if (line.room == 0 && line.rid.empty()) continue;  // of the rendezvous
    const auto [place, fresh] = places.try_emplace(groups.of(i), requests.size());
    if (fresh) requests.emplace_back();
    Request& request = requests[place->second];
    if (line.room != 0 && std::ranges::find(request.rooms, line.room) == request.rooms.end()) {
      request.rooms.push_back(line.room);
    }
    if (request.rid.empty()) request.rid = line.rid;
    request.lines.push_back(line);
  }
  return requests;
}

std::vector<Request> Traces::all() const { return gather(); }

Result<Request> Traces::find(std::string_view room_or_rid) const {
  std::uint64_t room = 0;
  const char* const end = room_or_rid.data() + room_or_rid.size();
  const auto [rest, error] = std::from_chars(room_or_rid.data(), end, room);
  const bool number = error == std::errc{} && rest == end;
  for (Request& request : gather()) {
    const bool has_room = number && std::ranges::find(request.rooms, room) != request.rooms.end();
    const auto says = [&](const Line& line) { return line.rid == room_or_rid; };
    if (has_room || std::ranges::any_of(request.lines, says)) return std::move(request);
  }
  return Status{Code::not_found, "no line has this room or request id"};
}

}  // namespace kvl::tools::tracing
