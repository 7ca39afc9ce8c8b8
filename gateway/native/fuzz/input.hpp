// The bytes of a fuzzer as a row of numbers and byte strings; behind the end everything is zero.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace pairwire::fuzz {

/// Threads: one.
class Input {
 public:
  Input(const std::uint8_t* data, std::size_t size) : rest_(data, size) {}

  [[nodiscard]] bool empty() const { return rest_.empty(); }

  std::uint8_t byte() {
    if (rest_.empty()) return 0;
    const std::uint8_t value = rest_.front();
    rest_ = rest_.subspan(1);
    return value;
  }
  /// 16 bits, big-endian.
  std::uint16_t number() {
    const unsigned high = byte();
    return static_cast<std::uint16_t>(high << 8 | byte());
  }
  /// A length (16 bits) and as many bytes, or what is left of them.
  std::vector<std::uint8_t> bytes() { return bytes(number()); }
  std::vector<std::uint8_t> bytes(std::size_t size) {
    const auto part = rest_.first(std::min(size, rest_.size()));
    rest_ = rest_.subspan(part.size());
    return {part.begin(), part.end()};
  }
  /// All that is left.
  std::span<const std::uint8_t> all() { return std::exchange(rest_, {}); }

 private:
  std::span<const std::uint8_t> rest_;
};

}  // namespace pairwire::fuzz
