// Keeps unicast IP out of frames that everybody can make.
//
// Every member of a subnet holds the group key, so a group frame proves no
// sender and passes no policy between pairs. A unicast IP packet in a frame to a
// group MAC address ("Hole 196", after the page of IEEE 802.11-2007 that
// admits it) would reach a host that policy denies: most IP stacks take it.
#pragma once

#include <cstdint>
#include <span>

#include "core/bytes.hpp"

namespace pairwire {

/// A prefix of the subnet, whose directed broadcast (RFC 919) is allowed.
struct Ipv4Prefix {
  std::uint32_t address = 0;
  std::uint8_t length = 0;
};

/// Whether a frame to a group MAC address carries an IP packet for a single
/// host: IPv4 except multicast (RFC 1112), 255.255.255.255 and the directed
/// broadcasts of `prefixes`; IPv6 except multicast (RFC 4291, section 2.7).
///
/// An IP header that does not parse counts as such, and so does IP where hosts
/// may find it and our parser does not look: behind more than two VLAN tags, or
/// in LLC/SNAP (RFC 1042). ARP and everything else is false; so is a frame to an
/// individual address, which is not this function's business. A frame too short
/// for an Ethernet header is true.
[[nodiscard]] bool group_frame_has_unicast_ip(ConstBytes frame,
                                              std::span<const Ipv4Prefix> prefixes) noexcept;

}  // namespace pairwire
