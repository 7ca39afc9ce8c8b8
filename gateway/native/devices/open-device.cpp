#include "open-device.hpp"

#include <fcntl.h>
#include <linux/filter.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <functional>
#include <span>
#include <stdexcept>
#include <utility>

#include "bridge.hpp"
#include "core/bytes.hpp"
#include "core/frame.hpp"
#include "throw-errno.hpp"

// Debian 12's <linux/if_tun.h> has no USO (Linux 6.2).
#ifndef TUN_F_USO4
#define TUN_F_USO4 0x20
#define TUN_F_USO6 0x40
#endif

namespace pairwire::devices {
namespace {

/// virtio_net_hdr without num_buffers.
constexpr int kVnetHeaderSize = 10;
/// The kernel doubles it, for its own bookkeeping.
constexpr int kBufferSize = 4 << 20;

ifreq request_for(const std::string& name) {
  ifreq request{};
  // device-list.cpp admits 15 characters at most, so the zero behind them stays.
  std::copy(name.begin(), name.end(), request.ifr_name);
  return request;
}

void refuse_stranger(const TapDevice& tap, const Link& link, uid_t owner) {
  if (link.kind != "tun" || !link.tap) {
    throw std::runtime_error(tap.name + " is there already and is no TAP");
  }
  if (!link.persistent || link.owner != owner) {
    throw std::runtime_error(tap.name + " is a TAP of somebody else");
  }
}

/// TUN_F_TSO_ECN is not asked for: CWR means one thing in RFC 3168 and another in RFC 9768, and the
/// vnet header does not tell them apart. Without it the kernel cuts such packets itself, rightly.
std::vector<std::string> set_offload(int fd, const std::string& name) {
  constexpr unsigned basic = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6;
  // USO4 and USO6 are taken both or not at all.
  if (ioctl(fd, TUNSETOFFLOAD, basic | TUN_F_USO4 | TUN_F_USO6) == 0) {
    return {"csum", "tso4", "tso6", "uso4", "uso6"};
  }
  if (ioctl(fd, TUNSETOFFLOAD, basic) == 0) return {"csum", "tso4", "tso6"};
  if (ioctl(fd, TUNSETOFFLOAD, 0) == 0) return {};
  throw_errno(name + ": TUNSETOFFLOAD");
}

void configure(int control, const TapDevice& tap, const Link& link) {
  const auto set = [&](unsigned long what, const ifreq& request, const char* name) {
    if (ioctl(control, what, &request) != 0) throw_errno(tap.name + ": " + name);
  };
  ifreq request = request_for(tap.name);
  // What is right already is not set again: a new MAC address makes IPv6 forget neighbours.
  if (link.mac != tap.mac) {
    request.ifr_hwaddr.sa_family = ARPHRD_ETHER;
    std::copy(tap.mac.begin(), tap.mac.end(),
              reinterpret_cast<std::uint8_t*>(request.ifr_hwaddr.sa_data));
    set(SIOCSIFHWADDR, request, "MAC address");
  }
  if (link.mtu != tap.mtu) {
    request = request_for(tap.name);
    request.ifr_mtu = static_cast<int>(tap.mtu);
    set(SIOCSIFMTU, request, "MTU");
  }
  request = request_for(tap.name);
  request.ifr_qlen = static_cast<int>(tap.queue_length);
  set(SIOCSIFTXQLEN, request, "txqueuelen");
}

/// Flags are only ever added; what has them already is left alone.
void add_flags(int control, const std::string& interface, int flags) {
  ifreq request = request_for(interface);
  if (ioctl(control, SIOCGIFFLAGS, &request) != 0) throw_errno(interface + ": flags");
  if ((request.ifr_flags & flags) == flags) return;
  request.ifr_flags = static_cast<short>(request.ifr_flags | flags);
  if (ioctl(control, SIOCSIFFLAGS, &request) != 0) throw_errno(interface + ": flags");
}

/// Accepts frames of our EtherType whose destination is in the list or is the broadcast address.
std::vector<sock_filter> filter_for(const std::vector<std::array<std::uint8_t, 6>>& macs) {
  constexpr std::uint32_t whole_frame = 0x40000;
  std::vector<sock_filter> program = {
      BPF_STMT(BPF_LD | BPF_H | BPF_ABS, 12),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, kEtherType, 1, 0),
      BPF_STMT(BPF_RET | BPF_K, 0),
  };
  std::vector<std::array<std::uint8_t, 6>> wanted = macs;
  wanted.push_back({0xff, 0xff, 0xff, 0xff, 0xff, 0xff});
  for (const auto& mac : wanted) {
    const std::span bytes(mac);
    // Each address returns by itself: jumps reach no further than 255 instructions.
    program.push_back(BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0));
    program.push_back(
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, load_be<std::uint32_t>(bytes.first<4>()), 0, 3));
    program.push_back(BPF_STMT(BPF_LD | BPF_H | BPF_ABS, 4));
    program.push_back(
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, load_be<std::uint16_t>(bytes.last<2>()), 0, 1));
    program.push_back(BPF_STMT(BPF_RET | BPF_K, whole_frame));
  }
  program.push_back(BPF_STMT(BPF_RET | BPF_K, 0));
  return program;
}

