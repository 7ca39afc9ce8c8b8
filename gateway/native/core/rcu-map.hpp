// A hash table from 64-bit keys to pointers that one thread changes while others read it.
//
//   slot:  | key + 1 (0: never used) | pointer (null: taken out) |
//
// A slot gets its key once and keeps it; only the pointer changes. So a reader needs two loads and
// no retry. When more than half of the slots have had a key, the writer copies the living ones into
// a new array, shows that, and retires the old one: O(1) for each change, on average.
#pragma once

#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "core/rcu.hpp"

namespace pairwire {

/// Keys are below 2^64 - 1. Does not own what it points to.
///
/// Threads: `find` by readers of the domain that are online, and by the writer; all else by the
/// writer only.
template <typename T>
class RcuMap {
 public:
  /// `seed` keeps strangers who choose keys from choosing collisions.
  RcuMap(RcuDomain& domain, std::uint64_t seed)
      : domain_(domain), seed_(seed), array_(std::make_unique<Array>(kSmallest)) {
    shown_.store(array_.get(), std::memory_order_release);
  }

  [[nodiscard]] T* find(std::uint64_t key) const noexcept {
    const Array& array = *shown_.load(std::memory_order_acquire);
    for (std::size_t i = hash(key);; ++i) {
      const Slot& slot = array.slots[i & array.mask];
      const std::uint64_t found = slot.key.load(std::memory_order_acquire);
      if (found == key + 1) return slot.value.load(std::memory_order_acquire);
      if (found == 0) return nullptr;
    }
  }

  /// Sets or replaces; `value` is not null.
  void set(std::uint64_t key, T* value) {
    Slot* slot = &slot_for(*array_, key);
    if (slot->key.load(std::memory_order_relaxed) == 0) {
      if ((array_->used + 1) * 2 > array_->mask + 1) {
        rebuild();
        slot = &slot_for(*array_, key);
      }
      ++array_->used;
    }
    if (slot->value.load(std::memory_order_relaxed) == nullptr) ++living_;
    slot->value.store(value, std::memory_order_release);
    slot->key.store(key + 1, std::memory_order_release);
  }

  void erase(std::uint64_t key) {
    Slot& slot = slot_for(*array_, key);
    if (slot.value.load(std::memory_order_relaxed) == nullptr) return;
    slot.value.store(nullptr, std::memory_order_release);
    --living_;
  }

  [[nodiscard]] std::size_t size() const noexcept { return living_; }

 private:
  static constexpr std::size_t kSmallest = 16;

  struct Slot {
    std::atomic<std::uint64_t> key{0};
    std::atomic<T*> value{nullptr};
  };
  struct Array {
    explicit Array(std::size_t size) : mask(size - 1), slots(std::make_unique<Slot[]>(size)) {}
    std::size_t mask;
    std::size_t used = 0;  // Slots that have a key.
    std::unique_ptr<Slot[]> slots;
  };

  [[nodiscard]] std::size_t hash(std::uint64_t key) const noexcept {
    std::uint64_t x = key ^ seed_;  // The finaliser of splitmix64.
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9U;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebU;
    return static_cast<std::size_t>(x ^ (x >> 31));
  }

  /// The key's slot, or the free one where it belongs. Half of the slots are free, so there is one.
  Slot& slot_for(Array& array, std::uint64_t key) const noexcept {
    for (std::size_t i = hash(key);; ++i) {
      Slot& slot = array.slots[i & array.mask];
      const std::uint64_t found = slot.key.load(std::memory_order_relaxed);
      if (found == key + 1 || found == 0) return slot;
    }
  }

  void rebuild() {
    const std::size_t size = std::bit_ceil((living_ + 1) * 4);
    auto bigger = std::make_unique<Array>(size < kSmallest ? kSmallest : size);
    for (std::size_t i = 0; i <= array_->mask; ++i) {
      const Slot& old = array_->slots[i];
      T* const value = old.value.load(std::memory_order_relaxed);
      if (value == nullptr) continue;
      const std::uint64_t key = old.key.load(std::memory_order_relaxed) - 1;
      Slot& slot = slot_for(*bigger, key);
      slot.value.store(value, std::memory_order_relaxed);
      slot.key.store(key + 1, std::memory_order_relaxed);
      ++bigger->used;
    }
    shown_.store(bigger.get(), std::memory_order_release);
    domain_.retire(std::exchange(array_, std::move(bigger)));
  }

  RcuDomain& domain_;
  const std::uint64_t seed_;
  std::unique_ptr<Array> array_;  // The writer's.
  std::atomic<Array*> shown_{nullptr};
  std::size_t living_ = 0;
};

}  // namespace pairwire
