// What a measuring datagram carries, and what a size means.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

namespace pairwire::benchnet {

/// Sizes on the command line count the whole IPv4 packet: this much of it is not payload.
inline constexpr std::size_t kHeaders = 20 + 8;

/// First bytes of the payload, in host order: both ends run on one machine.
struct Stamp {
  std::uint64_t run = 0;       ///< drawn for each measurement, so that late packets are known
  std::uint64_t sequence = 0;  ///< from 0
};
static_assert(std::endian::native == std::endian::little && sizeof(Stamp) == 16);

inline constexpr std::size_t kSmallest = kHeaders + sizeof(Stamp);
inline constexpr std::size_t kLargest = 9000;

}  // namespace pairwire::benchnet
