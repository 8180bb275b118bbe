/* kvlane for C and for languages that speak C: the engine behind opaque handles.
 *
 *   open an engine, register memory, connect to a peer's address, submit transfers of many blocks
 * in one call, poll events.
 *
 * Link with libkvlane.so. The interface only grows: structures begin with their own size, which the
 * caller sets (KVL_SIZED), and fields are added at their ends. No function throws, and none keeps a
 * pointer to its arguments unless it says so. Every function may be called by any thread, but
 * kvl_poll() and what it returned by one at a time for each engine; a thread that waits holds no
 * lock.
 *
 * Functions that can fail return a kvl_code; what went wrong stands in kvl_error() of the same
 * thread.
 */
#ifndef KVL_KVL_H
#define KVL_KVL_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define KVL_API __attribute__((visibility("default")))
#else
#define KVL_API
#endif

#define KVL_ABI 1
/* kvl_transfer transfer = KVL_SIZED(kvl_transfer); zero but for its size. */
#define KVL_SIZED(type) \
  { .size = sizeof(type) }

/* KVL_ABI of the library, not of the header. */
KVL_API uint32_t kvl_abi(void);
KVL_API const char* kvl_version(void); /* "0.1.0" */

typedef int32_t kvl_code;
enum {
  KVL_OK = 0,
  KVL_INVALID_ARGUMENT = 1, /* the call itself is wrong: never retry */
  KVL_NOT_FOUND = 2,
  KVL_UNSUPPORTED = 3,
  KVL_EXHAUSTED = 4, /* a bounded resource is full: retry after kvl_poll() */
  KVL_UNAVAILABLE = 5,
  KVL_PEER_LOST = 6,
  KVL_TIMED_OUT = 7,
  KVL_ABORTED = 8,
  KVL_PERMISSION = 9,
  KVL_CORRUPT = 10,
  KVL_INTERNAL = 11
};
KVL_API const char* kvl_code_name(kvl_code code); /* "peer_lost" */
/* Of the last call of this thread that failed; until its next call. Never null. */
KVL_API const char* kvl_error(void);

/* ---- engine */

typedef struct kvl_engine kvl_engine;

typedef struct {
  const char* name; /* as `kvlane config` lists them: "tcp.lanes" */
  const char* value;
} kvl_setting;

typedef struct {
  size_t size;
  const kvl_setting* settings;
  size_t setting_count;
  const char* config_file;    /* TOML; null: none */
  int32_t ignore_environment; /* not 0: no KVLANE_* variable is read */
} kvl_engine_options;

/* `options` may be null. */
KVL_API kvl_code kvl_engine_open(const kvl_engine_options* options, kvl_engine** engine);
/* Open transfers end without an event; returns when nothing can touch memory any more. Null:
 * nothing. */
KVL_API void kvl_engine_close(kvl_engine* engine);

/* What peers pass to kvl_connect(). Writes at most `room` bytes with the final zero; returns the
 * length without it. */
KVL_API size_t kvl_engine_address(const kvl_engine* engine, char* text, size_t room);
KVL_API void kvl_engine_id(const kvl_engine* engine, uint8_t id[16]);
KVL_API uint64_t kvl_engine_epoch(const kvl_engine* engine);
/* All metrics as Prometheus text; as kvl_engine_address(). */
KVL_API size_t kvl_engine_metrics(const kvl_engine* engine, char* text, size_t room);

/* ---- memory */

enum { KVL_HOST = 0, KVL_CUDA = 1 };
enum { KVL_LOCAL = 0, KVL_REMOTE_READ = 1, KVL_REMOTE_WRITE = 2, KVL_REMOTE_ALL = 3 };

typedef struct {
  size_t size;
  void* data;
  uint64_t bytes;
  uint32_t kind;     /* KVL_HOST, KVL_CUDA */
  int32_t device;    /* CUDA ordinal */
  uint32_t access;   /* KVL_REMOTE_...: what peers may do */
  int32_t is_shared; /* not 0: shared_fd is the memfd behind it */
  int32_t shared_fd;
  uint64_t shared_offset; /* of data; a multiple of the page size */
} kvl_memory;

/* The memory stays the caller's and mapped until it is deregistered. `handle` names it here and, as
 * a plain number, for peers. */
KVL_API kvl_code kvl_memory_register(kvl_engine* engine, const kvl_memory* memory,
                                     uint64_t* handle);
/* KVL_EXHAUSTED while a transfer of ours uses it. After return no peer can reach it. */
KVL_API kvl_code kvl_memory_deregister(kvl_engine* engine, uint64_t handle);

