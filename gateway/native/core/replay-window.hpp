// Anti-replay window of one traffic key: which of the last 8,192 counters have been accepted.
//
// A filter as in RFC 6479 ("IPsec Anti-Replay Algorithm without Bit Shifting"): a ring of 64-bit
// blocks, counter c is bit c % 64 of block (c / 64) % 129. Moving the window forward clears whole
// blocks; nothing is ever shifted. One block more than the window's 128 is needed because the
// window rarely starts at a block border:
//
//            oldest = highest - 8191                                highest
//                 v                                                    v
//   ...|    block n     |  block n + 1  |   ...   |  block n + 127  |  block n + 128  |...
//            ^ part of it is too old                                ^ part of it is to come
//
// Counters don't wrap: the sender stops at 2^36, and 2^64 - 1 is the largest that fits the wire.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>

#include "core/spin-lock.hpp"

namespace pairwire {

/// The window of one traffic key. A new one is empty: every counter is acceptable once.
///
/// Threads: any; `would_accept` takes no lock, `accept` a spin lock for some nanoseconds.
class ReplayWindow {
 public:
  /// Number of counters up to the highest accepted one that can still be accepted.
  static constexpr std::uint64_t kSize = 8192;

  /// True if `counter` is neither used nor too old at this moment. Cheap: this is asked before the
  /// frame is opened, and has no effect. Never false for a counter that `accept` would take.
  [[nodiscard]] bool would_accept(std::uint64_t counter) const {
    const std::uint64_t highest = highest_.load(std::memory_order_acquire);
    if (counter > highest) return true;
    if (highest - counter >= kSize) return false;
    // If the window moves on right now, this block may be cleared (then `accept` decides) or serve
    // newer counters already (then ours is too old, and both answers are right).
    return (block(counter).load(std::memory_order_relaxed) & bit(counter)) == 0;
  }

  /// Test and set in one step, only after the frame has opened: true exactly once for each counter,
  /// false if it was accepted before or has left the window.
  [[nodiscard]] bool accept(std::uint64_t counter) {
    const std::scoped_lock guard(lock_);
    const std::uint64_t highest = highest_.load(std::memory_order_relaxed);
    if (counter > highest) {
      advance(highest, counter);
    } else if (highest - counter >= kSize) {
      return false;
    }
    std::atomic<std::uint64_t>& word = block(counter);
    const std::uint64_t bits = word.load(std::memory_order_relaxed);
    if ((bits & bit(counter)) != 0) return false;
    // No read-modify-write instruction needed: only the holder of the lock writes.
    word.store(bits | bit(counter), std::memory_order_relaxed);
    return true;
  }

 private:
  static constexpr std::uint64_t kBlockBits = 64;
  static constexpr std::uint64_t kBlocks = kSize / kBlockBits + 1;
  static_assert(kSize % kBlockBits == 0);

  static constexpr std::uint64_t bit(std::uint64_t counter) {
    return std::uint64_t{1} << (counter % kBlockBits);
  }
  std::atomic<std::uint64_t>& block(std::uint64_t counter) {
    return blocks_[counter / kBlockBits % kBlocks];
  }
  const std::atomic<std::uint64_t>& block(std::uint64_t counter) const {
    return blocks_[counter / kBlockBits % kBlocks];
  }

  /// Clears the blocks that the move from `from` to `to` enters. The caller holds the lock.
  void advance(std::uint64_t from, std::uint64_t to) {
    const std::uint64_t first = from / kBlockBits + 1;
    const std::uint64_t entered = to / kBlockBits - from / kBlockBits;
    const std::uint64_t count = entered < kBlocks ? entered : kBlocks;
    for (std::uint64_t i = 0; i < count; ++i) {
      blocks_[(first + i) % kBlocks].store(0, std::memory_order_relaxed);
    }
    // Released after the clearing: who sees the new end must not see old bits in front of it, or
    // `would_accept` would refuse a good frame.
    highest_.store(to, std::memory_order_release);
  }

  // Zero and not yet accepted look different only in the bit of counter 0, and that is enough:
  // with `highest_` 0 and no bit set, counter 0 is inside the window and unused.
  std::atomic<std::uint64_t> highest_{0};
  SpinLock lock_;
  std::array<std::atomic<std::uint64_t>, kBlocks> blocks_{};
};

}  // namespace pairwire
