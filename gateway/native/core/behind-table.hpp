// Which member an address is behind that no member owns: (VLAN, MAC) -> member with a plain port.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>

#include "core/rcu-map.hpp"
#include "l2/vlan-mac.hpp"

namespace pairwire {

class Peer;

/// A member that addresses are behind, whether it is known by now or not.
///
/// Threads: `peer` is read by workers and written by the control thread; the rest is the latter's.
struct BehindMember {
  std::string id;
  bool self = false;                 ///< ourselves
  std::atomic<Peer*> peer{nullptr};  ///< null: not known (yet)
  std::size_t entries = 0;
};

/// Immutable once shown.
struct Behind {
  const BehindMember* member = nullptr;
  std::uint64_t until_ms = 0;  ///< boot time; 0: until it is forgotten
  bool pinned = false;         ///< frames with this source are accepted from this member alone
  std::uint64_t age = 0;       ///< the control thread's: the lowest goes first

  [[nodiscard]] bool counts(std::uint64_t now_ms) const noexcept {
    return until_ms == 0 || now_ms < until_ms;
  }
};

/// Threads: `find` as in RcuMap; all else the control thread's.
class BehindTable {
 public:
  static constexpr std::size_t kMaxBehind = 16'384;

  BehindTable(RcuDomain& domain, std::uint64_t seed) : domain_(domain), shown_(domain, seed) {}

  /// Null if nothing is known of it, or not any more.
  [[nodiscard]] const Behind* find(const VlanMac& address, std::uint64_t now_ms) const noexcept {
    const Behind* const found = shown_.find(address.to_integer());
    return found != nullptr && found->counts(now_ms) ? found : nullptr;
  }

  struct Setting {
    std::string_view member;
    bool self = false;
    Peer* peer = nullptr;  ///< if it is known
    VlanMac address;
    std::uint32_t ms = 0;  ///< 0: until it is forgotten
    bool pinned = false;
  };
  /// Replaces what was known of the address. When the table is full the oldest that is not pinned
  /// goes, or else the oldest.
  void set(const Setting& setting, std::uint64_t now_ms);
  void forget(const VlanMac& address);

  /// A member has come to be known, or (null) is not any more.
  void member_known(std::string_view id, Peer* peer);
  /// Takes out what does not count any more.
  void purge(std::uint64_t now_ms);

  [[nodiscard]] std::size_t size() const { return entries_.size(); }
  /// Entries that gave way to others.
  [[nodiscard]] std::uint64_t evicted() const { return evicted_; }

 private:
  using Ages = std::map<std::uint64_t, std::uint64_t>;  ///< age -> address

  BehindMember& member_of(const Setting& setting);
  void take_out(std::uint64_t number);
  [[nodiscard]] Ages& ages_of(const Behind& entry) { return entry.pinned ? pinned_ages_ : ages_; }

  RcuDomain& domain_;
  RcuMap<const Behind> shown_;
  std::unordered_map<std::uint64_t, std::unique_ptr<const Behind>> entries_;
  std::unordered_map<std::string, std::unique_ptr<BehindMember>> members_;
  Ages ages_;
  Ages pinned_ages_;
  std::uint64_t next_age_ = 1;
  std::uint64_t evicted_ = 0;
};

}  // namespace pairwire
