// Commands and events as bytes: each struct lists its fields once, for both directions.
#include "worker/rank_wire.h"

#include <cstring>
#include <type_traits>

namespace kvl::worker {
namespace {

template <typename A>
void fields(A& a, Segment& s) {
  a(s.tokens, s.position, s.pages, s.logits, s.handoff, s.room);
}
template <typename A>
void fields(A& a, KvContent& c) {
  a(c.block_tokens, c.chain);
}
template <typename A>
void fields(A& a, KvRange& r) {
  a(r.content, r.pages, r.first_token, r.end_token, r.handoff, r.room);
}
template <typename A>
void fields(A& a, ComputeJob& j) {
  a(j.id, j.kind, j.batch, j.kv);
}
template <typename A>
void fields(A& a, OpenPrefill& c) {
  a(c.room, c.tokens, c.ready_tokens, c.deadline_ms, c.pages);
}
template <typename A>
void fields(A& a, FinishPrefill& c) {
  a(c.room, c.metadata);
}
template <typename A>
void fields(A& a, SourceAddress& s) {
  a(s.address, s.accepts);
}
template <typename A>
void fields(A& a, OpenDecode& c) {
  a(c.room, c.tokens, c.skip_tokens, c.mode, c.deadline_ms, c.pages, c.sources);
}
template <typename A>
void fields(A& a, AbortRoom& c) {
  a(c.side, c.room, c.code, c.reason);
}
template <typename A>
void fields(A& a, PeerHandle& p) {
  a(p.value);
}
template <typename A>
void fields(A& a, SendMessage& c) {
  a(c.address, c.peer, c.bytes);
}
template <typename A>
void fields(A& a, SetLead& c) {
  a(c.address);
}
template <typename A>
void fields(A& a, RankOutput& e) {
  a(e.job, e.rank, e.code, e.vocab_first, e.logits, e.wrong_pages);
}
template <typename A>
void fields(A& a, RankUp& e) {
  a(e.rank, e.address, e.epoch, e.layout);
}
template <typename A>
void fields(A& a, RoomEvent& e) {
  a(e.rank, e.kind, e.side, e.code, e.pages_safe, e.room, e.bytes, e.elapsed_ns, e.reason,
    e.metadata);
}
template <typename A>
void fields(A& a, PeerMessage& e) {
  a(e.peer, e.bytes);
}
template <typename A>
void fields(A& a, PeerLost& e) {
  a(e.peer, e.address, e.code);
}
template <typename A>
void fields(A& a, RankLost& e) {
  a(e.rank);
}

template <typename T>
constexpr bool kScalar = std::is_arithmetic_v<T> || std::is_enum_v<T>;

class Writer {
 public:
  template <typename... T>
  void operator()(T&... values) {
    (put(values), ...);
  }
  std::vector<std::byte> take() { return std::move(out_); }

 private:
  void raw(const void* from, std::size_t bytes) {
    const auto* const begin = static_cast<const std::byte*>(from);
    out_.insert(out_.end(), begin, begin + bytes);
  }
  template <typename T>
  void put(T& value) {
    if constexpr (kScalar<T>) {
      raw(&value, sizeof(value));
    } else {
      fields(*this, value);
    }
  }
  template <typename T>
  void put(std::vector<T>& list) {
    const std::uint64_t count = list.size();
    raw(&count, sizeof(count));
    if constexpr (kScalar<T>) {
      if (count > 0) raw(list.data(), list.size() * sizeof(T));
    } else {
      for (T& item : list) put(item);
    }
  }
  void put(std::string& text) {
    const std::uint64_t count = text.size();
    raw(&count, sizeof(count));
    raw(text.data(), text.size());
  }
  std::vector<std::byte> out_;
};

class Reader {
 public:
  explicit Reader(std::span<const std::byte> in) : in_(in) {}
  template <typename... T>
  void operator()(T&... values) {
    (get(values), ...);
  }
  bool good() const { return good_ && in_.empty(); }

 private:
  bool raw(void* to, std::size_t bytes) {
    good_ = good_ && bytes <= in_.size();
    if (!good_) return false;
    if (bytes > 0) std::memcpy(to, in_.data(), bytes);
    in_ = in_.subspan(bytes);
    return true;
  }
  // How many items follow; each takes at least one byte, so that no count can ask for more memory
  // than the message is long.
  std::size_t count(std::size_t item_bytes) {
    std::uint64_t count = 0;
    raw(&count, sizeof(count));
    good_ = good_ && count <= in_.size() / item_bytes;
    return good_ ? static_cast<std::size_t>(count) : 0;
  }
  template <typename T>
  void get(T& value) {
    if constexpr (std::is_same_v<T, bool>) {
      std::uint8_t byte = 0;
      raw(&byte, 1);
      value = byte != 0;
    } else if constexpr (kScalar<T>) {
      raw(&value, sizeof(value));
    } else {
      fields(*this, value);
    }
  }
  template <typename T>
  void get(std::vector<T>& list) {
    list.resize(count(kScalar<T> ? sizeof(T) : 1));
    if constexpr (kScalar<T>) {
      raw(list.data(), list.size() * sizeof(T));
    } else {
      for (T& item : list) get(item);
    }
  }
  void get(std::string& text) {
    text.resize(count(1));
    raw(text.data(), text.size());
  }
  std::span<const std::byte> in_;
  bool good_ = true;
};

template <typename Variant>
std::vector<std::byte> encode_variant(const Variant& message) {
  Writer writer;
  auto index = static_cast<std::uint8_t>(message.index());
  writer(index);
  // The field lists are written for reading as well; a Writer changes nothing.
  std::visit(
      [&](const auto& body) { fields(writer, const_cast<std::decay_t<decltype(body)>&>(body)); },
      message);
  return writer.take();
}

template <typename Variant, std::size_t kIndex = 0>
std::optional<Variant> decode_variant(std::uint8_t index, Reader& reader) {
  if constexpr (kIndex == std::variant_size_v<Variant>) {
    return std::nullopt;
  } else {
    if (index != kIndex) return decode_variant<Variant, kIndex + 1>(index, reader);
    std::variant_alternative_t<kIndex, Variant> body;
    fields(reader, body);
    if (!reader.good()) return std::nullopt;
    return Variant(std::move(body));
  }
}

template <typename Variant>
std::optional<Variant> decode_message(std::span<const std::byte> bytes) {
  if (bytes.empty()) return std::nullopt;
  Reader reader(bytes.subspan(1));
  return decode_variant<Variant>(static_cast<std::uint8_t>(bytes[0]), reader);
}

}  // namespace

std::vector<std::byte> encode(const Command& command) { return encode_variant(command); }
std::vector<std::byte> encode(const RankEvent& event) { return encode_variant(event); }
std::optional<Command> decode_command(std::span<const std::byte> bytes) {
  return decode_message<Command>(bytes);
}
std::optional<RankEvent> decode_event(std::span<const std::byte> bytes) {
  return decode_message<RankEvent>(bytes);
}

}  // namespace kvl::worker
