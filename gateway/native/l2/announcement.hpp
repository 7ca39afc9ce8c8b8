// What a frame tells others about addresses, routes or leases: ARP, neighbour discovery and the
// messages of DHCP servers. Who may say it is not this file's business (core/address-guard.hpp).
//
// Read as leniently as any machine inside might read it, because what is overlooked here is obeyed
// there: lengths of IP are not believed where they would make a message shorter, 802.2 SNAP (RFC
// 1042) and up to two VLAN tags are looked behind, and extension headers are walked. What can't be
// seen to be harmless is `false_form`.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "l2/headers.hpp"
#include "l2/ip-address.hpp"
#include "l2/mac.hpp"
#include "l2/wire.hpp"

namespace pairwire {

struct Announcement {
  enum class Kind : std::uint8_t {
    kNone,
    kArp,
    kNeighbour,   ///< ICMPv6 133, 135, 136; or IPv6 that hides what it is
    kRouter,      ///< router advertisement, ICMPv6 134
    kRedirect,    ///< ICMPv6 137
    kDhcpServer,  ///< DHCP (RFC 2131) or DHCPv6 (RFC 8415), in a server's direction
  };
  Kind kind = Kind::kNone;
  /// Malformed, or made to be overlooked (fragments: RFC 6980, chains of headers: RFC 7113), or it
  /// names another link-layer address than the frame's source as that of its sender.
  bool false_form = false;
  /// In a VLAN. A priority tag (VLAN 0) makes no difference to who reads it, so not here either.
  bool in_vlan = false;
  /// The address that the sender says is its own; none if it says nothing of the kind.
  IpAddress claimed;
  /// Of a question (ARP request, neighbour solicitation) directly behind an untagged Ethernet
  /// header: the address asked for. `claimed` is who asks, or none.
  IpAddress asked;
};

/// Whether read_announcement() could find anything: false for TCP, which this is here for.
[[nodiscard]] inline bool may_announce(ConstBytes frame) noexcept {
  constexpr std::size_t kIpv4Protocol = kEthernetHeaderSize + 9;
  constexpr std::size_t kIpv6Next = kEthernetHeaderSize + 6;
  if (frame.size() <= kIpv4Protocol) return frame.size() >= kEthernetHeaderSize;
  switch (load_be16(&frame[2 * MacAddress::kSize])) {
    case ethertype::kIpv4:
      return frame[kIpv4Protocol] == ip_protocol::kUdp;
    case ethertype::kIpv6:
      return frame[kIpv6Next] != ip_protocol::kTcp;
    default:
      return true;
  }
}

/// `frame` has at least an Ethernet header.
[[nodiscard]] Announcement read_announcement(ConstBytes frame) noexcept;

/// The longest answer to a question.
inline constexpr std::size_t kNeighbourAnswerSize = kEthernetHeaderSize + kIpv6HeaderSize + 32;

/// Answers a question (`asked` is not none) from `asker` in the name of `owner`, whose address it
/// is: an ARP reply or a neighbour advertisement. `router`: of the owner, said in the latter.
/// Returns its length.
std::size_t write_neighbour_answer(const Announcement& question, const MacAddress& asker,
                                   const MacAddress& owner, bool router,
                                   std::span<std::uint8_t, kNeighbourAnswerSize> out) noexcept;

}  // namespace pairwire
