// Reading shared tables without locks: quiescent-state-based reclamation (QSBR).
//
//   worker:   online | look up, use, look up, use | quiescent | ... | offline: poll() | online
//   control:  publish new entry, retire old one ----- grace period -----> free the old one
//
// A worker promises to keep no pointer from a table across `quiescent` or `offline`. The control
// thread frees a retired object once every worker has passed such a point after the retirement.
// A worker that sleeps is offline and holds nobody up; nobody ever waits for a worker.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <stdexcept>
#include <type_traits>
#include <utility>

namespace pairwire {

/// Threads: `retire`, `reclaim` and `add_reader` belong to the one writer (the control thread); a
/// Reader belongs to its thread. Destroyed after all its readers are gone.
class RcuDomain {
 public:
  static constexpr std::size_t kMaxReaders = 64;

 private:
  struct alignas(64) Slot {
    /// The epoch that the reader has seen; 0 while it is offline.
    std::atomic<std::uint64_t> seen{0};
    bool taken = false;  // The writer's.
  };

 public:
  /// One thread that reads. Starts offline. Destroy it on any thread, once that thread is done.
  class Reader {
   public:
    Reader(RcuDomain& domain, Slot& slot) : domain_(domain), slot_(slot) {}
    Reader(const Reader&) = delete;
    Reader& operator=(const Reader&) = delete;
    ~Reader() { slot_.taken = false; }

    /// From here on pointers may be loaded from tables.
    void online() noexcept {
      // A read-modify-write, because the writer's look at the slot is one too: whichever of the two
      // comes second sees all that the other did before. A plain store could pass our next load.
      slot_.seen.exchange(domain_.epoch_.load(std::memory_order_acquire),
                          std::memory_order_acq_rel);
    }
    /// No pointer loaded before is used any more.
    void quiescent() noexcept {
      slot_.seen.store(domain_.epoch_.load(std::memory_order_acquire), std::memory_order_release);
    }
    /// As `quiescent`, and none will be loaded until `online`.
    void offline() noexcept { slot_.seen.store(0, std::memory_order_release); }

   private:
    RcuDomain& domain_;
    Slot& slot_;
  };

  RcuDomain() = default;
  RcuDomain(const RcuDomain&) = delete;
  RcuDomain& operator=(const RcuDomain&) = delete;

  [[nodiscard]] std::unique_ptr<Reader> add_reader() {
    for (Slot& slot : slots_) {
      if (slot.taken) continue;
      slot.taken = true;
      slot.seen.store(0, std::memory_order_relaxed);
      return std::make_unique<Reader>(*this, slot);
    }
    throw std::length_error("RcuDomain: too many readers");
  }

  /// Frees `object`, which no table shows any more, after a grace period. `noexcept`: without
  /// memory to note it down the process ends, because unwinding would free what readers may hold.
  template <typename T>
  void retire(std::unique_ptr<T> object) noexcept {
    if (object == nullptr) return;
    const std::uint64_t epoch = epoch_.fetch_add(1, std::memory_order_acq_rel) + 1;
    using Plain = std::remove_const_t<T>;
    retired_.push_back({epoch, Garbage(const_cast<Plain*>(object.release()), [](void* at) {
                          std::default_delete<Plain>()(static_cast<Plain*>(at));
                        })});
  }

  /// Frees what no reader can hold any more. Returns how many objects still wait.
  std::size_t reclaim() {
    if (retired_.empty()) return 0;
    std::uint64_t oldest = ~std::uint64_t{0};
    for (Slot& slot : slots_) {
      if (!slot.taken) continue;
      const std::uint64_t seen = slot.seen.fetch_add(0, std::memory_order_acq_rel);
      if (seen != 0) oldest = std::min(oldest, seen);
    }
    while (!retired_.empty() && retired_.front().epoch <= oldest) retired_.pop_front();
    return retired_.size();
  }

 private:
  using Garbage = std::unique_ptr<void, void (*)(void*)>;
  struct Retired {
    std::uint64_t epoch;
    Garbage object;
  };

  std::atomic<std::uint64_t> epoch_{1};
  std::array<Slot, kMaxReaders> slots_;
  std::deque<Retired> retired_;
};

}  // namespace pairwire
