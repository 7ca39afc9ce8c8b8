// See plain-port.hpp.
#include "core/plain-port.hpp"

#include "core/tables.hpp"
#include "l2/essential-group.hpp"
#include "l2/loop-probe.hpp"

namespace pairwire {
namespace {

MacAddress destination_of(ConstBytes frame) noexcept {
  return MacAddress(frame.first<MacAddress::kSize>());
}
MacAddress source_of(ConstBytes frame) noexcept {
  return MacAddress(frame.subspan<MacAddress::kSize, MacAddress::kSize>());
}

/// Group frames of the kinds that the policy keeps inside.
bool stays_inside(ConstBytes frame, BroadcastPolicy policy) noexcept {
  switch (policy) {
    case BroadcastPolicy::kAll:
      return false;
    case BroadcastPolicy::kEssential:
      return !is_essential_group(frame);
    case BroadcastPolicy::kNone:
      return true;
  }
  return true;
}

}  // namespace

std::optional<PortKind> parse_port_kind(std::string_view name) {
  if (name == "host") return PortKind::kHost;
  if (name == "plain") return PortKind::kPlain;
  if (name == "link") return PortKind::kLink;
  return std::nullopt;
}

std::string_view port_kind_name(PortKind kind) {
  switch (kind) {
    case PortKind::kHost:
      return "host";
    case PortKind::kPlain:
      return "plain";
    case PortKind::kLink:
      return "link";
  }
  return "host";
}

std::optional<BroadcastPolicy> parse_broadcast_policy(std::string_view name) {
  if (name == "all") return BroadcastPolicy::kAll;
  if (name == "essential") return BroadcastPolicy::kEssential;
  if (name == "none") return BroadcastPolicy::kNone;
  return std::nullopt;
}

bool is_kept_by_bridges(const MacAddress& destination, bool pass_stp) noexcept {
  constexpr std::uint64_t kFirst = 0x0180'c200'0000;
  const std::uint64_t number = destination.to_integer();
  if (number < kFirst || number > kFirst + 0x0f) return false;
  return number != kFirst || !pass_stp;
}

std::optional<DropReason> refuse_from_plain_side(const PortTables& tables, ConstBytes frame,
                                                 std::uint64_t now_ms) noexcept {
  const MacAddress source = source_of(frame);
  if (source.is_group() || source.is_zero()) return DropReason::malformed;
  if (tables.is_own(source)) return DropReason::plain_spoof;
  if (is_kept_by_bridges(destination_of(frame), tables.settings().pass_stp)) {
    return DropReason::plain_reserved;
  }
  // Nobody would believe it; so it does not even leave here.
  const Behind* const behind = tables.behind({outer_vlan(frame), source}, now_ms);
  if (behind != nullptr && behind->pinned && !behind->member->self) {
    return DropReason::pinned_elsewhere;
  }
  return std::nullopt;
}

std::optional<DropReason> refuse_to_plain_side(const PortTables& tables,
                                               ConstBytes frame) noexcept {
  if (!tables.plain_side_open()) return DropReason::plain_standby;
  const MacAddress destination = destination_of(frame);
  if (!destination.is_group()) {
    if (tables.is_own(destination)) return DropReason::plain_own_destination;
    return std::nullopt;
  }
  const PortSettings& settings = tables.settings();
  if (is_kept_by_bridges(destination, settings.pass_stp)) return DropReason::plain_reserved;
  // A member that holds the group key could make one that tells other ports to be silent.
  if (is_loop_probe(frame)) return DropReason::plain_reserved;
  if (stays_inside(frame, settings.broadcast)) return DropReason::plain_broadcast;
  return std::nullopt;
}

std::optional<DropReason> refuse_foreign_source(const PortTables& tables, const Peer& peer,
                                                const VlanMac& source,
                                                std::uint64_t now_ms) noexcept {
  if (!peer.plain.load(std::memory_order_relaxed)) return DropReason::wrong_source_mac;
  if (source.mac.is_group() || source.mac.is_zero() || tables.is_own(source.mac)) {
    return DropReason::wrong_source_mac;
  }
  const Behind* const behind = tables.behind(source, now_ms);
  if (behind != nullptr && behind->pinned &&
      behind->member->peer.load(std::memory_order_acquire) != &peer) {
    return DropReason::pinned_elsewhere;
  }
  return std::nullopt;
}

}  // namespace pairwire
