// The C ABI: arguments checked and translated, nothing more. One object per handle.
#include <algorithm>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "kvcache/capi/blocks.h"
#include "kvl/engine.h"
#include "kvl/kvl.h"

namespace {

using kvl::Code;
using kvl::Result;
using kvl::Status;

thread_local std::string last_error;

kvl_code failed(Code code, std::string sentence) {
  last_error = std::move(sentence);
  return static_cast<kvl_code>(code);
}
kvl_code failed(const Status& status) { return failed(status.code(), status.to_string()); }
kvl_code answer(const Status& status) { return status.ok() ? KVL_OK : failed(status); }
kvl_code wrong(const char* what) { return failed(Code::invalid_argument, what); }

// No exception crosses the border.
template <typename Call>
kvl_code guarded(Call&& call) noexcept {
  try {
    return call();
  } catch (const std::bad_alloc&) {
    return static_cast<kvl_code>(Code::exhausted);  // a sentence would need memory
  } catch (...) {
    return static_cast<kvl_code>(Code::internal);
  }
}

// The caller's structure as this library knows it: what an older caller does not have is zero.
template <typename T>
bool read_sized(const T* from, T& to) {
  if (from == nullptr || from->size < sizeof(std::size_t)) return false;
  std::memcpy(&to, from, std::min(from->size, sizeof(T)));
  return true;
}
template <typename T>
bool write_sized(const T& from, T* to) {
  if (to == nullptr || to->size < sizeof(std::size_t)) return false;
  const std::size_t size = to->size;
  std::memcpy(to, &from, std::min(size, sizeof(T)));
  to->size = size;
  return true;
}

std::size_t write_text(const std::string& text, char* out, std::size_t room) {
  if (out != nullptr && room > 0) {
    const std::size_t fits = std::min(text.size(), room - 1);
    std::memcpy(out, text.data(), fits);
    out[fits] = '\0';
  }
  return text.size();
}

// What a transfer needs until its event, and what the caller called it.
struct Pending {
  std::uint64_t user = 0, peer = 0;
  std::vector<kvl::PageOp> ops;
  std::vector<kvl::MemoryHandle> locals, remotes;
};

}  // namespace

struct kvl_engine {
  std::unique_ptr<kvl::Engine> engine;
  std::mutex mutex;                                                     // guards pending
  std::unordered_map<std::uint64_t, std::unique_ptr<Pending>> pending;  // by the engine's `user`
  std::uint64_t next = 1;
  std::vector<kvl::EngineEvent>
      events;  // of the last poll: their data is the caller's until the next

  std::uint64_t user_of(const kvl::EngineEvent& event);
};

struct kvl_buffer {
  std::unique_ptr<kvl::SharedBuffer> shared;
};

// The caller's own number for the transfer of an event; forgets what is not needed any more.
std::uint64_t kvl_engine::user_of(const kvl::EngineEvent& event) {
  using Kind = kvl::EngineEvent::Kind;
  const std::lock_guard lock(mutex);
  if (event.kind == Kind::peer_down) {
    // Of those that were quarantined nothing more will be proven.
    std::erase_if(pending, [&](const auto& entry) {
      return entry.second->ops.empty() && entry.second->peer == event.peer.value;
    });
  }
  if (event.kind != Kind::transfer && event.kind != Kind::proven) return 0;
  const auto found = pending.find(event.user);
  if (found == pending.end()) return 0;
  const std::uint64_t user = found->second->user;
  if (event.kind == Kind::transfer && event.physical == kvl::Physical::quarantined) {
    found->second->ops = {};
    found->second->locals = found->second->remotes = {};
  } else {
    pending.erase(found);
  }
  return user;
}

