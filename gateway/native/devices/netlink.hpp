/// The little of rtnetlink that the broker needs. All of it works on the network namespace that
/// the process was started in, which /sys need not show.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "io/unique-fd.hpp"
#include "netlink-answers.hpp"

namespace pairwire::devices {

class Netlink {
 public:
  /// @throws std::system_error
  Netlink();

  /// Nothing if there is no such interface.
  std::optional<Link> find_link(const std::string& name);
  /// Adds an address; one that is there already is fine.
  void add_address(int index, const InterfaceAddress& address);
  /// Routes a prefix into an interface that is up, before other routes of that prefix; one that is
  /// there already is fine.
  void add_route(int index, const InterfaceAddress& prefix);
  /// Has what is for a prefix refused while no other route has it: a default route must not.
  void add_barrier(const InterfaceAddress& prefix);
  void remove_barrier(const InterfaceAddress& prefix);
  void delete_link(int index);
  /// Every address of every interface.
  std::vector<AssignedAddress> addresses();

 private:
  void change_barrier(const InterfaceAddress& prefix, bool add);
  /// A request without answer; the error `fine` says that it is so already.
  void change(std::span<const std::uint8_t> request, int fine);
  /// Sends one request; calls nothing back, returns the answers' messages one behind the other.
  std::vector<std::uint8_t> ask(std::span<const std::uint8_t> request, bool dump);

  UniqueFd fd_;
  std::uint32_t sequence_ = 0;
};

/// A socket that gets readable when an address was added or removed anywhere.
UniqueFd watch_addresses();

/// Reads everything that waits in it. What it says is not looked at: one asks anew.
void drain_watch(int fd);

}  // namespace pairwire::devices
