// Cuts a super-frame that the kernel wrote to a TAP into wire segments.
//
// Done as tcp_gso_segment() and __udp_gso_segment() of Linux do it:
//
//     | Ethernet, IP, L4 headers |  payload 0  |  payload 1  | .. |  last  |
//       copied and adjusted         slice of      slice of
//       for each segment            the frame     the frame
//
// Payload is never copied: `cut` gives head and slice. `cut_in_place` even makes them one piece,
// by writing the head over the end of the segment before, which must have been sealed by then.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "core/bytes.hpp"
#include "l2/checksum.hpp"
#include "l2/headers.hpp"
#include "l2/vnet-header.hpp"

namespace pairwire {

enum class SegmentStatus : std::uint8_t {
  kOk,
  kMalformed,    ///< header and frame contradict each other
  kUnsupported,  ///< an offload that we never asked the TAP for
};

/// Which checksums the sealing end may leave partial.
struct SegmentPolicy {
  /// TCP. The receiver trusts the seal instead of summing up every byte twice.
  bool tcp_partial = true;
  /// UDP that the kernel handed over as a super-frame. A single datagram
  /// always leaves complete: DHCP clients read AF_PACKET, where nobody completes.
  bool uso_partial = true;
};

/// One wire segment: the first `head_length` bytes of the caller's head
/// buffer, then `payload`, which lies in the super-frame.
struct Segment {
  std::size_t head_length = 0;
  ConstBytes payload;
  ChecksumClaim claim = ChecksumClaim::kComplete;

  std::size_t size() const noexcept { return head_length + payload.size(); }
};

/// Threads: none of its own; one for each worker. Holds a view of the frame
/// from `begin` on, until the next `begin`.
class Segmenter {
 public:
  /// Room for Ethernet with 2 tags (22), IPv4 (60) or IPv6 with extension headers (40 + 900), and
  /// TCP (60). Any program may give its socket options of several hundred bytes (IPV6_DSTOPTS), and
  /// the kernel leaves it to us to repeat them. Longer headers are not cut.
  static constexpr std::size_t kMaxHead = 1024;
  using Head = std::span<std::uint8_t, kMaxHead>;

  /// More segments than these are no super-frame of a kernel: Linux stops
  /// at a TCP payload of 8 bytes (TCP_MIN_GSO_SIZE).
  static constexpr std::size_t kMaxSegments = kMaxIpLength / 8;

  explicit Segmenter(SegmentPolicy policy = {}) noexcept : policy_(policy) {}

  /// Takes the next frame. A frame that is not a super-frame becomes one
  /// segment without head, its checksum completed in place where it may not stay
  /// partial. After anything but `kOk` there are no segments.
  [[nodiscard]] SegmentStatus begin(const VnetHeader& header, Bytes frame) noexcept;

  std::size_t count() const noexcept { return count_; }

  /// Size of the largest segment: the first one.
  std::size_t largest() const noexcept;

  /// Size of segment `index`, which is below count().
  std::size_t size(std::size_t index) const noexcept { return head_length_ + slice(index).size(); }

  ChecksumClaim claim() const noexcept { return claim_; }

  /// Makes segment `index`, in any order; `index` is below count().
  Segment cut(std::size_t index, Head head) const noexcept;

  /// The same in one piece within the frame. Spoils the segments before `index`, so take them in
  /// order and be done with each before the next; and use no other way for the same frame.
  ConstBytes cut_in_place(std::size_t index) noexcept;

  /// The same as a copy. Returns its size, or 0 when `out` is too small.
  [[nodiscard]] std::size_t write(std::size_t index, Bytes out) const noexcept;

 private:
  SegmentStatus begin_single(const VnetHeader& header, Bytes frame) noexcept;
  SegmentStatus begin_super(const VnetHeader& header, Bytes frame) noexcept;
  ConstBytes slice(std::size_t index) const noexcept;
  void write_head(std::size_t index, ConstBytes payload, Bytes head) const noexcept;

  SegmentPolicy policy_;
  std::size_t count_ = 0;
  ChecksumClaim claim_ = ChecksumClaim::kComplete;
  Bytes frame_;
  ConstBytes payload_;

  // For super-frames only. The head holds zero where segments differ.
  ParsedFrame parsed_;
  std::size_t head_length_ = 0;
  std::size_t gso_size_ = 0;
  std::array<std::uint8_t, kMaxHead> head_{};
  ChecksumSum ipv4_sum_;    ///< of the IPv4 header in head_
  ChecksumSum pseudo_sum_;  ///< of the pseudo-header, without its length
  std::uint16_t first_id_ = 0;
  std::uint32_t first_sequence_ = 0;
  std::uint8_t tcp_flags_ = 0;
};

}  // namespace pairwire