/// Accepts ARP and IP without a VLAN tag. The kernel may have taken a tag out of the frame, which
/// then would look like one without.
std::vector<sock_filter> wire_filter() {
  constexpr std::uint32_t whole_frame = 0x40000;
  constexpr std::uint32_t tagged = static_cast<std::uint32_t>(SKF_AD_OFF) + SKF_AD_VLAN_TAG_PRESENT;
  return {
      BPF_STMT(BPF_LD | BPF_B | BPF_ABS, tagged),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0, 0, 4),
      BPF_STMT(BPF_LD | BPF_H | BPF_ABS, 12),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ETH_P_IP, 3, 0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ETH_P_IPV6, 2, 0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ETH_P_ARP, 1, 0),
      BPF_STMT(BPF_RET | BPF_K, 0),
      BPF_STMT(BPF_RET | BPF_K, whole_frame),
  };
}

/// Has the interface take frames for any address.
void take_all(int fd, int index) {
  packet_mreq request{};
  request.mr_ifindex = index;
  request.mr_type = PACKET_MR_PROMISC;
  if (setsockopt(fd, SOL_PACKET, PACKET_ADD_MEMBERSHIP, &request, sizeof request) != 0) {
    throw_errno("PACKET_ADD_MEMBERSHIP");
  }
}

/// Has the interface take frames for an address that is not its own.
void join_address(int fd, int index, const std::array<std::uint8_t, 6>& mac) {
  packet_mreq request{};
  request.mr_ifindex = index;
  request.mr_type = PACKET_MR_UNICAST;
  request.mr_alen = static_cast<unsigned short>(mac.size());
  std::ranges::copy(mac, request.mr_address);
  if (setsockopt(fd, SOL_PACKET, PACKET_ADD_MEMBERSHIP, &request, sizeof request) == 0) return;
  take_all(fd, index);
}

void set_option(int fd, int level, int option, int value, const char* name) {
  if (setsockopt(fd, level, option, &value, sizeof value) != 0) throw_errno(name);
}

