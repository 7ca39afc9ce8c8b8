// The Internet checksum: RFC 1071, updated piecewise as in RFC 1624, and
// with the pseudo-headers of RFC 9293 / RFC 768 (IPv4) and RFC 8200, section 8.1.
//
// Sums are kept wide and in the byte order of memory, which RFC 1071, section
// 2(B), allows; only `fold` swaps. So loads need no swap and nothing overflows.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "l2/headers.hpp"
#include "l2/wire.hpp"

namespace pairwire {

/// Whether a frame's TCP or UDP checksum is right, or holds the sum of its
/// pseudo-header only. The one claim about offload that crosses the wire.
enum class ChecksumClaim : std::uint8_t { kComplete, kPartial };

/// A ones' complement sum that has not been folded.
class ChecksumSum {
 public:
  constexpr ChecksumSum() noexcept = default;

  /// Adds bytes. A piece of odd length must be the last one.
  void add(ConstBytes bytes) noexcept;

  /// Adds one 16-bit word, given as a number.
  constexpr void add_word(std::uint16_t value) noexcept { sum_ += to_network(value); }

  constexpr void add(ChecksumSum other) noexcept { sum_ += other.folded(); }

  /// The ones' complement sum, as the number that stands on the wire.
  constexpr std::uint16_t fold() const noexcept { return to_network(folded()); }

  /// The checksum: the complement of the sum.
  constexpr std::uint16_t checksum() const noexcept { return static_cast<std::uint16_t>(~fold()); }

  /// The checksum for TCP and UDP: zero is sent as 0xffff, because zero says
  /// "none" in UDP (RFC 768). In TCP both mean the same; skb_checksum_help()
  /// of Linux does not distinguish either.
  constexpr std::uint16_t nonzero_checksum() const noexcept {
    const std::uint16_t value = checksum();
    return value == 0 ? std::uint16_t{0xffff} : value;
  }

 private:
  constexpr std::uint16_t folded() const noexcept {
    std::uint64_t sum = (sum_ >> 32) + (sum_ & 0xffffffffU);
    sum = (sum >> 16) + (sum & 0xffffU);
    sum = (sum >> 16) + (sum & 0xffffU);
    sum = (sum >> 16) + (sum & 0xffffU);
    return static_cast<std::uint16_t>(sum);
  }

  std::uint64_t sum_ = 0;
};

/// The checksum of `bytes` (RFC 1071).
[[nodiscard]] std::uint16_t internet_checksum(ConstBytes bytes) noexcept;

/// Whether `bytes`, a checksum among them, add up.
[[nodiscard]] bool checksum_holds(ConstBytes bytes) noexcept;

/// `checksum` after a 16-bit word it covers went from `before` to `after`
/// (RFC 1624, equation 3).
[[nodiscard]] constexpr std::uint16_t update_checksum(std::uint16_t checksum, std::uint16_t before,
                                                      std::uint16_t after) noexcept {
  ChecksumSum sum;
  sum.add_word(static_cast<std::uint16_t>(~checksum));
  sum.add_word(static_cast<std::uint16_t>(~before));
  sum.add_word(after);
  return sum.checksum();
}

/// The same for 32 bits.
[[nodiscard]] constexpr std::uint16_t update_checksum32(std::uint16_t checksum,
                                                        std::uint32_t before,
                                                        std::uint32_t after) noexcept {
  checksum = update_checksum(checksum, static_cast<std::uint16_t>(before >> 16),
                             static_cast<std::uint16_t>(after >> 16));
  return update_checksum(checksum, static_cast<std::uint16_t>(before),
                         static_cast<std::uint16_t>(after));
}

/// Pseudo-header sum. `addresses` are source and destination as they lie in
/// the IP header: 8 or 32 bytes.
[[nodiscard]] ChecksumSum pseudo_header_sum(ConstBytes addresses, std::uint8_t protocol,
                                            std::uint32_t l4_length) noexcept;

// The functions below take a frame and its own parse, which says `transport`.

/// Pseudo-header sum of a frame, for a segment of `l4_length` bytes.
[[nodiscard]] ChecksumSum pseudo_header_sum(ConstBytes frame, const ParsedFrame& parsed,
                                            std::uint32_t l4_length) noexcept;

/// Where the TCP or UDP checksum lies in the frame.
constexpr std::size_t l4_checksum_offset(const ParsedFrame& parsed) noexcept {
  return parsed.l4_offset +
         (parsed.l4_protocol == ip_protocol::kTcp ? offset::kTcpChecksum : offset::kUdpChecksum);
}

/// Writes the pseudo-header sum into the checksum field.
void write_partial_checksum(Bytes frame, const ParsedFrame& parsed) noexcept;

/// Writes the right checksum, whatever the field held. Not for packets on
/// their way through an IPv6 routing header: the pseudo-header of those has the
/// last destination (RFC 8200, section 8.1), which the IP header does not.
void write_complete_checksum(Bytes frame, const ParsedFrame& parsed) noexcept;

/// Whether the TCP or UDP checksum is there and right. An absent UDP checksum does not hold.
[[nodiscard]] bool l4_checksum_holds(ConstBytes frame, const ParsedFrame& parsed) noexcept;

/// Writes the header checksum of IPv4; `header` is the header with its options.
void write_ipv4_checksum(Bytes header) noexcept;

}  // namespace pairwire
