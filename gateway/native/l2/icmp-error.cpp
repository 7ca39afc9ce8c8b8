// See icmp-error.hpp.
#include "l2/icmp-error.hpp"

#include <algorithm>

#include "l2/checksum.hpp"
#include "l2/headers.hpp"
#include "l2/wire.hpp"

namespace pairwire {
namespace {

constexpr std::uint8_t kIcmp = 1;
constexpr std::uint8_t kIcmpV6 = 58;
constexpr std::size_t kIcmpHeader = 8;
constexpr std::size_t kV4Protocol = 9;
constexpr std::size_t kV6NextHeader = 6;

constexpr std::uint8_t kV4Unreachable = 3;
constexpr std::uint8_t kV4TimeExceeded = 11;
constexpr std::uint8_t kV4HostUnreachable = 1;
constexpr std::uint8_t kV4ProtocolUnreachable = 2;
constexpr std::uint8_t kV4TooBig = 4;
constexpr std::uint8_t kV6Unreachable = 1;
constexpr std::uint8_t kV6TooBig = 2;
constexpr std::uint8_t kV6TimeExceeded = 3;

ChecksumSum sum_v6(ConstBytes packet, ConstBytes icmp) {
  ChecksumSum sum = pseudo_header_sum(packet.subspan(offset::kIpv6Source, 32), kIcmpV6,
                                      static_cast<std::uint32_t>(icmp.size()));
  sum.add(icmp);
  return sum;
}

std::optional<IcmpError> parse_v4(ConstBytes packet) {
  const auto ip = parse_ipv4(packet);
  if (!ip || ip->protocol != kIcmp || ip->is_fragment()) return std::nullopt;
  const ConstBytes icmp = packet.first(ip->total_length).subspan(ip->size);
  if (icmp.size() < kIcmpHeader + kIpv4MinHeaderSize || !checksum_holds(icmp)) return std::nullopt;
  IcmpError error;
  error.type = icmp[0];
  error.code = icmp[1];
  if (error.type != kV4Unreachable && error.type != kV4TimeExceeded) return std::nullopt;
  if (error.type == kV4Unreachable && error.code == kV4TooBig) error.mtu = load_be16(&icmp[6]);
  // Of a quote the total length says what the packet had, not what is here.
  const ConstBytes quote = icmp.subspan(kIcmpHeader);
  if (quote[0] != 0x45) return std::nullopt;
  error.protocol = quote[kV4Protocol];
  error.addresses = quote.subspan(offset::kIpv4Source, 8);
  error.payload = quote.subspan(kIpv4MinHeaderSize);
  return error;
}

std::optional<IcmpError> parse_v6(ConstBytes packet) {
  const auto ip = parse_ipv6(packet);
  if (!ip || ip->protocol != kIcmpV6 || ip->is_fragment) return std::nullopt;
  const ConstBytes icmp = packet.first(kIpv6HeaderSize + ip->payload_length).subspan(ip->size);
  if (icmp.size() < kIcmpHeader + kIpv6HeaderSize || sum_v6(packet, icmp).fold() != 0xffff) {
    return std::nullopt;
  }
  IcmpError error;
  error.v6 = true;
  error.type = icmp[0];
  error.code = icmp[1];
  if (error.type < kV6Unreachable || error.type > kV6TimeExceeded) return std::nullopt;
  if (error.type == kV6TooBig) error.mtu = load_be32(&icmp[4]);
  const ConstBytes quote = icmp.subspan(kIcmpHeader);
  if ((quote[0] >> 4) != 6) return std::nullopt;
  error.protocol = quote[kV6NextHeader];
  error.addresses = quote.subspan(offset::kIpv6Source, 32);
  error.payload = quote.subspan(kIpv6HeaderSize);
  return error;
}

}  // namespace

std::optional<IcmpError> parse_icmp_error(ConstBytes packet) noexcept {
  if (packet.empty()) return std::nullopt;
  return (packet.front() >> 4) == 4 ? parse_v4(packet) : parse_v6(packet);
}

std::size_t write_icmp_error(const IcmpError& error, ConstBytes original, ConstBytes quote,
                             Bytes out) noexcept {
  const std::size_t header = error.v6 ? kIpv6HeaderSize : kIpv4MinHeaderSize;
  const Bytes all = out.first(header + kIcmpHeader + quote.size());
  const Bytes icmp = all.subspan(header);
  std::ranges::copy(original.first(header), all.begin());
  std::ranges::fill(icmp.first(kIcmpHeader), std::uint8_t{0});
  icmp[0] = error.type;
  icmp[1] = error.code;
  std::ranges::copy(quote, icmp.begin() + kIcmpHeader);
  if (error.v6) {
    if (error.mtu) store_be32(&icmp[4], *error.mtu);
    all[kV6NextHeader] = kIcmpV6;
    store_be16(&all[offset::kIpv6PayloadLength], static_cast<std::uint16_t>(icmp.size()));
    store_be16(&icmp[2], sum_v6(all, icmp).checksum());
    return all.size();
  }
  // The far host knows nothing of the protocol that it was sealed in, and an answer about that is
  // none about the packet.
  if (error.type == kV4Unreachable && error.code == kV4ProtocolUnreachable) {
    icmp[1] = kV4HostUnreachable;
  }
  if (error.mtu) store_be16(&icmp[6], static_cast<std::uint16_t>(*error.mtu));
  all[0] = 0x45;
  store_be16(&all[offset::kIpv4TotalLength], static_cast<std::uint16_t>(all.size()));
  store_be16(&all[offset::kIpv4Fragment], 0);
  write_ipv4_checksum(all.first(kIpv4MinHeaderSize));
  store_be16(&icmp[2], internet_checksum(icmp));
  return all.size();
}

}  // namespace pairwire
