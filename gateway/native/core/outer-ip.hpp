// The header in front of a sealed frame on the transport `ip`: docs/protocol.md section 2.3. It is
// made anew from the packet that it carries, whose own header travels in the seal:
//
//   | IPv4 or IPv6: same addresses, DSCP, ECN, TTL; DF; protocol 253 | shim | sealed: the whole
//   packet | tag |
//
// so routers on the way see who speaks to whom, and nothing else (threats.md C12).
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include "core/bytes.hpp"
#include "l2/headers.hpp"

namespace pairwire {

/// Both ECN bits of a traffic class: congestion experienced (RFC 3168).
inline constexpr std::uint8_t kCongested = 3;

/// What a packet's outer header said on arrival. `addresses` and `sealed` lie in that packet.
struct OuterIp {
  bool v6 = false;
  std::uint8_t traffic_class = 0;  ///< DSCP and ECN
  std::uint8_t ttl = 0;
  ConstBytes addresses;  ///< source and destination: 8 or 32 bytes
  Bytes sealed;          ///< from the shim on

  [[nodiscard]] bool congested() const noexcept {
    return (traffic_class & kCongested) == kCongested;
  }
};

/// Length of an outer header: it never has options.
[[nodiscard]] constexpr std::size_t outer_ip_size(bool v6) noexcept {
  return v6 ? kIpv6HeaderSize : kIpv4MinHeaderSize;
}

/// Source and destination as they lie in the header of `packet`, an IP packet with a whole header.
[[nodiscard]] ConstBytes ip_addresses(ConstBytes packet) noexcept;

/// Writes the outer header for `inner`, an IP packet with a whole header, in front of `payload`
/// bytes. `seed` keeps observers from learning what an IPv6 flow label stands for (RFC 6437).
/// `out` has outer_ip_size bytes.
void write_outer_ip(ConstBytes inner, std::size_t payload, std::uint64_t seed, Bytes out) noexcept;

/// Nothing unless `packet` has protocol 253 right behind a header without options, extension
/// headers or fragment: nothing is reassembled before it has opened.
[[nodiscard]] std::optional<OuterIp> parse_outer_ip(Bytes packet) noexcept;

/// Gives an opened packet what its outer header has met on the way: the smaller TTL, and congestion
/// (RFC 6040, section 4.2; DSCP stays as it was, RFC 2983's pipe). False if the packet is not what
/// the outer header said: another version or other addresses, or congestion that may not be told to
/// it, for which RFC 6040 wants it dropped.
[[nodiscard]] bool take_over_outer(const OuterIp& outer, Bytes inner) noexcept;

/// Whether a packet asks for a way of its own: IPv4 options LSRR and SSRR (RFC 791), or an IPv6
/// routing header (RFC 8200). True also for options that can't be read.
[[nodiscard]] bool is_source_routed(ConstBytes packet) noexcept;

}  // namespace pairwire
