/// The bridge that a plain port's TAP is a port of, with the interfaces that lead to machines
/// which can't encrypt.
///
/// A bridge that is there is used as it is; one that is not is made, with STP off, a MAC address
/// of its own and no IP address. What was made or added here is remembered in a file, because it
/// stays while no broker runs, and `down` takes that away and nothing else.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "netlink.hpp"

namespace pairwire::devices {

class Bridges {
 public:
  /// Reads the file, if there is one.
  explicit Bridges(std::string file);

  /// Makes the bridge if it is missing, puts `ports` into it, and takes out those that were put in
  /// before and are not among them; may be repeated.
  /// @throws std::runtime_error for a name that is another kind of interface, or a port that is
  ///   missing, part of something else, or has IP addresses, which would be cut off
  void prepare(Netlink& netlink, const std::string& bridge, const std::vector<std::string>& ports);

  /// Takes out what was put in, and takes away what was made.
  void undo(Netlink& netlink);

 private:
  struct Entry {
    std::string name;
    std::string bridge;  ///< that it was put into; empty: it is a bridge that was made
    /// Of the bridge that was made; 0: it was about to be. Somebody may have made another one of
    /// the same name since.
    int index = 0;
  };
  void remember(Entry entry);
  /// Takes out the ports of `bridge` that are not named any more.
  void drop_ports(Netlink& netlink, const std::string& bridge,
                  const std::vector<std::string>& ports);
  void write() const;

  const std::string file_;
  std::vector<Entry> entries_;
};

/// Puts an interface into a bridge. @throws std::system_error
void put_into_bridge(const std::string& bridge, int index);

/// Keeps IPv6 off an interface: a port of a bridge, or a bridge that we made, has nothing to say.
void silence_ipv6(const std::string& name);

/// Whether the first interface is the second, or in the bridge of that name.
bool is_in(Netlink& netlink, const std::string& name, const std::string& bridge);

}  // namespace pairwire::devices
