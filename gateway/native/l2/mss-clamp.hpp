// The maximum segment size that the ends of a TCP connection offer each other in their SYN (RFC
// 9293, section 3.7.1), lowered to what fits a path that neither of them knows (RFC 4459, section
// 3.2): machines behind two bridges would otherwise send segments each of which has to be cut.
#pragma once

#include <cstddef>

#include "core/bytes.hpp"

namespace pairwire {

/// Lowers the offer in `frame`, if it is a SYN with one, so that a frame with a segment of that
/// size is no longer than `longest_frame` bytes, but not below what every host must take anyway
/// (536 bytes over IPv4, RFC 9293; 1,220 over IPv6, RFC 8200). `partial_checksum`: the checksum
/// field holds the sum of the pseudo-header only. True if the frame was changed.
bool clamp_mss(Bytes frame, std::size_t longest_frame, bool partial_checksum) noexcept;

}  // namespace pairwire
