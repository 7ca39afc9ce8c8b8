// Helpers of the tests: hex, vector files, reproducible random bytes.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "core/bytes.hpp"

namespace pairwire::test {

/// Bytes of a hex text; blanks are left out.
inline std::vector<std::uint8_t> from_hex(std::string_view text) {
  std::string digits;
  std::ranges::copy_if(text, std::back_inserter(digits), [](char c) { return c != ' '; });
  if (digits.size() % 2 != 0) throw std::invalid_argument("odd number of hex digits");
  std::vector<std::uint8_t> bytes;
  for (std::size_t i = 0; i < digits.size(); i += 2) {
    std::size_t used = 0;
    const unsigned long value = std::stoul(digits.substr(i, 2), &used, 16);
    if (used != 2) throw std::invalid_argument("not a hex digit");
    bytes.push_back(static_cast<std::uint8_t>(value));
  }
  return bytes;
}

/// Lower-case hex: comparing texts makes a failed test readable.
inline std::string to_hex(ConstBytes bytes) {
  constexpr std::string_view digits = "0123456789abcdef";
  std::string text;
  for (const std::uint8_t byte : bytes) {
    text += digits[byte >> 4];
    text += digits[byte & 15];
  }
  return text;
}

/// Hex of exactly N bytes.
template <std::size_t N>
std::array<std::uint8_t, N> array_from_hex(std::string_view text) {
  const std::vector<std::uint8_t> bytes = from_hex(text);
  if (bytes.size() != N) throw std::invalid_argument("wrong number of bytes");
  std::array<std::uint8_t, N> result;
  std::ranges::copy(bytes, result.begin());
  return result;
}

/// A file of test/vectors, which the TypeScript tests read too.
inline nlohmann::json load_vectors(const std::string& name) {
  const std::string path = std::string(PAIRWIRE_VECTOR_DIR) + "/" + name;
  std::ifstream file(path);
  if (!file) {
    throw std::runtime_error(path + " is missing: run `npx tsx scripts/make-vectors.ts`");
  }
  return nlohmann::json::parse(file);
}

/// Random bytes that are the same in every run.
class Random {
 public:
  explicit Random(std::uint64_t seed) : engine_(seed) {}

  std::uint64_t next() { return engine_(); }
  /// From 0 to `limit` - 1.
  std::uint64_t below(std::uint64_t limit) { return engine_() % limit; }
  std::vector<std::uint8_t> bytes(std::size_t size) {
    std::vector<std::uint8_t> result(size);
    for (std::uint8_t& byte : result) byte = static_cast<std::uint8_t>(engine_());
    return result;
  }
  template <std::size_t N>
  std::array<std::uint8_t, N> array() {
    std::array<std::uint8_t, N> result;
    for (std::uint8_t& byte : result) byte = static_cast<std::uint8_t>(engine_());
    return result;
  }

 private:
  std::mt19937_64 engine_;
};

}  // namespace pairwire::test
