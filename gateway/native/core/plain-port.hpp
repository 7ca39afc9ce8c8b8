// What may cross a plain port, and who may say that it comes from outside: the decisions alone.
// The bridge side is called the plain side, because nothing is sealed there.
//
//   from the plain side   refuse_from_plain_side: reserved? a member's own source? pinned
//   elsewhere?
//                         then Outbound: destination is a member's own, behind another plain port,
//                         here, or nobody's
//   to the plain side     refuse_to_plain_side: a member's own destination? a group frame that
//                         stays inside?
//   from a plain member   refuse_foreign_source: a member's own source? pinned elsewhere?
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "core/bytes.hpp"
#include "core/drop-reasons.hpp"
#include "l2/vlan-mac.hpp"

namespace pairwire {

class Peer;
class PortTables;

/// Fixed for the life of a port.
enum class PortKind : std::uint8_t {
  kHost,   ///< the TAP is an interface of this machine
  kPlain,  ///< the TAP is in a bridge, with machines behind it that can't encrypt
  kLink,   ///< the kernel routes IP packets into the TAP that are for other subnets
};
[[nodiscard]] std::optional<PortKind> parse_port_kind(std::string_view name);
[[nodiscard]] std::string_view port_kind_name(PortKind kind);

/// Which group frames of members leave a plain port.
enum class BroadcastPolicy : std::uint8_t { kAll, kEssential, kNone };
[[nodiscard]] std::optional<BroadcastPolicy> parse_broadcast_policy(std::string_view name);

/// Whether a frame of bridges among themselves (01:80:c2:00:00:00 to :0f, IEEE 802.1Q table 8-1)
/// may not cross. Spanning tree (:00) may if `pass_stp`; what is about one link (pause, LACP,
/// 802.1X, LLDP) never.
[[nodiscard]] bool is_kept_by_bridges(const MacAddress& destination, bool pass_stp) noexcept;

// Threads: workers, online in the tables' domain. A reason means that the frame is dropped for it.

/// `frame` has an Ethernet header.
[[nodiscard]] std::optional<DropReason> refuse_from_plain_side(const PortTables& tables,
                                                               ConstBytes frame,
                                                               std::uint64_t now_ms) noexcept;
[[nodiscard]] std::optional<DropReason> refuse_to_plain_side(const PortTables& tables,
                                                             ConstBytes frame) noexcept;
/// Of a frame that `peer` sent with a source that it does not own.
[[nodiscard]] std::optional<DropReason> refuse_foreign_source(const PortTables& tables,
                                                              const Peer& peer,
                                                              const VlanMac& source,
                                                              std::uint64_t now_ms) noexcept;

}  // namespace pairwire
