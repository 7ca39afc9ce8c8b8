#include "netlink.hpp"

#include <linux/if_addr.h>
#include <linux/if_link.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <sys/socket.h>
#include <sys/time.h>

#include <algorithm>
#include <cstring>

#include "throw-errno.hpp"

namespace pairwire::devices {
namespace {

/// A request being built. Attributes are aligned to 4 bytes as the kernel wants them.
class Request {
 public:
  template <typename Header>
  Request(std::uint16_t type, std::uint16_t flags, const Header& header) {
    nlmsghdr head{};
    head.nlmsg_type = type;
    head.nlmsg_flags = static_cast<std::uint16_t>(NLM_F_REQUEST | flags);
    append(&head, sizeof head);
    append(&header, sizeof header);
  }

  void attribute(std::uint16_t type, std::span<const std::uint8_t> value) {
    const rtattr head{static_cast<std::uint16_t>(sizeof(rtattr) + value.size()), type};
    append(&head, sizeof head);
    append(value.data(), value.size());
  }

  std::span<const std::uint8_t> finish() {
    const auto size = static_cast<std::uint32_t>(bytes_.size());
    std::memcpy(bytes_.data() + offsetof(nlmsghdr, nlmsg_len), &size, sizeof size);
    return bytes_;
  }

 private:
  void append(const void* data, std::size_t size) {
    const auto* bytes = static_cast<const std::uint8_t*>(data);
    bytes_.insert(bytes_.end(), bytes, bytes + size);
    bytes_.resize((bytes_.size() + 3) & ~std::size_t{3});
  }
  std::vector<std::uint8_t> bytes_;
};

std::span<const std::uint8_t> bytes_of(const std::string& text) {
  // With the terminating zero, as interface names want it.
  return {reinterpret_cast<const std::uint8_t*>(text.c_str()), text.size() + 1};
}

std::span<const std::uint8_t> bytes_of(const InterfaceAddress& address) {
  return std::span(address.bytes).first(address.family == AF_INET ? 4 : 16);
}

std::array<std::uint8_t, sizeof(std::uint32_t)> bytes_of(std::uint32_t number) {
  std::array<std::uint8_t, sizeof number> bytes{};
  std::memcpy(bytes.data(), &number, sizeof number);
  return bytes;
}

constexpr std::uint32_t kBestMetric = 1;
/// After whatever else leads somewhere.
constexpr std::uint32_t kBarrierMetric = 0x7fff'ffff;

rtmsg route_of(const InterfaceAddress& prefix) {
  rtmsg header{};
  header.rtm_family = static_cast<std::uint8_t>(prefix.family);
  header.rtm_dst_len = prefix.prefix;
  header.rtm_table = RT_TABLE_MAIN;
  header.rtm_protocol = RTPROT_STATIC;
  return header;
}

UniqueFd open_route_socket(std::uint32_t groups, int flags) {
  UniqueFd fd(socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | flags, NETLINK_ROUTE));
  if (!fd) throw_errno("netlink");
  sockaddr_nl address{};
  address.nl_family = AF_NETLINK;
  address.nl_groups = groups;
  if (bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    throw_errno("netlink");
  }
  return fd;
}

}  // namespace

Netlink::Netlink() : fd_(open_route_socket(0, 0)) {
  const timeval limit{5, 0};
  if (setsockopt(fd_.get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit) != 0) {
    throw_errno("netlink");
  }
}

std::vector<std::uint8_t> Netlink::ask(std::span<const std::uint8_t> request, bool dump) {
  std::vector<std::uint8_t> message(request.begin(), request.end());
  const std::uint32_t sequence = ++sequence_;
  std::memcpy(message.data() + offsetof(nlmsghdr, nlmsg_seq), &sequence, sizeof sequence);
  if (send(fd_.get(), message.data(), message.size(), 0) < 0) throw_errno("netlink");

  std::vector<std::uint8_t> answers;
  std::vector<std::uint8_t> buffer(64 << 10);
  while (true) {
    const ssize_t size = recv(fd_.get(), buffer.data(), buffer.size(), 0);
    if (size < 0 && errno == EINTR) continue;
    if (size < 0) throw_errno("netlink");
    const AnswerEnd end = take_answers(std::span(buffer).first(static_cast<std::size_t>(size)),
                                       sequence, dump, answers);
    if (end.error != 0) {
      errno = end.error;
      throw_errno("netlink");
    }
    if (end.ended) return answers;
  }
}