/* Host memory that peers on this host can map; what KV pages should be in. Zero-filled. */
typedef struct kvl_buffer kvl_buffer;
KVL_API kvl_code kvl_buffer_open(uint64_t bytes, kvl_buffer** buffer);
KVL_API void kvl_buffer_close(kvl_buffer* buffer); /* deregister it first */
/* Fills `memory` for kvl_memory_register(), but for its access. */
KVL_API kvl_code kvl_buffer_memory(const kvl_buffer* buffer, kvl_memory* memory);

/* ---- peers */

/* Returns at once; KVL_PEER_UP or KVL_PEER_DOWN follows, and the engine keeps trying until
 * kvl_disconnect(). Transfers may be submitted before. The same address gives the same handle. */
KVL_API kvl_code kvl_connect(kvl_engine* engine, const char* address, uint64_t* peer);
KVL_API kvl_code kvl_disconnect(kvl_engine* engine, uint64_t peer);

typedef struct {
  size_t size;
  int32_t up;
  int32_t authenticated;
  int32_t encrypted;
  uint8_t id[16];
  uint64_t epoch;
  char transport[32]; /* that carries, by preference the first; "": none yet */
} kvl_peer;
KVL_API kvl_code kvl_peer_describe(const kvl_engine* engine, uint64_t peer, kvl_peer* info);
/* Ordered after earlier ones; arrives as KVL_MESSAGE. At most 4 MiB. */
KVL_API kvl_code kvl_send(kvl_engine* engine, uint64_t peer, const void* message, size_t bytes);

/* ---- transfers */

enum { KVL_WRITE = 0, KVL_READ = 1 };
#define KVL_NOTE_BYTES_MAX 24

/* `count` blocks, block i from local_offsets[i] of one of `locals` to remote_offsets[i] of one of
 * `remotes` (KVL_WRITE), or the other way round (KVL_READ). Neighbours are merged. All is copied:
 * the arrays may be reused on return; the memory itself not before the event. A block that lies
 * beyond its memory ends the transfer with KVL_INVALID_ARGUMENT. A note may come without blocks. */
typedef struct {
  size_t size;
  uint64_t peer;
  uint32_t direction;
  uint64_t count;
  const uint64_t* local_offsets;
  const uint64_t* remote_offsets;
  const uint64_t* bytes; /* of each block; null: block_bytes */
  uint64_t block_bytes;
  const uint64_t* locals; /* handles of ours */
  size_t local_count;
  const uint64_t* remotes; /* handles of the peer's */
  size_t remote_count;
  const uint32_t* local_index;  /* of each block, in locals; null: 0 */
  const uint32_t* remote_index; /* in remotes; null: 0 */
  const void* note;             /* KVL_WRITE: shown to the peer when every byte is there */
  size_t note_bytes;            /* at most KVL_NOTE_BYTES_MAX */
  int64_t timeout_ms;           /* 0: the setting transfer_timeout_ms */
  uint64_t user;                /* comes back in the event */
} kvl_transfer;

KVL_API kvl_code kvl_submit(kvl_engine* engine, const kvl_transfer* transfer, uint64_t* id);
/* Its event comes with KVL_ABORTED, or KVL_OK when it was done; quarantined when nothing is proven
 * `deadline_ms` from now. */
KVL_API kvl_code kvl_cancel(kvl_engine* engine, uint64_t id, int64_t deadline_ms);

/* ---- events */

enum {
  KVL_TRANSFER = 0, /* exactly one for each kvl_submit() that returned KVL_OK */
  KVL_PROVEN = 1,   /* it ended quarantined, and no byte of it can land any more */
  KVL_NOTE = 2,     /* data */
  KVL_MESSAGE = 3,  /* data */
  KVL_PEER_UP = 4,  /* epoch */
  KVL_PEER_DOWN = 5 /* epoch, code, fenced: no byte of that epoch can land here any more */
};

typedef struct {
  uint32_t kind;
  kvl_code code;
  int32_t quarantined; /* KVL_TRANSFER: the peer's pages may still be written by it */
  int32_t fenced;
  uint64_t peer;
  uint64_t transfer;
  uint64_t user;
  uint64_t bytes; /* acknowledged */
  uint64_t epoch;
  const void* data; /* until the next kvl_poll() */
  size_t data_bytes;
} kvl_event;

/* Takes at most `count` events of `event_size` bytes each (sizeof(kvl_event)); returns how many. */
KVL_API size_t kvl_poll(kvl_engine* engine, kvl_event* events, size_t count, size_t event_size);
/* Sleeps until kvl_poll() has something or the time is over; 1: it has. */
KVL_API int kvl_wait(kvl_engine* engine, int64_t timeout_ms);
/* Readable when kvl_poll() has something to do; not to be read or closed. Before each sleep on it
 * kvl_arm() says how long that may be, at most `most_ms`; 0: poll again first. */
KVL_API int kvl_event_fd(const kvl_engine* engine);
KVL_API int64_t kvl_arm(kvl_engine* engine, int64_t most_ms);

#ifdef __cplusplus
}
#endif
#endif
