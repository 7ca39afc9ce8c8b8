// Whether a worker that has nothing to do should look again for a moment before it sleeps.
//
// Going to sleep and being woken costs several times as much as a frame, and an answer often comes
// within that time. So the worker learns how likely that is: `likely_` is an average over the last
// gaps between two pieces of work, of whether a gap was short. Where traffic comes now and then,
// it falls to zero and the worker sleeps at once; without traffic nothing is looked at at all.
//
// A worker has one of these for each direction and asks that of its last piece of work: behind a
// request the answer comes soon, behind the answer the next request may take long.
#pragma once

#include <cstdint>

namespace pairwire {

/// Threads: one, the worker that owns it.
class IdleSpin {
 public:
  /// `longest_us`: a gap up to this is worth waiting for awake. 0: never.
  explicit IdleSpin(std::uint64_t longest_us) noexcept : longest_us_(longest_us) {}

  /// There was something to do.
  void worked(std::uint64_t now_us) noexcept {
    if (idle_since_us_ == 0) return;
    const bool was_short = now_us - idle_since_us_ <= longest_us_;
    likely_ += ((was_short ? kCertain : 0) - likely_) / kMemory;
    idle_since_us_ = 0;
  }

  /// There is nothing to do. True: look again; false: sleep.
  [[nodiscard]] bool look_again(std::uint64_t now_us) noexcept {
    if (idle_since_us_ == 0) idle_since_us_ = now_us;
    return likely_ >= kWorthIt && now_us - idle_since_us_ < longest_us_;
  }

 private:
  static constexpr int kCertain = 1024;
  static constexpr int kWorthIt = kCertain / 2;  ///< of two short waits one may be in vain
  static constexpr int kMemory = 8;              ///< gaps that the average reaches back, about

  const std::uint64_t longest_us_;
  std::uint64_t idle_since_us_ = 0;
  int likely_ = 0;
};

}  // namespace pairwire