void Netlink::change(std::span<const std::uint8_t> request, int fine) {
  try {
    ask(request, false);
  } catch (const std::system_error& error) {
    if (error.code().value() != fine) throw;
  }
}

std::optional<Link> Netlink::find_link(const std::string& name) {
  ifinfomsg header{};
  Request request(RTM_GETLINK, 0, header);
  request.attribute(IFLA_IFNAME, bytes_of(name));
  std::vector<std::uint8_t> answer;
  try {
    answer = ask(request.finish(), false);
  } catch (const std::system_error& error) {
    if (error.code().value() == ENODEV) return std::nullopt;
    throw;
  }
  return parse_link(answer);
}

void Netlink::add_address(int index, const InterfaceAddress& address) {
  ifaddrmsg header{};
  header.ifa_family = static_cast<std::uint8_t>(address.family);
  header.ifa_prefixlen = address.prefix;
  header.ifa_index = static_cast<std::uint32_t>(index);
  Request request(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL | NLM_F_ACK, header);
  const auto bytes = bytes_of(address);
  request.attribute(IFA_LOCAL, bytes);
  request.attribute(IFA_ADDRESS, bytes);
  if (address.family == AF_INET && address.prefix < 31) {
    const InterfaceAddress broadcast = with_host_bits(address, true);
    request.attribute(IFA_BROADCAST, bytes_of(broadcast));
  }
  change(request.finish(), EEXIST);
}

void Netlink::add_route(int index, const InterfaceAddress& prefix) {
  rtmsg header = route_of(prefix);
  header.rtm_scope = prefix.family == AF_INET ? RT_SCOPE_LINK : RT_SCOPE_UNIVERSE;
  header.rtm_type = RTN_UNICAST;
  // Without NLM_F_EXCL: a route of the same prefix elsewhere stays, and ours goes before it.
  Request request(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_ACK, header);
  request.attribute(RTA_DST, bytes_of(prefix));
  request.attribute(RTA_OIF, bytes_of(static_cast<std::uint32_t>(index)));
  // IPv4 has 0, the best, without being told; IPv6 1,024.
  if (prefix.family == AF_INET6) request.attribute(RTA_PRIORITY, bytes_of(kBestMetric));
  change(request.finish(), EEXIST);
}

void Netlink::add_barrier(const InterfaceAddress& prefix) {
  change_barrier(prefix, true);
}

void Netlink::remove_barrier(const InterfaceAddress& prefix) {
  change_barrier(prefix, false);
}

void Netlink::change_barrier(const InterfaceAddress& prefix, bool add) {
  rtmsg header = route_of(prefix);
  header.rtm_type = RTN_UNREACHABLE;
  header.rtm_scope = add ? RT_SCOPE_UNIVERSE : RT_SCOPE_NOWHERE;
  Request request(add ? RTM_NEWROUTE : RTM_DELROUTE,
                  static_cast<std::uint16_t>(NLM_F_ACK | (add ? NLM_F_CREATE : 0)), header);
  request.attribute(RTA_DST, bytes_of(prefix));
  request.attribute(RTA_PRIORITY, bytes_of(kBarrierMetric));
  change(request.finish(), add ? EEXIST : ESRCH);
}

void Netlink::delete_link(int index) {
  ifinfomsg header{};
  header.ifi_index = index;
  Request request(RTM_DELLINK, NLM_F_ACK, header);
  ask(request.finish(), false);
}

std::vector<AssignedAddress> Netlink::addresses() {
  const ifaddrmsg header{};
  Request request(RTM_GETADDR, NLM_F_DUMP, header);
  return parse_addresses(ask(request.finish(), true));
}

UniqueFd watch_addresses() {
  return open_route_socket(RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR | RTMGRP_LINK, SOCK_NONBLOCK);
}

void drain_watch(int fd) {
  std::array<std::uint8_t, 8192> buffer{};
  // An overrun (ENOBUFS) loses notices, not addresses: we ask for all of them anyway.
  while (recv(fd, buffer.data(), buffer.size(), 0) >= 0 || errno == ENOBUFS || errno == EINTR) {
  }
}

}  // namespace pairwire::devices
