// See outer-ip.hpp.
#include "core/outer-ip.hpp"

#include <algorithm>

#include "core/frame.hpp"
#include "l2/checksum.hpp"
#include "l2/wire.hpp"

namespace pairwire {
namespace {

constexpr std::size_t kV4Addresses = 8;
constexpr std::size_t kV6Addresses = 32;
constexpr std::size_t kV4Tos = 1;
constexpr std::size_t kV4Ttl = 8;
constexpr std::size_t kV4Protocol = 9;
constexpr std::size_t kV6NextHeader = 6;
constexpr std::size_t kV6HopLimit = 7;
constexpr std::uint16_t kDontFragment = 0x4000;

/// RFC 3168.
constexpr std::uint8_t kEcnMask = 3;
constexpr std::uint8_t kNotEct = 0;
constexpr std::uint8_t kEct1 = 1;
constexpr std::uint8_t kCe = kCongested;

bool is_v6(ConstBytes packet) {
  return (packet.front() >> 4) == 6;
}

std::uint8_t traffic_class_of(ConstBytes packet) {
  if (!is_v6(packet)) return packet[kV4Tos];
  return static_cast<std::uint8_t>((packet[0] << 4) | (packet[1] >> 4));
}

void set_traffic_class(Bytes packet, std::uint8_t value) {
  packet[0] = static_cast<std::uint8_t>((packet[0] & 0xf0) | (value >> 4));
  packet[1] = static_cast<std::uint8_t>((packet[1] & 0x0f) | (value << 4));
}

/// What the inner header says of congestion then (RFC 6040, figure 4); nothing: drop it.
std::optional<std::uint8_t> ecn_after(std::uint8_t inner, std::uint8_t outer) {
  if (outer == kCe) return inner == kNotEct ? std::nullopt : std::optional(kCe);
  if (outer == kEct1 && inner != kNotEct && inner != kCe) return kEct1;
  return inner;
}

std::uint32_t flow_label(ConstBytes inner, std::uint64_t seed) {
  std::uint64_t hash = seed ^ (load_be32(inner.data()) & 0xfffff);
  for (const std::uint8_t byte : ip_addresses(inner)) {
    hash = (hash ^ byte) * 0x9e3779b97f4a7c15U;
    hash ^= hash >> 29;
  }
  return static_cast<std::uint32_t>(hash >> 44);
}

}  // namespace

ConstBytes ip_addresses(ConstBytes packet) noexcept {
  return is_v6(packet) ? packet.subspan(offset::kIpv6Source, kV6Addresses)
                       : packet.subspan(offset::kIpv4Source, kV4Addresses);
}

void write_outer_ip(ConstBytes inner, std::size_t payload, std::uint64_t seed, Bytes out) noexcept {
  std::ranges::fill(out, std::uint8_t{0});
  if (is_v6(inner)) {
    store_be32(out.data(), 0x60000000U | flow_label(inner, seed));
    set_traffic_class(out, traffic_class_of(inner));
    store_be<std::uint16_t>(out.subspan<offset::kIpv6PayloadLength, 2>(),
                            static_cast<std::uint16_t>(payload));
    out[kV6NextHeader] = kIpProtocol;
    out[kV6HopLimit] = inner[kV6HopLimit];
    std::ranges::copy(ip_addresses(inner), out.begin() + offset::kIpv6Source);
    return;
  }
  out[0] = 0x45;
  out[kV4Tos] = inner[kV4Tos];
  store_be<std::uint16_t>(out.subspan<offset::kIpv4TotalLength, 2>(),
                          static_cast<std::uint16_t>(kIpv4MinHeaderSize + payload));
  // With DF the identification means nothing (RFC 6864).
  store_be<std::uint16_t>(out.subspan<offset::kIpv4Fragment, 2>(), kDontFragment);
  out[kV4Ttl] = inner[kV4Ttl];
  out[kV4Protocol] = kIpProtocol;
  std::ranges::copy(ip_addresses(inner), out.begin() + offset::kIpv4Source);
  write_ipv4_checksum(out.first(kIpv4MinHeaderSize));
}

std::optional<OuterIp> parse_outer_ip(Bytes packet) noexcept {
  if (packet.empty()) return std::nullopt;
  OuterIp outer;
  std::size_t end = 0;
  if ((packet.front() >> 4) == 4) {
    const auto ip = parse_ipv4(packet);
    if (!ip || ip->protocol != kIpProtocol || ip->size != kIpv4MinHeaderSize || ip->is_fragment()) {
      return std::nullopt;
    }
    outer.ttl = ip->ttl;
    outer.traffic_class = ip->tos;
    end = ip->total_length;
  } else {
    const auto ip = parse_ipv6(packet);
    if (!ip || ip->protocol != kIpProtocol || ip->size != kIpv6HeaderSize || ip->is_fragment) {
      return std::nullopt;
    }
    outer.v6 = true;
    outer.ttl = ip->hop_limit;
    outer.traffic_class = ip->traffic_class;
    end = kIpv6HeaderSize + ip->payload_length;
  }
  outer.addresses = ip_addresses(packet);
  outer.sealed = packet.first(end).subspan(outer_ip_size(outer.v6));
  return outer;
}

bool take_over_outer(const OuterIp& outer, Bytes inner) noexcept {
  if (inner.empty() || is_v6(inner) != outer.v6 || inner.size() < outer_ip_size(outer.v6) ||
      (inner.front() >> 4) != (outer.v6 ? 6 : 4) ||
      !std::ranges::equal(ip_addresses(inner), outer.addresses)) {
    return false;
  }
  const std::uint8_t before = traffic_class_of(inner);
  const auto ecn = ecn_after(before & kEcnMask, outer.traffic_class & kEcnMask);
  if (!ecn) return false;
  const auto after = static_cast<std::uint8_t>((before & ~kEcnMask) | *ecn);
  if (outer.v6) {
    set_traffic_class(inner, after);
    inner[kV6HopLimit] = std::min(inner[kV6HopLimit], outer.ttl);
    return true;
  }
  const auto word = [&](std::size_t at) {
    return load_be<std::uint16_t>(inner.subspan(at).first<2>());
  };
  const std::uint16_t first = word(0);
  const std::uint16_t fifth = word(kV4Ttl);
  inner[kV4Tos] = after;
  inner[kV4Ttl] = std::min(inner[kV4Ttl], outer.ttl);
  if (first == word(0) && fifth == word(kV4Ttl)) return true;
  const auto place = inner.subspan<offset::kIpv4Checksum, 2>();
  std::uint16_t sum = load_be<std::uint16_t>(place);
  sum = update_checksum(sum, first, word(0));
  sum = update_checksum(sum, fifth, word(kV4Ttl));
  store_be<std::uint16_t>(place, sum);
  return true;
}

bool is_source_routed(ConstBytes packet) noexcept {
  if (packet.empty()) return false;
  if ((packet.front() >> 4) == 4) {
    const auto ip = parse_ipv4(packet);
    if (!ip) return true;
    constexpr std::uint8_t end_of_list = 0;
    constexpr std::uint8_t no_operation = 1;
    constexpr std::uint8_t loose = 131;
    constexpr std::uint8_t strict = 137;
    for (std::size_t at = kIpv4MinHeaderSize; at < ip->size;) {
      const std::uint8_t type = packet[at];
      if (type == end_of_list) return false;
      if (type == loose || type == strict) return true;
      if (type == no_operation) {
        ++at;
        continue;
      }
      if (at + 1 >= ip->size || packet[at + 1] < 2) return true;
      at += packet[at + 1];
    }
    return false;
  }
  // Only headers that every router looks at may stand before a routing header; those behind the
  // ones that are followed here are the receiver's business.
  const auto ip = parse_ipv6(packet);
  if (!ip) return true;
  std::uint8_t next = packet[kV6NextHeader];
  std::size_t at = kIpv6HeaderSize;
  while (at + 2 <= ip->size) {
    if (next == ip_protocol::kRouting) return true;
    if (next != ip_protocol::kHopByHop && next != ip_protocol::kDestinationOptions) return false;
    next = packet[at];
    at += (std::size_t{packet[at + 1]} + 1) * 8;
  }
  return false;
}

}  // namespace pairwire
