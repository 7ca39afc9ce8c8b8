// An address within a VLAN: what bridges learn by. The same address in two VLANs may be two
// machines.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "l2/headers.hpp"
#include "l2/mac.hpp"

namespace pairwire {

/// IEEE 802.1Q: 12 bits, the highest of which is reserved.
inline constexpr std::uint16_t kLastVlanId = 4'094;

/// VLAN id of the outermost tag; 0 without a tag, and for a tag that gives a priority only.
/// `frame` has at least an Ethernet header.
[[nodiscard]] constexpr std::uint16_t outer_vlan(ConstBytes frame) noexcept {
  constexpr std::size_t type_at = 2 * MacAddress::kSize;
  const auto type = static_cast<std::uint16_t>((frame[type_at] << 8) | frame[type_at + 1]);
  if (type != ethertype::kVlan && type != ethertype::kServiceVlan) return 0;
  if (frame.size() < kEthernetHeaderSize + kVlanTagSize) return 0;
  return static_cast<std::uint16_t>(((frame[type_at + 2] << 8) | frame[type_at + 3]) & 0x0fff);
}

/// Threads: a plain value.
struct VlanMac {
  std::uint16_t vlan = 0;
  MacAddress mac;

  /// A number below 2^60, as tables and hashes want it; without a VLAN it is that of the address.
  [[nodiscard]] constexpr std::uint64_t to_integer() const noexcept {
    return (std::uint64_t{vlan} << 48) | mac.to_integer();
  }
  [[nodiscard]] static constexpr VlanMac from_integer(std::uint64_t number) noexcept {
    std::array<std::uint8_t, MacAddress::kSize> bytes{};
    for (std::size_t i = 0; i < bytes.size(); ++i) {
      bytes[i] = static_cast<std::uint8_t>(number >> (8 * (bytes.size() - 1 - i)));
    }
    return {static_cast<std::uint16_t>((number >> 48) & 0x0fff), MacAddress(bytes)};
  }

  friend constexpr bool operator==(const VlanMac&, const VlanMac&) noexcept = default;
};

}  // namespace pairwire
