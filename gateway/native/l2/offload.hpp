// The vnet header that a single opened frame gets on its way into our TAP.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "core/bytes.hpp"
#include "l2/checksum.hpp"
#include "l2/headers.hpp"
#include "l2/vnet-header.hpp"

namespace pairwire {

/// Whether a frame with this structure may have a partial checksum: an
/// unfragmented TCP segment or UDP datagram with a complete header, at whose end
/// the frame ends. Where the kernel completes the checksum it sums up to
/// the end of the frame, so bytes behind would spoil it.
[[nodiscard]] bool may_be_partial(const ParsedFrame& parsed) noexcept;

/// The header for a frame with this claim; `nullopt` for a frame that must
/// not reach the kernel (too short, or partial without the right to be).
[[nodiscard]] std::optional<VnetHeader> vnet_header_for(const ParsedFrame& parsed,
                                                        ChecksumClaim claim) noexcept;
[[nodiscard]] std::optional<VnetHeader> vnet_header_for(ConstBytes frame,
                                                        ChecksumClaim claim) noexcept;

/// The header that asks for the checksum of a frame for which `may_be_partial`.
[[nodiscard]] VnetHeader partial_checksum_header(const ParsedFrame& parsed) noexcept;

}  // namespace pairwire
