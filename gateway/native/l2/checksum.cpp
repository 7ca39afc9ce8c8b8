// See checksum.hpp.
#include "l2/checksum.hpp"

#include <array>
#include <cstring>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define PAIRWIRE_CHECKSUM_AVX2 1
#else
#define PAIRWIRE_CHECKSUM_AVX2 0
#endif

namespace pairwire {

namespace {

/// Sums `size` bytes as 32-bit words in 64-bit accumulators: 2^32 of them fit,
/// so carries need no care. Words of 16 bits come out by folding, because
/// 2^16 = 1 modulo 2^16 - 1.
std::uint64_t sum_portable(const std::uint8_t* at, std::size_t size) noexcept {
  std::uint64_t low = 0;
  std::uint64_t high = 0;
  const auto add = [&](const std::uint8_t* from) {
    std::uint64_t word = 0;
    std::memcpy(&word, from, sizeof word);
    low += word & 0xffffffffU;
    high += word >> 32;
  };
  for (; size >= 32; at += 32, size -= 32) {
    add(at);
    add(at + 8);
    add(at + 16);
    add(at + 24);
  }
  for (; size >= 8; at += 8, size -= 8) add(at);
  // No loop and no copy of variable size: most sums are those of headers.
  if ((size & 4) != 0) {
    std::uint32_t word = 0;
    std::memcpy(&word, at, sizeof word);
    low += word;
    at += sizeof word;
  }
  if ((size & 2) != 0) {
    std::uint16_t word = 0;
    std::memcpy(&word, at, sizeof word);
    high += word;
    at += sizeof word;
  }
  // A missing byte behind the last one counts as zero (RFC 1071, section 1).
  if ((size & 1) != 0) low += to_network(static_cast<std::uint16_t>(*at << 8));
  return low + high;
}

#if PAIRWIRE_CHECKSUM_AVX2

/// Below this the set-up costs more than it saves.
constexpr std::size_t kAvx2Worthwhile = 128;

__attribute__((target("avx2"))) std::uint64_t sum_avx2(const std::uint8_t* at,
                                                       std::size_t size) noexcept {
  const __m256i low_half = _mm256_set1_epi64x(0xffffffff);
  __m256i low0 = _mm256_setzero_si256();
  __m256i high0 = low0;
  __m256i low1 = low0;
  __m256i high1 = low0;
  for (; size >= 64; at += 64, size -= 64) {
    const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
    const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at + 32));
    low0 = _mm256_add_epi64(low0, _mm256_and_si256(a, low_half));
    high0 = _mm256_add_epi64(high0, _mm256_srli_epi64(a, 32));
    low1 = _mm256_add_epi64(low1, _mm256_and_si256(b, low_half));
    high1 = _mm256_add_epi64(high1, _mm256_srli_epi64(b, 32));
  }
  const __m256i all =
      _mm256_add_epi64(_mm256_add_epi64(low0, high0), _mm256_add_epi64(low1, high1));
  alignas(32) std::array<std::uint64_t, 4> lanes;
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes.data()), all);
  return lanes[0] + lanes[1] + lanes[2] + lanes[3] + sum_portable(at, size);
}

std::uint64_t sum(const std::uint8_t* at, std::size_t size) noexcept {
  static const bool have_avx2 = __builtin_cpu_supports("avx2") != 0;
  return size >= kAvx2Worthwhile && have_avx2 ? sum_avx2(at, size) : sum_portable(at, size);
}

#else

std::uint64_t sum(const std::uint8_t* at, std::size_t size) noexcept {
  return sum_portable(at, size);
}

#endif

}  // namespace

void ChecksumSum::add(ConstBytes bytes) noexcept {
  // Folded first, so that any number of pieces may be added.
  sum_ = folded() + sum(bytes.data(), bytes.size());
}

std::uint16_t internet_checksum(ConstBytes bytes) noexcept {
  ChecksumSum sum;
  sum.add(bytes);
  return sum.checksum();
}

bool checksum_holds(ConstBytes bytes) noexcept {
  return internet_checksum(bytes) == 0;
}

ChecksumSum pseudo_header_sum(ConstBytes addresses, std::uint8_t protocol,
                              std::uint32_t l4_length) noexcept {
  ChecksumSum sum;
  sum.add(addresses);
  sum.add_word(protocol);
  sum.add_word(static_cast<std::uint16_t>(l4_length >> 16));
  sum.add_word(static_cast<std::uint16_t>(l4_length));
  return sum;
}

ChecksumSum pseudo_header_sum(ConstBytes frame, const ParsedFrame& parsed,
                              std::uint32_t l4_length) noexcept {
  const auto addresses = parsed.ip_version == 4
                             ? frame.subspan(parsed.l3_offset + offset::kIpv4Source, 8)
                             : frame.subspan(parsed.l3_offset + offset::kIpv6Source, 32);
  return pseudo_header_sum(addresses, parsed.l4_protocol, l4_length);
}

void write_partial_checksum(Bytes frame, const ParsedFrame& parsed) noexcept {
  store_be16(&frame[l4_checksum_offset(parsed)],
             pseudo_header_sum(frame, parsed, parsed.l4_length()).fold());
}

void write_complete_checksum(Bytes frame, const ParsedFrame& parsed) noexcept {
  std::uint8_t* const field = &frame[l4_checksum_offset(parsed)];
  store_be16(field, 0);
  ChecksumSum sum = pseudo_header_sum(frame, parsed, parsed.l4_length());
  sum.add(frame.subspan(parsed.l4_offset, parsed.l4_length()));
  store_be16(field, sum.nonzero_checksum());
}

bool l4_checksum_holds(ConstBytes frame, const ParsedFrame& parsed) noexcept {
  if (parsed.is_udp() && load_be16(&frame[l4_checksum_offset(parsed)]) == 0) return false;
  ChecksumSum sum = pseudo_header_sum(frame, parsed, parsed.l4_length());
  sum.add(frame.subspan(parsed.l4_offset, parsed.l4_length()));
  return sum.checksum() == 0;
}

void write_ipv4_checksum(Bytes header) noexcept {
  store_be16(&header[offset::kIpv4Checksum], 0);
  store_be16(&header[offset::kIpv4Checksum], internet_checksum(header));
}

}  // namespace pairwire
