// What workers tell the control thread: a bounded ring without locks. Full means lost and counted,
// never waited for.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "core/endpoint.hpp"
#include "l2/mac.hpp"

namespace pairwire {

/// One event. Members are named by number, because a pointer might be stale when it is read.
struct WorkerEvent {
  enum class Kind : std::uint8_t {
    kMissMac,         ///< mac
    kMissGroup,       ///< -
    kMissIndex,       ///< index, kid, group, from
    kKeyWorn,         ///< peer (0: group key), number = pwId
    kHeardElsewhere,  ///< peer, from
    kPathAnswer,      ///< peer, from, number = token, time_us
  };
  Kind kind = Kind::kMissGroup;
  bool group = false;
  std::uint16_t kid = 0;
  std::uint32_t index = 0;
  std::uint32_t peer = 0;
  MacAddress mac;
  Endpoint from;
  std::uint64_t number = 0;
  std::uint64_t time_us = 0;
};

/// Threads: one puts (the worker), one takes (the control thread).
class WorkerEvents {
 public:
  static constexpr std::size_t kSize = 1024;
  static_assert((kSize & (kSize - 1)) == 0);

  bool put(const WorkerEvent& event) noexcept {
    const std::size_t at = put_.load(std::memory_order_relaxed);
    if (at - taken_.load(std::memory_order_acquire) == kSize) {
      lost_.fetch_add(1, std::memory_order_relaxed);
      return false;
    }
    events_[at % kSize] = event;
    put_.store(at + 1, std::memory_order_release);
    return true;
  }

  bool take(WorkerEvent& event) noexcept {
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
  std::array<WorkerEvent, kSize> events_{};
};

}  // namespace pairwire
