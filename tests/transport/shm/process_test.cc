// shm between processes: foreign memory, death, a kernel that forbids cross-memory attach.
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include <cstddef>
#include <string>

#include "tests/support/log_guard.h"
#include "tests/transport/shm/pair.h"

namespace kvl::test {
namespace {

constexpr std::uint64_t kPages = kBytes / 4096;

void send_blob(int fd, const Blob& blob) {
  ASSERT_EQ(::send(fd, blob.data(), blob.size(), MSG_NOSIGNAL), static_cast<ssize_t>(blob.size()));
}
Blob receive_blob(int fd) {
  pollfd entry{fd, POLLIN, 0};
  EXPECT_EQ(::poll(&entry, 1, 20'000), 1);
  Blob blob(4096);
  const ssize_t got = ::recv(fd, blob.data(), blob.size(), MSG_DONTWAIT);
  EXPECT_GT(got, 0);
  blob.resize(got > 0 ? static_cast<std::size_t>(got) : 0);
  return blob;
}

std::byte pattern(std::uint64_t i, unsigned salt) {
  return static_cast<std::byte>(i * 31 + i / 4096 * 7 + salt);
}

// The child: exports its memory (foreign and shared) and lives until it is told to end.
struct Child {
  // `prepare` runs first in the child, with its end of the control socket.
  explicit Child(void (*prepare)(int control) = [](int) {}) {
    int ends[2] = {-1, -1};
    EXPECT_EQ(0, ::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends));
    pid = ::fork();
    if (pid == 0) {
      ::close(ends[0]);
      prepare(ends[1]);
      serve(ends[1]);
      ::_exit(::testing::Test::HasFailure() ? 1 : 0);
    }
    ::close(ends[1]);
    control.reset(ends[0]);
  }
  ~Child() {
    if (pid <= 0) return;
    ::kill(pid, SIGKILL);
    ::waitpid(pid, nullptr, 0);
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  // Offers and two blobs over the control socket.
  void meet(Host& host) {
    peer = *host.link->open_peer(PeerRole::active);
    send_blob(control.get(), *host.link->offer(peer));
    EXPECT_TRUE(host.link->accept(peer, receive_blob(control.get())).ok());
    await(Event::Kind::peer_up, host);
    shared = receive_blob(control.get());
    foreign = receive_blob(control.get());
  }
  static void serve(int control) {
    Host host;
    const auto buffer = std::move(SharedBuffer::open(kBytes)).value();
    std::vector<std::byte> plain(kBytes);
    for (std::uint64_t i = 0; i < kBytes; ++i) {
      buffer->data()[i] = pattern(i, 1);
      plain[i] = pattern(i, 2);
    }
    const MemoryId shared_id = host.add(buffer->memory(Access::remote_all));
    const MemoryId plain_id =
        host.add({plain.data(), kBytes, MemoryKind::host, 0, Access::remote_all, -1, 0});
    const PeerId parent = *host.link->open_peer(PeerRole::passive);
    const Blob offer = receive_blob(control);
    send_blob(control, *host.link->offer(parent));
    EXPECT_TRUE(host.link->accept(parent, offer).ok());
    send_blob(control, *host.link->export_memory(shared_id, parent));
    send_blob(control, *host.link->export_memory(plain_id, parent));
    // Answers each note after a look at the memory it speaks of: 's' or 'f', and the salt.
    for (;;) {
      host.poll();
      if (host.take(Event::Kind::peer_down)) return;
      const std::optional<Event> note = host.take(Event::Kind::note);
      if (!note) {
        ::sched_yield();
        continue;
      }
      const std::byte* const data =
          static_cast<char>(note->note[0]) == 's' ? buffer->data() : plain.data();
      const auto salt = static_cast<unsigned>(note->note[1]);
      std::uint64_t wrong = 0;
      for (std::uint64_t i = 0; i < kBytes; ++i) wrong += data[i] != pattern(i, salt);
      Batch answer{.ticket = Ticket{1}, .peer = parent};
      answer.note = std::as_bytes(std::span(&wrong, 1));
      EXPECT_TRUE(host.link->post(answer).ok());
    }
  }

  pid_t pid = 0;
  UniqueFd control;
  PeerId peer;
  Blob shared, foreign;
};

class ShmProcess : public ::testing::TestWithParam<char> {};
INSTANTIATE_TEST_SUITE_P(Kinds, ShmProcess, ::testing::Values('s', 'f'));

TEST_P(ShmProcess, WriteNoteAnswerRead) {
  Child child;
  Host host;
  child.meet(host);
  const Result<RemoteId> remote =
      host.link->import_memory(child.peer, GetParam() == 's' ? child.shared : child.foreign);
  ASSERT_TRUE(remote.ok()) << remote.status().to_string();
  std::vector<std::byte> data(kBytes);
  const MemoryId local = host.add({data.data(), kBytes, MemoryKind::host, 0, Access::local, -1, 0});
  // Odd pages first, one op each; then the even ones as one strided run.
  std::vector<PageOp> ops;
  for (std::uint64_t page = 1; page < kPages; page += 2) {
    PageOp op{.bytes = 4096};
    op.local_offset = op.remote_offset = page * 4096;
    ops.push_back(op);
  }
  PageOp even{.bytes = 4096, .count = kPages / 2};
  even.local_stride = even.remote_stride = 8192;
  ops.push_back(even);
  Batch batch{.ticket = Ticket{5}, .peer = child.peer, .direction = Direction::read};
  batch.ops = ops;
  batch.locals = {&local, 1};
  batch.remotes = {&*remote, 1};
  ASSERT_TRUE(host.link->post(batch).ok());
  ASSERT_EQ(await(Event::Kind::batch, host).code, Code::ok);
  const unsigned salt_there = GetParam() == 's' ? 1 : 2;
  for (std::uint64_t i = 0; i < kBytes; ++i) ASSERT_EQ(data[i], pattern(i, salt_there)) << i;

  for (unsigned round = 0; round < 20; ++round) {
    const unsigned salt = 10 + round;
    for (std::uint64_t i = 0; i < kBytes; ++i) data[i] = pattern(i, salt);
    const std::array<std::byte, 2> note = {static_cast<std::byte>(GetParam()),
                                           static_cast<std::byte>(salt)};
    batch.direction = Direction::write;
    batch.note = note;
    ASSERT_TRUE(host.link->post(batch).ok());
    const Event answer = await(Event::Kind::note, host);
    std::uint64_t wrong = 1;
    std::memcpy(&wrong, answer.note.data(), sizeof(wrong));
    EXPECT_EQ(wrong, 0U) << "bytes were not there when the note was";
    EXPECT_EQ(await(Event::Kind::batch, host).bytes_done, kBytes);
  }
  host.link->close_peer(child.peer);
  EXPECT_EQ(await(Event::Kind::peer_down, host).code, Code::aborted);
  int status = 0;
  ASSERT_EQ(::waitpid(child.pid, &status, 0), child.pid);
  child.pid = 0;
  EXPECT_EQ(status, 0);
}

TEST_P(ShmProcess, KilledPeerIsNoticedBySleeperAndMidBatch) {
  for (const bool busy : {false, true}) {
    Child child;
    Host host;
    child.meet(host);
    const RemoteId remote =
        *host.link->import_memory(child.peer, GetParam() == 's' ? child.shared : child.foreign);
    std::vector<std::byte> data(kBytes);
    const MemoryId local =
        host.add({data.data(), kBytes, MemoryKind::host, 0, Access::local, -1, 0});
    // 2 GiB: longer than it takes to die.
    PageOp op{.bytes = kBytes, .count = 2048};
    Batch batch{.ticket = Ticket{1}, .peer = child.peer};
    batch.ops = {&op, 1};
    batch.locals = {&local, 1};
    batch.remotes = {&remote, 1};
    if (busy) {
      ASSERT_TRUE(host.link->post(batch).ok());
      host.poll();
    } else {
      while (!host.link->arm()) host.poll();
    }
    ASSERT_EQ(0, ::kill(child.pid, SIGKILL));
    const std::int64_t killed = host.clock.now_ns();
    if (busy) {
      EXPECT_EQ(await(Event::Kind::batch, host).code, Code::peer_lost);
    } else {
      pollfd entry{host.link->wait_fd(), POLLIN, 0};
      ASSERT_EQ(::poll(&entry, 1, 10'000), 1);
    }
    EXPECT_EQ(await(Event::Kind::peer_down, host).code, Code::peer_lost);
    EXPECT_LT(host.clock.now_ns() - killed, 2'000'000'000);
    EXPECT_EQ(host.link->post(batch).code(), Code::invalid_argument);
    EXPECT_TRUE(host.link->remove_memory(local).ok());
  }
}

// A process that shares the descriptors of this one and ends with the test: whoever is killed
// beside it leaves its sockets open.
void share_descriptors(int control) {
  if (::syscall(SYS_clone, CLONE_FILES | SIGCHLD, nullptr, nullptr, nullptr, nullptr) != 0) return;
  pollfd entry{control, 0, 0};  // no event but the hang-up
  while (::poll(&entry, 1, 60'000) < 0) {
  }
  ::_exit(0);
}

// Between the end of its memory and that of its sockets, which is made long here.
TEST(ShmProcess, PeerKilledBeforeItsMemoryIsTriedIsLost) {
  Child child(share_descriptors);
  Host host;
  child.meet(host);
  ASSERT_EQ(0, ::kill(child.pid, SIGKILL));
  siginfo_t info{};
  ASSERT_EQ(0, ::waitid(P_PID, static_cast<id_t>(child.pid), &info, WEXITED | WNOWAIT));
  EXPECT_EQ(host.link->import_memory(child.peer, child.foreign).code(), Code::peer_lost);
  EXPECT_EQ(await(Event::Kind::peer_down, host).code, Code::peer_lost);
}

// The peer is stopped, not dead: closing must neither hang nor wait for it.
TEST(ShmProcess, StoppedPeerIsClosedAtOnce) {
  Child child;
  Host host;
  child.meet(host);
  ASSERT_EQ(0, ::kill(child.pid, SIGSTOP));
  const auto buffer = std::move(SharedBuffer::open(kBytes)).value();
  const MemoryId memory = host.add(buffer->memory(Access::remote_all));
  ASSERT_TRUE(host.link->export_memory(memory, child.peer).ok());
  host.link->close_peer(child.peer);
  EXPECT_EQ(await(Event::Kind::peer_down, host).code, Code::aborted);
  EXPECT_TRUE(host.link->remove_memory(memory).ok());
}

// Makes process_vm_readv and process_vm_writev answer EPERM in this process.
void forbid_cross_memory() {
  constexpr auto kNumber = static_cast<std::uint32_t>(offsetof(seccomp_data, nr));
  sock_filter program[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, kNumber),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_process_vm_readv, 2, 0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_process_vm_writev, 1, 0),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
  };
  const sock_fprog filter{sizeof(program) / sizeof(program[0]), program};
  EXPECT_EQ(0, ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
  EXPECT_EQ(0, ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter));
}

TEST(ShmProcess, KernelForbidsCrossMemory) {
  // In a child of its own: the filter cannot be taken off again.
  const pid_t pid = ::fork();
  if (pid == 0) {
    {
      Child child;
      forbid_cross_memory();
      Host host;
      child.meet(host);
      int warnings = 0;
      set_log_sink([&warnings](LogLevel, std::string_view line) {
        warnings += line.starts_with("shm.cross_memory_denied") ? 1 : 100;
        EXPECT_NE(line.find("hint="), line.npos);
      });
      for (int i = 0; i < 3; ++i) {
        EXPECT_EQ(host.link->import_memory(child.peer, child.foreign).code(), Code::unsupported);
      }
      EXPECT_EQ(warnings, 1);
      EXPECT_TRUE(host.link->import_memory(child.peer, child.shared).ok());
      set_log_sink({});
    }
    ::_exit(::testing::Test::HasFailure() ? 1 : 0);
  }
  int status = 1;
  ASSERT_EQ(::waitpid(pid, &status, 0), pid);
  EXPECT_EQ(status, 0);
}

}  // namespace
}  // namespace kvl::test
