// Loads and stores of header fields, which lie at unaligned addresses in network byte order.
//
// Nothing here checks bounds: the caller is a parser of headers.hpp that has checked the length
// once, or code that works on offsets such a parser gave.
#pragma once

#include <bit>
#include <cstdint>

#include "core/bytes.hpp"

namespace pairwire {

/// A 16-bit number as it lies in network byte order, and back.
constexpr std::uint16_t to_network(std::uint16_t value) noexcept {
  if constexpr (std::endian::native == std::endian::little) {
    return static_cast<std::uint16_t>((value << 8) | (value >> 8));
  }
  return value;
}

inline std::uint16_t load_be16(const std::uint8_t* at) noexcept {
  return load_be<std::uint16_t>(std::span<const std::uint8_t, 2>(at, 2));
}

inline std::uint32_t load_be32(const std::uint8_t* at) noexcept {
  return load_be<std::uint32_t>(std::span<const std::uint8_t, 4>(at, 4));
}

inline void store_be16(std::uint8_t* at, std::uint16_t value) noexcept {
  store_be<std::uint16_t>(std::span<std::uint8_t, 2>(at, 2), value);
}

inline void store_be32(std::uint8_t* at, std::uint32_t value) noexcept {
  store_be<std::uint32_t>(std::span<std::uint8_t, 4>(at, 4), value);
}

}  // namespace pairwire
