// See group-guard.hpp.
#include "l2/group-guard.hpp"

#include <algorithm>
#include <array>

#include "l2/headers.hpp"
#include "l2/wire.hpp"

namespace pairwire {

namespace {

bool is_directed_broadcast(std::uint32_t address, const Ipv4Prefix& prefix) noexcept {
  // /31 and /32 have no directed broadcast (RFC 3021); /0 has 255.255.255.255.
  if (prefix.length == 0 || prefix.length > 30) return false;
  const std::uint32_t host_bits = 0xffffffffU >> prefix.length;
  return address == (prefix.address | host_bits);
}

bool is_unicast_ipv4(std::uint32_t address, std::span<const Ipv4Prefix> prefixes) noexcept {
  const bool multicast = (address >> 28) == 0xe;
  if (multicast || address == 0xffffffffU) return false;
  return std::none_of(prefixes.begin(), prefixes.end(), [&](const Ipv4Prefix& prefix) {
    return is_directed_broadcast(address, prefix);
  });
}

/// IP with a header of 802.2 LLC and SNAP (RFC 1042; RFC 1390 for OUI 00-00-f8).
bool is_snap_ip(ConstBytes llc) noexcept {
  constexpr std::array<std::uint8_t, 5> kSnap{0xaa, 0xaa, 0x03, 0x00, 0x00};
  if (llc.size() < 8 || !std::equal(kSnap.begin(), kSnap.end(), llc.begin())) return false;
  if (llc[5] != 0x00 && llc[5] != 0xf8) return false;
  const std::uint16_t type = load_be16(&llc[6]);
  // A tag behind SNAP may hide anything.
  return type == ethertype::kIpv4 || type == ethertype::kIpv6 || type == ethertype::kVlan ||
         type == ethertype::kServiceVlan;
}

}  // namespace

bool group_frame_has_unicast_ip(ConstBytes frame, std::span<const Ipv4Prefix> prefixes) noexcept {
  const auto ethernet = parse_ethernet(frame);
  if (!ethernet) return true;
  if (!ethernet->destination.is_group()) return false;
  const auto packet = frame.subspan(ethernet->size);
  switch (ethernet->ethertype) {
    case ethertype::kIpv4: {
      const auto ip = parse_ipv4(packet);
      return !ip || is_unicast_ipv4(ip->destination, prefixes);
    }
    case ethertype::kIpv6: {
      const auto ip = parse_ipv6(packet);
      return !ip || ip->destination[0] != 0xff;
    }
    case ethertype::kVlan:
    case ethertype::kServiceVlan:
      return true;
    default:
      return ethernet->ethertype < ethertype::kSmallest && is_snap_ip(packet);
  }
}

}  // namespace pairwire
