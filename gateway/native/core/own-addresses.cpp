// See own-addresses.hpp.
#include "core/own-addresses.hpp"

#include "l2/vlan-mac.hpp"

namespace pairwire {
namespace {

/// What every entry of the map points to.
constexpr bool kThere = true;

}  // namespace

bool OwnAddresses::set(std::span<const MacAddress> macs, bool reset, bool more) {
  if (reset) {
    ++generation_;
    listing_ = true;
  }
  for (const MacAddress& mac : macs) {
    const std::uint64_t number = mac.to_integer();
    const auto found = generations_.find(number);
    if (found != generations_.end()) {
      found->second = generation_;
      continue;
    }
    if (generations_.size() >= kMaxOwn) {
      listing_ = false;
      complete_.store(false, std::memory_order_release);
      return false;
    }
    // Shown first: one that is only listed would count as known and be treated as nobody's.
    shown_.set(number, &kThere);
    generations_.emplace(number, generation_);
  }
  if (more || !listing_) return true;
  listing_ = false;
  std::erase_if(generations_, [this](const auto& entry) {
    if (entry.second == generation_) return false;
    shown_.erase(entry.first);
    return true;
  });
  complete_.store(true, std::memory_order_release);
  return true;
}

void OwnAddresses::remove(std::span<const MacAddress> macs) {
  for (const MacAddress& mac : macs) {
    if (generations_.erase(mac.to_integer()) != 0) shown_.erase(mac.to_integer());
  }
}

std::vector<MacAddress> OwnAddresses::list() const {
  std::vector<MacAddress> macs;
  macs.reserve(generations_.size());
  for (const auto& [number, generation] : generations_) {
    macs.push_back(VlanMac::from_integer(number).mac);
  }
  return macs;
}

}  // namespace pairwire
