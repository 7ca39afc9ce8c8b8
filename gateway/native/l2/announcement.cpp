// See announcement.hpp.
#include "l2/announcement.hpp"

#include <algorithm>
#include <optional>

#include "l2/checksum.hpp"

namespace pairwire {
namespace {

using What = Announcement::Kind;

constexpr std::uint8_t kIcmpv6 = 58;
constexpr std::uint8_t kAuthentication = 51;

constexpr std::uint8_t kRouterSolicitation = 133;
constexpr std::uint8_t kRouterAdvertisement = 134;
constexpr std::uint8_t kNeighbourSolicitation = 135;
constexpr std::uint8_t kNeighbourAdvertisement = 136;
constexpr std::uint8_t kRedirectMessage = 137;
constexpr std::uint8_t kNdHopLimit = 255;

constexpr std::uint8_t kSourceLinkLayer = 1;
constexpr std::uint8_t kTargetLinkLayer = 2;
constexpr std::size_t kOptionUnit = 8;
/// The target of a solicitation or an advertisement stands behind type, code, checksum and flags.
constexpr std::size_t kTargetAt = 8;

constexpr std::uint16_t kArpRequest = 1;
constexpr std::uint16_t kArpReply = 2;

constexpr std::uint16_t kDhcpServerPort = 67;
constexpr std::uint16_t kDhcpClientPort = 68;
constexpr std::uint16_t kDhcpv6ClientPort = 546;
constexpr std::uint16_t kDhcpv6ServerPort = 547;

/// What is behind Ethernet header, tags and SNAP.
struct Inside {
  std::uint16_t type = 0;
  ConstBytes bytes;
  bool in_vlan = false;
  bool direct = false;  ///< neither tags nor SNAP
};

std::optional<Inside> look_inside(ConstBytes frame) noexcept {
  const auto ethernet = parse_ethernet(frame);
  if (!ethernet) return std::nullopt;
  Inside inside{ethernet->ethertype, frame.subspan(ethernet->size), false,
                ethernet->vlan_count == 0};
  for (std::size_t i = 0; i < ethernet->vlan_count; ++i) {
    inside.in_vlan |= (ethernet->vlan_tags[i] & 0x0fff) != 0;
  }
  if (inside.type >= ethertype::kSmallest) return inside;
  constexpr std::array<std::uint8_t, 5> kSnap{0xaa, 0xaa, 0x03, 0x00, 0x00};
  const ConstBytes llc = inside.bytes;
  if (llc.size() < 8 || !std::equal(kSnap.begin(), kSnap.end(), llc.begin()) ||
      (llc[5] != 0x00 && llc[5] != 0xf8)) {
    return std::nullopt;
  }
  return Inside{load_be16(&llc[6]), llc.subspan(8), inside.in_vlan, false};
}

MacAddress source_of(ConstBytes frame) noexcept {
  return MacAddress(frame.subspan<MacAddress::kSize, MacAddress::kSize>());
}

// --- ARP ----------------------------------------------------------------------------------------

void read_arp(const Inside& inside, const MacAddress& source, Announcement& out) noexcept {
  out.kind = What::kArp;
  const auto arp = parse_arp(inside.bytes);
  if (!arp || arp->sender_mac != source) {
    out.false_form = true;
    return;
  }
  if (arp->sender_ip != 0) out.claimed = IpAddress::of_ipv4(arp->sender_ip);
  // Who asks for its own address says only that it has it (RFC 5227: an announcement).
  if (inside.direct && arp->operation == kArpRequest && arp->target_ip != 0 &&
      arp->target_ip != arp->sender_ip) {
    out.asked = IpAddress::of_ipv4(arp->target_ip);
  }
}

// --- DHCP ---------------------------------------------------------------------------------------

/// `udp` begins with a UDP header, and may be the first part of a datagram only.
bool is_from_dhcp_server(ConstBytes udp) noexcept {
  constexpr std::uint8_t kReply = 2;  // BOOTREPLY
  if (udp.size() < kUdpHeaderSize) return false;
  if (load_be16(&udp[2]) == kDhcpClientPort) return true;
  return load_be16(&udp[0]) == kDhcpServerPort &&
         (udp.size() == kUdpHeaderSize || udp[kUdpHeaderSize] == kReply);
}

bool is_from_dhcpv6_server(ConstBytes udp) noexcept {
  constexpr std::array<std::uint8_t, 4> kOfServers{2, 7, 10, 13};
  if (udp.size() < kUdpHeaderSize) return false;
  // Clients look at the port that a message is for, and not all at the one that it is from.
  if (load_be16(&udp[2]) == kDhcpv6ClientPort) return true;
  return load_be16(&udp[0]) == kDhcpv6ServerPort &&
         (udp.size() == kUdpHeaderSize ||
          std::ranges::find(kOfServers, udp[kUdpHeaderSize]) != kOfServers.end());
}

/// DHCP clients read raw frames, and some look at nothing but header length, protocol and port: so
/// parse_ipv4(), which refuses what no IP stack takes, is not asked.
void read_ipv4(ConstBytes packet, Announcement& out) noexcept {
  if (packet.size() < kIpv4MinHeaderSize || packet[9] != ip_protocol::kUdp) return;
  // Later fragments have no ports, and are nothing without the first.
  if ((load_be16(&packet[offset::kIpv4Fragment]) & 0x1fff) != 0) return;
  const std::size_t header = std::min<std::size_t>((packet[0] & 0x0f) * 4U, packet.size());
  if (is_from_dhcp_server(packet.subspan(header))) out.kind = What::kDhcpServer;
}

// --- IPv6 ---------------------------------------------------------------------------------------

/// The upper layer of a packet.
struct Upper {
  std::uint8_t protocol = 0;
  ConstBytes bytes;
  bool fragment = false;
  bool later_fragment = false;  ///< then there is nothing to see
};

/// Walks the chain of headers; nothing if its end can't be found. Unlike parse_ipv6() it goes on
/// behind a fragment header and does not stop where the IPv6 header says that the packet ends.
std::optional<Upper> find_upper(ConstBytes packet) noexcept {
  Upper upper;
  std::uint8_t next = packet[6];
  ConstBytes rest = packet.subspan(kIpv6HeaderSize);
  for (std::size_t walked = 0;; ++walked) {
    std::size_t length = 0;
    switch (next) {
      case ip_protocol::kHopByHop:
      case ip_protocol::kRouting:
      case ip_protocol::kDestinationOptions:
        if (rest.size() >= 2) length = (std::size_t{rest[1]} + 1) * 8;
        break;
      case kAuthentication:  // RFC 4302
        if (rest.size() >= 2) length = (std::size_t{rest[1]} + 2) * 4;
        break;
      case ip_protocol::kFragment:
        if (rest.size() >= 8) length = 8;
        break;
      default:
        upper.protocol = next;
        upper.bytes = rest;
        return upper;
    }
    if (length == 0 || length > rest.size() || walked == kMaxExtensionHeaders) return std::nullopt;
    if (next == ip_protocol::kFragment) {
      upper.fragment = true;
      if ((load_be16(&rest[2]) & 0xfff8) != 0) {
        upper.later_fragment = true;
        return upper;
      }
    }
    next = rest[0];
    rest = rest.subspan(length);
  }
}

/// Whether options parse (RFC 4861, section 4.6) and those of the type `link_layer` name `source`.
bool options_hold(ConstBytes options, std::uint8_t link_layer, const MacAddress& source) noexcept {
  while (!options.empty()) {
    if (options.size() < 2) return false;
    const std::size_t length = options[1] * kOptionUnit;
    if (length == 0 || length > options.size()) return false;
    if (options[0] == link_layer &&
        (length != kOptionUnit || MacAddress(options.subspan<2, MacAddress::kSize>()) != source)) {
      return false;
    }
    options = options.subspan(length);
  }
  return true;
}

/// Bytes of a message before its options.
constexpr std::size_t fixed_part(std::uint8_t type) noexcept {
  switch (type) {
    case kRouterSolicitation:
      return 8;
    case kRouterAdvertisement:
      return 16;
    case kRedirectMessage:
      return 40;
    default:
      return 24;
  }
}

void read_neighbour(ConstBytes packet, const Upper& upper, const Inside& inside,
                    const MacAddress& source, Announcement& out) noexcept {
  const std::uint8_t type = upper.bytes[0];
  out.kind = type == kRouterAdvertisement ? What::kRouter
             : type == kRedirectMessage   ? What::kRedirect
                                          : What::kNeighbour;
  out.false_form = true;
  // What is behind the packet is padding. A payload of no length has not: some stacks then take all
  // that is there.
  const std::size_t claimed = load_be16(&packet[offset::kIpv6PayloadLength]);
  const std::size_t behind = packet.size() - kIpv6HeaderSize;
  if (claimed > behind || upper.fragment || packet[7] != kNdHopLimit) return;
  const std::size_t padding = claimed == 0 ? 0 : behind - claimed;
  if (padding > upper.bytes.size()) return;
  const ConstBytes message = upper.bytes.first(upper.bytes.size() - padding);
  const std::size_t fixed = fixed_part(type);
  if (message.size() < fixed) return;
  if (type != kRedirectMessage) {
    const std::uint8_t option =
        type == kNeighbourAdvertisement ? kTargetLinkLayer : kSourceLinkLayer;
    if (!options_hold(message.subspan(fixed), option, source)) return;
  } else if (!options_hold(message.subspan(fixed), 0, source)) {
    return;  // The target's link-layer address is not the sender's.
  }
  out.false_form = false;
  const auto sender = IpAddress::from(packet.subspan(offset::kIpv6Source, IpAddress::kIpv6Size));
  if (type == kNeighbourAdvertisement || type == kNeighbourSolicitation) {
    const auto target = IpAddress::from(message.subspan(kTargetAt, IpAddress::kIpv6Size));
    if (type == kNeighbourAdvertisement) {
      out.claimed = *target;
      return;
    }
    if (inside.direct && *target != *sender && !target->is_unspecified()) {
      out.asked = *target;
    }
  }
  if (type != kRedirectMessage && !sender->is_unspecified()) out.claimed = *sender;
}

void read_ipv6(const Inside& inside, const MacAddress& source, Announcement& out) noexcept {
  const ConstBytes packet = inside.bytes;
  if (packet.size() < kIpv6HeaderSize) return;
  const auto upper = find_upper(packet);
  const bool udp = upper && upper->protocol == ip_protocol::kUdp;
  const bool icmp = upper && upper->protocol == kIcmpv6;
  if (upper && upper->later_fragment) return;
  if (!upper || (udp && upper->bytes.size() < kUdpHeaderSize) || (icmp && upper->bytes.empty())) {
    out.kind = What::kNeighbour;
    out.false_form = true;
    return;
  }
  if (udp && is_from_dhcpv6_server(upper->bytes)) out.kind = What::kDhcpServer;
  if (icmp && upper->bytes[0] >= kRouterSolicitation && upper->bytes[0] <= kRedirectMessage) {
    read_neighbour(packet, *upper, inside, source, out);
  }
}

// --- Answers ------------------------------------------------------------------------------------

void write_ethernet(const MacAddress& to, const MacAddress& from, std::uint16_t type,
                    std::span<std::uint8_t, kNeighbourAnswerSize> out) noexcept {
  std::ranges::copy(to.bytes(), out.begin());
  std::ranges::copy(from.bytes(), out.begin() + MacAddress::kSize);
  store_be16(&out[2 * MacAddress::kSize], type);
}

void write_arp_reply(const Announcement& question, const MacAddress& asker, const MacAddress& owner,
                     Bytes arp) noexcept {
  constexpr std::array<std::uint8_t, 6> kIpv4OverEthernet{0, 1, 0x08, 0x00, 6, 4};
  std::ranges::copy(kIpv4OverEthernet, arp.begin());
  store_be16(&arp[6], kArpReply);
  std::ranges::copy(owner.bytes(), arp.begin() + 8);
  std::ranges::copy(question.asked.bytes(), arp.begin() + 14);
  std::ranges::copy(asker.bytes(), arp.begin() + 18);
  std::ranges::copy(question.claimed.bytes(), arp.begin() + 24);  // Nothing: it stays 0.0.0.0.
}

void write_advertisement(const Announcement& question, const MacAddress& owner, bool router,
                         Bytes packet) noexcept {
  constexpr std::array<std::uint8_t, 16> kAllNodes{0xff, 0x02, 0, 0, 0, 0, 0, 0,
                                                   0,    0,    0, 0, 0, 0, 0, 1};
  constexpr std::uint8_t kIsRouter = 0x80;
  constexpr std::uint8_t kSolicited = 0x40;
  constexpr std::uint8_t kOverride = 0x20;
  // Who has no address yet asks whether it may have this one: RFC 4861, section 7.2.4.
  const bool anonymous = question.claimed.is_none();
  const Bytes message = packet.subspan(kIpv6HeaderSize);
  packet[0] = 0x60;
  store_be16(&packet[offset::kIpv6PayloadLength], static_cast<std::uint16_t>(message.size()));
  packet[6] = kIcmpv6;
  packet[7] = kNdHopLimit;
  std::ranges::copy(question.asked.bytes(), packet.begin() + offset::kIpv6Source);
  std::ranges::copy(anonymous ? ConstBytes(kAllNodes) : question.claimed.bytes(),
                    packet.begin() + offset::kIpv6Destination);
  message[0] = kNeighbourAdvertisement;
  message[4] = static_cast<std::uint8_t>((router ? kIsRouter : 0) | (anonymous ? 0 : kSolicited) |
                                         kOverride);
  std::ranges::copy(question.asked.bytes(), message.begin() + kTargetAt);
  message[24] = kTargetLinkLayer;
  message[25] = 1;
  std::ranges::copy(owner.bytes(), message.begin() + 26);
  ChecksumSum sum = pseudo_header_sum(packet.subspan(offset::kIpv6Source, 32), kIcmpv6,
                                      static_cast<std::uint32_t>(message.size()));
  sum.add(message);
  store_be16(&message[2], sum.checksum());
}

}  // namespace

Announcement read_announcement(ConstBytes frame) noexcept {
  Announcement out;
  const auto inside = look_inside(frame);
  if (!inside) return out;
  out.in_vlan = inside->in_vlan;
  const MacAddress source = source_of(frame);
  const bool to_group = (frame[0] & 1) != 0;
  switch (inside->type) {
    case ethertype::kArp:
      read_arp(*inside, source, out);
      break;
    case ethertype::kIpv4:
      read_ipv4(inside->bytes, out);
      break;
    case ethertype::kIpv6:
      read_ipv6(*inside, source, out);
      break;
    default:
      break;
  }
  if (!to_group) out.asked = {};  // A neighbour is asked whether it is still there.
  return out;
}

std::size_t write_neighbour_answer(const Announcement& question, const MacAddress& asker,
                                   const MacAddress& owner, bool router,
                                   std::span<std::uint8_t, kNeighbourAnswerSize> out) noexcept {
  std::ranges::fill(out, std::uint8_t{0});
  const bool ipv4 = question.asked.is_ipv4();
  write_ethernet(asker, owner, ipv4 ? ethertype::kArp : ethertype::kIpv6, out);
  const Bytes inside = Bytes(out).subspan(kEthernetHeaderSize);
  if (ipv4) {
    write_arp_reply(question, asker, owner, inside);
    return kEthernetHeaderSize + kArpIpv4Size;
  }
  write_advertisement(question, owner, router, inside);
  return kNeighbourAnswerSize;
}

}  // namespace pairwire
