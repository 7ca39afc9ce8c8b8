// Any bytes as a frame: the parser stays within them, agrees with an independent one, and what
// the group guard lets pass has no unicast IP destination where the parser finds one.
#include <array>
#include <vector>

#include "fuzz/require.hpp"
#include "l2/group-guard.hpp"
#include "l2/headers.hpp"
#include "l2/offload.hpp"
#include "test/l2-vnet-validator.hpp"

namespace {

void check_parse(pairwire::ConstBytes frame) {
  using namespace pairwire;
  using namespace pairwire::fuzz;
  const ParsedFrame parsed = parse_frame(frame);
  const judge::Anatomy anatomy = judge::dissect(frame);
  require((parsed.kind == FrameKind::kTransport) == anatomy.complete);
  if (parsed.kind == FrameKind::kTruncated) return;
  require(parsed.l3_offset >= kEthernetHeaderSize && parsed.l3_offset <= frame.size());
  if (parsed.kind != FrameKind::kNetwork && parsed.kind != FrameKind::kTransport) return;
  require(parsed.l4_offset >= parsed.l3_offset + kIpv4MinHeaderSize);
  require(parsed.payload_offset >= parsed.l4_offset);
  require(parsed.l4_end() + parsed.l4_trailer == parsed.ip_end());
  require(parsed.ip_end() + parsed.padding == frame.size());
  if (parsed.kind == FrameKind::kTransport) {
    require(!parsed.is_fragment);
    require(parsed.l4_offset == anatomy.l4 && parsed.payload_offset == anatomy.payload);
    require(l4_checksum_offset(parsed) + 2 <= parsed.payload_offset);
    require(may_be_partial(parsed) == anatomy.exact);
    (void)l4_checksum_holds(frame, parsed);
  }
}

void check_guard(pairwire::ConstBytes frame) {
  using namespace pairwire;
  using namespace pairwire::fuzz;
  constexpr std::array<Ipv4Prefix, 1> kPrefixes{{{0x0a010200, 24}}};
  const bool refused = group_frame_has_unicast_ip(frame, kPrefixes);
  const ParsedFrame parsed = parse_frame(frame);
  if (refused || parsed.kind == FrameKind::kTruncated || (frame[0] & 1) == 0) return;
  require(parsed.kind != FrameKind::kMalformed || parsed.ethertype == ethertype::kArp ||
          parsed.ip_version != 0);
  if (parsed.ip_version == 4) {
    const std::uint8_t* const to = &frame[parsed.l3_offset + 16];
    require((to[0] & 0xf0) == 0xe0 || to[3] == 0xff);
  } else if (parsed.ip_version == 6) {
    require(frame[parsed.l3_offset + 24] == 0xff);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace pairwire;
  using namespace pairwire::fuzz;
  const ConstBytes input(data, size);
  check_parse(input);
  check_guard(input);
  (void)parse_ethernet(input);
  (void)parse_ipv4(input);
  (void)parse_ipv6(input);
  (void)parse_tcp(input);
  (void)parse_udp(input);
  (void)parse_arp(input);
  return 0;
}
