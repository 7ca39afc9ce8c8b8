// Any text as the broker's list of devices and as what it tells the data plane of one: refused, or
// within the limits that the list promises, and what it makes of a device the data plane reads.
#include <cctype>
#include <set>
#include <stdexcept>
#include <string>
#include <string_view>

#include "control/device-registry.hpp"
#include "devices/device-list.hpp"
#include "fuzz/require.hpp"

namespace {

using namespace pairwire;
using namespace pairwire::fuzz;

/// Fit for nft, sysctl paths and a log without any quoting.
void check_name(const std::string& name) {
  require(!name.empty() && name.size() <= 15);
  for (const char c : name) {
    require(std::isalnum(static_cast<unsigned char>(c)) != 0 ||
            std::string_view("_-.@").find(c) != std::string_view::npos);
  }
}

void check_passed_on(const std::string& text, Device::Kind kind) {
  const auto device = parse_device(text);
  require(device.has_value() && device->kind == kind);
}

void check_list(std::string_view text) {
  devices::DeviceList list;
  try {
    list = devices::parse_device_list(text);
  } catch (const std::runtime_error& error) {
    require(std::string_view(error.what()).starts_with("line "));
    return;
  }
  require(list.taps.size() + list.udps.size() + list.ethernets.size() + list.wires.size() <= 64);
  std::set<std::string> taps;
  for (const auto& tap : list.taps) {
    check_name(tap.name);
    require(taps.insert(tap.name).second);
    require(tap.mtu >= 576 && tap.mtu <= 65'521 && tap.addresses.size() <= 16);
    require((tap.mac[0] & 1) == 0);
    check_passed_on("tap " + tap.name + " mac " + devices::to_text(tap.mac) + " mtu " +
                        std::to_string(tap.mtu) + " offload 1",
                    Device::Kind::kTap);
    for (const auto& address : tap.addresses) require(!devices::to_text(address).empty());
  }
  for (const auto& udp : list.udps) {
    require(udp.port != 0);
    check_passed_on("udp " + std::to_string(udp.port), Device::Kind::kUdp);
  }
  for (const auto& ethernet : list.ethernets) {
    check_name(ethernet.name);
    require(!ethernet.macs.empty() && ethernet.macs.size() <= 64);
    check_passed_on(
        "ethernet " + ethernet.name + " mac " + devices::to_text(ethernet.macs[0]) + " mtu 1500",
        Device::Kind::kEthernet);
  }
  for (const auto& wire : list.wires) {
    check_name(wire.name);
    check_passed_on("wire " + wire.name + " mac 02:00:00:00:00:01 mtu 1500", Device::Kind::kWire);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  check_list(text);
  if (const auto device = parse_device(text)) {
    require((device->kind == Device::Kind::kUdp) == device->name.empty());
    require(device->name.size() <= 15 && (device->kind == Device::Kind::kUdp || device->mtu != 0));
  }
  return 0;
}
