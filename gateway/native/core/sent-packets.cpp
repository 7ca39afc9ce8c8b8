// See sent-packets.hpp.
#include "core/sent-packets.hpp"

#include <algorithm>

#include "core/outer-ip.hpp"

namespace pairwire {

void SentPackets::note(std::uint32_t index, std::uint16_t kid, std::uint64_t first,
                       std::size_t count, ConstBytes packet) noexcept {
  if (!entries_) return;
  const std::scoped_lock guard(lock_);
  Entry& entry = (*entries_)[next_];
  next_ = (next_ + 1) % kEntries;
  entry.first = first;
  entry.count = static_cast<std::uint32_t>(count);
  entry.index = index;
  entry.kid = kid;
  entry.start.size = std::min(packet.size(), kStart);
  std::ranges::copy(packet.first(entry.start.size), entry.start.bytes.begin());
}

std::optional<SentPackets::Start> SentPackets::find(ConstBytes addresses,
                                                    ConstBytes shim) const noexcept {
  constexpr std::size_t named = 8;  // Version, kind, flags, kid, index.
  if (!entries_ || shim.size() < named || (shim[0] >> 4) != kFrameVersion ||
      (shim[0] & 0x0f) != static_cast<std::uint8_t>(Kind::kNet)) {
    return std::nullopt;
  }
  const auto kid = load_be<std::uint16_t>(shim.subspan<2, 2>());
  const auto index = load_be<std::uint32_t>(shim.subspan<4, 4>());
  std::optional<std::uint64_t> counter;
  if (shim.size() >= kShimSize) counter = load_be<std::uint64_t>(shim.subspan<8, 8>());
  const std::scoped_lock guard(lock_);
  const Entry* newest = nullptr;
  for (std::size_t i = 1; i <= kEntries; ++i) {
    const Entry& entry = (*entries_)[(next_ + kEntries - i) % kEntries];
    if (entry.count == 0) break;
    if (entry.index != index || entry.kid != kid ||
        !std::ranges::equal(ip_addresses(entry.start.view()), addresses)) {
      continue;
    }
    if (newest == nullptr) newest = &entry;
    if (!counter) break;
    if (*counter - entry.first < entry.count) return entry.start;
  }
  if (newest == nullptr) return std::nullopt;
  return newest->start;
}

}  // namespace pairwire
