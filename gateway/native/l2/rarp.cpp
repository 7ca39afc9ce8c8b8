// See rarp.hpp.
#include "l2/rarp.hpp"

#include <algorithm>
#include <array>

#include "core/bytes.hpp"

namespace pairwire {
namespace {

constexpr std::uint16_t kRarpEtherType = 0x8035;
/// Hardware Ethernet, protocol IPv4, lengths 6 and 4, operation 3: request reverse.
constexpr std::array<std::uint8_t, 8> kHead{0, 1, 0x08, 0, 6, 4, 0, 3};
constexpr std::size_t kHeadAt = 14;
constexpr std::size_t kSenderAt = kHeadAt + kHead.size();
constexpr std::size_t kTargetAt = kSenderAt + 6 + 4;

}  // namespace

void write_rarp_request(const MacAddress& mac, std::span<std::uint8_t, kRarpSize> out) noexcept {
  std::ranges::fill(out, std::uint8_t{0});
  std::ranges::fill(out.first<MacAddress::kSize>(), std::uint8_t{0xff});
  std::ranges::copy(mac.bytes(), out.begin() + MacAddress::kSize);
  store_be<std::uint16_t>(out.subspan<12, 2>(), kRarpEtherType);
  std::ranges::copy(kHead, out.begin() + kHeadAt);
  std::ranges::copy(mac.bytes(), out.begin() + kSenderAt);
  std::ranges::copy(mac.bytes(), out.begin() + kTargetAt);
}

}  // namespace pairwire
