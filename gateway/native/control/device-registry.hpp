// The devices that the broker has passed us: texts and descriptors over a SEQPACKET socket.
//
//   tap NAME mac XX:XX:XX:XX:XX:XX mtu N offload 0|1   + descriptor
//   udp PORT                                           + descriptor
//   ethernet NAME mac XX:XX:XX:XX:XX:XX mtu N          + descriptor
//   wire NAME mac XX:XX:XX:XX:XX:XX mtu N              + descriptor
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/frame.hpp"
#include "io/unique-fd.hpp"
#include "l2/mac.hpp"

namespace pairwire {

/// A TAP, a UDP socket or a socket on an Ethernet interface, set up by the broker. A wire is one
/// that takes all frames of an interface that is nobody else's.
struct Device {
  enum class Kind : std::uint8_t { kTap, kUdp, kEthernet, kWire };
  Kind kind = Kind::kTap;
  std::string name;        ///< of the interface
  MacAddress mac;          ///< of the interface
  std::uint16_t mtu = 0;   ///< of the interface
  bool offload = false;    ///< TAP: the kernel hands its super-frames and partial checksums to us
  std::uint16_t port = 0;  ///< of the socket
  UniqueFd fd;
};

/// Reads the text that comes with a descriptor; nothing if it is none of these.
[[nodiscard]] std::optional<Device> parse_device(std::string_view text);

/// Receives one message with its descriptor from a connected socket.
enum class DeviceReceive : std::uint8_t { kDevice, kNothingYet, kRefused, kClosed };
[[nodiscard]] DeviceReceive receive_device(int connection, Device& device);

/// Threads: the control thread's.
class DeviceRegistry {
 public:
  /// A device of the same name is replaced; the old one is returned, because a port may still work
  /// with it.
  Device add(Device device);
  [[nodiscard]] const Device* tap(std::string_view name) const;
  /// What a transport sends by: the socket of a UDP port, or of an interface.
  [[nodiscard]] const Device* underlay(Transport transport, std::uint16_t udp_port,
                                       std::string_view interface) const;

 private:
  std::map<std::string, Device, std::less<>> taps_;
  std::map<std::uint16_t, Device> udps_;
  std::map<std::string, Device, std::less<>> ethernets_;
  std::map<std::string, Device, std::less<>> wires_;
};

}  // namespace pairwire
