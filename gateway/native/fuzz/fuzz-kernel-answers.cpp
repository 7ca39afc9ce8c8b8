// Any bytes as what the kernel and nft answer: rtnetlink, uevents, /proc/PID/stat, counters. None
// of it comes from a stranger, but interface, process and set names do.
//
// Input: which (1), then the answer.
#include <string>
#include <string_view>
#include <vector>

#include "control/server.hpp"
#include "devices/guard.hpp"
#include "devices/launcher.hpp"
#include "devices/netlink-answers.hpp"
#include "fuzz/require.hpp"

namespace {

using namespace pairwire;
using namespace pairwire::fuzz;

void check_netlink(std::span<const std::uint8_t> datagram, bool dump) {
  std::vector<std::uint8_t> answers;
  const devices::AnswerEnd end = devices::take_answers(datagram, 1, dump, answers);
  require(end.error >= 0 && end.error <= 4095 && answers.size() <= datagram.size() + 3);
  try {
    const devices::Link link = devices::parse_link(answers);
    require(link.kind == "tun" || (!link.tap && !link.persistent && !link.owner));
  } catch (const std::runtime_error&) {
  }
  for (const devices::AssignedAddress& one : devices::parse_addresses(answers)) {
    require(!devices::to_text(one.address).empty());
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const std::span<const std::uint8_t> rest(data + 1, size - 1);
  const std::string text(rest.begin(), rest.end());
  switch (data[0] % 5) {
    case 0:
      check_netlink(rest, false);
      break;
    case 1:
      check_netlink(rest, true);
      break;
    case 2:
      static_cast<void>(devices::packets_of(text, "underlay_0"));
      break;
    case 3:
      require(devices::start_time_in(text).find(' ') == std::string::npos);
      break;
    default:
      if (tells_of_new_vm(text)) require(text.find("NEW_VMGENID=1") != std::string::npos);
  }
  return 0;
}
