// See offload.hpp.
#include "l2/offload.hpp"

#include <limits>

namespace pairwire {

bool may_be_partial(const ParsedFrame& parsed) noexcept {
  // Headers beyond 64 KiB don't fit csum_start; eight routing headers of 2 KiB
  // do, but the sum of the limits is not worth knowing by heart.
  return parsed.kind == FrameKind::kTransport && parsed.padding == 0 && parsed.l4_trailer == 0 &&
         parsed.payload_offset <= std::numeric_limits<std::uint16_t>::max();
}

VnetHeader partial_checksum_header(const ParsedFrame& parsed) noexcept {
  VnetHeader header;
  header.flags = vnet::kNeedsChecksum;
  header.hdr_len = static_cast<std::uint16_t>(parsed.payload_offset);
  header.csum_start = static_cast<std::uint16_t>(parsed.l4_offset);
  header.csum_offset = static_cast<std::uint16_t>(l4_checksum_offset(parsed) - parsed.l4_offset);
  return header;
}

std::optional<VnetHeader> vnet_header_for(const ParsedFrame& parsed, ChecksumClaim claim) noexcept {
  if (parsed.kind == FrameKind::kTruncated) return std::nullopt;
  if (claim == ChecksumClaim::kComplete) return VnetHeader{};
  if (!may_be_partial(parsed)) return std::nullopt;
  return partial_checksum_header(parsed);
}

std::optional<VnetHeader> vnet_header_for(ConstBytes frame, ChecksumClaim claim) noexcept {
  return vnet_header_for(parse_frame(frame), claim);
}

}  // namespace pairwire
