// ARP and neighbour discovery for tests, made byte by byte from RFC 826 and RFC 4861.
#pragma once

#include "l2/mac.hpp"
#include "test/l2-frames.hpp"

namespace pairwire::test {

inline void append_mac(Frame& to, const MacAddress& mac) {
  append(to, std::span<const std::uint8_t>(mac.bytes()));
}

inline Frame ethernet_frame(const MacAddress& to, const MacAddress& from, unsigned type,
                            const Frame& inside) {
  Frame frame;
  append_mac(frame, to);
  append_mac(frame, from);
  append16(frame, type);
  append(frame, inside);
  return frame;
}

inline Frame arp_packet(unsigned operation, const MacAddress& sender, std::uint32_t sender_ip,
                        const MacAddress& target, std::uint32_t target_ip) {
  Frame arp{0, 1, 0x08, 0x00, 6, 4};
  append16(arp, operation);
  append_mac(arp, sender);
  append32(arp, sender_ip);
  append_mac(arp, target);
  append32(arp, target_ip);
  return arp;
}

/// fd00::NUMBER
inline Frame ipv6_of(unsigned number) {
  Frame address{0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0};
  append16(address, number);
  return address;
}

/// `first` is the type of what comes first, of `extensions` or else of `payload`. The checksum of
/// ICMPv6 directly behind the header is filled in.
inline Frame ipv6_packet(const Frame& from, const Frame& to, unsigned first, unsigned hops,
                         const Frame& extensions, Frame payload) {
  Frame packet{0x60, 0, 0, 0};
  append16(packet, extensions.size() + payload.size());
  append(packet, {first, hops});
  append(packet, from);
  append(packet, to);
  if (extensions.empty() && first == 58 && payload.size() >= 4) {
    Frame summed = from;
    append(summed, to);
    append32(summed, static_cast<std::uint32_t>(payload.size()));
    append32(summed, 58);
    append(summed, payload);
    put16(payload, 2, ~judge::slow_sum(summed) & 0xffff);
  }
  append(packet, extensions);
  append(packet, payload);
  return packet;
}

/// A link-layer address option, type 1 (source's) or 2 (target's).
inline Frame link_option(unsigned type, const MacAddress& mac) {
  Frame option;
  option.reserve(8);
  append(option, {type, 1});
  append_mac(option, mac);
  return option;
}

/// A solicitation (135) or advertisement (136).
inline Frame neighbour(unsigned type, const Frame& target, const Frame& options) {
  Frame message;
  append(message, {type, 0, 0, 0, 0, 0, 0, 0});
  append(message, target);
  append(message, options);
  return message;
}
inline Frame router_solicitation(const Frame& options) {
  Frame message;
  append(message, {133, 0, 0, 0, 0, 0, 0, 0});
  append(message, options);
  return message;
}
inline Frame router_advertisement(const Frame& options) {
  Frame message;
  append(message, {134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0});
  append(message, options);
  return message;
}
inline Frame redirect(const Frame& options) {
  Frame message;
  append(message, {137, 0, 0, 0, 0, 0, 0, 0});
  append(message, ipv6_of(5));
  append(message, ipv6_of(6));
  append(message, options);
  return message;
}

}  // namespace pairwire::test
