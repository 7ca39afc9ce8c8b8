// Which subnet an IP address is in, as a link port has it: ours, or another one that the operator
// has named (docs/protocol.md section 9). What is in none neither leaves nor comes in.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/bytes.hpp"
#include "l2/ip-address.hpp"

namespace pairwire {

class Peer;

/// Another subnet.
///
/// Threads: made by the control thread; `port` is read by workers.
struct Net {
  explicit Net(std::string name) : id(std::move(name)) {}
  const std::string id;
  /// The link port there that frames go to; null: none is known.
  std::atomic<Peer*> port{nullptr};
  /// Level `ip`: the longest packet that a router on the way took, as it has said, until then.
  std::atomic<std::uint32_t> path_mtu{0};
  std::atomic<std::uint64_t> path_mtu_until_ms{0};
};

/// An IPv4 or IPv6 network.
class IpPrefix {
 public:
  /// Nothing if `bytes` is no address, or if it is shorter than `bits`. Bits of hosts are ignored.
  [[nodiscard]] static std::optional<IpPrefix> from(ConstBytes bytes, std::uint8_t bits) noexcept;

  [[nodiscard]] bool covers(const IpAddress& address) const noexcept;
  [[nodiscard]] std::uint8_t bits() const noexcept { return bits_; }

 private:
  IpPrefix(const IpAddress& base, std::uint8_t bits) noexcept : base_(base), bits_(bits) {}
  IpAddress base_;
  std::uint8_t bits_;
};

/// All prefixes, the longest first. Immutable once published.
class NetRoutes {
 public:
  struct Route {
    IpPrefix prefix;
    Net* net;  ///< null: ours
  };
  /// Most of one port: the nets of a subnet and their prefixes (docs/limits.md), and ours.
  static constexpr std::size_t kMaxRoutes = 1024;

  NetRoutes() = default;
  explicit NetRoutes(std::vector<Route> routes);

  /// The longest prefix that covers the address; null if none does. There are few: they are gone
  /// through one by one.
  [[nodiscard]] const Route* find(const IpAddress& address) const noexcept;
  [[nodiscard]] bool names(const Net& net) const noexcept;

 private:
  std::vector<Route> routes_;
};

/// Source and destination of an IP packet.
struct IpEnds {
  IpAddress source;
  IpAddress destination;
  std::uint16_t ethertype = 0;
};
/// Nothing unless `packet` begins with a whole IPv4 or IPv6 header.
[[nodiscard]] std::optional<IpEnds> ip_ends(ConstBytes packet) noexcept;

}  // namespace pairwire
