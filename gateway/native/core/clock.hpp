// The data plane's two times: CLOCK_BOOTTIME, and key-server time reckoned from it.
//
// CLOCK_BOOTTIME goes on while the machine sleeps; with CLOCK_MONOTONIC a laptop that wakes up
// would seal frames with last night's time.
#pragma once

#include <time.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <optional>

#include "core/frame.hpp"

namespace pairwire {

/// Microseconds since the machine was started.
[[nodiscard]] inline std::uint64_t boot_us() noexcept {
  timespec now{};
  clock_gettime(CLOCK_BOOTTIME, &now);
  return static_cast<std::uint64_t>(now.tv_sec) * 1'000'000 +
         static_cast<std::uint64_t>(now.tv_nsec) / 1'000;
}
[[nodiscard]] inline std::uint64_t boot_ms() noexcept {
  return boot_us() / 1000;
}

/// Key-server time. Without a sample there is no time, and nothing is sealed or accepted.
///
/// Threads: `set` by the control thread; all else by any.
class ServerClock {
 public:
  /// A forward jump by more than this is what a machine sees that was resumed from a memory
  /// snapshot: its own time stood still meanwhile (threats.md C9). Clocks drift by far less between
  /// samples.
  static constexpr std::int64_t kSnapshotJumpMs = 2000;

  /// `offset_ms`: key-server time less boot time. Returns false if the time jumped forward (and is
  /// set nevertheless): keys then may have been copied with the machine.
  bool set(std::int64_t offset_ms, std::uint64_t sampled_boot_ms) noexcept {
    const bool had = valid_.load(std::memory_order_relaxed);
    const std::int64_t jump = offset_ms - offset_.load(std::memory_order_relaxed);
    const std::uint64_t before = sampled_.load(std::memory_order_relaxed);
    const std::uint64_t age = sampled_boot_ms > before ? sampled_boot_ms - before : 0;
    offset_.store(offset_ms, std::memory_order_relaxed);
    sampled_.store(sampled_boot_ms, std::memory_order_relaxed);
    valid_.store(true, std::memory_order_release);
    // 200 ppm of drift are forgiven, as everywhere.
    return !had || jump <= kSnapshotJumpMs + static_cast<std::int64_t>(age / 5000);
  }

  [[nodiscard]] bool valid() const noexcept { return valid_.load(std::memory_order_acquire); }

  /// Key-server time in ms, 0 without a sample.
  [[nodiscard]] std::uint64_t server_ms(std::uint64_t now_boot_ms) const noexcept {
    if (!valid()) return 0;
    const std::int64_t time =
        static_cast<std::int64_t>(now_boot_ms) + offset_.load(std::memory_order_relaxed);
    return time > 0 ? static_cast<std::uint64_t>(time) : 0;
  }

  /// How far a frame's time may be off now.
  [[nodiscard]] FrameTime tolerance(std::uint32_t base_ms,
                                    std::uint64_t now_boot_ms) const noexcept {
    const std::uint64_t sampled = sampled_.load(std::memory_order_relaxed);
    const std::uint64_t age = now_boot_ms > sampled ? now_boot_ms - sampled : 0;
    return freshness_tolerance(std::chrono::milliseconds(base_ms),
                               std::chrono::milliseconds(static_cast<std::int64_t>(age)));
  }

 private:
  std::atomic<bool> valid_{false};
  std::atomic<std::int64_t> offset_{0};
  std::atomic<std::uint64_t> sampled_{0};
};

/// `rate` a second, in bursts of up to `burst`. Threads: one.
class TokenBucket {
 public:
  TokenBucket(std::uint32_t rate, std::uint32_t burst) : rate_(rate), burst_(burst) {}

  /// Takes `tokens` if they are there.
  bool take(std::uint64_t now_us, std::uint32_t tokens = 1) noexcept {
    if (now_us > last_us_) {
      const std::uint64_t added = (now_us - last_us_) * rate_;  // in millionths
      micro_ = std::min(micro_ + added, std::uint64_t{burst_} * 1'000'000);
      last_us_ = now_us;
    }
    const std::uint64_t wanted = std::uint64_t{tokens} * 1'000'000;
    if (micro_ < wanted) return false;
    micro_ -= wanted;
    return true;
  }

 private:
  std::uint64_t rate_;
  std::uint64_t burst_;
  std::uint64_t last_us_ = 0;
  std::uint64_t micro_ = 0;
};

}  // namespace pairwire
