#include "netlink.hpp"

#include <linux/if_addr.h>
#include <linux/if_link.h>
#include <linux/if_tun.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <sys/socket.h>
#include <sys/time.h>

#include <algorithm>
#include <cstring>
#include <stdexcept>

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

template <typename T>
std::optional<T> copy_from(std::span<const std::uint8_t> bytes) {
  if (bytes.size() < sizeof(T)) return std::nullopt;
  T out;
  std::memcpy(&out, bytes.data(), sizeof out);
  return out;
}

/// Calls `each(type, value)` for every whole attribute.
template <typename Each>
void for_attributes(std::span<const std::uint8_t> bytes, Each each) {
  while (const auto head = copy_from<rtattr>(bytes)) {
    if (head->rta_len < sizeof(rtattr) || head->rta_len > bytes.size()) return;
    each(static_cast<std::uint16_t>(head->rta_type & NLA_TYPE_MASK),
         bytes.subspan(sizeof(rtattr), head->rta_len - sizeof(rtattr)));
    bytes =
        bytes.subspan(std::min(bytes.size(), (head->rta_len + std::size_t{3}) & ~std::size_t{3}));
  }
}

std::string text_of(std::span<const std::uint8_t> value) {
  const auto end = std::find(value.begin(), value.end(), 0);
  return std::string(value.begin(), end);
}

std::span<const std::uint8_t> bytes_of(const std::string& text) {
  // With the terminating zero, as interface names want it.
  return {reinterpret_cast<const std::uint8_t*>(text.c_str()), text.size() + 1};
}

void read_link_info(std::span<const std::uint8_t> info, Link& link) {
  std::span<const std::uint8_t> data;
  for_attributes(info, [&](std::uint16_t type, std::span<const std::uint8_t> value) {
    if (type == IFLA_INFO_KIND) link.kind = text_of(value);
    if (type == IFLA_INFO_DATA) data = value;
  });
  if (link.kind != "tun") return;
  for_attributes(data, [&](std::uint16_t type, std::span<const std::uint8_t> value) {
    if (type == IFLA_TUN_OWNER) link.owner = copy_from<std::uint32_t>(value);
    if (type == IFLA_TUN_TYPE) link.tap = !value.empty() && value[0] == IFF_TAP;
    if (type == IFLA_TUN_PERSIST) link.persistent = !value.empty() && value[0] != 0;
  });
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
    std::span<const std::uint8_t> rest(buffer.data(), static_cast<std::size_t>(size));
    while (const auto head = copy_from<nlmsghdr>(rest)) {
      if (head->nlmsg_len < sizeof(nlmsghdr) || head->nlmsg_len > rest.size()) break;
      const auto whole = rest.first(head->nlmsg_len);
      rest = rest.subspan(std::min(rest.size(), NLMSG_ALIGN(std::size_t{head->nlmsg_len})));
      if (head->nlmsg_seq != sequence) continue;  // left over from a call that timed out
      if (head->nlmsg_type == NLMSG_DONE) return answers;
      if (head->nlmsg_type == NLMSG_ERROR) {
        const auto error = copy_from<nlmsgerr>(whole.subspan(sizeof(nlmsghdr)));
        if (!error || error->error == 0) return answers;
        errno = -error->error;
        throw_errno("netlink");
      }
      answers.insert(answers.end(), whole.begin(), whole.end());
      answers.resize(NLMSG_ALIGN(answers.size()));
      if (!dump) return answers;
    }
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
  const std::span<const std::uint8_t> bytes(answer);
  if (bytes.size() < sizeof(nlmsghdr) + sizeof(ifinfomsg)) throw std::runtime_error("netlink");
  Link link;
  link.index = copy_from<ifinfomsg>(bytes.subspan(sizeof(nlmsghdr)))->ifi_index;
  for_attributes(bytes.subspan(sizeof(nlmsghdr) + sizeof(ifinfomsg)),
                 [&](std::uint16_t type, std::span<const std::uint8_t> value) {
                   if (type == IFLA_MTU) link.mtu = copy_from<std::uint32_t>(value).value_or(0);
                   if (type == IFLA_ADDRESS && value.size() == link.mac.size()) {
                     std::copy(value.begin(), value.end(), link.mac.begin());
                   }
                   if (type == IFLA_LINKINFO) read_link_info(value, link);
                 });
  return link;
}

void Netlink::add_address(int index, const InterfaceAddress& address) {
  ifaddrmsg header{};
  header.ifa_family = static_cast<std::uint8_t>(address.family);
  header.ifa_prefixlen = address.prefix;
  header.ifa_index = static_cast<std::uint32_t>(index);
  Request request(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL | NLM_F_ACK, header);
  const auto bytes = std::span(address.bytes).first(address.family == AF_INET ? 4 : 16);
  request.attribute(IFA_LOCAL, bytes);
  request.attribute(IFA_ADDRESS, bytes);
  if (address.family == AF_INET && address.prefix < 31) {
    std::array<std::uint8_t, 4> broadcast{};
    for (std::size_t i = 0; i < 4; ++i) {
      const int fixed = std::clamp(address.prefix - static_cast<int>(8 * i), 0, 8);
      broadcast[i] = static_cast<std::uint8_t>(address.bytes[i] | (0xff >> fixed));
    }
    request.attribute(IFA_BROADCAST, broadcast);
  }
  try {
    ask(request.finish(), false);
  } catch (const std::system_error& error) {
    if (error.code().value() != EEXIST) throw;
  }
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
  const std::vector<std::uint8_t> answers = ask(request.finish(), true);
  std::vector<AssignedAddress> out;
  std::span<const std::uint8_t> rest(answers);
  while (const auto head = copy_from<nlmsghdr>(rest)) {
    if (head->nlmsg_len < sizeof(nlmsghdr) + sizeof(ifaddrmsg) || head->nlmsg_len > rest.size()) {
      break;
    }
    const auto whole = rest.first(head->nlmsg_len);
    rest = rest.subspan(std::min(rest.size(), NLMSG_ALIGN(std::size_t{head->nlmsg_len})));
    const auto info = *copy_from<ifaddrmsg>(whole.subspan(sizeof(nlmsghdr)));
    if (info.ifa_family != AF_INET && info.ifa_family != AF_INET6) continue;
    AssignedAddress found;
    found.index = static_cast<int>(info.ifa_index);
    found.address.family = info.ifa_family;
    found.address.prefix = info.ifa_prefixlen;
    bool local = false;
    for_attributes(whole.subspan(sizeof(nlmsghdr) + sizeof(ifaddrmsg)),
                   [&](std::uint16_t type, std::span<const std::uint8_t> value) {
                     // On a point-to-point link IFA_ADDRESS is the peer's; IFA_LOCAL is ours.
                     if (value.size() > 16) return;
                     if (type == IFA_LOCAL || (type == IFA_ADDRESS && !local)) {
                       std::copy(value.begin(), value.end(), found.address.bytes.begin());
                       local = local || type == IFA_LOCAL;
                     }
                   });
    out.push_back(found);
  }
  return out;
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
