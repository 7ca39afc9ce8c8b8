// What a link port of level `ip` lets by in clear. It is a bump in the wire between a subnet and
// its router: the two have to find each other (ARP, neighbour discovery), and may be allowed to
// speak more protocols (`pass`). Nothing else goes either way unsealed (threats.md C12).
#pragma once

#include "core/bytes.hpp"
#include "core/net-routes.hpp"

namespace pairwire {

struct PortSettings;

/// Whether `frame` may cross in clear, in either direction. Never a frame with a VLAN tag, nor,
/// besides neighbour discovery, one from or to another subnet: that is sealed or nothing.
[[nodiscard]] bool crosses_in_clear(ConstBytes frame, const PortSettings& settings,
                                    const NetRoutes& routes) noexcept;

}  // namespace pairwire
