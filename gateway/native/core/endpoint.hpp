// A UDP address of the underlay. IPv4 is kept as IPv4-mapped IPv6 (RFC 4291 section 2.5.5.2), as
// the dual-stack socket has it.
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

namespace pairwire {

/// Address and port. Threads: a plain value.
struct Endpoint {
  std::array<std::uint8_t, 16> ip{};
  std::uint16_t port = 0;  ///< host byte order; 0 is no endpoint

  [[nodiscard]] bool valid() const { return port != 0; }
  [[nodiscard]] bool is_v4() const {
    return std::equal(kMapped.begin(), kMapped.end(), ip.begin());
  }
  /// 4 or 16 bytes, as messages carry it.
  [[nodiscard]] ConstBytes short_ip() const {
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

  /// The /32 or /64 that budgets count by: an IPv6 host commonly owns its whole /64.
  [[nodiscard]] std::uint64_t prefix() const {
    std::uint64_t value = 0;
    // The two ranges can't meet: 0..63 is zero in an IPv4-mapped address.
    std::memcpy(&value, ip.data() + (is_v4() ? 8 : 0), sizeof(value));
    return value;
  }

  friend bool operator==(const Endpoint&, const Endpoint&) = default;

 private:
  static constexpr std::array<std::uint8_t, 12> kMapped{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
};

}  // namespace pairwire
