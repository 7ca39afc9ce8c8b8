/// The list of devices that the broker may open: given once, by root, at start.
///
/// One device a line; `#` starts a comment.
/// ```
/// tap NAME mac XX:XX:XX:XX:XX:XX mtu N [txqueuelen N] [address IP/PREFIX]... [forward allow]
///          [forward-to INTERFACE]... [arp off] [route IP/PREFIX]... [bridge NAME [port
///          INTERFACE]...]
/// udp PORT [bind IP] [device INTERFACE] [mark N]
/// ethernet INTERFACE mac XX:XX:XX:XX:XX:XX [mac ...]
/// wire INTERFACE
/// ```
/// | field | allowed |
/// |---|---|
/// | NAME | 1 to 15 of a-z 0-9 _ -, a letter first |
/// | mac | an individual address, not zero; up to 64 of an ethernet: those that frames come for |
/// | mtu | 576 to 65521 |
/// | txqueuelen | 1 to 100000; default 4096 |
/// | address | up to 16, IPv4 or IPv6, not unspecified, loopback or multicast |
/// | forward allow | the kernel may forward between this TAP and other interfaces |
/// | forward-to | instead: between this TAP and these, up to 8, and no others |
/// | arp off | no neighbours are looked for: whatever the kernel routes into the TAP is for us |
/// | route | up to 256 prefixes that are routed into the TAP |
/// | bridge | the bridge that the TAP is put into, which then has no address and no forward |
/// | port | up to 8 interfaces that are put into the bridge, none of them the underlay's |
/// | wire | all frames of the interface are the data plane's, and it carries nothing of ours |
/// | PORT | 1 to 65535; below 1024 the broker keeps CAP_NET_BIND_SERVICE |
/// | mark | 1 to 4294967295, decimal or 0x..: SO_MARK |
#pragma once

#include <netinet/in.h>

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace pairwire::devices {

struct InterfaceAddress {
  int family = 0;                        ///< AF_INET or AF_INET6
  std::array<std::uint8_t, 16> bytes{};  ///< the first 4 for IPv4
  std::uint8_t prefix = 0;
};

struct TapDevice {
  std::string name;
  std::array<std::uint8_t, 6> mac{};
  std::uint32_t mtu = 0;
  std::uint32_t queue_length = 4096;
  std::vector<InterfaceAddress> addresses;
  bool forward = false;
  std::vector<std::string> forward_to;
  bool arp = true;
  std::vector<InterfaceAddress> routes;
  std::string bridge;              ///< empty: it is an interface of this machine
  std::vector<std::string> ports;  ///< that are in the bridge with it
};

struct UdpDevice {
  std::uint16_t port = 0;
  std::optional<in6_addr> bind;  ///< IPv4 as ::ffff:a.b.c.d
  std::string device;
  std::uint32_t mark = 0;
};

/// An interface that sealed frames use without IP.
struct EthernetDevice {
  std::string name;
  std::vector<std::array<std::uint8_t, 6>> macs;
};

/// An interface that this machine has no part in: what is on it goes through the data plane.
struct WireDevice {
  std::string name;
};

struct DeviceList {
  std::vector<TapDevice> taps;
  std::vector<UdpDevice> udps;
  std::vector<EthernetDevice> ethernets;
  std::vector<WireDevice> wires;
};

/// @throws std::runtime_error `line N: ...` for the first thing that is wrong
DeviceList parse_device_list(std::string_view text);

/// Reads FILE, or standard input for `-`. FILE must be a regular file, owned by root or by our
/// own user and not writable by others: who can write it can have any device opened.
/// @throws std::runtime_error, std::system_error
std::string read_device_list(const std::string& file);

std::string to_text(const std::array<std::uint8_t, 6>& mac);
std::string to_text(const InterfaceAddress& address);  ///< without the prefix

/// The address with all bits behind its prefix set, or clear.
InterfaceAddress with_host_bits(const InterfaceAddress& address, bool ones);

/// IPv6 fe80::/10: every interface may have the same ones.
bool is_link_local(const InterfaceAddress& address);

}  // namespace pairwire::devices
