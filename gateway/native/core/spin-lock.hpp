// A lock for sections of some nanoseconds, too short to be worth a system call.
#pragma once

#include <atomic>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace pairwire {

/// Meets the standard's Lockable, so std::scoped_lock works with it. Not fair and not recursive.
/// Never hold it across a system call or an allocation.
class SpinLock {
 public:
  void lock() noexcept {
    while (!try_lock()) {
      // Read until it looks free: waiting with writes would take the cache line from the owner.
      while (locked_.test(std::memory_order_relaxed)) pause();
    }
  }
  [[nodiscard]] bool try_lock() noexcept {
    return !locked_.test_and_set(std::memory_order_acquire);
  }
  void unlock() noexcept { locked_.clear(std::memory_order_release); }

  /// What to do in a loop that waits for another core.
  static void pause() noexcept {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

 private:
  std::atomic_flag locked_;
};

}  // namespace pairwire
