// The kernel's notices of interfaces (rtnetlink(7), RTMGRP_LINK).
#include "transport/tcp/tcp_carrier.h"

#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>

namespace kvl::tcp {

Result<CarrierWatch> CarrierWatch::open(const std::string& interface) {
  const unsigned index = ::if_nametoindex(interface.c_str());
  if (index == 0) return Status{Code::unavailable, "tcp.interface", errno};
  UniqueFd socket(::socket(AF_NETLINK, SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC, NETLINK_ROUTE));
  sockaddr_nl groups{};
  groups.nl_family = AF_NETLINK;
  groups.nl_groups = RTMGRP_LINK;
  if (!socket ||
      ::bind(socket.get(), reinterpret_cast<const sockaddr*>(&groups), sizeof(groups)) != 0) {
    return Status{Code::exhausted, "watch network interfaces", errno};
  }
  return CarrierWatch(std::move(socket), static_cast<int>(index));
}

bool CarrierWatch::lost() {
  bool lost = false;
  alignas(nlmsghdr) std::array<char, 16384> bytes;
  for (;;) {
    const ssize_t count = ::recv(socket_.get(), bytes.data(), bytes.size(), MSG_DONTWAIT);
    // Notices were dropped: it may have been ours.
    if (count < 0 && errno == ENOBUFS) lost = true;
    if (count < 0 && (errno == EINTR || errno == ENOBUFS)) continue;
    if (count <= 0) return lost;
    auto left = static_cast<unsigned>(count);
    for (const auto* head = reinterpret_cast<const nlmsghdr*>(bytes.data()); NLMSG_OK(head, left);
         head = NLMSG_NEXT(head, left)) {
      if (head->nlmsg_type != RTM_NEWLINK && head->nlmsg_type != RTM_DELLINK) continue;
      if (head->nlmsg_len < NLMSG_LENGTH(sizeof(ifinfomsg))) continue;
      const auto* const info = static_cast<const ifinfomsg*>(NLMSG_DATA(head));
      if (info->ifi_index != index_) continue;
      constexpr unsigned kUp = IFF_UP | IFF_RUNNING;
      lost |= head->nlmsg_type == RTM_DELLINK || (info->ifi_flags & kUp) != kUp;
    }
  }
}

}  // namespace kvl::tcp
