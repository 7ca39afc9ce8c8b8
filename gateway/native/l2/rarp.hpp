// A frame that shows bridges and switches by which way an address is reached: a request of RARP
// (RFC 903), which nobody answers. Hypervisors send the same when a machine has moved.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "l2/mac.hpp"

namespace pairwire {

/// The shortest frame of Ethernet, without its checksum.
inline constexpr std::size_t kRarpSize = 60;

/// Writes the frame that says: `mac` is here.
void write_rarp_request(const MacAddress& mac, std::span<std::uint8_t, kRarpSize> out) noexcept;

}  // namespace pairwire
