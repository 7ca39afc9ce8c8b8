// Joins opened frames to one super-frame before they reach the TAP, as GRO
// does in a kernel, so that a train of segments costs the kernel one walk.
//
// The payload of each next frame is opened straight to its place. `prepare` bets that its headers
// are as long as those of the first frame, and lets the whole frame be opened that much before the
// end of what is there, having saved the bytes that it overwrites:
//
//     | headers | payload 0 | payload 1 |
//                            saved ^ ^
//                                | headers | payload 2 |     opened here, in one piece
//     | headers | payload 0 | payload 1    | payload 2 |     after commit
//
// If the bet is lost (another flow, say), the payload is left where it is while the caller writes
// out the super-frame, and `carry_over` moves the frame to the front. Only that copies a payload.
//
// What may be joined: frames of one origin whose headers are equal byte for
// byte, but for the fields that tcp_gro_receive() and inet_gro_receive() of Linux
// let differ, and those only as they prescribe. Cutting the super-frame again
// gives the very same frames (for a DF packet with a constant IPv4 id, but for
// that id, which means nothing there: RFC 6864).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "core/bytes.hpp"
#include "l2/checksum.hpp"
#include "l2/headers.hpp"
#include "l2/vnet-header.hpp"

namespace pairwire {

// Implementation constants.

/// Smaller TCP segments are not joined: streams of them are rare, and Linux refuses super-frames of
/// tiny ones (TCP_MIN_GSO_SIZE).
inline constexpr std::uint16_t kMinTcpGsoSize = 256;
/// UDP datagrams of any size are, because each write to the TAP costs more than all the rest of a
/// small frame. It is no amplifier: as many datagrams come out as came in, at most 64 at once.
inline constexpr std::uint16_t kMinUdpGsoSize = 1;
/// Linux takes no more datagrams in one USO frame (UDP_MAX_SEGMENTS); for TCP
/// 46 segments of 1,420 bytes fill a frame.
inline constexpr std::size_t kMaxMergedSegments = 64;

/// What the TAP takes.
struct MergeOptions {
  /// Join a segment with CWR (RFC 3168) and those behind it, VIRTIO_NET_HDR_GSO_ECN.
  bool ecn = false;
  /// Join UDP datagrams of equal size, VIRTIO_NET_HDR_GSO_UDP_L4.
  bool udp = false;
};

enum class MergeResult : std::uint8_t {
  kStarted,    ///< the frame is the first of a new super-frame
  kMerged,     ///< the frame was appended
  kRefused,    ///< write out finish(), then call carry_over()
  kMalformed,  ///< the frame may not reach the kernel; it is forgotten
};

/// What to write to the TAP. `packet` is the vnet header and `frame` in one piece.
/// Valid until the next prepare() or carry_over().
struct MergedFrame {
  VnetHeader header;
  ConstBytes packet;
  ConstBytes frame;
  std::size_t segments = 0;
};

/// Use for each frame, in the order of arrival:
///
///     auto place = merger.prepare(length, origin);
///     if (!place) { write(merger.finish()); place = merger.prepare(length, origin); }
///     open(sealed, *place) or continue;            // nothing to undo
///     check addresses and policy or continue;      // the frame is in one piece; nothing to undo
///     if (merger.commit(claim) == MergeResult::kRefused) {
///       write(merger.finish());
///       merger.carry_over();
///     }
///
/// and `finish` at the end of a batch. An origin has one sender, and the
/// headers of a merged frame are equal to those of the first but for lengths, IPv4 id, sequence
/// number, PSH, FIN and checksums.
///
/// Threads: one for each worker.
class Merger {
 public:
  /// Ethernet with 2 tags, IPv6 without extension headers, TCP with all options (122), rounded up:
  /// what has this size is copied and compared without a loop.
  static constexpr std::size_t kMaxHead = 128;
  /// First byte of a frame in the buffer: room for the vnet header, and for the kMaxHead bytes in
  /// front of the end of a super-frame that is shorter than that.
  static constexpr std::size_t kFrameOffset = kMaxHead + 16;
  /// A buffer of this size never runs out of room: a frame is only placed where it would be part
  /// of an IP packet of legal length, even if it is refused then.
  static constexpr std::size_t kBufferSize = kFrameOffset + 22 + kMaxIpLength + kMaxHead;

