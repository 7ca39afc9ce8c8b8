// The 48-bit MAC address (IEEE Std 802-2014, section 8.2) as a value.
#pragma once

#include <algorithm>
#include <array>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>

namespace pairwire {

class MacAddress {
 public:
  static constexpr std::size_t kSize = 6;

  constexpr MacAddress() noexcept = default;

  explicit constexpr MacAddress(std::span<const std::uint8_t, kSize> bytes) noexcept {
    std::copy(bytes.begin(), bytes.end(), bytes_.begin());
  }

  explicit constexpr MacAddress(const std::array<std::uint8_t, kSize>& bytes) noexcept
      : bytes_(bytes) {}

  static constexpr MacAddress broadcast() noexcept {
    return MacAddress(std::array<std::uint8_t, kSize>{0xff, 0xff, 0xff, 0xff, 0xff, 0xff});
  }

  constexpr std::span<const std::uint8_t, kSize> bytes() const noexcept { return bytes_; }

  /// Multicast or broadcast: the lowest bit of the first byte.
  constexpr bool is_group() const noexcept { return (bytes_[0] & 0x01) != 0; }

  constexpr bool is_broadcast() const noexcept { return *this == broadcast(); }

  /// Given by an administrator instead of a manufacturer.
  constexpr bool is_local() const noexcept { return (bytes_[0] & 0x02) != 0; }

  constexpr bool is_zero() const noexcept { return to_integer() == 0; }

  /// The address as a number below 2^48, as tables and hashes want it.
  constexpr std::uint64_t to_integer() const noexcept {
    std::uint64_t value = 0;
    for (const std::uint8_t byte : bytes_) value = (value << 8) | byte;
    return value;
  }

  friend constexpr auto operator<=>(const MacAddress&, const MacAddress&) noexcept = default;

 private:
  std::array<std::uint8_t, kSize> bytes_{};
};

// Tables hold arrays of addresses as they are on the wire.
static_assert(sizeof(MacAddress) == MacAddress::kSize);

}  // namespace pairwire

/// Mixes all 48 bits (the finaliser of splitmix64): addresses of one
/// manufacturer differ in the low bits only, and some tables use the high ones.
/// Not keyed: a table that strangers can fill must bound its chains itself.
template <>
struct std::hash<pairwire::MacAddress> {
  constexpr std::size_t operator()(const pairwire::MacAddress& mac) const noexcept {
    std::uint64_t x = mac.to_integer() + 0x9e3779b97f4a7c15U;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9U;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebU;
    return static_cast<std::size_t>(x ^ (x >> 31));
  }
};
