// Views of bytes, and integers in network byte order (big-endian).
// The one header of core/ that every other folder may include.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

namespace pairwire {

using Bytes = std::span<std::uint8_t>;
using ConstBytes = std::span<const std::uint8_t>;

/// Reads an unsigned integer that lies in network byte order, at any alignment.
template <std::unsigned_integral T>
[[nodiscard]] constexpr T load_be(std::span<const std::uint8_t, sizeof(T)> from) {
  T value = 0;
  for (const std::uint8_t byte : from) {
    // In 64 bits, because the shift of a smaller type would be one of a signed int.
    value = static_cast<T>((static_cast<std::uint64_t>(value) << 8) | byte);
  }
  return value;
}

/// Writes an unsigned integer in network byte order, at any alignment.
template <std::unsigned_integral T>
constexpr void store_be(std::span<std::uint8_t, sizeof(T)> to, std::type_identity_t<T> value) {
  for (std::size_t i = 0; i < sizeof(T); ++i) {
    to[i] = static_cast<std::uint8_t>(value >> (8 * (sizeof(T) - 1 - i)));
  }
}

}  // namespace pairwire
