// The answer to an IP packet that is too long for its path: ICMP 'fragmentation needed' (RFC 792,
// RFC 1191) or ICMPv6 'packet too big' (RFC 4443), as a router on the way would give it. It comes
// from the packet's destination, because a bridge has no address of its own.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/bytes.hpp"

namespace pairwire {

/// Room for an answer: Ethernet with tags, and the least MTU of IPv6, which it never exceeds.
inline constexpr std::size_t kMaxTooBig = 22 + 1'280;

/// Writes the frame that answers `frame`, whose IP packets are `packet_size` bytes long and may
/// have `mtu` (a super-frame has several of one size). Returns its size, or 0 if nothing is to be
/// said: no IP, a packet that may be fragmented (IPv4 without DF) or that IPv6 wants carried anyway
/// (up to 1,280 bytes), or one that RFC 1122, section 3.2.2, or RFC 4443, section 2.4, leave
/// unanswered: ICMP errors, fragments but the first, and what is from or to a group or nobody.
[[nodiscard]] std::size_t write_too_big(ConstBytes frame, std::size_t packet_size, std::size_t mtu,
                                        Bytes out) noexcept;

}  // namespace pairwire
