// A TAP opened with IFF_VNET_HDR (header of 10 bytes) and O_NONBLOCK. The broker has configured it;
// here it is only read and written.
#pragma once

#include <cstddef>
#include <optional>

#include "core/bytes.hpp"
#include "l2/headers.hpp"
#include "l2/vnet-header.hpp"

namespace pairwire {

/// The longest that a TAP gives: vnet header, Ethernet with tags, an IP packet of full length.
inline constexpr std::size_t kMaxTapPacket = kVnetHeaderSize + 22 + kMaxIpLength;

enum class TapRead : std::uint8_t { kPacket, kEmpty, kFailed };

/// Reads one packet (vnet header and frame) into `buffer` and sets `size`.
TapRead tap_read(int fd, Bytes buffer, std::size_t& size) noexcept;

/// Writes one packet (vnet header and frame). False if the kernel did not take it.
bool tap_write(int fd, ConstBytes packet) noexcept;

}  // namespace pairwire
