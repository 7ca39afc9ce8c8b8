// What the kernel and nft answer the broker.
#include <doctest/doctest.h>
#include <linux/if_link.h>
#include <linux/if_tun.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>

#include <cerrno>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "control/server.hpp"
#include "devices/guard.hpp"
#include "devices/launcher.hpp"
#include "devices/netlink-answers.hpp"

using namespace pairwire;
using namespace pairwire::devices;

namespace {

std::vector<std::uint8_t> error_answer(int error, std::uint32_t sequence) {
  std::vector<std::uint8_t> bytes(sizeof(nlmsghdr) + sizeof(nlmsgerr));
  nlmsghdr head{};
  head.nlmsg_len = static_cast<std::uint32_t>(bytes.size());
  head.nlmsg_type = NLMSG_ERROR;
  head.nlmsg_seq = sequence;
  std::memcpy(bytes.data(), &head, sizeof head);
  std::memcpy(bytes.data() + sizeof head, &error, sizeof error);
  return bytes;
}

/// Bytes of several parts, each aligned as attributes are.
std::string joined(const std::vector<std::string>& parts) {
  std::string bytes;
  for (const std::string& part : parts) {
    bytes += part;
    bytes.resize(RTA_ALIGN(bytes.size()));
  }
  return bytes;
}

std::string attribute(std::uint16_t type, const std::string& value) {
  rtattr head{};
  head.rta_len = static_cast<unsigned short>(sizeof head + value.size());
  head.rta_type = type;
  return joined({std::string(reinterpret_cast<const char*>(&head), sizeof head) + value});
}

Link link_of(const std::string& attributes) {
  const std::string answer = std::string(sizeof(nlmsghdr) + sizeof(ifinfomsg), '\0') + attributes;
  return parse_link({reinterpret_cast<const std::uint8_t*>(answer.data()), answer.size()});
}

}  // namespace

TEST_CASE("an answer of the kernel ends with its error, a number that is none, or goes on") {
  std::vector<std::uint8_t> answers;
  CHECK(take_answers(error_answer(-ENODEV, 7), 7, false, answers).error == ENODEV);
  const AnswerEnd fine = take_answers(error_answer(0, 7), 7, false, answers);
  CHECK((fine.ended && fine.error == 0));
  for (const int odd : {std::numeric_limits<int>::min(), 1, -5000}) {
    CHECK(take_answers(error_answer(odd, 7), 7, false, answers).error == EPROTO);
  }
  // One that was meant for a question before.
  CHECK_FALSE(take_answers(error_answer(-ENODEV, 6), 7, false, answers).ended);
  CHECK(answers.empty());
  CHECK_THROWS_AS(static_cast<void>(parse_link(answers)), std::runtime_error);
  CHECK(parse_addresses(answers).empty());
}

TEST_CASE("of two descriptions of one interface the last counts, and nothing of the first stays") {
  using namespace std::string_literals;
  const std::string tun =
      joined({attribute(IFLA_TUN_TYPE, {char{IFF_TAP}}), attribute(IFLA_TUN_PERSIST, "\1"),
              attribute(IFLA_TUN_OWNER, "\5\0\0\0"s)});
  const std::string tap = attribute(
      IFLA_LINKINFO, joined({attribute(IFLA_INFO_KIND, "tun"), attribute(IFLA_INFO_DATA, tun)}));
  const std::string other = attribute(IFLA_LINKINFO, attribute(IFLA_INFO_KIND, "dummy"));
  const Link one = link_of(tap);
  CHECK((one.kind == "tun" && one.tap && one.persistent && one.owner == 5u));
  const Link two = link_of(tap + other);
  CHECK((two.kind == "dummy" && !two.tap && !two.persistent && !two.owner));
}

TEST_CASE("names in the system's texts can't pass for what stands around them") {
  CHECK(packets_of("counter underlay_0 {\n packets 12 bytes 9\n}", "underlay_0") == 12);
  CHECK(packets_of("counter underlay_01 {\n packets 12 bytes 9\n}", "underlay_0") == 0);
  std::string stat = "7 (a ) 1 2) S";
  for (int field = 4; field < 22; ++field) stat += " 0";
  CHECK(start_time_in(stat + " 4711 0") == "4711");
  CHECK(start_time_in(stat).empty());
  using namespace std::string_view_literals;
  CHECK(tells_of_new_vm("change@/x\0ACTION=change\0NEW_VMGENID=1\0"sv));
  CHECK_FALSE(tells_of_new_vm("change@/x\0NAME=NEW_VMGENID=1\0NEW_VMGENID=12\0"sv));
}
