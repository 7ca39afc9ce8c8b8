// The header in front of each frame of a TAP opened with IFF_VNET_HDR:
// `struct virtio_net_hdr` (virtio 1.2, section 5.1.6), 10 bytes, in the byte
// order of the host, which is what the kernel uses unless told otherwise.
//
// One that we read was written by our own kernel. One that we write is made
// by offload.hpp or merge.hpp from nothing but our own parse: a peer that could
// choose a field would own a 2-byte write behind our firewall and a packet
// amplifier.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>

namespace pairwire {

namespace vnet {
// flags
inline constexpr std::uint8_t kNeedsChecksum = 1;
inline constexpr std::uint8_t kDataValid = 2;
// gso_type
inline constexpr std::uint8_t kGsoNone = 0;
inline constexpr std::uint8_t kGsoTcpV4 = 1;
inline constexpr std::uint8_t kGsoTcpV6 = 4;
inline constexpr std::uint8_t kGsoUdpL4 = 5;   ///< USO, since Linux 6.2
inline constexpr std::uint8_t kGsoEcn = 0x80;  ///< with a TCP type: the first segment has CWR
}  // namespace vnet

struct VnetHeader {
  std::uint8_t flags = 0;
  std::uint8_t gso_type = vnet::kGsoNone;
  std::uint16_t hdr_len = 0;   ///< Ethernet, IP and L4 header together; a hint
  std::uint16_t gso_size = 0;  ///< payload of each segment but the last
  std::uint16_t csum_start = 0;
  std::uint16_t csum_offset = 0;  ///< from csum_start on

  bool needs_checksum() const noexcept { return (flags & vnet::kNeedsChecksum) != 0; }
  bool has_ecn() const noexcept { return (gso_type & vnet::kGsoEcn) != 0; }
  std::uint8_t gso_kind() const noexcept {
    return static_cast<std::uint8_t>(gso_type & ~vnet::kGsoEcn);
  }

  friend bool operator==(const VnetHeader&, const VnetHeader&) noexcept = default;
};

inline constexpr std::size_t kVnetHeaderSize = 10;

// The TAP is set to this size (TUNSETVNETHDRSZ); the one of 12 bytes has
// num_buffers, which a TAP does not use.
static_assert(sizeof(VnetHeader) == kVnetHeaderSize);

/// Reads the header at the front of what a TAP gave us.
[[nodiscard]] inline std::optional<VnetHeader> read_vnet_header(ConstBytes packet) noexcept {
  if (packet.size() < kVnetHeaderSize) return std::nullopt;
  VnetHeader header;
  std::memcpy(&header, packet.data(), kVnetHeaderSize);
  return header;
}

inline void write_vnet_header(std::span<std::uint8_t, kVnetHeaderSize> at,
                              const VnetHeader& header) noexcept {
  std::memcpy(at.data(), &header, kVnetHeaderSize);
}

}  // namespace pairwire
