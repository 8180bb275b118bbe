/* The C ABI as a C program uses it: two engines in one process, over tcp and over shm. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kvl/kvl.h"

#define CHECK(condition)                                                                         \
  do {                                                                                           \
    if (!(condition)) {                                                                          \
      fprintf(stderr, "%s:%d: %s is not so; %s\n", __FILE__, __LINE__, #condition, kvl_error()); \
      exit(1);                                                                                   \
    }                                                                                            \
  } while (0)

enum { kBlocks = 10000, kBlockBytes = 4096, kPatienceMs = 20000 };

static kvl_engine* open_engine(const char* transport) {
  kvl_setting settings[2] = {{"listen", "127.0.0.1:0"}, {"require", transport}};
  kvl_engine_options options = KVL_SIZED(kvl_engine_options);
  options.settings = settings;
  options.setting_count = 2;
  kvl_engine* engine = NULL;
  CHECK(kvl_engine_open(&options, &engine) == KVL_OK);
  return engine;
}

/* The next event of that kind, from whichever of both engines' queues is asked. */
static kvl_event next(kvl_engine* engine, uint32_t kind) {
  for (int left = kPatienceMs / 10; left > 0; --left) {
    kvl_event event;
    while (kvl_poll(engine, &event, 1, sizeof(event)) == 1) {
      if (event.kind == kind) return event;
    }
    kvl_wait(engine, 10);
  }
  fprintf(stderr, "no event of kind %u\n", kind);
  exit(1);
}

static uint64_t share(kvl_engine* engine, kvl_buffer* buffer, unsigned char** data) {
  kvl_memory memory = KVL_SIZED(kvl_memory);
  CHECK(kvl_buffer_memory(buffer, &memory) == KVL_OK);
  memory.access = KVL_REMOTE_ALL;
  *data = memory.data;
  uint64_t handle = 0;
  CHECK(kvl_memory_register(engine, &memory, &handle) == KVL_OK);
  return handle;
}

static unsigned char expected(uint64_t block, unsigned salt) {
  return (unsigned char)(block * 7 + block / 251 + salt);
}

