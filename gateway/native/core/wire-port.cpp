// See wire-port.hpp.
#include "core/wire-port.hpp"

#include <algorithm>

#include "core/frame.hpp"
#include "core/tables.hpp"
#include "l2/headers.hpp"

namespace pairwire {
namespace {

constexpr std::uint8_t kIcmpV6 = 58;
/// Router solicitation to redirect (RFC 4861, section 4), and the hop limit that says that it was
/// not forwarded.
constexpr std::uint8_t kFirstNeighbour = 133;
constexpr std::uint8_t kLastNeighbour = 137;
constexpr std::uint8_t kNotForwarded = 255;

/// Whether an address is, or may be, in another subnet. Of a group, and of what is good on one link
/// alone, nobody can say where it is.
bool is_elsewhere(const IpAddress& address, const PortSettings& settings, const NetRoutes& routes) {
  const ConstBytes bytes = address.bytes();
  const bool link_local = address.is_ipv4() ? bytes[0] == 169 && bytes[1] == 254
                                            : bytes[0] == 0xfe && (bytes[1] & 0xc0) == 0x80;
  if (address.is_group() || link_local) return false;
  const NetRoutes::Route* const route = routes.find(address);
  if (route != nullptr) return route->net != nullptr;
  return std::ranges::any_of(settings.elsewhere,
                             [&](const IpPrefix& one) { return one.covers(address); });
}

bool passes(std::uint8_t protocol, ConstBytes packet, const PortSettings& settings,
            const NetRoutes& routes) {
  if (protocol == kIpProtocol ||
      std::ranges::find(settings.pass, protocol) == settings.pass.end()) {
    return false;
  }
  const auto ends = ip_ends(packet);
  return ends && !is_elsewhere(ends->source, settings, routes) &&
         !is_elsewhere(ends->destination, settings, routes);
}

}  // namespace

bool crosses_in_clear(ConstBytes frame, const PortSettings& settings,
                      const NetRoutes& routes) noexcept {
  const auto ethernet = parse_ethernet(frame);
  if (!ethernet || ethernet->vlan_count != 0) return false;
  const ConstBytes packet = frame.subspan(ethernet->size);
  if (ethernet->ethertype == ethertype::kArp) return parse_arp(packet).has_value();
  if (ethernet->ethertype == ethertype::kIpv4) {
    const auto ip = parse_ipv4(packet);
    return ip && passes(ip->protocol, packet, settings, routes);
  }
  if (ethernet->ethertype != ethertype::kIpv6) return false;
  const auto ip = parse_ipv6(packet);
  if (!ip) return false;
  if (passes(ip->protocol, packet, settings, routes)) return true;
  return ip->hop_limit == kNotForwarded && is_neighbour_discovery(packet);
}

bool is_neighbour_discovery(ConstBytes packet) noexcept {
  if (packet.empty() || (packet.front() >> 4) != 6) return false;
  const auto ip = parse_ipv6(packet);
  if (!ip || ip->protocol != kIcmpV6 || ip->is_fragment) return false;
  const std::size_t end = kIpv6HeaderSize + ip->payload_length;
  return ip->size < end && packet[ip->size] >= kFirstNeighbour &&
         packet[ip->size] <= kLastNeighbour;
}

}  // namespace pairwire
