// See mss-clamp.hpp.
#include "l2/mss-clamp.hpp"

#include <algorithm>
#include <optional>

#include "l2/checksum.hpp"
#include "l2/headers.hpp"

namespace pairwire {
namespace {

// Kinds of TCP options, RFC 9293, section 3.2.
constexpr std::uint8_t kEndOfOptions = 0;
constexpr std::uint8_t kNoOperation = 1;
constexpr std::uint8_t kMaximumSegmentSize = 2;
constexpr std::size_t kOptionSize = 4;

constexpr std::size_t kLeastV4 = 536;
constexpr std::size_t kLeastV6 = 1'220;

/// Where the value of the option begins.
std::optional<std::size_t> find_mss(ConstBytes frame, std::size_t at, std::size_t end) {
  while (at < end && frame[at] != kEndOfOptions) {
    if (frame[at] == kNoOperation) {
      ++at;
      continue;
    }
    if (at + 1 >= end) break;
    const std::size_t size = frame[at + 1];
    if (size < 2 || at + size > end) break;
    if (frame[at] == kMaximumSegmentSize && size == kOptionSize) return at + 2;
    at += size;
  }
  return std::nullopt;
}

constexpr std::uint16_t swapped(std::size_t value) {
  return static_cast<std::uint16_t>((value << 8) | (value >> 8));
}

}  // namespace

bool clamp_mss(Bytes frame, std::size_t longest_frame, bool partial_checksum) noexcept {
  const ParsedFrame parsed = parse_frame(frame);
  if (!parsed.is_tcp() || (frame[parsed.l4_offset + offset::kTcpFlags] & tcp_flag::kSyn) == 0) {
    return false;
  }
  const auto at = find_mss(frame, parsed.l4_offset + kTcpMinHeaderSize, parsed.payload_offset);
  if (!at) return false;
  // The offer counts headers without options (RFC 6691).
  const bool v4 = parsed.ip_version == 4;
  const std::size_t headers =
      parsed.l3_offset + (v4 ? kIpv4MinHeaderSize : kIpv6HeaderSize) + kTcpMinHeaderSize;
  const std::size_t fits = longest_frame > headers ? longest_frame - headers : 0;
  const std::size_t most = std::max(fits, v4 ? kLeastV4 : kLeastV6);
  const std::size_t before = (std::size_t{frame[*at]} << 8) | frame[*at + 1];
  if (before <= most) return false;
  frame[*at] = static_cast<std::uint8_t>(most >> 8);
  frame[*at + 1] = static_cast<std::uint8_t>(most);
  if (partial_checksum) return true;
  // The sum is of words, and a value at an odd place lies across two: as if its bytes were swapped.
  const bool odd = (*at - parsed.l4_offset) % 2 != 0;
  const auto field = frame.subspan(parsed.l4_offset + offset::kTcpChecksum).first<2>();
  const auto old_word = odd ? swapped(before) : static_cast<std::uint16_t>(before);
  const auto new_word = odd ? swapped(most) : static_cast<std::uint16_t>(most);
  store_be<std::uint16_t>(field,
                          update_checksum(load_be<std::uint16_t>(field), old_word, new_word));
  return true;
}

}  // namespace pairwire