static void moves_blocks(const char* transport) {
  kvl_engine* prefill = open_engine(transport);
  kvl_engine* decode = open_engine(transport);
  kvl_buffer *from = NULL, *to = NULL;
  CHECK(kvl_buffer_open((uint64_t)kBlocks * kBlockBytes, &from) == KVL_OK);
  CHECK(kvl_buffer_open((uint64_t)kBlocks * kBlockBytes, &to) == KVL_OK);
  unsigned char *source = NULL, *target = NULL;
  const uint64_t ours = share(prefill, from, &source);
  const uint64_t theirs = share(decode, to, &target);
  for (uint64_t i = 0; i < kBlocks; ++i)
    memset(source + i * kBlockBytes, expected(i, 1), kBlockBytes);

  char address[128];
  CHECK(kvl_engine_address(decode, address, sizeof(address)) < sizeof(address));
  uint64_t peer = 0;
  CHECK(kvl_connect(prefill, address, &peer) == KVL_OK);

  /* In reverse at the other side, but for the first half, which is as it is: neighbours merge. */
  uint64_t* local = malloc(kBlocks * sizeof(uint64_t));
  uint64_t* remote = malloc(kBlocks * sizeof(uint64_t));
  for (uint64_t i = 0; i < kBlocks; ++i) {
    local[i] = i * kBlockBytes;
    remote[i] = (i < kBlocks / 2 ? i : kBlocks - 1 - (i - kBlocks / 2)) * kBlockBytes;
  }
  kvl_transfer transfer = KVL_SIZED(kvl_transfer);
  transfer.peer = peer;
  transfer.direction = KVL_WRITE;
  transfer.count = kBlocks;
  transfer.local_offsets = local;
  transfer.remote_offsets = remote;
  transfer.block_bytes = kBlockBytes;
  transfer.locals = &ours;
  transfer.local_count = 1;
  transfer.remotes = &theirs;
  transfer.remote_count = 1;
  transfer.note = "all there";
  transfer.note_bytes = 9;
  transfer.user = 77;
  uint64_t id = 0;
  CHECK(kvl_submit(prefill, &transfer, &id) == KVL_OK);
  memset(local, 0xff, kBlocks * sizeof(uint64_t)); /* theirs on return */

  const kvl_event note = next(decode, KVL_NOTE);
  CHECK(note.data_bytes == 9 && memcmp(note.data, "all there", 9) == 0);
  for (uint64_t i = 0; i < kBlocks; ++i) {
    CHECK(target[remote[i]] == expected(i, 1));
    CHECK(target[remote[i] + kBlockBytes - 1] == expected(i, 1));
  }
  kvl_event done = next(prefill, KVL_TRANSFER);
  CHECK(done.code == KVL_OK && done.user == 77 && done.transfer == id && done.peer == peer);
  CHECK(done.bytes == (uint64_t)kBlocks * kBlockBytes && !done.quarantined);

  /* Back, by reading, blocks of different sizes through index arrays. */
  memset(source, 0, (size_t)kBlocks * kBlockBytes);
  const uint64_t handles[2] = {ours, ours};
  const uint64_t remotes[2] = {theirs, theirs};
  const uint32_t index[3] = {0, 1, 0};
  const uint64_t sizes[3] = {1, 4096, 100000};
  const uint64_t at[3] = {5, 8192, 65536};
  transfer.direction = KVL_READ;
  transfer.count = 3;
  transfer.local_offsets = transfer.remote_offsets = at;
  transfer.bytes = sizes;
  transfer.locals = handles;
  transfer.local_count = 2;
  transfer.remotes = remotes;
  transfer.remote_count = 2;
  transfer.local_index = transfer.remote_index = index;
  transfer.note = NULL;
  transfer.note_bytes = 0;
  CHECK(kvl_submit(prefill, &transfer, NULL) == KVL_OK);
  done = next(prefill, KVL_TRANSFER);
  CHECK(done.code == KVL_OK && done.bytes == 1 + 4096 + 100000);
  for (int i = 0; i < 3; ++i) CHECK(memcmp(source + at[i], target + at[i], sizes[i]) == 0);
  CHECK(source[4] == 0 && source[6] == 0);

  /* A byte too far, here or there. */
  const uint64_t beyond = (uint64_t)kBlocks * kBlockBytes;
  for (int side = 0; side < 2; ++side) {
    transfer.count = 1;
    transfer.local_offsets = side == 0 ? &beyond : at;
    transfer.remote_offsets = side == 0 ? at : &beyond;
    CHECK(kvl_submit(prefill, &transfer, NULL) == KVL_OK);
    CHECK(next(prefill, KVL_TRANSFER).code == KVL_INVALID_ARGUMENT);
  }

  /* A note alone. */
  transfer.direction = KVL_WRITE;
  transfer.count = 0;
  transfer.note = "x";
  transfer.note_bytes = 1;
  CHECK(kvl_submit(prefill, &transfer, NULL) == KVL_OK);
  CHECK(next(decode, KVL_NOTE).data_bytes == 1);

  kvl_peer info = KVL_SIZED(kvl_peer);
  uint8_t own[16];
  kvl_engine_id(decode, own);
  CHECK(kvl_peer_describe(prefill, peer, &info) == KVL_OK);
  CHECK(info.up && strcmp(info.transport, transport) == 0 && memcmp(info.id, own, 16) == 0);
  CHECK(info.epoch == kvl_engine_epoch(decode));
  CHECK(kvl_engine_metrics(prefill, NULL, 0) > 100);

  CHECK(kvl_send(prefill, peer, "hello", 5) == KVL_OK);
  const kvl_event message = next(decode, KVL_MESSAGE);
  CHECK(message.data_bytes == 5 && memcmp(message.data, "hello", 5) == 0);

  kvl_engine_close(decode);
  CHECK(next(prefill, KVL_PEER_DOWN).peer == peer);
  CHECK(kvl_memory_deregister(prefill, ours) == KVL_OK);
  CHECK(kvl_memory_deregister(prefill, ours) == KVL_INVALID_ARGUMENT);
  kvl_engine_close(prefill);
  kvl_buffer_close(from);
  kvl_buffer_close(to);
  free(local);
  free(remote);
}

