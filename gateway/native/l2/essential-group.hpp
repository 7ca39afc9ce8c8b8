// Which group frames a network can't do without.
#pragma once

#include "core/bytes.hpp"

namespace pairwire {

/// Whether a frame to a group address is ARP, neighbour discovery (ICMPv6 133 to 137, RFC 4861),
/// DHCP or DHCPv6 (RFC 2131, RFC 8415): what `broadcast: essential` lets out of a plain port. A
/// frame that does not parse is none of them, nor is what stands behind more than two VLAN tags.
[[nodiscard]] bool is_essential_group(ConstBytes frame) noexcept;

}  // namespace pairwire
