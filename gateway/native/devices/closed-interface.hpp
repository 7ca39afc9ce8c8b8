/// MAC take-over: a TAP with the MAC address of the interface below it (design C8).
///
/// The interface then needs no promiscuous mode, but two interfaces of this machine answer to one
/// address: what a stranger sends in clear to that address would reach this machine's own stack
/// past the seal. So the interface is closed for all but sealed frames: no ARP, no IPv6, and the
/// guard drops everything with another EtherType as it comes in. `down` opens it again, as it was.
#pragma once

#include <string>
#include <vector>

#include "netlink.hpp"

namespace pairwire::devices {

/// Which interfaces are closed, and how they were before. Kept in a file, because they stay closed
/// while no broker runs.
class ClosedInterfaces {
 public:
  /// Reads the file, if there is one.
  explicit ClosedInterfaces(std::string file);

  [[nodiscard]] const std::vector<std::string>& names() const noexcept { return names_; }

  /// Turns ARP and IPv6 off; may be repeated. Returns whether it was not closed before.
  /// `why` it has to be, for a person.
  /// @throws std::runtime_error if the interface has IP addresses, which would be cut off
  bool close(Netlink& netlink, const std::string& name, const std::string& why);

  /// Turns on again what was on before, and forgets.
  void open_all(Netlink& netlink);

 private:
  struct Former {
    bool arp = false;
    bool ipv6 = false;
  };
  void write() const;

  const std::string file_;
  std::vector<std::string> names_;
  std::vector<Former> former_;
};

}  // namespace pairwire::devices
