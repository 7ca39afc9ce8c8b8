// The frame that a plain port sends on its plain side once a second, to find out whether that side
// leads back to it or to another plain port of the subnet (threats.md C11).
//
//  dst 03:50:57:00:00:01 (6) | src: member's first address (6) | 0x88B6 (2)
//  "PWLP" (4) | version 1 (1) | state (1) | zero (2) | server time, ms (8) | nonce (8)
//  length (1) | member id (1 to 63) | MAC (16) | padding, ignored
//
// The MAC is over a label and everything from "PWLP" to the id; who holds the key is not this
// file's business.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

#include "core/bytes.hpp"
#include "l2/headers.hpp"
#include "l2/mac.hpp"

namespace pairwire {

// Specification constants.
/// IEEE 802, local experimental EtherType 2; sealed frames have number 1.
inline constexpr std::uint16_t kLoopProbeEtherType = 0x88b6;
inline constexpr MacAddress kLoopProbeDestination{
    std::array<std::uint8_t, 6>{0x03, 0x50, 0x57, 0, 0, 1}};
inline constexpr std::uint8_t kLoopProbeVersion = 1;
inline constexpr std::size_t kLoopProbeMacSize = 16;
inline constexpr std::size_t kLoopProbeIdSize = 63;  ///< at most
inline constexpr std::size_t kLoopProbeHeadSize = 4 + 1 + 1 + 2 + 8 + 8 + 1;
/// The longest probe, with its Ethernet header.
inline constexpr std::size_t kLoopProbeSize =
    kEthernetHeaderSize + kLoopProbeHeadSize + kLoopProbeIdSize + kLoopProbeMacSize;

/// What a probe says. `id` refers to the bytes that were parsed.
struct LoopProbe {
  std::uint8_t state = 0;  ///< of the sender, for people who look at the wire; means nothing here
  std::uint64_t time_ms = 0;
  std::uint64_t nonce = 0;
  std::string_view id;
};

/// A probe as it came: what it says, and what must be checked before that is believed.
struct ReceivedLoopProbe {
  LoopProbe probe;
  ConstBytes authenticated;
  std::span<const std::uint8_t, kLoopProbeMacSize> mac;
};

/// Whether a frame has address and EtherType of a probe; also behind VLAN tags, which a bridge on
/// the way round may have added. It has an Ethernet header.
[[nodiscard]] bool is_loop_probe(ConstBytes frame) noexcept;

/// Reads a frame that is_loop_probe(), without the tags; nothing if it is not as above. Nothing in
/// the result is authentic yet.
[[nodiscard]] std::optional<ReceivedLoopProbe> parse_loop_probe(ConstBytes frame) noexcept;

/// Bytes of a probe that was written.
struct WrittenLoopProbe {
  ConstBytes authenticated;
  std::span<std::uint8_t, kLoopProbeMacSize> mac;  ///< still to be filled in
  std::size_t size = 0;                            ///< of the whole frame
};
/// Writes all but the MAC. `probe.id` has 1 to 63 bytes, else nothing is written.
[[nodiscard]] std::optional<WrittenLoopProbe> write_loop_probe(
    const LoopProbe& probe, const MacAddress& source,
    std::span<std::uint8_t, kLoopProbeSize> out) noexcept;

}  // namespace pairwire
