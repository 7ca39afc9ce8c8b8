// The addresses that are members' own, whether these are online, known or revoked: what never lies
// behind a plain port (threats.md M9).
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include "core/rcu-map.hpp"
#include "l2/mac.hpp"

namespace pairwire {

/// Threads: the section 'Workers' as in PortTables; all else the control thread's.
class OwnAddresses {
 public:
  /// 64 addresses of each of 4,096 members: with it all, tables take some 20 MB.
  static constexpr std::size_t kMaxOwn = 262'144;

  OwnAddresses(RcuDomain& domain, std::uint64_t seed) : shown_(domain, seed) {}

  // --- Workers ----------------------------------------------------------------------------------

  [[nodiscard]] bool contains(const MacAddress& mac) const noexcept {
    return shown_.find(mac.to_integer()) != nullptr;
  }
  /// Whether the whole list was told. Without it nobody can say that an address is not a member's.
  [[nodiscard]] bool complete() const noexcept { return complete_.load(std::memory_order_acquire); }

  // --- Control thread ---------------------------------------------------------------------------

  /// `reset`: a new list begins; `more`: it goes on with the next call. What an ended list did not
  /// name is forgotten then, not before: an address that stays is never nobody's in between. False
  /// if there was no room; the list then counts as incomplete until a new one ends.
  [[nodiscard]] bool set(std::span<const MacAddress> macs, bool reset, bool more);
  void remove(std::span<const MacAddress> macs);
  [[nodiscard]] std::size_t size() const { return generations_.size(); }
  [[nodiscard]] std::vector<MacAddress> list() const;

 private:
  RcuMap<const bool> shown_;
  std::atomic<bool> complete_{false};
  std::unordered_map<std::uint64_t, std::uint32_t> generations_;  ///< in which list it was last
  std::uint32_t generation_ = 0;
  bool listing_ = false;  ///< a list has begun and not ended
};

}  // namespace pairwire
