// Associated data of a sealed frame: docs/protocol.md section 2.3.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "core/bytes.hpp"
#include "core/endpoint.hpp"
#include "core/frame.hpp"

namespace pairwire {

/// Which of an endpoint's two MAC addresses is the outer destination.
enum class Way : std::uint8_t { kSending, kReceiving };

/// `udp`: the shim, where it lies. `ethernet`: shim, outer destination, outer source. `ip`: shim,
/// outer source, outer destination. Threads: a plain value that points into itself, so it is not
/// copied.
class AssociatedData {
 public:
  /// `ip_addresses`: source and destination as they lie in the outer IP header; empty: another
  /// transport.
  AssociatedData(std::span<const std::uint8_t, kShimSize> shim, const Endpoint& other_end, Way way,
                 ConstBytes ip_addresses = {})
      : bytes_(shim) {
    if (!ip_addresses.empty()) {
      std::ranges::copy(ip_addresses, std::ranges::copy(shim, with_addresses_.begin()).out);
      bytes_ = ConstBytes(with_addresses_).first(kShimSize + ip_addresses.size());
      return;
    }
    if (!other_end.ethernet) return;
    const MacAddress far = other_end.far_mac();
    const MacAddress near = other_end.near_mac();
    auto out = std::ranges::copy(shim, with_addresses_.begin()).out;
    out = std::ranges::copy((way == Way::kSending ? far : near).bytes(), out).out;
    std::ranges::copy((way == Way::kSending ? near : far).bytes(), out);
    bytes_ = ConstBytes(with_addresses_).first(kShimSize + 2 * MacAddress::kSize);
  }
  AssociatedData(const AssociatedData&) = delete;
  AssociatedData& operator=(const AssociatedData&) = delete;

  [[nodiscard]] ConstBytes bytes() const { return bytes_; }

 private:
  static constexpr std::size_t kLongest = 32;  ///< two IPv6 addresses
  std::array<std::uint8_t, kShimSize + kLongest> with_addresses_;
  ConstBytes bytes_;
};

}  // namespace pairwire
