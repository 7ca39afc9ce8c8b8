#include "netlink-answers.hpp"

#include <linux/if_addr.h>
#include <linux/if_link.h>
#include <linux/if_tun.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <stdexcept>

namespace pairwire::devices {
namespace {

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

void read_link_info(std::span<const std::uint8_t> info, Link& link) {
  // Of several, the last counts, and as a whole: nothing of a "tun" before it stays.
  link.kind.clear();
  link.tap = link.persistent = false;
  link.owner.reset();
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

}  // namespace

AnswerEnd take_answers(std::span<const std::uint8_t> datagram, std::uint32_t sequence, bool dump,
                       std::vector<std::uint8_t>& answers) {
  while (const auto head = copy_from<nlmsghdr>(datagram)) {
    if (head->nlmsg_len < sizeof(nlmsghdr) || head->nlmsg_len > datagram.size()) break;
    const auto whole = datagram.first(head->nlmsg_len);
    datagram =
        datagram.subspan(std::min(datagram.size(), NLMSG_ALIGN(std::size_t{head->nlmsg_len})));
    if (head->nlmsg_seq != sequence) continue;  // left over from a call that timed out
    if (head->nlmsg_type == NLMSG_DONE) return {true, 0};
    if (head->nlmsg_type == NLMSG_ERROR) {
      const auto error = copy_from<nlmsgerr>(whole.subspan(sizeof(nlmsghdr)));
      if (error && error->error == 0) return {true, 0};
      // The kernel's are -4095 to -1; the smallest int has no positive counterpart.
      const bool known = error && error->error < 0 && error->error >= -4095;
      return {true, known ? -error->error : EPROTO};
    }
    answers.insert(answers.end(), whole.begin(), whole.end());
    answers.resize(NLMSG_ALIGN(answers.size()));
    if (!dump) return {true, 0};
  }
  return {};
}

Link parse_link(std::span<const std::uint8_t> answer) {
  if (answer.size() < sizeof(nlmsghdr) + sizeof(ifinfomsg)) throw std::runtime_error("netlink");
  Link link;
  const ifinfomsg info = *copy_from<ifinfomsg>(answer.subspan(sizeof(nlmsghdr)));
  link.index = info.ifi_index;
  link.type = info.ifi_type;
  link.flags = info.ifi_flags;
  for_attributes(answer.subspan(sizeof(nlmsghdr) + sizeof(ifinfomsg)),
                 [&](std::uint16_t type, std::span<const std::uint8_t> value) {
                   if (type == IFLA_MTU) link.mtu = copy_from<std::uint32_t>(value).value_or(0);
                   if (type == IFLA_ADDRESS && value.size() == link.mac.size()) {
                     std::copy(value.begin(), value.end(), link.mac.begin());
                   }
                   if (type == IFLA_MASTER) {
                     link.enslaved = true;
                     link.master = copy_from<int>(value).value_or(0);
                   }
                   if (type == IFLA_LINKINFO) read_link_info(value, link);
                 });
  return link;
}

std::vector<AssignedAddress> parse_addresses(std::span<const std::uint8_t> answers) {
  std::vector<AssignedAddress> out;
  std::span<const std::uint8_t> rest = answers;
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

}  // namespace pairwire::devices