static void says_what_is_wrong(void) {
  kvl_engine* engine = NULL;
  CHECK(kvl_engine_open(NULL, NULL) == KVL_INVALID_ARGUMENT);
  kvl_setting bad = {"no.such.setting", "1"};
  kvl_engine_options options = KVL_SIZED(kvl_engine_options);
  options.settings = &bad;
  options.setting_count = 1;
  CHECK(kvl_engine_open(&options, &engine) == KVL_INVALID_ARGUMENT);
  CHECK(strstr(kvl_error(), "no.such.setting") != NULL && engine == NULL);
  options.settings = &(kvl_setting){"require", "carrier pigeon"};
  CHECK(kvl_engine_open(&options, &engine) != KVL_OK);
  CHECK(strlen(kvl_error()) > 10);

  engine = open_engine("tcp");
  uint64_t handle = 0, peer = 0;
  kvl_memory memory = KVL_SIZED(kvl_memory);
  CHECK(kvl_memory_register(engine, &memory, &handle) == KVL_INVALID_ARGUMENT); /* no bytes */
  memory.size = 0;
  CHECK(kvl_memory_register(engine, &memory, &handle) == KVL_INVALID_ARGUMENT);
  CHECK(kvl_connect(engine, "this is no address", &peer) == KVL_INVALID_ARGUMENT);
  CHECK(kvl_disconnect(engine, 12345) == KVL_NOT_FOUND);
  CHECK(kvl_cancel(engine, 12345, 0) == KVL_NOT_FOUND);

  char place[4096];
  memory.size = sizeof(memory);
  memory.data = place;
  memory.bytes = sizeof(place);
  memory.access = 9;
  CHECK(kvl_memory_register(engine, &memory, &handle) == KVL_INVALID_ARGUMENT);
  memory.access = KVL_LOCAL;
  CHECK(kvl_memory_register(engine, &memory, &handle) == KVL_OK);
  CHECK(kvl_connect(engine, "127.0.0.1:1", &peer) == KVL_OK);
  const uint64_t at = 0;
  const uint32_t two = 2;
  kvl_transfer transfer = KVL_SIZED(kvl_transfer);
  CHECK(kvl_submit(engine, &transfer, NULL) == KVL_INVALID_ARGUMENT); /* nothing in it */
  transfer.peer = peer;
  transfer.count = 1;
  transfer.local_offsets = transfer.remote_offsets = &at;
  transfer.locals = transfer.remotes = &handle;
  transfer.local_count = transfer.remote_count = 1;
  CHECK(kvl_submit(engine, &transfer, NULL) == KVL_INVALID_ARGUMENT); /* a block of 0 bytes */
  transfer.block_bytes = 5ull << 30;
  CHECK(kvl_submit(engine, &transfer, NULL) == KVL_INVALID_ARGUMENT);
  transfer.block_bytes = sizeof(place);
  transfer.local_index = &two;
  CHECK(kvl_submit(engine, &transfer, NULL) == KVL_INVALID_ARGUMENT);
  transfer.local_index = NULL;
  transfer.note_bytes = 25;
  CHECK(kvl_submit(engine, &transfer, NULL) == KVL_INVALID_ARGUMENT);
  transfer.note_bytes = 0;
  transfer.user = 5;
  transfer.timeout_ms = 200;
  CHECK(kvl_submit(engine, &transfer, NULL) ==
        KVL_OK); /* nobody listens there: it ends all the same */
  const kvl_event event = next(engine, KVL_TRANSFER);
  CHECK(event.code != KVL_OK && event.user == 5);
  kvl_engine_close(engine);
  kvl_engine_close(NULL);
  CHECK(strcmp(kvl_code_name(KVL_PEER_LOST), "peer_lost") == 0);
  CHECK(strcmp(kvl_code_name(99), "unknown") == 0 && strcmp(kvl_code_name(-1), "unknown") == 0);
}

int main(void) {
  CHECK(kvl_abi() == KVL_ABI);
  CHECK(strlen(kvl_version()) > 0);
  says_what_is_wrong();
  moves_blocks("tcp");
  moves_blocks("shm");
  puts("ok");
  return 0;
}
