// See announcer.hpp.
#include "core/announcer.hpp"

#include <array>
#include <span>
#include <utility>

#include "core/bytes.hpp"
#include "io/tap.hpp"
#include "l2/rarp.hpp"
#include "l2/vnet-header.hpp"

namespace pairwire {

void Announcer::begin(std::vector<MacAddress> macs, std::uint64_t now_ms) {
  left_ = std::move(macs);
  next_ms_ = now_ms;
}

std::optional<std::uint64_t> Announcer::run(int tap, std::uint64_t now_ms) {
  if (left_.empty()) return std::nullopt;
  if (now_ms < next_ms_) return next_ms_;
  std::array<std::uint8_t, kVnetHeaderSize + kRarpSize> packet{};
  for (std::size_t count = 0; count < kBurst && !left_.empty(); ++count) {
    write_rarp_request(left_.back(), std::span(packet).subspan<kVnetHeaderSize, kRarpSize>());
    left_.pop_back();
    // One that is lost is shown by the member's next frame.
    if (tap_write(tap, packet)) ++sent_;
  }
  next_ms_ = now_ms + kPauseMs;
  if (left_.empty()) return std::nullopt;
  return next_ms_;
}

}  // namespace pairwire
