// See address-guard.hpp.
#include "core/address-guard.hpp"

#include "core/tables.hpp"

namespace pairwire {
namespace {

using What = Announcement::Kind;

/// Whether the address is bound to somebody else. A member may use an address of its own with any
/// of its MAC addresses: what is told of the move may be on its way.
bool is_anothers(const PortTables& tables, const Announcement& what, const MacAddress& source,
                 const Peer* peer) noexcept {
  if (what.claimed.is_none() || what.in_vlan) return false;
  const Binding* const binding = tables.binding(what.claimed);
  if (binding == nullptr || binding->mac == source) return false;
  const auto is_senders = [&](const MacAddress& mac) {
    return peer == nullptr ? tables.settings().owns(mac) : peer->owns(mac);
  };
  return !is_senders(source) || !is_senders(binding->mac);
}

}  // namespace

std::optional<DropReason> refuse_announcement(const PortTables& tables, const Announcement& what,
                                              const MacAddress& source, const Peer* peer) noexcept {
  if (what.kind == What::kNone) return std::nullopt;
  const std::uint8_t rights =
      peer == nullptr ? tables.settings().rights : peer->rights.load(std::memory_order_relaxed);
  const bool routes = (rights & kRightRouter) != 0;
  if (what.kind == What::kDhcpServer) {
    if ((rights & kRightDhcp) == 0) return DropReason::dhcp_guard;
    return std::nullopt;
  }
  if (what.kind == What::kRouter && !routes) return DropReason::ra_guard;
  if (what.kind == What::kRedirect && !routes) return DropReason::redirect_guard;
  if (what.false_form || is_anothers(tables, what, source, peer)) {
    return what.kind == What::kArp ? DropReason::arp_spoof : DropReason::nd_spoof;
  }
  return std::nullopt;
}

std::optional<MacAddress> answer_from_here(const PortTables& tables, const Announcement& question,
                                           const MacAddress& source,
                                           std::uint64_t now_ms) noexcept {
  const PortSettings& settings = tables.settings();
  if (question.asked.is_none() || !settings.answer) return std::nullopt;
  const Binding* const binding = tables.binding(question.asked);
  if (binding == nullptr || binding->mac == source || settings.owns(binding->mac)) {
    return std::nullopt;
  }
  if (settings.kind == PortKind::kPlain && !tables.is_own(binding->mac)) {
    // A machine on this side answers for itself; said by us, the bridge would look for it here.
    const Behind* const behind = tables.behind({0, binding->mac}, now_ms);
    if (behind == nullptr || behind->member->self) return std::nullopt;
  }
  return binding->mac;
}

bool is_router(const PortTables& tables, const MacAddress& mac, std::uint64_t now_ms) noexcept {
  const Peer* const peer = tables.route({0, mac}, now_ms);
  return peer != nullptr && (peer->rights.load(std::memory_order_relaxed) & kRightRouter) != 0;
}

std::string_view guard_word(DropReason reason) noexcept {
  switch (reason) {
    case DropReason::arp_spoof:
      return "arp";
    case DropReason::nd_spoof:
      return "nd";
    case DropReason::ra_guard:
      return "ra";
    case DropReason::redirect_guard:
      return "redirect";
    case DropReason::dhcp_guard:
      return "dhcp";
    default:
      return {};
  }
}

std::optional<WorkerEvent> GuardReports::report(DropReason reason, const Announcement& what,
                                                const MacAddress& source, std::uint32_t peer,
                                                std::uint64_t now_us) noexcept {
  if (!budget_.take(now_us)) return std::nullopt;
  WorkerEvent event;
  event.kind = WorkerEvent::Kind::kGuarded;
  event.reason = reason;
  event.peer = peer;
  event.mac = source;
  event.ip = what.claimed;
  return event;
}

}  // namespace pairwire
