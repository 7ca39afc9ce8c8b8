// The sealed frame: docs/protocol.md section 2. Bytes in, values out; no I/O, no keys.
//
//  0       4       8              16                              32
// +-------+-------+---------------+-------------------------------+
// |version| kind  |     flags     |              kid              |
// +-------+-------+---------------+-------------------------------+
// |                         sender index                          |
// +---------------------------------------------------------------+  shim, in clear,
// |                                                               |  authenticated
// +                            counter                            +
// |                                                               |
// +===============================================================+
// |                             time                              |
// +---------------+---------------+-------------------------------+
// |0 0 0 0 L  pt P|     train     |            padding            |  sealed; L last part,
// +---------------+---------------+-------------------------------+  pt part number,
// |                     payload, then padding                     |  P partial checksum
// +===============================================================+
// |                          tag, 16 bytes                        |
// +---------------------------------------------------------------+
#pragma once

#include <chrono>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "core/bytes.hpp"

namespace pairwire {

// --- Specification constants --------------------------------------------------------------------

inline constexpr std::uint8_t kFrameVersion = 1;
inline constexpr std::size_t kShimSize = 16;
inline constexpr std::size_t kInnerHeaderSize = 8;  // Time and description.
inline constexpr std::size_t kFrameTagSize = 16;
inline constexpr std::size_t kFrameOverhead = kShimSize + kInnerHeaderSize + kFrameTagSize;
// The tables of docs/protocol.md give both numbers; an empty payload makes the smallest frame.
static_assert(kFrameOverhead == 40);

inline constexpr std::uint16_t kEtherType = 0x88B5;
inline constexpr std::uint8_t kIpProtocol = 253;

inline constexpr std::uint8_t kFlagFragment = 0x80;
inline constexpr std::uint8_t kFlagGroupDestination = 0x40;
inline constexpr std::uint8_t kFlagSubnetTag = 0x3f;  // A mask: the tag's 6 bits.
// Every bit of the byte has exactly one meaning.
static_assert((kFlagFragment ^ kFlagGroupDestination ^ kFlagSubnetTag) == 0xff);

// One traffic key seals at most so much (section 3.4); at half of it the next one is asked for.
inline constexpr std::uint64_t kFrameLimit = std::uint64_t{1} << 36;
inline constexpr std::uint64_t kByteLimit = std::uint64_t{1} << 46;
inline constexpr std::uint64_t kRekeyAfterFrames = std::uint64_t{1} << 35;
inline constexpr std::uint64_t kRekeyAfterBytes = std::uint64_t{1} << 45;
// A key that is asked for only when the old one is used up would come too late.
static_assert(kRekeyAfterFrames < kFrameLimit && kRekeyAfterBytes < kByteLimit);

inline constexpr std::uint8_t kMaxParts = 3;

// --- Shim ---------------------------------------------------------------------------------------

/// What a frame is; the number on the wire.
enum class Kind : std::uint8_t {
  kPair = 1,   // Payload: an inner frame, for one member.
  kGroup = 2,  // Payload: an inner frame with a group destination, for every member.
  kNet = 3,    // Payload: an inner frame, between two link ports.
  kPath = 4,   // Payload: type (1), zero (3), token (8), ignored padding: section 2.4.
  kRelay = 5,  // Payload: for a relay.
};

/// On `ethernet` a frame is never shorter than an Ethernet frame may be without its check sequence,
/// less the outer header: else a network card would pad it, and its tag would fail.
inline constexpr std::size_t kMinEthernetFrame = 60 - 14;

/// How a frame travels; decides which flags it may carry and what its associated data are.
enum class Transport : std::uint8_t { kUdp, kEthernet, kIp };

/// The first 16 bytes of a sealed frame, in host byte order.
struct Shim {
  Kind kind = Kind::kPair;
  std::uint8_t flags = 0;
  std::uint16_t kid = 0;
  std::uint32_t index = 0;
  std::uint64_t counter = 0;

  [[nodiscard]] constexpr bool fragment() const { return (flags & kFlagFragment) != 0; }
  [[nodiscard]] constexpr bool group_destination() const {
    return (flags & kFlagGroupDestination) != 0;
  }
  /// Subnet tag on `ethernet`, 0 elsewhere.
  [[nodiscard]] constexpr std::uint8_t subnet_tag() const { return flags & kFlagSubnetTag; }

