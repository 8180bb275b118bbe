// Calls of SideServer's methods by frame. The name of a method is the address of its stub: both
// ends are one program, and a child made by fork() has it at the same address.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "kvl/transport.h"
#include "transport/base/wire.h"

namespace kvl::conformance {

// What a test posts; owns what a Batch only points to.
struct BatchSpec {
  Ticket ticket;
  PeerId peer;
  Direction direction = Direction::write;
  std::vector<PageOp> ops;
  std::uint64_t begin = 0, end = 0;
  std::vector<MemoryId> locals;
  std::vector<RemoteId> remotes;
  std::uint32_t flag_at_least = 0;  // > 0: waits for the side's flag
  std::vector<std::byte> note;
};

template <typename T>
struct Codec {
  static_assert(std::is_trivially_copyable_v<T>);
  static void put(WireWriter& out, const T& value) { out.raw(std::as_bytes(std::span(&value, 1))); }
  static T get(WireReader& in) {
    T value{};
    const auto bytes = in.raw(sizeof(T));
    if (bytes.size() == sizeof(T)) std::memcpy(&value, bytes.data(), sizeof(T));
    return value;
  }
};

template <typename T>
struct Codec<std::vector<T>> {
  static_assert(std::is_trivially_copyable_v<T>);
  static void put(WireWriter& out, const std::vector<T>& value) {
    out.blob(std::as_bytes(std::span(value)));
  }
  static std::vector<T> get(WireReader& in) {
    const auto bytes = in.blob(UINT32_MAX);
    std::vector<T> value(bytes.size() / sizeof(T));
    if (!value.empty()) std::memcpy(value.data(), bytes.data(), bytes.size());
    return value;
  }
};

template <>
struct Codec<std::string> {
  static void put(WireWriter& out, const std::string& value) { out.text(value); }
  static std::string get(WireReader& in) { return in.text(UINT32_MAX); }
};

template <>
struct Codec<Status> {
  static void put(WireWriter& out, Status value) { out.put(value.code()); }
  static Status get(WireReader& in) {
    const auto code = in.get<Code>();
    return code == Code::ok ? Status{} : Status{code, "on the other side"};
  }
};

template <typename T>
struct Codec<Result<T>> {
  static void put(WireWriter& out, const Result<T>& value) {
    Codec<Status>::put(out, value.status());
    if (value.ok()) Codec<T>::put(out, value.value());
  }
  static Result<T> get(WireReader& in) {
    const Status status = Codec<Status>::get(in);
    if (!status.ok()) return status;
    return Codec<T>::get(in);
  }
};

template <>
struct Codec<Device> {
  static void put(WireWriter& out, const Device& d) {
    out.text(d.name).text(d.domain);
    Codec<std::uint32_t>::put(out, d.caps);
    Codec<Limits>::put(out, d.limits);
    Codec<Fence>::put(out, d.fence);
  }
  static Device get(WireReader& in) {
    Device d;
    d.name = in.text(UINT32_MAX);
    d.domain = in.text(UINT32_MAX);
    d.caps = Codec<std::uint32_t>::get(in);
    d.limits = Codec<Limits>::get(in);
    d.fence = Codec<Fence>::get(in);
    return d;
  }
};

template <>
struct Codec<BatchSpec> {
  static void put(WireWriter& out, const BatchSpec& b) {
    out.put(b.ticket.value).put(b.peer.value).put(b.direction);
    out.put(b.begin).put(b.end).put(b.flag_at_least);
    Codec<std::vector<PageOp>>::put(out, b.ops);
    Codec<std::vector<MemoryId>>::put(out, b.locals);
    Codec<std::vector<RemoteId>>::put(out, b.remotes);
    out.blob(b.note);
  }
  static BatchSpec get(WireReader& in) {
    BatchSpec b;
    b.ticket.value = in.get<std::uint64_t>();
    b.peer.value = in.get<std::uint64_t>();
    b.direction = in.get<Direction>();
    b.begin = in.get<std::uint64_t>();
    b.end = in.get<std::uint64_t>();
    b.flag_at_least = in.get<std::uint32_t>();
    b.ops = Codec<std::vector<PageOp>>::get(in);
    b.locals = Codec<std::vector<MemoryId>>::get(in);
    b.remotes = Codec<std::vector<RemoteId>>::get(in);
    b.note = Codec<std::vector<std::byte>>::get(in);
    return b;
  }
};

// The parts of a method: Object, Return and the decayed arguments.
template <typename M>
struct Method;
template <typename O, typename R, typename... A>
struct Method<R (O::*)(A...)> {
  using Object = O;
  using Return = R;
  using Arguments = std::tuple<std::decay_t<A>...>;
};

template <auto M>
void stub(typename Method<decltype(M)>::Object& object, WireReader& in, WireWriter& out) {
  using Parts = Method<decltype(M)>;
  [&]<std::size_t... I>(std::index_sequence<I...>) {
    // Braces: arguments are decoded in order.
    typename Parts::Arguments arguments{
        Codec<std::tuple_element_t<I, typename Parts::Arguments>>::get(in)...};
    if constexpr (std::is_void_v<typename Parts::Return>) {
      (object.*M)(std::move(std::get<I>(arguments))...);
    } else {
      Codec<typename Parts::Return>::put(out, (object.*M)(std::move(std::get<I>(arguments))...));
    }
  }
  (std::make_index_sequence<std::tuple_size_v<typename Parts::Arguments>>{});
}

template <auto M, typename... A>
std::vector<std::byte> encode_call(const A&... arguments) {
  using Parts = Method<decltype(M)>;
  WireWriter out;
  out.put(reinterpret_cast<std::uintptr_t>(&stub<M>));
  [&]<std::size_t... I>(std::index_sequence<I...>) {
    (Codec<std::tuple_element_t<I, typename Parts::Arguments>>::put(out, arguments), ...);
  }
  (std::make_index_sequence<sizeof...(A)>{});
  return out.take();
}

template <typename Object>
std::vector<std::byte> run_call(Object& object, std::span<const std::byte> request) {
  using Stub = void (*)(Object&, WireReader&, WireWriter&);
  WireReader in(request);
  WireWriter out;
  reinterpret_cast<Stub>(in.get<std::uintptr_t>())(object, in, out);
  return out.take();
}

}  // namespace kvl::conformance
