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

bool is_elsewhere(const IpAddress& address, const NetRoutes& routes) {
  const NetRoutes::Route* const route = routes.find(address);
  return route != nullptr && route->net != nullptr;
}

bool passes(std::uint8_t protocol, ConstBytes packet, const PortSettings& settings,
            const NetRoutes& routes) {
  if (protocol == kIpProtocol ||
      std::ranges::find(settings.pass, protocol) == settings.pass.end()) {
    return false;
  }
  const auto ends = ip_ends(packet);
  return ends && !is_elsewhere(ends->source, routes) && !is_elsewhere(ends->destination, routes);
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
  const std::size_t end = kIpv6HeaderSize + ip->payload_length;
  return ip->protocol == kIcmpV6 && !ip->is_fragment && ip->hop_limit == kNotForwarded &&
         ip->size < end && packet[ip->size] >= kFirstNeighbour &&
         packet[ip->size] <= kLastNeighbour;
}

}  // namespace pairwire
