// Secret bytes of fixed size: wiped when they go, compared in constant time, never copied by
// accident.
#pragma once

#include <openssl/crypto.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace pairwire {

/// `N` secret bytes, all zero at first. Moving wipes the source; there is no copy, no output
/// operator and no ordering.
///
/// Threads: as a plain value.
template <std::size_t N>
class Secret {
 public:
  Secret() = default;
  explicit Secret(std::span<const std::uint8_t, N> bytes) {
    std::ranges::copy(bytes, data_.begin());
  }
  Secret(const Secret&) = delete;
  Secret& operator=(const Secret&) = delete;
  Secret(Secret&& other) noexcept : data_(other.data_) { other.wipe(); }
  Secret& operator=(Secret&& other) noexcept {
    if (this != &other) {
      data_ = other.data_;
      other.wipe();
    }
    return *this;
  }
  ~Secret() { wipe(); }

  [[nodiscard]] static constexpr std::size_t size() { return N; }
  [[nodiscard]] std::span<const std::uint8_t, N> bytes() const { return data_; }
  /// For functions that write a secret; nothing is copied out this way.
  [[nodiscard]] std::span<std::uint8_t, N> writable() { return data_; }

  /// Overwrites the bytes with zeros; the compiler can't leave it out.
  void wipe() noexcept { OPENSSL_cleanse(data_.data(), N); }

  /// Constant time.
  friend bool operator==(const Secret& a, const Secret& b) {
    return CRYPTO_memcmp(a.data_.data(), b.data_.data(), N) == 0;
  }

 private:
  std::array<std::uint8_t, N> data_{};
};

}  // namespace pairwire
