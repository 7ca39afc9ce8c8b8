// See bindings.hpp.
#include "core/bindings.hpp"

#include <utility>
#include <vector>

namespace pairwire {

bool Bindings::set(std::span<const Setting> settings, bool reset, bool more, std::uint64_t now_ms) {
  if (reset) {
    ++generation_;
    listing_ = true;
  }
  for (const auto& [ip, mac] : settings) {
    const std::uint64_t key = ip.to_key(seed_);
    const auto found = entries_.find(key);
    if (found != entries_.end() && found->second->ip == ip && found->second->mac == mac) {
      found->second->generation = generation_;  // As it was, with the time when it was told of.
      continue;
    }
    if (found == entries_.end() && entries_.size() >= kMaxBindings) {
      listing_ = false;
      return false;
    }
    auto entry = std::make_unique<Binding>();
    entry->ip = ip;
    entry->mac = mac;
    entry->told_ms.store(now_ms, std::memory_order_relaxed);
    entry->generation = generation_;
    // Owned first, then shown, and the old one is given up last: never unbound in between.
    std::unique_ptr<Binding>& place = entries_[key];
    std::unique_ptr<Binding> old = std::exchange(place, std::move(entry));
    shown_.set(key, place.get());
    if (old != nullptr) domain_.retire(std::move(old));
  }
  if (more || !listing_) return true;
  listing_ = false;
  std::vector<std::uint64_t> over;
  for (const auto& [key, entry] : entries_) {
    if (entry->generation != generation_) over.push_back(key);
  }
  for (const std::uint64_t key : over) take_out(key);
  return true;
}

void Bindings::remove(std::span<const IpAddress> ips) {
  for (const IpAddress& ip : ips) {
    const std::uint64_t key = ip.to_key(seed_);
    const auto found = entries_.find(key);
    if (found != entries_.end() && found->second->ip == ip) take_out(key);
  }
}

void Bindings::take_out(std::uint64_t key) {
  const auto found = entries_.find(key);
  shown_.erase(key);
  domain_.retire(std::move(found->second));
  entries_.erase(found);
}

}  // namespace pairwire
