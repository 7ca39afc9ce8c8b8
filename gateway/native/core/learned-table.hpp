// What a plain port has seen on its plain side: (VLAN, MAC) -> when. Of fixed size, so that a
// flood of made-up sources costs nobody anything: what is known stays, what is new finds no place.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "l2/vlan-mac.hpp"

namespace pairwire {

/// Threads: the worker's that reads the TAP; `size` may be read by any.
class LearnedTable {
 public:
  static constexpr std::size_t kMaxLearned = 8'192;

  struct Entry {
    std::uint64_t key = 0;  ///< VlanMac as a number, plus 1; 0: free
    std::uint64_t seen_ms = 0;
    std::uint64_t told_ms = 0;  ///< when the control plane was told; 0: not yet
  };

  /// `seed` keeps strangers from choosing addresses that lie behind one another.
  explicit LearnedTable(std::uint64_t seed)
      : seed_(seed), entries_(std::make_unique<Entry[]>(kPlaces)) {}

  /// Notes that the address was seen. Null if it is new and there is no room.
  Entry* see(const VlanMac& address, std::uint64_t now_ms) noexcept {
    const std::uint64_t key = address.to_integer() + 1;
    std::size_t at = home(key);
    while (entries_[at].key != 0 && entries_[at].key != key) at = next(at);
    Entry& entry = entries_[at];
    if (entry.key == 0) {
      if (used_ == kMaxLearned) return nullptr;
      entry = {key, now_ms, 0};
      set_used(used_ + 1);
    }
    entry.seen_ms = now_ms;
    return &entry;
  }

  [[nodiscard]] bool contains(const VlanMac& address) const noexcept {
    const std::uint64_t key = address.to_integer() + 1;
    std::size_t at = home(key);
    while (entries_[at].key != 0 && entries_[at].key != key) at = next(at);
    return entries_[at].key == key;
  }

  /// Calls `keep(address, entry)` for each entry; what it is false for goes.
  template <typename Keep>
  void sweep(Keep keep) {
    if (used_ == 0) return;
    // From the last place down: what moves up to fill a hole was looked at already. A few that come
    // over the edge from the front may be missed; the next sweep finds them.
    for (std::size_t at = kPlaces; at-- > 0;) {
      while (entries_[at].key != 0 &&
             !keep(VlanMac::from_integer(entries_[at].key - 1), entries_[at])) {
        take_out(at);
      }
    }
  }

  [[nodiscard]] std::size_t size() const noexcept { return size_.load(std::memory_order_relaxed); }

 private:
  static constexpr std::size_t kPlaces = 2 * kMaxLearned;
  static_assert((kPlaces & (kPlaces - 1)) == 0);

  [[nodiscard]] std::size_t home(std::uint64_t key) const noexcept {
    std::uint64_t x = key ^ seed_;  // The finaliser of splitmix64.
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9U;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebU;
    return static_cast<std::size_t>(x ^ (x >> 31)) & (kPlaces - 1);
  }
  static constexpr std::size_t next(std::size_t at) noexcept { return (at + 1) & (kPlaces - 1); }

  /// Entries behind the hole move up if their way from home leads over it (Knuth 6.4, R).
  void take_out(std::size_t hole) noexcept {
    set_used(used_ - 1);
    for (std::size_t at = next(hole); entries_[at].key != 0; at = next(at)) {
      const std::size_t wanted = home(entries_[at].key);
      const bool reachable =
          hole < at ? wanted <= hole || wanted > at : wanted <= hole && wanted > at;
      if (!reachable) continue;
      entries_[hole] = entries_[at];
      hole = at;
    }
    entries_[hole] = {};
  }

  void set_used(std::size_t used) noexcept {
    used_ = used;
    size_.store(used, std::memory_order_relaxed);
  }

  const std::uint64_t seed_;
  const std::unique_ptr<Entry[]> entries_;
  std::size_t used_ = 0;
  std::atomic<std::size_t> size_{0};
};

}  // namespace pairwire
