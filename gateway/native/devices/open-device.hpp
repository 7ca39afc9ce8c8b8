/// Opens the devices of the list and sets them up.
#pragma once

#include <sys/types.h>

#include <functional>
#include <string>
#include <vector>

#include "device-list.hpp"
#include "io/unique-fd.hpp"
#include "netlink.hpp"

namespace pairwire::devices {

struct OpenedTap {
  UniqueFd fd;
  bool attached = false;             ///< it was there already, from a former run
  std::vector<std::string> offload;  ///< what the kernel may leave to us: csum tso4 tso6 uso4 uso6
};

/// Makes the TAP, or attaches to it if it is ours: a persistent TAP that belongs to `owner`. Its
/// addresses are kept; those of the list that are missing are added. One with a bridge is put into
/// it, which must be there, and says nothing by itself.
///
/// IFF_TAP, IFF_NO_PI, IFF_VNET_HDR with a header of 10 bytes, offloads, non-blocking, persistent.
/// `before_up` runs after addresses were given and before the interface carries traffic.
/// @throws std::system_error, std::runtime_error; a TAP that is in use elsewhere gives EBUSY
OpenedTap open_tap(Netlink& netlink, const TapDevice& tap, uid_t owner,
                   const std::function<void()>& before_up);

/// Puts the TAP's routes back, which go when it is down; does nothing while it is.
void add_routes(Netlink& netlink, const TapDevice& tap);

/// True if the TAP was there and ours, and is gone now.
bool remove_tap(Netlink& netlink, const TapDevice& tap, uid_t owner);

/// A UDP socket as the transport `udp` wants it: one IPv6 socket for both families (IPv4 alone
/// where the host has no IPv6), never fragmenting and never believing an ICMP about the path's
/// MTU, UDP_GRO on, 8 MiB of buffer each way, non-blocking.
UniqueFd open_udp(const UdpDevice& udp);

/// A raw socket as the transport `ethernet` wants it: bound to the interface, 8 MiB of buffer each
/// way, non-blocking, and a locked filter that lets through frames of our EtherType to one
/// of `macs` or to all. So what a switch floods for others costs nothing and asks nobody for keys.
/// The interface is told to take frames for those of `macs` that are not its own.
/// @throws std::system_error, std::runtime_error if it is no Ethernet interface of its own
UniqueFd open_ethernet(const EthernetDevice& ethernet, const Link& link);

/// A packet socket for all ARP and IP frames without a tag on an interface, whomever they are for,
/// which the kernel itself has to be kept from (ClosedInterfaces).
/// @throws as open_ethernet
UniqueFd open_wire(const WireDevice& wire, const Link& link);

/// Brings an interface up, if it is not.
void bring_up(const std::string& interface);

}  // namespace pairwire::devices
