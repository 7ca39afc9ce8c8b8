/// The list of devices: everything in it is checked, because what is in it will be opened.
#include <doctest/doctest.h>

#include <stdexcept>
#include <string>

#include "devices/device-list.hpp"

namespace pairwire::devices {
namespace {

std::string refusal(const std::string& text) {
  try {
    parse_device_list(text);
    return {};
  } catch (const std::runtime_error& error) {
    return error.what();
  }
}

TEST_CASE("device list: a good one") {
  const DeviceList list = parse_device_list(
      "# gateway east\n"
      "\n"
      "tap pw0 mac 02:00:5e:10:00:0f mtu 1400 address 192.0.2.1/24 address 2001:db8::1/64\r\n"
      "  tap\tpw-1 txqueuelen 500 mtu 9000 mac 02:00:00:00:00:01 forward allow # a router\n"
      "tap link0 mac 02:00:00:00:00:03 mtu 1400 arp off forward-to pw0 forward-to eth0.7 "
      "route 192.0.2.77/24 route 2001:db8:f::1/48\n"
      "udp 51820\n"
      "udp 443 bind 192.0.2.7 device eth0.100 mark 0xff\n"
      "ethernet eth1 mac 02:00:5e:10:00:0f mac 02:00:00:00:00:02\n"
      "wire eth2");
  REQUIRE(list.taps.size() == 3);
  CHECK(list.taps[0].arp);
  CHECK_FALSE(list.taps[2].arp);
  CHECK(list.taps[2].forward_to == std::vector<std::string>{"pw0", "eth0.7"});
  REQUIRE(list.taps[2].routes.size() == 2);
  // As the kernel wants them: without the bits of hosts.
  CHECK(to_text(list.taps[2].routes[0]) == "192.0.2.0");
  CHECK(list.taps[2].routes[0].prefix == 24);
  CHECK(to_text(list.taps[2].routes[1]) == "2001:db8:f::");
  CHECK(list.taps[0].name == "pw0");
  CHECK(to_text(list.taps[0].mac) == "02:00:5e:10:00:0f");
  CHECK(list.taps[0].mtu == 1400);
  CHECK(list.taps[0].queue_length == 4096);
  CHECK_FALSE(list.taps[0].forward);
  REQUIRE(list.taps[0].addresses.size() == 2);
  CHECK(to_text(list.taps[0].addresses[0]) == "192.0.2.1");
  CHECK(list.taps[0].addresses[0].prefix == 24);
  CHECK(to_text(list.taps[0].addresses[1]) == "2001:db8::1");
  CHECK(list.taps[1].forward);
  CHECK(list.taps[1].queue_length == 500);
  REQUIRE(list.udps.size() == 2);
  CHECK(list.udps[0].port == 51820);
  CHECK_FALSE(list.udps[0].bind);
  CHECK(list.udps[1].bind->s6_addr[15] == 7);
  CHECK(list.udps[1].device == "eth0.100");
  CHECK(list.udps[1].mark == 255);
  REQUIRE(list.ethernets.size() == 1);
  CHECK(list.ethernets[0].name == "eth1");
  REQUIRE(list.ethernets[0].macs.size() == 2);
  CHECK(to_text(list.ethernets[0].macs[1]) == "02:00:00:00:00:02");
  REQUIRE(list.wires.size() == 1);
  CHECK(list.wires[0].name == "eth2");
}

TEST_CASE("device list: each error names its line") {
  const std::string tap = "tap pw0 mac 02:00:00:00:00:01 mtu 1400";
  CHECK(refusal("udp 1\n\nudp 70000\n").starts_with("line 3: the port must be"));
  CHECK(refusal(tap + "\n" + tap) == "line 2: this device is there twice");
  CHECK(refusal("tap") == "line 1: a device needs a kind and a name");
  CHECK(refusal("ethernet eth1") == "line 1: an ethernet needs mac");
  CHECK(refusal("ethernet eth1 mac 01:00:00:00:00:01").find("group address") != std::string::npos);
  CHECK(refusal("ethernet eth1 mtu 1500") == "line 1: an ethernet has no 'mtu'");
  CHECK(refusal("ethernet ../x mac 02:00:00:00:00:01").find("interface name") != std::string::npos);
  CHECK(refusal("wire eth1 mac 02:00:00:00:00:01") == "line 1: a wire has a name only");
  CHECK(refusal("wire ../x").find("interface name") != std::string::npos);
  CHECK(refusal(tap + " bridge br0 port eth1\nwire eth1").find("carries the sealed frames") !=
        std::string::npos);
  std::string macs = "ethernet eth1";
  for (int i = 0; i < 65; ++i) macs += " mac 02:00:00:00:00:01";
  CHECK(refusal(macs) == "line 1: too many MAC addresses");
  CHECK(refusal(tap + " address") == "line 1: 'address' has no value");
  CHECK(refusal(tap + " mtu 1500") == "line 1: 'mtu' is there twice");
  CHECK(refusal(tap + " forward deny") == "line 1: a tap has no 'forward deny'");
  CHECK(refusal(tap + " address 192.0.2.1/33").find("prefix length") != std::string::npos);
  CHECK(refusal(tap + " address 192.0.2.1/+8").find("prefix length") != std::string::npos);
  CHECK(refusal(tap + " address ff02::1/64").find("can't be used") != std::string::npos);
  CHECK(refusal(tap + " address ::ffff:192.0.2.1/128").find("can't be used") != std::string::npos);
  CHECK(refusal("udp 51820 bind 224.0.0.1").find("multicast") != std::string::npos);
  CHECK(refusal("udp 51820 mark 0").find("mark must be") != std::string::npos);
  CHECK(refusal("udp 51820 device ../eth0").find("interface name") != std::string::npos);
  CHECK(refusal(std::string("udp 5\0", 6)) == "line 1: a zero byte");
  for (const char* name : {"lo", "PW0", "0pw", "pw.0", "pw0\"", "pw0}", "pw0pw0pw0pw0pw01"}) {
    CHECK_MESSAGE(refusal(std::string("tap ") + name + " mac 02:00:00:00:00:01 mtu 1400") != "",
                  name);
  }
  for (const char* mac : {"00:00:00:00:00:00", "01:00:00:00:00:00", "02-00-00-00-00-01",
                          "02:00:00:00:00:0g", "02:00:00:00:00:01:", "0:2:0:0:0:0"}) {
    CHECK_MESSAGE(refusal(std::string("tap pw0 mac ") + mac + " mtu 1400") != "", mac);
  }
  std::string many;
  for (int i = 1; i <= 65; ++i) many += "udp " + std::to_string(i) + "\n";
  CHECK(refusal(many) == "line 65: too many devices");
}

}  // namespace
}  // namespace pairwire::devices
