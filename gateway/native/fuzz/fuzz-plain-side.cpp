// Any bytes as a frame from or to a plain side: the parser of loop probes, the classifiers of group
// frames and the clamp of offers in a SYN stay within them, what a probe says is what its bytes
// are, and a checksum that was right stays so.
#include <array>
#include <vector>

#include "core/plain-port.hpp"
#include "fuzz/require.hpp"
#include "l2/checksum.hpp"
#include "l2/essential-group.hpp"
#include "l2/loop-probe.hpp"
#include "l2/mss-clamp.hpp"
#include "l2/vlan-mac.hpp"

namespace {

using namespace pairwire;
using namespace pairwire::fuzz;

/// Written again, a probe is the same but for its MAC and padding.
void check_probe(ConstBytes frame) {
  const auto received = parse_loop_probe(frame);
  if (!received) return;
  std::array<std::uint8_t, kLoopProbeSize> again{};
  const auto written = write_loop_probe(
      received->probe, MacAddress(frame.subspan<MacAddress::kSize, MacAddress::kSize>()), again);
  require(written.has_value() && written->size <= frame.size());
  require(std::ranges::equal(written->authenticated, received->authenticated));
}

/// Essential are three kinds, which their EtherTypes and protocols show.
void check_essential(ConstBytes frame) {
  if (!is_essential_group(frame)) return;
  const ParsedFrame parsed = parse_frame(frame);
  require(parsed.ethertype == ethertype::kArp || parsed.is_udp() ||
          (parsed.ip_version == 6 && parsed.l4_protocol == 58));
}

/// At most the offer and the checksum are changed, once.
void check_clamp(ConstBytes frame) {
  constexpr std::size_t longest = 900;
  std::vector<std::uint8_t> copy(frame.begin(), frame.end());
  const bool held = parse_frame(frame).is_tcp() && l4_checksum_holds(frame, parse_frame(frame));
  const bool changed = clamp_mss(copy, longest, false);
  std::size_t different = 0;
  for (std::size_t i = 0; i < frame.size(); ++i) different += frame[i] != copy[i] ? 1 : 0;
  require(changed ? different >= 1 && different <= 4 : different == 0);
  if (changed && held) require(l4_checksum_holds(copy, parse_frame(copy)));
  require(!clamp_mss(copy, longest, false));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const ConstBytes frame(data, size);
  check_essential(frame);
  check_probe(frame);
  check_clamp(frame);
  if (size < kEthernetHeaderSize) return 0;
  require(outer_vlan(frame) < 4096);
  static_cast<void>(is_kept_by_bridges(MacAddress(frame.first<MacAddress::kSize>()), true));
  return 0;
}