  friend bool operator==(const Shim&, const Shim&) = default;
};

/// Whether on `ethernet` the inner addresses of this frame stand outside the seal only, as outer
/// ones: those of unicast do, group destinations are told to nobody (section 2.3).
[[nodiscard]] constexpr bool has_outer_addresses(const Shim& shim) {
  return shim.kind != Kind::kGroup && !shim.group_destination();
}

/// Reads the shim of a whole sealed frame, shim to tag: step 1 of 'Accepting a frame'
/// (docs/protocol.md section 4). Nothing in the result is authentic yet.
/// Returns nothing if the frame is `malformed`: shorter than 40 bytes, another version, an unknown
/// kind, or a subnet tag on a transport that has none. Sender index 0 passes; no table holds it.
[[nodiscard]] std::optional<Shim> parse_shim(ConstBytes frame, Transport transport);

/// Writes the 16 bytes of a shim.
void write_shim(const Shim& shim, std::span<std::uint8_t, kShimSize> out);

// --- Sealed header ------------------------------------------------------------------------------

/// The 4 bytes that describe a payload, inside the seal.
struct Description {
  bool partial_checksum = false;  // The TCP or UDP checksum holds the pseudo-header sum only.
  std::uint8_t part = 0;          // Part number of a fragment, 0 to 2.
  bool last_part = false;
  std::uint8_t train = 0;     // Place in a train of segments; a hint, never believed.
  std::uint16_t padding = 0;  // Bytes behind the payload.

  friend bool operator==(const Description&, const Description&) = default;
};

/// Time and description: the first 8 bytes of the plaintext.
struct InnerHeader {
  std::uint32_t time = 0;  // Key-server time in 1/256 s, modulo 2^32.
  Description description;

  friend bool operator==(const InnerHeader&, const InnerHeader&) = default;
};

/// Reads the opened header. Returns nothing if a reserved bit is set or the part number is 3
/// (`malformed`, step 9).
[[nodiscard]] std::optional<InnerHeader> parse_inner_header(
    std::span<const std::uint8_t, kInnerHeaderSize> in);

/// Writes the header to be sealed. `part` is at most 2.
void write_inner_header(const InnerHeader& header, std::span<std::uint8_t, kInnerHeaderSize> out);

/// Length of the payload in `body_size` opened bytes behind the header, or nothing if the padding
/// would be longer than that (`malformed`, step 9).
[[nodiscard]] constexpr std::optional<std::size_t> payload_size(const Description& description,
                                                                std::size_t body_size) {
  if (description.padding > body_size) return std::nullopt;
  return body_size - description.padding;
}

// --- Time in a frame ----------------------------------------------------------------------------

using FrameTime = std::uint32_t;  // 1/256 s, modulo 2^32: once round in 194 days.
inline constexpr std::uint32_t kFrameTimePerSecond = 256;

/// Frame time of a key-server time (milliseconds since 1970), rounded down.
[[nodiscard]] constexpr FrameTime frame_time(std::uint64_t server_ms) {
  // Seconds first: multiplying all 64 bits could overflow before the modulo.
  return static_cast<FrameTime>(server_ms / 1000 * kFrameTimePerSecond +
                                server_ms % 1000 * kFrameTimePerSecond / 1000);
}

/// Compares two frame times as serial numbers (RFC 1982). Exactly half the circle apart they are
/// `unordered`, so every question of the form "is it late enough?" is answered with no.
[[nodiscard]] constexpr std::partial_ordering compare_frame_times(FrameTime a, FrameTime b) {
  constexpr FrameTime half = FrameTime{1} << 31;
  const FrameTime ahead = a - b;
  if (ahead == 0) return std::partial_ordering::equivalent;
  if (ahead == half) return std::partial_ordering::unordered;
  return ahead < half ? std::partial_ordering::greater : std::partial_ordering::less;
}

/// How far a frame's time may be from ours: `base` plus 200 ppm of the age of our last time sample,
/// rounded up, in 1/256 s. Negative durations count as zero; the result never exceeds half the
/// circle less one.
[[nodiscard]] FrameTime freshness_tolerance(std::chrono::milliseconds base,
                                            std::chrono::milliseconds sample_age);

/// True if `time` differs from `now` by at most `tolerance`, in either direction (step 10).
[[nodiscard]] constexpr bool is_fresh(FrameTime time, FrameTime now, FrameTime tolerance) {
  const FrameTime ahead = time - now;
  const FrameTime behind = now - time;
  return (ahead < behind ? ahead : behind) <= tolerance;
}

}  // namespace pairwire
