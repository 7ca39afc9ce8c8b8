// An IPv4 or IPv6 address as a value, as neighbour protocols name it.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "core/bytes.hpp"
#include "l2/wire.hpp"

namespace pairwire {

/// Threads: a plain value. Made without an argument it is no address at all.
class IpAddress {
 public:
  static constexpr std::size_t kIpv4Size = 4;
  static constexpr std::size_t kIpv6Size = 16;

  constexpr IpAddress() noexcept = default;

  /// 4 or 16 bytes in network byte order; nothing for another number of them.
  [[nodiscard]] static std::optional<IpAddress> from(ConstBytes bytes) noexcept {
    if (bytes.size() != kIpv4Size && bytes.size() != kIpv6Size) return std::nullopt;
    IpAddress address;
    std::ranges::copy(bytes, address.bytes_.begin());
    address.size_ = static_cast<std::uint8_t>(bytes.size());
    return address;
  }
  [[nodiscard]] static IpAddress of_ipv4(std::uint32_t number) noexcept {
    IpAddress address;
    store_be32(address.bytes_.data(), number);
    address.size_ = kIpv4Size;
    return address;
  }

  /// Network byte order; empty without an address.
  [[nodiscard]] ConstBytes bytes() const noexcept { return ConstBytes(bytes_).first(size_); }
  [[nodiscard]] bool is_none() const noexcept { return size_ == 0; }
  [[nodiscard]] bool is_ipv4() const noexcept { return size_ == kIpv4Size; }

  /// 0.0.0.0 or ::, which say that the sender has no address yet.
  [[nodiscard]] bool is_unspecified() const noexcept {
    return std::ranges::all_of(bytes(), [](std::uint8_t byte) { return byte == 0; });
  }
  /// 224.0.0.0/4 and 255.255.255.255, or ff00::/8.
  [[nodiscard]] bool is_group() const noexcept {
    return is_ipv4() ? bytes_[0] >= 224 : size_ != 0 && bytes_[0] == 0xff;
  }

  /// A number below 2^63 for tables; different addresses have different ones, or hardly ever not.
  /// `seed` keeps strangers from looking for those that have not.
  [[nodiscard]] std::uint64_t to_key(std::uint64_t seed) const noexcept {
    if (is_ipv4()) return load_be32(bytes_.data());
    const auto word = [this](std::size_t at) {
      return (std::uint64_t{load_be32(&bytes_[at])} << 32) | load_be32(&bytes_[at + 4]);
    };
    const auto mixed = [](std::uint64_t x) {  // The finaliser of splitmix64.
      x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9U;
      x = (x ^ (x >> 27)) * 0x94d049bb133111ebU;
      return x ^ (x >> 31);
    };
    constexpr std::uint64_t kIpv6 = std::uint64_t{1} << 62;
    return kIpv6 | (mixed(mixed(word(0) ^ seed) + word(8)) >> 2);
  }

  friend bool operator==(const IpAddress&, const IpAddress&) noexcept = default;

 private:
  std::array<std::uint8_t, kIpv6Size> bytes_{};
  std::uint8_t size_ = 0;
};

}  // namespace pairwire
