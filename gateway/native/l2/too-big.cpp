// See too-big.hpp.
#include "l2/too-big.hpp"

#include <algorithm>

#include "l2/checksum.hpp"
#include "l2/headers.hpp"

namespace pairwire {
namespace {

constexpr std::uint8_t kIcmp = 1;
constexpr std::uint8_t kIcmpV6 = 58;
constexpr std::uint8_t kHops = 64;
constexpr std::size_t kIcmpHeader = 8;
constexpr std::size_t kIpv4Header = 20;
constexpr std::size_t kIpv6Header = 40;
/// RFC 1812, section 4.3.2.3: as much of the packet as makes an answer of no more than 576 bytes.
constexpr std::size_t kLongestV4 = 576;
constexpr std::size_t kLeastV6 = 1'280;

/// From an address that is nobody's own, or to one.
bool unanswerable_v4(std::uint32_t address) {
  const std::uint32_t first = address >> 24;
  return first == 0 || first == 127 || first >= 224;
}
bool unanswerable_v6(std::span<const std::uint8_t, 16> address) {
  const bool low = std::all_of(address.begin(), address.begin() + 15,
                               [](std::uint8_t byte) { return byte == 0; });
  return address[0] == 0xff || (low && address[15] <= 1);
}

bool is_error_v4(std::uint8_t type) {
  return type == 3 || type == 4 || type == 5 || type == 11 || type == 12;
}
bool is_error_v6(std::uint8_t type) {
  constexpr std::uint8_t redirect = 137;
  return type < 128 || type == redirect;
}

/// Addresses swapped, tags and EtherType as they are.
void write_ethernet(ConstBytes header, Bytes out) {
  std::ranges::copy(header, out.begin());
  std::copy_n(header.begin() + MacAddress::kSize, MacAddress::kSize, out.begin());
  std::copy_n(header.begin(), MacAddress::kSize, out.begin() + MacAddress::kSize);
}

std::size_t write_v4(ConstBytes packet, std::size_t mtu, Bytes out) {
  const auto ip = parse_ipv4(packet);
  if (!ip || !ip->dont_fragment || ip->fragment_offset != 0 || unanswerable_v4(ip->source) ||
      unanswerable_v4(ip->destination)) {
    return 0;
  }
  if (ip->protocol == kIcmp && (ip->total_length <= ip->size || is_error_v4(packet[ip->size]))) {
    return 0;
  }
  const std::size_t quoted =
      std::min<std::size_t>(ip->total_length, kLongestV4 - kIpv4Header - kIcmpHeader);
  const Bytes all = out.first(kIpv4Header + kIcmpHeader + quoted);
  std::ranges::fill(all.first(kIpv4Header + kIcmpHeader), std::uint8_t{0});
  all[0] = 0x45;
  store_be<std::uint16_t>(all.subspan<offset::kIpv4TotalLength, 2>(),
                          static_cast<std::uint16_t>(all.size()));
  all[8] = kHops;
  all[9] = kIcmp;
  std::ranges::copy(packet.subspan<offset::kIpv4Destination, 4>(),
                    all.begin() + offset::kIpv4Source);
  std::ranges::copy(packet.subspan<offset::kIpv4Source, 4>(),
                    all.begin() + offset::kIpv4Destination);
  write_ipv4_checksum(all.first(kIpv4Header));
  const Bytes icmp = all.subspan(kIpv4Header);
  icmp[0] = 3;  // Destination unreachable,
  icmp[1] = 4;  // fragmentation needed and DF set.
  store_be<std::uint16_t>(icmp.subspan<6, 2>(), static_cast<std::uint16_t>(mtu));
  std::ranges::copy(packet.first(quoted), icmp.begin() + kIcmpHeader);
  store_be<std::uint16_t>(icmp.subspan<2, 2>(), internet_checksum(icmp));
  return all.size();
}

std::size_t write_v6(ConstBytes packet, std::size_t mtu, Bytes out) {
  const auto ip = parse_ipv6(packet);
  if (!ip || ip->is_fragment || unanswerable_v6(ip->source) || unanswerable_v6(ip->destination)) {
    return 0;
  }
  const std::size_t length = kIpv6Header + ip->payload_length;
  if (ip->protocol == kIcmpV6 && (length <= ip->size || is_error_v6(packet[ip->size]))) return 0;
  const std::size_t quoted = std::min(length, kLeastV6 - kIpv6Header - kIcmpHeader);
  const Bytes all = out.first(kIpv6Header + kIcmpHeader + quoted);
  std::ranges::fill(all.first(kIpv6Header + kIcmpHeader), std::uint8_t{0});
  const Bytes icmp = all.subspan(kIpv6Header);
  all[0] = 0x60;
  store_be<std::uint16_t>(all.subspan<offset::kIpv6PayloadLength, 2>(),
                          static_cast<std::uint16_t>(icmp.size()));
  all[6] = kIcmpV6;
  all[7] = kHops;
  std::ranges::copy(ip->destination, all.begin() + offset::kIpv6Source);
  std::ranges::copy(ip->source, all.begin() + offset::kIpv6Destination);
  icmp[0] = 2;  // Packet too big.
  store_be<std::uint32_t>(icmp.subspan<4, 4>(), static_cast<std::uint32_t>(mtu));
  std::ranges::copy(packet.first(quoted), icmp.begin() + kIcmpHeader);
  ChecksumSum sum = pseudo_header_sum(all.subspan(offset::kIpv6Source, 32), kIcmpV6,
                                      static_cast<std::uint32_t>(icmp.size()));
  sum.add(icmp);
  store_be<std::uint16_t>(icmp.subspan<2, 2>(), sum.checksum());
  return all.size();
}

}  // namespace

std::size_t write_too_big(ConstBytes frame, std::size_t packet_size, std::size_t mtu,
                          Bytes out) noexcept {
  const auto ethernet = parse_ethernet(frame);
  if (!ethernet || ethernet->destination.is_group() || ethernet->source.is_group()) return 0;
  const ConstBytes packet = frame.subspan(ethernet->size);
  const Bytes place = out.subspan(ethernet->size);
  std::size_t written = 0;
  if (ethernet->ethertype == ethertype::kIpv4 && packet_size > mtu) {
    written = write_v4(packet, mtu, place);
  } else if (ethernet->ethertype == ethertype::kIpv6 && packet_size > std::max(mtu, kLeastV6)) {
    written = write_v6(packet, std::max(mtu, kLeastV6), place);
  }
  if (written == 0) return 0;
  write_ethernet(frame.first(ethernet->size), out);
  return ethernet->size + written;
}

}  // namespace pairwire
