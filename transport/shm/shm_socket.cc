// Sockets, credentials and descriptors.
#include "transport/shm/shm_socket.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>

#include <cerrno>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#ifndef SO_PEERPIDFD  // Linux 6.5; the headers of Debian 12 are older
#define SO_PEERPIDFD 77
#endif
#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif

namespace kvl::shm {
namespace {

constexpr int kBacklog = 128;
constexpr std::size_t kFdsMax = 8;  // of one message, before it is called garbage

struct Address {
  sockaddr_un value{};
  socklen_t bytes = 0;
};

Address address_of(const Token& name) {
  Address address;
  address.value.sun_family = AF_UNIX;
  char* out = address.value.sun_path + 1;  // a leading 0: abstract
  out += std::snprintf(out, 16, "kvlane-");
  for (const std::byte b : name) out += std::snprintf(out, 3, "%02x", std::to_integer<unsigned>(b));
  address.bytes = static_cast<socklen_t>(out - reinterpret_cast<char*>(&address.value));
  return address;
}

UniqueFd make_socket() {
  return UniqueFd(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
}

}  // namespace

Token random_token() {
  Token token{};
  std::size_t have = 0;
  while (have < token.size()) {
    const ssize_t n = ::getrandom(token.data() + have, token.size() - have, 0);
    if (n > 0) {
      have += static_cast<std::size_t>(n);
    } else if (errno != EINTR) {
      std::abort();  // a kernel without getrandom: no secret can be made
    }
  }
  return token;
}

Result<HostIdentity> host_identity() {
  HostIdentity host;
  host.uid = ::geteuid();
  const UniqueFd file(::open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC));
  std::array<char, 64> text{};
  if (!file || ::read(file.get(), text.data(), text.size() - 1) < 36) {
    return Status{Code::unavailable, "read the boot id; mount /proc", errno};
  }
  std::size_t digits = 0;
  for (const char c : text) {
    int value = 0;
    if (c >= '0' && c <= '9') {
      value = c - '0';
    } else if (c >= 'a' && c <= 'f') {
      value = c - 'a' + 10;
    } else {
      continue;
    }
    if (digits / 2 >= host.boot_id.size()) break;
    std::byte& b = host.boot_id[digits / 2];
    b = (b << 4) | static_cast<std::byte>(value);
    ++digits;
  }
  struct stat info {};
  if (::stat("/proc/self/ns/net", &info) == 0) host.net_namespace = info.st_ino;
  return host;
}

Result<UniqueFd> listen_on(const Token& name) {
  UniqueFd socket = make_socket();
  if (!socket) return Status{Code::exhausted, "open an shm socket", errno};
  const Address address = address_of(name);
  if (::bind(socket.get(), reinterpret_cast<const sockaddr*>(&address.value), address.bytes) != 0 ||
      ::listen(socket.get(), kBacklog) != 0) {
    return Status{Code::unavailable, "listen on an abstract socket", errno};
  }
  return socket;
}

Result<UniqueFd> connect_to(const Token& name) {
  UniqueFd socket = make_socket();
  if (!socket) return Status{Code::exhausted, "open an shm socket", errno};
  const Address address = address_of(name);
  if (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address.value), address.bytes) ==
      0) {
    return socket;
  }
  if (errno == EAGAIN || errno == EINTR) {
    return Status{Code::exhausted, "connect to the shm peer", errno};
  }
  return Status{Code::unavailable, "connect to the shm peer", errno};
}

Result<PeerProcess> peer_process(int socket) {
  ucred credentials{};
  socklen_t bytes = sizeof(credentials);
  if (::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &credentials, &bytes) != 0) {
    return Status{Code::peer_lost, "read the peer's credentials", errno};
  }
  return PeerProcess{credentials.pid, credentials.uid};
}

UniqueFd open_pidfd(int socket, pid_t pid) {
  int fd = -1;
  socklen_t bytes = sizeof(fd);
  if (::getsockopt(socket, SOL_SOCKET, SO_PEERPIDFD, &fd, &bytes) == 0) return UniqueFd(fd);
  if (pid <= 0) return {};
  return UniqueFd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
}

bool process_exited(int pidfd) {
  pollfd entry{pidfd, POLLIN, 0};
  return ::poll(&entry, 1, 0) == 1;
}

bool hung_up(int socket) {
  pollfd entry{socket, POLLRDHUP, 0};
  return ::poll(&entry, 1, 0) == 1;
}

Status send_message(int socket, const Message& message, int fd) {
  iovec part{const_cast<Message*>(&message), sizeof(message)};
  msghdr header{};
  header.msg_iov = &part;
  header.msg_iovlen = 1;
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
  if (fd >= 0) {
    header.msg_control = control.data();
    header.msg_controllen = control.size();
    cmsghdr* const rights = CMSG_FIRSTHDR(&header);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(rights), &fd, sizeof(fd));
  }
  if (::sendmsg(socket, &header, MSG_NOSIGNAL | MSG_DONTWAIT) == sizeof(message)) return {};
  if (errno == EAGAIN || errno == EINTR || errno == ENOBUFS || errno == ETOOMANYREFS) {
    return {Code::exhausted, "send to the shm peer", errno};
  }
  return {Code::peer_lost, "send to the shm peer", errno};
}

Received receive_message(int socket) {
  Received result;
  iovec part{&result.message, sizeof(result.message)};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(kFdsMax * sizeof(int))> control{};
  msghdr header{};
  header.msg_iov = &part;
  header.msg_iovlen = 1;
  header.msg_control = control.data();
  header.msg_controllen = control.size();
  const ssize_t got = ::recvmsg(socket, &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  if (got < 0) {
    const bool later = errno == EAGAIN || errno == EINTR;
    result.kind = later ? Received::Kind::nothing : Received::Kind::closed;
    return result;
  }
  // Every descriptor gets an owner before anything is judged.
  std::size_t fds = 0;
  for (cmsghdr* c = CMSG_FIRSTHDR(&header); c != nullptr; c = CMSG_NXTHDR(&header, c)) {
    if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
    const std::size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (std::size_t i = 0; i < count; ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(fd));
      result.fd.reset(fd);
      ++fds;
    }
  }
  if (got == 0) {
    result.kind = Received::Kind::closed;
    return result;
  }
  const bool whole = got == sizeof(result.message) && fds <= 1 &&
                     (header.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) == 0;
  const bool known =
      result.message.magic == kMessageMagic && result.message.version == kWireVersion;
  result.kind = whole && known ? Received::Kind::message : Received::Kind::garbage;
  return result;
}

}  // namespace kvl::shm
