// Any bytes as a frame for the address guard: its reader stays within them, what it overlooks for
// speed it would find nothing in, a priority tag changes nothing, and an answer is what was asked
// for.
#include <array>
#include <vector>

#include "fuzz/require.hpp"
#include "l2/announcement.hpp"

namespace {

using namespace pairwire;
using namespace pairwire::fuzz;

using What = Announcement::Kind;

constexpr MacAddress kOwner{std::array<std::uint8_t, 6>{0x02, 0, 0, 0, 0, 0x77}};

/// Machines read a frame with a tag of VLAN 0 as one without, so the guard has to.
void check_priority_tag(ConstBytes frame, const Announcement& what) {
  const auto ethernet = parse_ethernet(frame);
  if (!ethernet || ethernet->vlan_count >= kMaxVlanTags) return;
  if (ethernet->ethertype == ethertype::kVlan || ethernet->ethertype == ethertype::kServiceVlan) {
    return;
  }
  std::vector<std::uint8_t> tagged(frame.begin(), frame.begin() + 12);
  for (const unsigned byte : {0x81U, 0x00U, 0xe0U, 0x00U}) {
    tagged.push_back(static_cast<std::uint8_t>(byte));
  }
  tagged.insert(tagged.end(), frame.begin() + 12, frame.end());
  const Announcement again = read_announcement(tagged);
  require(again.kind == what.kind && again.false_form == what.false_form &&
          again.in_vlan == what.in_vlan && again.claimed == what.claimed);
}

void check_question(ConstBytes frame, const Announcement& what) {
  require(!what.false_form && (frame[0] & 1) != 0);
  require(what.kind == What::kArp || what.kind == What::kNeighbour);
  const MacAddress asker(frame.subspan<MacAddress::kSize, MacAddress::kSize>());
  std::array<std::uint8_t, kNeighbourAnswerSize> answer{};
  const std::size_t size = write_neighbour_answer(what, asker, kOwner, true, answer);
  require(size <= answer.size());
  const Announcement said = read_announcement(ConstBytes(answer).first(size));
  require(said.kind == what.kind && !said.false_form && said.claimed == what.asked);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const ConstBytes frame(data, size);
  if (size < kEthernetHeaderSize) return 0;
  const Announcement what = read_announcement(frame);
  require(may_announce(frame) || what.kind == What::kNone);
  require(what.kind != What::kNone || (!what.false_form && what.claimed.is_none()));
  require(!what.false_form || what.claimed.is_none());
  if (!what.asked.is_none()) check_question(frame, what);
  check_priority_tag(frame, what);
  return 0;
}
