// A bounded ring without locks, from a worker to the control thread. Full means lost and counted,
// never waited for.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

namespace pairwire {

/// Threads: one puts (the worker), one takes (the control thread).
template <typename T, std::size_t Size>
class EventRing {
 public:
  static constexpr std::size_t kSize = Size;
  static_assert((kSize & (kSize - 1)) == 0);

  bool put(const T& event) noexcept {
    const std::size_t at = put_.load(std::memory_order_relaxed);
    if (at - taken_.load(std::memory_order_acquire) == kSize) {
      lost_.fetch_add(1, std::memory_order_relaxed);
      return false;
    }
    events_[at % kSize] = event;
    put_.store(at + 1, std::memory_order_release);
    return true;
  }

  bool take(T& event) noexcept {
    const std::size_t at = taken_.load(std::memory_order_relaxed);
    if (at == put_.load(std::memory_order_acquire)) return false;
    event = events_[at % kSize];
    taken_.store(at + 1, std::memory_order_release);
    return true;
  }

  [[nodiscard]] std::uint64_t lost() const noexcept {
    return lost_.load(std::memory_order_relaxed);
  }

 private:
  alignas(64) std::atomic<std::size_t> put_{0};
  alignas(64) std::atomic<std::size_t> taken_{0};
  std::atomic<std::uint64_t> lost_{0};
  std::array<T, kSize> events_{};
};

}  // namespace pairwire
