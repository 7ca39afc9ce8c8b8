// See net-routes.hpp.
#include "core/net-routes.hpp"

#include <algorithm>

#include "l2/headers.hpp"

namespace pairwire {

std::optional<IpPrefix> IpPrefix::from(ConstBytes bytes, std::uint8_t bits) noexcept {
  const auto base = IpAddress::from(bytes);
  if (!base || bits > bytes.size() * 8) return std::nullopt;
  return IpPrefix(*base, bits);
}

bool IpPrefix::covers(const IpAddress& address) const noexcept {
  const ConstBytes ours = base_.bytes();
  const ConstBytes theirs = address.bytes();
  if (ours.size() != theirs.size()) return false;
  const std::size_t whole = bits_ / 8;
  for (std::size_t i = 0; i < whole; ++i) {
    if (ours[i] != theirs[i]) return false;
  }
  const unsigned rest = bits_ % 8;
  return rest == 0 || ((ours[whole] ^ theirs[whole]) >> (8 - rest)) == 0;
}

NetRoutes::NetRoutes(std::vector<Route> routes) : routes_(std::move(routes)) {
  std::ranges::sort(routes_, std::ranges::greater{},
                    [](const Route& route) { return route.prefix.bits(); });
}

const NetRoutes::Route* NetRoutes::find(const IpAddress& address) const noexcept {
  for (const Route& route : routes_) {
    if (route.prefix.covers(address)) return &route;
  }
  return nullptr;
}

bool NetRoutes::names(const Net& net) const noexcept {
  return std::ranges::any_of(routes_, [&](const Route& route) { return route.net == &net; });
}

std::optional<IpEnds> ip_ends(ConstBytes packet) noexcept {
  if (packet.empty()) return std::nullopt;
  const unsigned version = packet.front() >> 4;
  if (version == 4) {
    const auto ip = parse_ipv4(packet);
    if (!ip) return std::nullopt;
    return IpEnds{IpAddress::of_ipv4(ip->source), IpAddress::of_ipv4(ip->destination),
                  ethertype::kIpv4};
  }
  if (version == 6) {
    const auto ip = parse_ipv6(packet);
    if (!ip) return std::nullopt;
    return IpEnds{*IpAddress::from(ip->source), *IpAddress::from(ip->destination),
                  ethertype::kIpv6};
  }
  return std::nullopt;
}

}  // namespace pairwire