extern "C" {

uint32_t kvl_abi(void) { return KVL_ABI; }
const char* kvl_version(void) { return KVL_VERSION; }

const char* kvl_code_name(kvl_code code) {
  if (code < 0 || code > 255) return "unknown";
  return kvl::to_string(static_cast<Code>(code)).data();  // literals
}

const char* kvl_error(void) { return last_error.c_str(); }

kvl_code kvl_engine_open(const kvl_engine_options* given, kvl_engine** engine) {
  return guarded([&] {
    if (engine == nullptr) return wrong("no place for the engine");
    kvl_engine_options options{};
    if (given != nullptr && !read_sized(given, options)) return wrong("options without a size");
    kvl::Settings::Source source;
    source.environment = options.ignore_environment == 0;
    if (options.config_file != nullptr) source.file = options.config_file;
    for (std::size_t i = 0; i < options.setting_count; ++i) {
      const kvl_setting& setting = options.settings[i];
      if (setting.name == nullptr || setting.value == nullptr)
        return wrong("a setting without text");
      source.flags.emplace_back(setting.name, setting.value);
    }
    std::vector<kvl::Setting> rows = kvl::engine_settings();
    for (const kvl::Setting& row : kvl::transport_settings()) rows.push_back(row);
    std::string error;
    const Result<kvl::Settings> settings = kvl::Settings::load(std::move(rows), source, &error);
    if (!settings.ok()) return failed(settings.code(), error);
    Result<std::unique_ptr<kvl::Engine>> opened = kvl::Engine::open(*settings, &error);
    if (!opened.ok())
      return failed(opened.code(), error.empty() ? opened.status().to_string() : error);
    auto handle = std::make_unique<kvl_engine>();
    handle->engine = *std::move(opened);
    *engine = handle.release();
    return kvl_code{KVL_OK};
  });
}

void kvl_engine_close(kvl_engine* engine) {
  (void)guarded([&] {
    if (engine != nullptr) engine->engine.reset();  // while what its transfers point to is there
    delete engine;
    return kvl_code{KVL_OK};
  });
}

size_t kvl_engine_address(const kvl_engine* engine, char* text, size_t room) {
  return write_text(engine->engine->address(), text, room);
}

void kvl_engine_id(const kvl_engine* engine, uint8_t id[16]) {
  const kvl::EngineId own = engine->engine->id();
  std::memcpy(id, own.data(), own.size());
}

uint64_t kvl_engine_epoch(const kvl_engine* engine) { return engine->engine->epoch(); }

size_t kvl_engine_metrics(const kvl_engine* engine, char* text, size_t room) {
  std::size_t length = 0;
  (void)guarded([&] {
    kvl::PrometheusText metrics;
    engine->engine->visit_metrics(metrics);
    length = write_text(metrics.text(), text, room);
    return kvl_code{KVL_OK};
  });
  return length;
}

kvl_code kvl_memory_register(kvl_engine* engine, const kvl_memory* given, uint64_t* handle) {
  return guarded([&] {
    kvl_memory memory{};
    if (engine == nullptr || handle == nullptr || !read_sized(given, memory)) {
      return wrong("register memory: no engine, no size or no place for the handle");
    }
    if (memory.kind > KVL_CUDA || memory.access > KVL_REMOTE_ALL) {
      return wrong("register memory: unknown kind or access");
    }
    const Result<kvl::MemoryHandle> added =
        engine->engine->register_memory({.data = static_cast<std::byte*>(memory.data),
                                         .bytes = memory.bytes,
                                         .kind = static_cast<kvl::MemoryKind>(memory.kind),
                                         .device = memory.device,
                                         .access = static_cast<kvl::Access>(memory.access),
                                         .shared_fd = memory.is_shared != 0 ? memory.shared_fd : -1,
                                         .shared_offset = memory.shared_offset});
    if (!added.ok()) return failed(added.status());
    *handle = added->value;
    return kvl_code{KVL_OK};
  });
}

kvl_code kvl_memory_deregister(kvl_engine* engine, uint64_t handle) {
  return guarded([&] {
    if (engine == nullptr) return wrong("no engine");
    return answer(engine->engine->deregister_memory({handle}));
  });
}

kvl_code kvl_buffer_open(uint64_t bytes, kvl_buffer** buffer) {
  return guarded([&] {
    if (buffer == nullptr) return wrong("no place for the buffer");
    Result<std::unique_ptr<kvl::SharedBuffer>> opened = kvl::SharedBuffer::open(bytes);
    if (!opened.ok()) return failed(opened.status());
    *buffer = new kvl_buffer{*std::move(opened)};
    return kvl_code{KVL_OK};
  });
}

void kvl_buffer_close(kvl_buffer* buffer) { delete buffer; }

kvl_code kvl_buffer_memory(const kvl_buffer* buffer, kvl_memory* memory) {
  return guarded([&] {
    if (buffer == nullptr) return wrong("no buffer");
    const kvl::Memory own = buffer->shared->memory(kvl::Access::local);
    kvl_memory out{};
    out.data = own.data;
    out.bytes = own.bytes;
    out.is_shared = 1;
    out.shared_fd = own.shared_fd;
    out.shared_offset = own.shared_offset;
    return write_sized(out, memory) ? kvl_code{KVL_OK} : wrong("memory without a size");
  });
}

kvl_code kvl_connect(kvl_engine* engine, const char* address, uint64_t* peer) {
  return guarded([&] {
    if (engine == nullptr || address == nullptr || peer == nullptr) {
      return wrong("connect: no engine, no address or no place for the peer");
    }
    const Result<kvl::PeerHandle> connected = engine->engine->connect(address);
    if (!connected.ok()) return failed(connected.status());
    *peer = connected->value;
    return kvl_code{KVL_OK};
  });
}

kvl_code kvl_disconnect(kvl_engine* engine, uint64_t peer) {
  return guarded([&] {
    if (engine == nullptr) return wrong("no engine");
    return answer(engine->engine->disconnect({peer}));
  });
}

kvl_code kvl_peer_describe(const kvl_engine* engine, uint64_t peer, kvl_peer* info) {
  return guarded([&] {
    if (engine == nullptr) return wrong("no engine");
    const Result<kvl::PeerInfo> described = engine->engine->describe({peer});
    if (!described.ok()) return failed(described.status());
    kvl_peer out{};
    out.up = described->up ? 1 : 0;
    out.authenticated = described->authenticated ? 1 : 0;
    out.encrypted = described->encrypted ? 1 : 0;
    std::memcpy(out.id, described->id.data(), sizeof(out.id));
    out.epoch = described->epoch;
    for (const kvl::PathInfo& path : described->paths) {
      if (!path.in_use) continue;
      write_text(path.transport, out.transport, sizeof(out.transport));
      break;
    }
    return write_sized(out, info) ? kvl_code{KVL_OK} : wrong("info without a size");
  });
}

kvl_code kvl_send(kvl_engine* engine, uint64_t peer, const void* message, size_t bytes) {
  return guarded([&] {
    if (engine == nullptr || (message == nullptr && bytes > 0)) return wrong("send: no message");
    return answer(engine->engine->send({peer}, {static_cast<const std::byte*>(message), bytes}));
  });
}

kvl_code kvl_submit(kvl_engine* engine, const kvl_transfer* given, uint64_t* id) {
  return guarded([&] {
    kvl_transfer t{};
    if (engine == nullptr || !read_sized(given, t)) return wrong("submit: no engine or no size");
    if (t.note_bytes > KVL_NOTE_BYTES_MAX || (t.note == nullptr && t.note_bytes > 0)) {
      return wrong("submit: a note has at most 24 bytes");
    }
    if (t.direction > KVL_READ) return wrong("submit: unknown direction");
    auto pending = std::make_unique<Pending>();
    pending->user = t.user;
    pending->peer = t.peer;
    const bool note_alone = t.count == 0 && t.note_bytes > 0;
    const Status merged = note_alone ? Status{} : kvl::capi::merge_blocks(t, pending->ops);
    if (!merged.ok()) return failed(merged);
    for (std::size_t i = 0; i < t.local_count; ++i) pending->locals.push_back({t.locals[i]});
    for (std::size_t i = 0; i < t.remote_count; ++i) pending->remotes.push_back({t.remotes[i]});
    kvl::Transfer transfer;
    transfer.peer = {t.peer};
    transfer.direction = t.direction == KVL_READ ? kvl::Direction::read : kvl::Direction::write;
    transfer.ops = pending->ops;
    transfer.locals = pending->locals;
    transfer.remotes = pending->remotes;
    transfer.note = {static_cast<const std::byte*>(t.note), t.note_bytes};
    transfer.timeout_ms = t.timeout_ms;
    {
      const std::lock_guard lock(engine->mutex);
      transfer.user = engine->next++;
      engine->pending.emplace(transfer.user, std::move(pending));
    }
    const Result<kvl::TransferId> submitted = engine->engine->submit(transfer);
    if (!submitted.ok()) {
      const std::lock_guard lock(engine->mutex);
      engine->pending.erase(transfer.user);
      return failed(submitted.status());
    }
    if (id != nullptr) *id = submitted->value;
    return kvl_code{KVL_OK};
  });
}

kvl_code kvl_cancel(kvl_engine* engine, uint64_t id, int64_t deadline_ms) {
  return guarded([&] {
    if (engine == nullptr) return wrong("no engine");
    return answer(engine->engine->cancel({id}, deadline_ms));
  });
}

size_t kvl_poll(kvl_engine* engine, kvl_event* events, size_t count, size_t event_size) {
  std::size_t taken = 0;
  (void)guarded([&] {
    constexpr std::size_t kMost = 1024;
    engine->events.resize(std::min(count, kMost));
    taken = engine->engine->poll(engine->events);
    auto* out = reinterpret_cast<std::byte*>(events);
    for (std::size_t i = 0; i < taken; ++i, out += event_size) {
      const kvl::EngineEvent& event = engine->events[i];
      kvl_event one{};
      one.kind = static_cast<std::uint32_t>(event.kind);
      one.code = static_cast<kvl_code>(event.code);
      one.quarantined = event.physical == kvl::Physical::quarantined ? 1 : 0;
      one.fenced = event.fenced ? 1 : 0;
      one.peer = event.peer.value;
      one.transfer = event.transfer.value;
      one.user = engine->user_of(event);
      one.bytes = event.bytes;
      one.epoch = event.epoch;
      one.data = event.data.data();
      one.data_bytes = event.data.size();
      std::memcpy(out, &one, std::min(event_size, sizeof(one)));
    }
    return kvl_code{KVL_OK};
  });
  return taken;
}

int kvl_wait(kvl_engine* engine, int64_t timeout_ms) {
  int ready = 0;
  (void)guarded([&] {
    ready = engine->engine->wait(timeout_ms) ? 1 : 0;
    return kvl_code{KVL_OK};
  });
  return ready;
}

int kvl_event_fd(const kvl_engine* engine) { return engine->engine->event_fd(); }

int64_t kvl_arm(kvl_engine* engine, int64_t most_ms) {
  std::int64_t left = 0;
  (void)guarded([&] {
    left = engine->engine->arm(most_ms);
    return kvl_code{KVL_OK};
  });
  return left;
}

}  // extern "C"
