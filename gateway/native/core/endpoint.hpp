// An address of the underlay. UDP: IPv4 is kept as IPv4-mapped IPv6 (RFC 4291 section 2.5.5.2), as
// the dual-stack socket has it. Ethernet: the MAC address of the far end and the one of ours that
// it is spoken to with, because frames are sealed together with both.
#pragma once

#include <netinet/in.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>

#include "core/bytes.hpp"
#include "l2/mac.hpp"

namespace pairwire {

/// Address and port, or two MAC addresses. Threads: a plain value.
struct Endpoint {
  std::array<std::uint8_t, 16> ip{};  ///< Ethernet: far and near address at kFar and kNear
  std::uint16_t port = 0;             ///< host byte order; 0 on Ethernet
  bool ethernet = false;
  /// Not 0: address and port are the relay's, and this is the index under which it knows the far
  /// end.
  std::uint32_t relayed = 0;

  [[nodiscard]] bool valid() const { return port != 0 || ethernet; }
  [[nodiscard]] bool is_v4() const {
    return std::equal(kMapped.begin(), kMapped.end(), ip.begin());
  }
  [[nodiscard]] MacAddress far_mac() const { return mac_at(kFar); }
  [[nodiscard]] MacAddress near_mac() const { return mac_at(kNear); }

  /// 4 or 16 bytes, or the 6 of the far MAC address, as messages carry it.
  [[nodiscard]] ConstBytes short_ip() const {
    if (ethernet) return ConstBytes(ip).subspan(kFar, MacAddress::kSize);
    return is_v4() ? ConstBytes(ip).subspan(kMapped.size()) : ConstBytes(ip);
  }

  /// From 4 or 16 bytes of address; nothing for another length, port 0, or an address that no peer
  /// can have (unspecified, multicast, IPv4 broadcast).
  [[nodiscard]] static std::optional<Endpoint> from(ConstBytes address, std::uint16_t port) {
    Endpoint endpoint;
    if (address.size() == 4) {
      std::copy(kMapped.begin(), kMapped.end(), endpoint.ip.begin());
      std::copy(address.begin(), address.end(), endpoint.ip.begin() + kMapped.size());
    } else if (address.size() == 16) {
      std::copy(address.begin(), address.end(), endpoint.ip.begin());
    } else {
      return std::nullopt;
    }
    endpoint.port = port;
    const std::uint8_t first = endpoint.short_ip()[0];
    const bool unusable =
        endpoint.is_v4()
            ? first == 0 || first >= 224
            : first == 0xff || std::all_of(endpoint.ip.begin(), endpoint.ip.end(),
                                           [](std::uint8_t byte) { return byte == 0; });
    if (port == 0 || unusable) return std::nullopt;
    return endpoint;
  }

  [[nodiscard]] static Endpoint of_ethernet(const MacAddress& far, const MacAddress& near) {
    Endpoint endpoint;
    endpoint.ethernet = true;
    std::ranges::copy(far.bytes(), endpoint.ip.begin() + kFar);
    std::ranges::copy(near.bytes(), endpoint.ip.begin() + kNear);
    return endpoint;
  }

  [[nodiscard]] static Endpoint from(const sockaddr_in6& address) {
    Endpoint endpoint;
    std::memcpy(endpoint.ip.data(), &address.sin6_addr, endpoint.ip.size());
    endpoint.port = ntohs(address.sin6_port);
    return endpoint;
  }

  [[nodiscard]] sockaddr_in6 to_sockaddr() const {
    sockaddr_in6 address{};
    address.sin6_family = AF_INET6;
    address.sin6_port = htons(port);
    std::memcpy(&address.sin6_addr, ip.data(), ip.size());
    return address;
  }

  /// The /32 or /64 that budgets count by: an IPv6 host commonly owns its whole /64. On Ethernet
  /// the far address.
  [[nodiscard]] std::uint64_t prefix() const {
    std::uint64_t value = 0;
    // The two ranges can't meet: 0..63 is zero in an IPv4-mapped address.
    std::memcpy(&value, ip.data() + (!ethernet && is_v4() ? 8 : 0), sizeof(value));
    return value;
  }

  friend bool operator==(const Endpoint&, const Endpoint&) = default;

 private:
  static constexpr std::size_t kFar = 0;
  static constexpr std::size_t kNear = 8;

  [[nodiscard]] MacAddress mac_at(std::size_t at) const {
    return MacAddress(ConstBytes(ip).subspan(at).first<MacAddress::kSize>());
  }

  static constexpr std::array<std::uint8_t, 12> kMapped{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
};

}  // namespace pairwire
