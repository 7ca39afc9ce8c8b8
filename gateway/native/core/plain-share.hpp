// What the worker that reads a plain port's TAP shares with the control thread.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "core/event-ring.hpp"
#include "l2/loop-probe.hpp"

namespace pairwire {

/// An address was seen on the plain side, or has been forgotten.
struct LearnedReport {
  std::uint64_t address = 0;  ///< VlanMac as a number
  std::uint64_t seen_ms = 0;
  bool gone = false;
};

/// A frame with the looks of a loop probe; what is behind the longest one is cut off.
struct HeardProbe {
  std::size_t size = 0;
  std::array<std::uint8_t, kLoopProbeSize + 4 * kMaxVlanTags> bytes{};
};

/// Threads: each part says who may use it.
struct PlainShare {
  EventRing<LearnedReport, 4096> learned;
  EventRing<HeardProbe, 64> probes;
  // Set by the control thread, taken by the worker.
  std::atomic<bool> look{false};    ///< look through what was learned
  std::atomic<bool> retell{false};  ///< tell all of it again
  // Counted by the worker.
  std::atomic<std::uint64_t> learned_now{0};
  std::atomic<std::uint64_t> learn_full{0};   ///< sightings of addresses that found no place
  std::atomic<std::uint64_t> probes_over{0};  ///< probes over the budget, not looked at
};

}  // namespace pairwire
