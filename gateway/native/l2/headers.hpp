// One bounds-checked parser for each header that the data plane reads, and
// `parse_frame`, which walks them.
//
// Every other file works on the offsets found here and never looks at a
// length field again. A parser gets the bytes from its header's first byte on
// and answers `nullopt` where a header is cut short or contradicts itself.
// Nothing here allocates, throws or keeps a pointer.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "core/bytes.hpp"
#include "l2/mac.hpp"

namespace pairwire {

// Specification constants.

/// EtherTypes (IANA "IEEE 802 Numbers").
namespace ethertype {
inline constexpr std::uint16_t kIpv4 = 0x0800;
inline constexpr std::uint16_t kArp = 0x0806;
inline constexpr std::uint16_t kVlan = 0x8100;         ///< IEEE 802.1Q C-tag
inline constexpr std::uint16_t kServiceVlan = 0x88a8;  ///< IEEE 802.1ad S-tag
inline constexpr std::uint16_t kIpv6 = 0x86dd;
/// Smaller values are the length of an IEEE 802.3 (LLC) frame.
inline constexpr std::uint16_t kSmallest = 0x0600;
}  // namespace ethertype

/// Protocol numbers (IANA "Assigned Internet Protocol Numbers").
namespace ip_protocol {
inline constexpr std::uint8_t kHopByHop = 0;
inline constexpr std::uint8_t kTcp = 6;
inline constexpr std::uint8_t kUdp = 17;
inline constexpr std::uint8_t kRouting = 43;
inline constexpr std::uint8_t kFragment = 44;
inline constexpr std::uint8_t kDestinationOptions = 60;
}  // namespace ip_protocol

namespace tcp_flag {
inline constexpr std::uint8_t kFin = 0x01;
inline constexpr std::uint8_t kSyn = 0x02;
inline constexpr std::uint8_t kRst = 0x04;
inline constexpr std::uint8_t kPsh = 0x08;
inline constexpr std::uint8_t kAck = 0x10;
inline constexpr std::uint8_t kUrg = 0x20;
inline constexpr std::uint8_t kEce = 0x40;  ///< RFC 3168
inline constexpr std::uint8_t kCwr = 0x80;  ///< RFC 3168
}  // namespace tcp_flag

inline constexpr std::size_t kEthernetHeaderSize = 14;
inline constexpr std::size_t kVlanTagSize = 4;
inline constexpr std::size_t kIpv4MinHeaderSize = 20;
inline constexpr std::size_t kIpv6HeaderSize = 40;
inline constexpr std::size_t kTcpMinHeaderSize = 20;
inline constexpr std::size_t kUdpHeaderSize = 8;
inline constexpr std::size_t kArpIpv4Size = 28;
/// The length fields of IPv4 (with header) and IPv6 (without) have 16 bits.
inline constexpr std::size_t kMaxIpLength = 65535;

/// Where a field lies in its header.
namespace offset {
inline constexpr std::size_t kIpv4TotalLength = 2;
inline constexpr std::size_t kIpv4Id = 4;
inline constexpr std::size_t kIpv4Fragment = 6;
inline constexpr std::size_t kIpv4Checksum = 10;
inline constexpr std::size_t kIpv4Source = 12;
inline constexpr std::size_t kIpv4Destination = 16;
inline constexpr std::size_t kIpv6PayloadLength = 4;
inline constexpr std::size_t kIpv6Source = 8;
inline constexpr std::size_t kIpv6Destination = 24;
inline constexpr std::size_t kTcpSequence = 4;
inline constexpr std::size_t kTcpFlags = 13;
inline constexpr std::size_t kTcpChecksum = 16;
inline constexpr std::size_t kUdpLength = 4;
inline constexpr std::size_t kUdpChecksum = 6;
}  // namespace offset

// Implementation constants.

/// More tags than these are not looked behind: the EtherType then is a tag's.
inline constexpr std::size_t kMaxVlanTags = 2;
/// A bound for the walk; RFC 8200, section 4.1, recommends at most 5 of the
/// kinds that we follow.
inline constexpr std::size_t kMaxExtensionHeaders = 8;

/// Ethernet II or IEEE 802.3, with up to two tags.
struct EthernetHeader {
  MacAddress destination;
  MacAddress source;
  std::uint16_t ethertype = 0;  ///< behind the tags
  std::uint8_t vlan_count = 0;
  std::array<std::uint16_t, kMaxVlanTags> vlan_tags{};  ///< TCI, the outer one first
  std::uint16_t size = 0;                               ///< with tags: 14, 18 or 22
};
[[nodiscard]] std::optional<EthernetHeader> parse_ethernet(ConstBytes bytes) noexcept;

/// IPv4, RFC 791. The header's own checksum is not looked at.
struct Ipv4Header {
  std::uint8_t size = 0;  ///< with options
  std::uint8_t tos = 0;
  std::uint8_t ttl = 0;
  std::uint8_t protocol = 0;
  std::uint16_t total_length = 0;
  std::uint16_t id = 0;
  std::uint16_t fragment_offset = 0;  ///< in units of 8 bytes
  bool dont_fragment = false;
  bool more_fragments = false;
  std::uint32_t source = 0;
  std::uint32_t destination = 0;