/// A packet socket on an interface, bound to one EtherType. `join` says for which addresses.
UniqueFd open_packet(const std::string& name, const Link& link, std::vector<sock_filter> filter,
                     std::uint16_t ethertype, const std::function<void(int)>& join) {
  if (link.type != ARPHRD_ETHER) throw std::runtime_error(name + " is no Ethernet interface");
  if (link.enslaved) {
    throw std::runtime_error(name +
                             " is part of a bridge or bond, which takes its frames; name that");
  }
  // Protocol 0: nothing is received before the filter is there and bind() says what.
  UniqueFd fd(socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd) throw_errno("packet socket");
  const sock_fprog program{static_cast<unsigned short>(filter.size()), filter.data()};
  if (setsockopt(fd.get(), SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program) != 0) {
    throw_errno("SO_ATTACH_FILTER");
  }
  set_option(fd.get(), SOL_SOCKET, SO_LOCK_FILTER, 1, "SO_LOCK_FILTER");
  set_option(fd.get(), SOL_PACKET, PACKET_IGNORE_OUTGOING, 1, "PACKET_IGNORE_OUTGOING");
  set_option(fd.get(), SOL_SOCKET, SO_RCVBUFFORCE, kBufferSize, "SO_RCVBUFFORCE");
  set_option(fd.get(), SOL_SOCKET, SO_SNDBUFFORCE, kBufferSize, "SO_SNDBUFFORCE");
  join(fd.get());
  sockaddr_ll address{};
  address.sll_family = AF_PACKET;
  address.sll_protocol = htons(ethertype);
  address.sll_ifindex = link.index;
  if (bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    throw_errno(name + ": bind");
  }
  return fd;
}

}  // namespace

OpenedTap open_tap(Netlink& netlink, const TapDevice& tap, uid_t owner,
                   const std::function<void()>& before_up) {
  OpenedTap opened;
  if (const auto link = netlink.find_link(tap.name)) {
    refuse_stranger(tap, *link, owner);
    opened.attached = true;
  }
  opened.fd.reset(open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK));
  if (!opened.fd) throw_errno("/dev/net/tun");
  const int fd = opened.fd.get();

  ifreq request = request_for(tap.name);
  request.ifr_flags =
      static_cast<short>(IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | (opened.attached ? 0 : IFF_TUN_EXCL));
  if (ioctl(fd, TUNSETIFF, &request) != 0) throw_errno(tap.name + ": TUNSETIFF");
  const int header_size = kVnetHeaderSize;
  if (ioctl(fd, TUNSETVNETHDRSZ, &header_size) != 0) throw_errno(tap.name + ": TUNSETVNETHDRSZ");
  opened.offload = set_offload(fd, tap.name);
  if (!opened.attached && ioctl(fd, TUNSETOWNER, static_cast<unsigned long>(owner)) != 0) {
    throw_errno(tap.name + ": TUNSETOWNER");
  }

  const auto link = netlink.find_link(tap.name);
  if (!link) throw std::runtime_error(tap.name + " is gone");
  const UniqueFd control(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (!control) throw_errno("socket");
  configure(control.get(), tap, *link);
  for (const InterfaceAddress& address : tap.addresses) netlink.add_address(link->index, address);
  if (!tap.bridge.empty()) {
    silence_ipv6(tap.name);
    if (!is_in(netlink, tap.name, tap.bridge)) put_into_bridge(tap.bridge, link->index);
  }
  if (!tap.arp) add_flags(control.get(), tap.name, IFF_NOARP);
  before_up();
  add_flags(control.get(), tap.name, IFF_UP);
  for (const InterfaceAddress& route : tap.routes) netlink.add_barrier(route);
  add_routes(netlink, tap);
  // Last, so that a TAP whose making failed half-way is gone with its descriptor.
  if (ioctl(fd, TUNSETPERSIST, 1UL) != 0) throw_errno(tap.name + ": TUNSETPERSIST");
  return opened;
}

void add_routes(Netlink& netlink, const TapDevice& tap) {
  if (tap.routes.empty()) return;
  const auto link = netlink.find_link(tap.name);
  if (!link || (link->flags & IFF_UP) == 0) return;
  for (const InterfaceAddress& route : tap.routes) netlink.add_route(link->index, route);
}

