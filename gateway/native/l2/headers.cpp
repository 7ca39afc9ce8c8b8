// See headers.hpp.
#include "l2/headers.hpp"

#include <algorithm>

#include "l2/wire.hpp"

namespace pairwire {

namespace {

constexpr bool is_vlan_tag(std::uint16_t type) noexcept {
  return type == ethertype::kVlan || type == ethertype::kServiceVlan;
}

/// Whether a header fits its packet, which is `claimed` bytes long, and the packet is there.
constexpr bool holds(ConstBytes bytes, std::size_t header, std::size_t claimed) noexcept {
  return header <= claimed && claimed <= bytes.size();
}

}  // namespace

std::optional<EthernetHeader> parse_ethernet(ConstBytes bytes) noexcept {
  if (bytes.size() < kEthernetHeaderSize) return std::nullopt;
  EthernetHeader header;
  header.destination = MacAddress(bytes.first<MacAddress::kSize>());
  header.source = MacAddress(bytes.subspan<MacAddress::kSize, MacAddress::kSize>());
  header.ethertype = load_be16(&bytes[12]);
  std::size_t size = kEthernetHeaderSize;
  while (is_vlan_tag(header.ethertype) && header.vlan_count < kMaxVlanTags) {
    if (bytes.size() < size + kVlanTagSize) return std::nullopt;
    header.vlan_tags[header.vlan_count++] = load_be16(&bytes[size]);
    header.ethertype = load_be16(&bytes[size + 2]);
    size += kVlanTagSize;
  }
  header.size = static_cast<std::uint16_t>(size);
  return header;
}

std::optional<Ipv4Header> parse_ipv4(ConstBytes bytes) noexcept {
  if (bytes.size() < kIpv4MinHeaderSize || (bytes[0] >> 4) != 4) return std::nullopt;
  Ipv4Header header;
  header.size = static_cast<std::uint8_t>((bytes[0] & 0x0f) * 4);
  header.total_length = load_be16(&bytes[offset::kIpv4TotalLength]);
  if (header.size < kIpv4MinHeaderSize || !holds(bytes, header.size, header.total_length)) {
    return std::nullopt;
  }
  header.tos = bytes[1];
  header.id = load_be16(&bytes[offset::kIpv4Id]);
  const std::uint16_t fragment = load_be16(&bytes[offset::kIpv4Fragment]);
  header.dont_fragment = (fragment & 0x4000) != 0;
  header.more_fragments = (fragment & 0x2000) != 0;
  header.fragment_offset = fragment & 0x1fff;
  header.ttl = bytes[8];
  header.protocol = bytes[9];
  header.source = load_be32(&bytes[offset::kIpv4Source]);
  header.destination = load_be32(&bytes[offset::kIpv4Destination]);
  return header;
}

std::optional<Ipv6Header> parse_ipv6(ConstBytes bytes) noexcept {
  if (bytes.size() < kIpv6HeaderSize || (bytes[0] >> 4) != 6) return std::nullopt;
  Ipv6Header header;
  const std::uint32_t first_word = load_be32(bytes.data());
  header.traffic_class = static_cast<std::uint8_t>(first_word >> 20);
  header.flow_label = first_word & 0xfffff;
  header.payload_length = load_be16(&bytes[offset::kIpv6PayloadLength]);
  header.hop_limit = bytes[7];
  std::copy_n(&bytes[offset::kIpv6Source], 16, header.source.begin());
  std::copy_n(&bytes[offset::kIpv6Destination], 16, header.destination.begin());

  const std::size_t claimed = kIpv6HeaderSize + header.payload_length;
  if (claimed > bytes.size()) return std::nullopt;
  std::size_t size = kIpv6HeaderSize;
  std::uint8_t next = bytes[6];
  for (std::size_t walked = 0;; ++walked) {
    const bool fragment = next == ip_protocol::kFragment;
    // RFC 8200, section 4.3: hop-by-hop stands directly behind the IPv6 header.
    const bool hop_by_hop = next == ip_protocol::kHopByHop && walked == 0;
    if (!fragment && !hop_by_hop && next != ip_protocol::kRouting &&
        next != ip_protocol::kDestinationOptions) {
      break;
    }
    if (walked == kMaxExtensionHeaders || size + 8 > claimed) {
      return std::nullopt;
    }
    // The fragment header has no length field: it is always 8 bytes.
    const std::size_t length = fragment ? 8 : (std::size_t{bytes[size + 1]} + 1) * 8;
    next = bytes[size];
    size += length;
    if (size > claimed) return std::nullopt;
    if (fragment) {
      header.is_fragment = true;
      break;
    }
  }
  header.protocol = next;
  header.size = static_cast<std::uint16_t>(size);
  return header;
}

std::optional<TcpHeader> parse_tcp(ConstBytes bytes) noexcept {
  if (bytes.size() < kTcpMinHeaderSize) return std::nullopt;
  TcpHeader header;
  header.size = static_cast<std::uint8_t>((bytes[12] >> 4) * 4);
  if (header.size < kTcpMinHeaderSize || header.size > bytes.size()) {
    return std::nullopt;
  }
  header.source_port = load_be16(&bytes[0]);
  header.destination_port = load_be16(&bytes[2]);
  header.sequence = load_be32(&bytes[offset::kTcpSequence]);
  header.acknowledgement = load_be32(&bytes[8]);
  header.flags = bytes[offset::kTcpFlags];
  header.window = load_be16(&bytes[14]);
  return header;
}

std::optional<UdpHeader> parse_udp(ConstBytes bytes) noexcept {
  if (bytes.size() < kUdpHeaderSize) return std::nullopt;
  UdpHeader header;
  header.source_port = load_be16(&bytes[0]);
  header.destination_port = load_be16(&bytes[2]);
  header.length = load_be16(&bytes[offset::kUdpLength]);
  if (!holds(bytes, kUdpHeaderSize, header.length)) return std::nullopt;
  return header;
}

std::optional<ArpHeader> parse_arp(ConstBytes bytes) noexcept {
  // Hardware type Ethernet, protocol type IPv4, address lengths 6 and 4.
  constexpr std::array<std::uint8_t, 6> kIpv4OverEthernet{0, 1, 0x08, 0x00, 6, 4};
  if (bytes.size() < kArpIpv4Size ||
      !std::equal(kIpv4OverEthernet.begin(), kIpv4OverEthernet.end(), bytes.begin())) {
    return std::nullopt;
  }
  ArpHeader header;
  header.operation = load_be16(&bytes[6]);
  header.sender_mac = MacAddress(bytes.subspan<8, MacAddress::kSize>());
  header.sender_ip = load_be32(&bytes[14]);
  header.target_mac = MacAddress(bytes.subspan<18, MacAddress::kSize>());
  header.target_ip = load_be32(&bytes[24]);
  return header;
}

namespace {

/// Fills in the layer 4 part; `parsed` holds a whole IP packet's description.
void parse_transport(ConstBytes frame, ParsedFrame& parsed) noexcept {
  // What lies behind the packet is padding, not its header.
  const auto bytes = frame.subspan(parsed.l4_offset, parsed.ip_end() - parsed.l4_offset);
  parsed.kind = FrameKind::kNetwork;
  parsed.payload_offset = parsed.l4_offset;
  parsed.payload_length = static_cast<std::uint32_t>(bytes.size());
  if (parsed.is_fragment) return;

  std::size_t header_size = 0;
  std::size_t l4_length = bytes.size();
  if (parsed.l4_protocol == ip_protocol::kTcp) {
    if (const auto tcp = parse_tcp(bytes)) header_size = tcp->size;
  } else if (parsed.l4_protocol == ip_protocol::kUdp) {
    if (const auto udp = parse_udp(bytes)) {
      header_size = kUdpHeaderSize;
      l4_length = udp->length;
    }
  } else {
    return;
  }
  if (header_size == 0) {
    parsed.kind = FrameKind::kMalformed;
    return;
  }
  parsed.kind = FrameKind::kTransport;
  parsed.payload_offset = static_cast<std::uint32_t>(parsed.l4_offset + header_size);
  parsed.payload_length = static_cast<std::uint32_t>(l4_length - header_size);
  parsed.l4_trailer = static_cast<std::uint32_t>(bytes.size() - l4_length);
}

}  // namespace

ParsedFrame parse_frame(ConstBytes frame) noexcept {
  ParsedFrame parsed;
  const auto ethernet = parse_ethernet(frame);
  if (!ethernet) return parsed;

  parsed.kind = FrameKind::kOpaque;
  parsed.vlan_count = ethernet->vlan_count;
  parsed.ethertype = ethernet->ethertype;
  parsed.l3_offset = ethernet->size;
  const auto packet = frame.subspan(ethernet->size);

  std::size_t ip_header_size = 0;
  switch (ethernet->ethertype) {
    case ethertype::kIpv4: {
      parsed.kind = FrameKind::kMalformed;
      const auto ip = parse_ipv4(packet);
      if (!ip) return parsed;
      parsed.ip_version = 4;
      parsed.l4_protocol = ip->protocol;
      parsed.is_fragment = ip->is_fragment();
      parsed.has_ip_options = ip->size != kIpv4MinHeaderSize;
      parsed.ip_length = ip->total_length;
      ip_header_size = ip->size;
      break;
    }
    case ethertype::kIpv6: {
      parsed.kind = FrameKind::kMalformed;
      const auto ip = parse_ipv6(packet);
      if (!ip) return parsed;
      parsed.ip_version = 6;
      parsed.l4_protocol = ip->protocol;
      parsed.is_fragment = ip->is_fragment;
      parsed.has_ip_options = ip->size != kIpv6HeaderSize;
      parsed.ip_length = static_cast<std::uint32_t>(kIpv6HeaderSize + ip->payload_length);
      ip_header_size = ip->size;
      break;
    }
    case ethertype::kArp:
      parsed.kind = parse_arp(packet) ? FrameKind::kArp : FrameKind::kMalformed;
      return parsed;
    default:
      return parsed;
  }
  parsed.l4_offset = static_cast<std::uint32_t>(parsed.l3_offset + ip_header_size);
  parsed.padding = static_cast<std::uint32_t>(packet.size() - parsed.ip_length);
  parse_transport(frame, parsed);
  return parsed;
}

}  // namespace pairwire
