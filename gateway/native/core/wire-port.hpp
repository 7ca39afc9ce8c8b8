// What a link port of level `ip` lets by in clear. It is a bump in the wire between a subnet and
// its router: the two have to find each other (ARP, neighbour discovery), and may be allowed to
// speak more protocols (`pass`). Nothing else goes either way unsealed (threats.md C12).
#pragma once

#include <cstdint>

#include "core/bytes.hpp"
#include "core/net-routes.hpp"

namespace pairwire {

struct PortSettings;

/// Frames that cross in clear in one direction, in a second: subnet and router have little to say.
inline constexpr std::uint32_t kClearFrames = 2'000;
/// The least MTU that a sender is told of: RFC 8200, section 5.
inline constexpr std::uint32_t kLeastMtu = 1'280;

/// Whether `frame` may cross in clear, in either direction. Never a frame with a VLAN tag, nor,
/// besides neighbour discovery, one from or to another subnet: that is sealed or nothing.
[[nodiscard]] bool crosses_in_clear(ConstBytes frame, const PortSettings& settings,
                                    const NetRoutes& routes) noexcept;

/// Whether an IP packet is neighbour discovery (ICMPv6 133 to 137), which is for one link and comes
/// from no other subnet.
[[nodiscard]] bool is_neighbour_discovery(ConstBytes packet) noexcept;

}  // namespace pairwire