bool remove_tap(Netlink& netlink, const TapDevice& tap, uid_t owner) {
  for (const InterfaceAddress& route : tap.routes) netlink.remove_barrier(route);
  const auto link = netlink.find_link(tap.name);
  if (!link || link->kind != "tun" || !link->tap || link->owner != owner) return false;
  netlink.delete_link(link->index);
  return true;
}

UniqueFd open_udp(const UdpDevice& udp) {
  constexpr int type = SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK;
  const bool wants_v4 = !udp.bind || IN6_IS_ADDR_V4MAPPED(&*udp.bind);
  UniqueFd fd(socket(AF_INET6, type, IPPROTO_UDP));
  const bool v6 = static_cast<bool>(fd);
  if (!v6) {
    if (errno != EAFNOSUPPORT || !wants_v4) throw_errno("UDP socket");
    fd.reset(socket(AF_INET, type, IPPROTO_UDP));
    if (!fd) throw_errno("UDP socket");
  }
  if (v6) {
    set_option(fd.get(), IPPROTO_IPV6, IPV6_V6ONLY, 0, "IPV6_V6ONLY");
    set_option(fd.get(), IPPROTO_IPV6, IPV6_MTU_DISCOVER, IPV6_PMTUDISC_PROBE, "IPV6_MTU_DISCOVER");
  }
  // On an IPv6 socket as well: it counts for what goes to ::ffff:a.b.c.d.
  set_option(fd.get(), IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_PROBE, "IP_MTU_DISCOVER");
  set_option(fd.get(), SOL_UDP, UDP_GRO, 1, "UDP_GRO");
  set_option(fd.get(), SOL_SOCKET, SO_RCVBUFFORCE, kBufferSize, "SO_RCVBUFFORCE");
  set_option(fd.get(), SOL_SOCKET, SO_SNDBUFFORCE, kBufferSize, "SO_SNDBUFFORCE");
  if (udp.mark != 0) {
    set_option(fd.get(), SOL_SOCKET, SO_MARK, static_cast<int>(udp.mark), "SO_MARK");
  }
  if (!udp.device.empty() && setsockopt(fd.get(), SOL_SOCKET, SO_BINDTODEVICE, udp.device.c_str(),
                                        static_cast<socklen_t>(udp.device.size())) != 0) {
    throw_errno(udp.device + ": SO_BINDTODEVICE");
  }

  int result = 0;
  const auto attempt = [&](const sockaddr* address, socklen_t size) {
    result = bind(fd.get(), address, size);
  };
  if (v6) {
    sockaddr_in6 address{};
    address.sin6_family = AF_INET6;
    address.sin6_port = htons(udp.port);
    if (udp.bind) address.sin6_addr = *udp.bind;
    attempt(reinterpret_cast<const sockaddr*>(&address), sizeof address);
  } else {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(udp.port);
    if (udp.bind) std::memcpy(&address.sin_addr, &udp.bind->s6_addr[12], sizeof address.sin_addr);
    attempt(reinterpret_cast<const sockaddr*>(&address), sizeof address);
  }
  if (result != 0) throw_errno("UDP port " + std::to_string(udp.port));
  return fd;
}

void bring_up(const std::string& interface) {
  const UniqueFd control(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (!control) throw_errno("socket");
  add_flags(control.get(), interface, IFF_UP);
}

UniqueFd open_ethernet(const EthernetDevice& ethernet, const Link& link) {
  return open_packet(ethernet.name, link, filter_for(ethernet.macs), kEtherType, [&](int fd) {
    for (const auto& mac : ethernet.macs) {
      if (mac != link.mac) join_address(fd, link.index, mac);
    }
  });
}

UniqueFd open_wire(const WireDevice& wire, const Link& link) {
  // All EtherTypes: sockets of a single one are behind the ingress hook, where our guard drops all.
  return open_packet(wire.name, link, wire_filter(), ETH_P_ALL,
                     [&](int fd) { take_all(fd, link.index); });
}

}  // namespace pairwire::devices
