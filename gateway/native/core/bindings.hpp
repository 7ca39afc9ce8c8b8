// Which MAC address an IP address is bound to: who may announce it (threats.md C2).
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <unordered_map>

#include "core/rcu-map.hpp"
#include "l2/ip-address.hpp"
#include "l2/mac.hpp"

namespace pairwire {

/// Threads: `told_ms` is the worker's that reads the TAP; the rest is immutable once shown.
struct Binding {
  IpAddress ip;
  MacAddress mac;
  /// When the control plane last heard that it is in use, boot time; read where it is our own.
  mutable std::atomic<std::uint64_t> told_ms{0};
  std::uint32_t generation = 0;  ///< in which list it was last. The control thread's
};

/// Threads: `find` as in RcuMap; all else the control thread's.
class Bindings {
 public:
  /// A table of them all takes some 10 MB.
  static constexpr std::size_t kMaxBindings = 65'536;

  Bindings(RcuDomain& domain, std::uint64_t seed)
      : domain_(domain), seed_(seed), shown_(domain, seed) {}

  /// Null if the address is not bound.
  [[nodiscard]] const Binding* find(const IpAddress& ip) const noexcept {
    const Binding* const found = shown_.find(ip.to_key(seed_));
    return found != nullptr && found->ip == ip ? found : nullptr;
  }

  struct Setting {
    IpAddress ip;
    MacAddress mac;
  };
  /// Replaces what was bound to the same addresses. `reset`, `more`: as OwnAddresses::set. False if
  /// there was no room for all; a list that had begun then counts as broken off, and what it did
  /// not name stays.
  [[nodiscard]] bool set(std::span<const Setting> settings, bool reset, bool more,
                         std::uint64_t now_ms);
  void remove(std::span<const IpAddress> ips);
  [[nodiscard]] std::size_t size() const { return entries_.size(); }

 private:
  void take_out(std::uint64_t key);

  RcuDomain& domain_;
  const std::uint64_t seed_;
  RcuMap<const Binding> shown_;
  std::unordered_map<std::uint64_t, std::unique_ptr<Binding>> entries_;
  std::uint32_t generation_ = 0;
  bool listing_ = false;  ///< a list has begun and not ended
};

}  // namespace pairwire