  static_assert(kFrameOffset >= kVnetHeaderSize + kMaxHead);

  /// The buffer belongs to the caller and outlives the merger.
  explicit Merger(Bytes buffer, MergeOptions options = {}) noexcept
      : buffer_(buffer), options_(options) {}

  Merger(const Merger&) = delete;
  Merger& operator=(const Merger&) = delete;

  [[nodiscard]] bool empty() const noexcept { return segments_ == 0; }

  /// Room for a frame of `length` bytes. `nullopt` when the super-frame must be finished first,
  /// or, if empty(), when the buffer is too small. Frames of different `origin` (sender, key) are
  /// never joined. Whatever is written there, and also if nothing more happens, the super-frame
  /// stays as it is until commit().
  [[nodiscard]] std::optional<Bytes> prepare(std::size_t length, std::uint64_t origin) noexcept;

  /// Takes the frame that now lies in the place that prepare() gave.
  [[nodiscard]] MergeResult commit(ChecksumClaim claim) noexcept;

  /// Ends the super-frame and writes its lengths, flags and checksums. `nullopt`
  /// if empty().
  [[nodiscard]] std::optional<MergedFrame> finish() noexcept;

  /// Starts the next super-frame with the refused frame. kStarted or kMalformed.
  [[nodiscard]] MergeResult carry_over() noexcept;

 private:
  /// How the IPv4 ids of a super-frame run; decided by its second frame.
  enum class IdRun : std::uint8_t { kUnknown, kCounting, kConstant };

  /// A frame that is not part of the super-frame yet.
  struct Pending {
    enum class State : std::uint8_t {
      kPlaced,   ///< in one piece, over the end of the super-frame; saved_ has what was there
      kRefused,  ///< saved_ has its first bytes, the others lie behind the super-frame
    };
    State state = State::kPlaced;
    std::size_t length = 0;
    std::uint64_t origin = 0;
    ChecksumClaim claim = ChecksumClaim::kComplete;
  };

  std::uint8_t* frame() noexcept { return buffer_.data() + kFrameOffset; }
  /// How many bytes of a placed frame lie over the end of the super-frame.
  std::size_t overlap() const noexcept { return parsed_.payload_offset; }
  void swap_overlap() noexcept;
  void forget_placed() noexcept;
  MergeResult start(const Pending& pending) noexcept;
  bool can_grow() noexcept;
  bool fits(ConstBytes candidate, ChecksumClaim claim) noexcept;
  bool lengths_and_order_hold(ConstBytes candidate, IdRun& id_run) const noexcept;
  void set_mask() noexcept;
  bool same_headers(const std::uint8_t* candidate) const noexcept;
  std::optional<IdRun> next_id_run(const std::uint8_t* candidate) const noexcept;
  void rewrite_headers() noexcept;

  Bytes buffer_;
  MergeOptions options_;

  /// Bytes in front of the end of the super-frame, the last overlap() of which a placed frame
  /// covers; or, when that was refused, the first bytes of that frame at the same place.
  std::array<std::uint8_t, kMaxHead> saved_{};
  std::optional<Pending> pending_;

  // The super-frame.
  std::size_t segments_ = 0;
  std::size_t length_ = 0;
  std::uint64_t origin_ = 0;
  ChecksumClaim claim_ = ChecksumClaim::kComplete;
  VnetHeader single_header_;  ///< in case it stays alone
  bool open_ = false;         ///< another frame may follow; the fields below are set
  bool first_verified_ = false;
  ParsedFrame parsed_;  ///< of the first frame
  /// The first frame's headers as they came: a frame placed behind a short one lies over them.
  alignas(16) std::array<std::uint8_t, kMaxHead> head_{};
  /// The bits of the headers that must be equal in all frames.
  alignas(16) std::array<std::uint8_t, kMaxHead> mask_{};
  std::size_t gso_size_ = 0;
  IdRun id_run_ = IdRun::kUnknown;
  std::uint32_t next_sequence_ = 0;
  std::uint8_t tcp_flags_ = 0;  ///< with PSH and FIN of the last frame
};

}  // namespace pairwire
