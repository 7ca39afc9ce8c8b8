// See essential-group.hpp.
#include "l2/essential-group.hpp"

#include <cstdint>

#include "l2/headers.hpp"
#include "l2/wire.hpp"

namespace pairwire {
namespace {

constexpr std::uint8_t kIcmpv6 = 58;
constexpr std::uint8_t kRouterSolicitation = 133;
constexpr std::uint8_t kRedirect = 137;
constexpr std::uint8_t kNdHopLimit = 255;

constexpr bool is_dhcp_port(std::uint8_t ip_version, std::uint16_t port) noexcept {
  return ip_version == 4 ? port == 67 || port == 68 : port == 546 || port == 547;
}

}  // namespace

bool is_essential_group(ConstBytes frame) noexcept {
  const ParsedFrame parsed = parse_frame(frame);
  if (parsed.kind == FrameKind::kArp) return true;
  if (parsed.is_udp()) {
    return is_dhcp_port(parsed.ip_version, load_be16(&frame[parsed.l4_offset])) &&
           is_dhcp_port(parsed.ip_version, load_be16(&frame[parsed.l4_offset + 2]));
  }
  if (parsed.kind != FrameKind::kNetwork || parsed.ip_version != 6 || parsed.is_fragment ||
      parsed.l4_protocol != kIcmpv6 || parsed.payload_length == 0) {
    return false;
  }
  const auto ip = parse_ipv6(frame.subspan(parsed.l3_offset));
  const std::uint8_t type = frame[parsed.payload_offset];
  return ip && ip->hop_limit == kNdHopLimit && type >= kRouterSolicitation && type <= kRedirect;
}

}  // namespace pairwire
