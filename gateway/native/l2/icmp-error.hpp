// ICMP and ICMPv6 errors of routers about a packet that they could not pass on (RFC 792, RFC 4443),
// read, and written anew about another packet.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include "core/bytes.hpp"

namespace pairwire {

/// An error of a kind that says something about a way: unreachable, too big, time exceeded.
struct IcmpError {
  bool v6 = false;
  std::uint8_t type = 0;
  std::uint8_t code = 0;
  /// Too big: the MTU there, 0 if the router does not say (RFC 1191, section 5); else nothing.
  std::optional<std::uint32_t> mtu;
  ConstBytes addresses;  ///< of the packet that is quoted: source and destination, 8 or 32 bytes
  std::uint8_t protocol = 0;
  ConstBytes payload;  ///< what is quoted of it behind a header without options
};

/// Reads `packet`, a whole IP packet. Nothing if it is anything else, is a fragment, or has a wrong
/// checksum.
[[nodiscard]] std::optional<IcmpError> parse_icmp_error(ConstBytes packet) noexcept;

/// The longest that is written about a quote of `quote` bytes.
[[nodiscard]] constexpr std::size_t max_icmp_error(std::size_t quote) noexcept {
  return 40 + 8 + quote;
}

/// Writes the same error, from the same router to the same host, about `quote`, the start of
/// another packet. `original` is what `error` was read from. Returns how long it is; `out` has room
/// for max_icmp_error.
[[nodiscard]] std::size_t write_icmp_error(const IcmpError& error, ConstBytes original,
                                           ConstBytes quote, Bytes out) noexcept;

}  // namespace pairwire