  bool is_fragment() const noexcept { return more_fragments || fragment_offset != 0; }
};
/// `bytes` are the packet and perhaps padding behind it.
[[nodiscard]] std::optional<Ipv4Header> parse_ipv4(ConstBytes bytes) noexcept;

/// IPv6, RFC 8200, with the extension headers that we follow (hop-by-hop,
/// routing, destination options, fragment).
struct Ipv6Header {
  std::uint8_t traffic_class = 0;
  std::uint32_t flow_label = 0;
  std::uint8_t hop_limit = 0;
  std::uint16_t payload_length = 0;
  /// What comes behind the last extension header that was followed.
  std::uint8_t protocol = 0;
  std::uint16_t size = 0;  ///< with these extension headers
  /// Any fragment header, also that of an atomic fragment (RFC 6946): what is
  /// behind it is not looked at.
  bool is_fragment = false;
  std::array<std::uint8_t, 16> source{};
  std::array<std::uint8_t, 16> destination{};
};
/// `bytes` as for parse_ipv4. A jumbogram (RFC 2675) is refused.
[[nodiscard]] std::optional<Ipv6Header> parse_ipv6(ConstBytes bytes) noexcept;

/// TCP, RFC 9293.
struct TcpHeader {
  std::uint16_t source_port = 0;
  std::uint16_t destination_port = 0;
  std::uint32_t sequence = 0;
  std::uint32_t acknowledgement = 0;
  std::uint8_t size = 0;  ///< with options
  std::uint8_t flags = 0;
  std::uint16_t window = 0;
};
[[nodiscard]] std::optional<TcpHeader> parse_tcp(ConstBytes bytes) noexcept;

/// UDP, RFC 768.
struct UdpHeader {
  std::uint16_t source_port = 0;
  std::uint16_t destination_port = 0;
  std::uint16_t length = 0;  ///< with the header
};
[[nodiscard]] std::optional<UdpHeader> parse_udp(ConstBytes bytes) noexcept;

/// ARP for IPv4 over Ethernet, RFC 826; other kinds of address are refused.
struct ArpHeader {
  std::uint16_t operation = 0;  ///< 1 request, 2 reply
  MacAddress sender_mac;
  std::uint32_t sender_ip = 0;
  MacAddress target_mac;
  std::uint32_t target_ip = 0;
};
[[nodiscard]] std::optional<ArpHeader> parse_arp(ConstBytes bytes) noexcept;

/// How far the parse came.
enum class FrameKind : std::uint8_t {
  kTruncated,  ///< not even an Ethernet header
  kMalformed,  ///< an IP, TCP, UDP or ARP header that is cut short or contradicts itself
  kOpaque,     ///< Ethernet; nothing is known about what is inside
  kArp,        ///< ARP for IPv4 over Ethernet
  kNetwork,    ///< IP, but a fragment, or neither TCP nor UDP
  kTransport,  ///< IP, not a fragment, with a complete TCP or UDP header
};

/// The structure of a frame. Offsets count from the destination MAC address.
/// `l3_offset` is set unless `truncated`, all others for `network` and
/// `transport` only. All ranges lie within the frame.
struct ParsedFrame {
  FrameKind kind = FrameKind::kTruncated;
  std::uint8_t vlan_count = 0;
  std::uint16_t ethertype = 0;   ///< behind the tags
  std::uint8_t ip_version = 0;   ///< 4 or 6; 0 when not IP
  std::uint8_t l4_protocol = 0;  ///< behind the extension headers
  bool is_fragment = false;
  bool has_ip_options = false;  ///< IPv4 options or IPv6 extension headers
  std::uint32_t l3_offset = 0;
  std::uint32_t l4_offset = 0;
  std::uint32_t payload_offset = 0;  ///< behind the TCP or UDP header; else l4_offset
  std::uint32_t payload_length = 0;  ///< as the headers say
  std::uint32_t ip_length = 0;       ///< IP header and what it carries, as the header says
  /// Bytes of the IP packet behind the end of a UDP datagram; not part of
  /// payload_length. Zero except in odd packets.
  std::uint32_t l4_trailer = 0;
  /// Bytes of the frame behind the IP packet: Ethernet padding.
  std::uint32_t padding = 0;

  bool is_tcp() const noexcept;
  bool is_udp() const noexcept;
  /// Where the IP packet ends.
  std::uint32_t ip_end() const noexcept { return l3_offset + ip_length; }
  /// Where the TCP segment or UDP datagram ends, and how long it is.
  std::uint32_t l4_end() const noexcept { return payload_offset + payload_length; }
  std::uint32_t l4_length() const noexcept { return l4_end() - l4_offset; }
};

[[nodiscard]] ParsedFrame parse_frame(ConstBytes frame) noexcept;

// Inline: asked several times for each frame.
inline bool ParsedFrame::is_tcp() const noexcept {
  return kind == FrameKind::kTransport && l4_protocol == ip_protocol::kTcp;
}
inline bool ParsedFrame::is_udp() const noexcept {
  return kind == FrameKind::kTransport && l4_protocol == ip_protocol::kUdp;
}

}  // namespace pairwire
