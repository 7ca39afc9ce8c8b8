/// The guard (design C8): the underlay must not go round the TAPs.
///
/// Linux takes a packet for any of its addresses from any interface and answers ARP for all of
/// them. So a machine on the underlay, without any key, could speak in clear to the address of
/// a TAP and pass for a member. The guard owns two nft tables, `inet` and `arp`, both named
/// `pairwire_` and the first TAP of the list (a name that no other broker of the same network
/// namespace can have):
///
/// | chain | drops | counter |
/// |---|---|---|
/// | inet prerouting, raw | packets for an address of a TAP that came in by another interface than
/// it or lo | underlay | | inet forward | packets from a TAP to another interface or back, unless
/// `forward allow`, or to an interface that `forward-to` does not name | forward | | arp input |
/// questions for a TAP's address at another interface | arp | | arp output | ARP that would name a
/// TAP's address at another interface | arp |
///
/// What `forward-to` names may speak to the TAP's own addresses as well: it is as near as what is
/// forwarded.
///
/// nft's `fib` can't do the first one: it tells whether an address is local, or local on the
/// interface that a packet came in by (which would forbid all weak-host use, also between
/// interfaces that are none of our business), but never on which interface it is. So the
/// addresses stand in sets, which follow the kernel's notices within milliseconds. What is
/// changed while no broker runs is taken up when the next one starts; until then a *new* address
/// of a TAP is not guarded.
///
/// An interface whose MAC address the TAP has taken over (closed-interface.hpp) is closed: a third
/// table, of the family `netdev`, drops whatever comes in there and is no sealed frame.
///
/// IPv6 needs no ARP: the kernel answers neighbour solicitations for the interface's own
/// addresses only. Link-local addresses belong to their interface anyway.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "device-list.hpp"
#include "netlink.hpp"

namespace pairwire::devices {

class Guard {
 public:
  /// One TAP's counters: packets dropped.
  struct Count {
    std::string tap;
    std::vector<std::string> addresses;
    std::uint64_t underlay = 0;
    std::uint64_t forward = 0;
    std::uint64_t arp = 0;
  };

  /// One closed interface's counter: frames dropped.
  struct ClosedCount {
    std::string interface;
    std::uint64_t dropped = 0;
  };

  struct Counts {
    std::vector<Count> taps;
    std::vector<ClosedCount> closed;
  };

  /// `closed` is looked at whenever the tables are made.
  Guard(const DeviceList& list, Netlink& netlink, const std::vector<std::string>& closed);

  bool on() const noexcept { return on_; }
  const std::string& table() const noexcept { return table_; }

  /// Makes the tables, in one transaction in place of those of a former run.
  /// @throws std::runtime_error with what nft says
  void turn_on();
  /// Removes the tables, also those of a former run.
  void turn_off();
  /// Takes up the TAPs' present addresses, if they have changed.
  void follow_addresses();
  Counts counts();

 private:
  struct Sets {
    std::vector<std::string> v4;
    std::vector<std::string> v6;
    bool operator==(const Sets&) const = default;
  };

  std::vector<Sets> present_sets();
  std::string rules(const std::vector<Sets>& sets) const;
  void apply(const std::string& commands) const;
  std::string list_counters();
  std::string closed_rules() const;
  std::string empty_tables() const;

  const DeviceList& list_;
  Netlink& netlink_;
  const std::vector<std::string>& closed_;
  std::string table_;
  std::vector<Sets> sets_;
  bool on_ = false;
};

/// Packets of a counter in what nft printed; 0 for one that is not there.
std::uint64_t packets_of(std::string_view output, const std::string& name);

}  // namespace pairwire::devices
