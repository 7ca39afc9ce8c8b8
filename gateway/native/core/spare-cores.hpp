// Whether the machine has cores that nobody uses.
//
// A thread of SCHED_BATCH pushes nobody aside when it is woken (sched(7)): who sent it something
// goes on, and mostly goes to sleep at once and leaves it a core that is awake. That saves waking
// another one, which costs more than all the rest of a lone packet's way (docs/performance.md). But
// where every core is taken by somebody who does not sleep, it waits for the end of a time slice,
// milliseconds, and then it has to push.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "io/unique-fd.hpp"

namespace pairwire {

/// Threads: any.
class SpareCores {
 public:
  /// `uptime`: /proc/uptime (proc(5)), open for reading; without it there are none to spare.
  /// `cores`: all that the machine has, for it adds up the idle time of all.
  SpareCores(UniqueFd uptime, std::size_t cores) noexcept;

  /// Whether an eighth of all cores' time was idle, or more, when that was last looked at; `now_us`
  /// is boot time. Looks once a second, at most, and not before it has been asked twice.
  [[nodiscard]] bool any(std::uint64_t now_us) noexcept;

 private:
  void look(std::uint64_t passed_us) noexcept;

  const UniqueFd uptime_;
  const std::uint64_t cores_;
  std::atomic<std::uint64_t> looked_us_{0};
  /// Of all cores since the machine was started. Written by whose turn to look it is.
  std::atomic<std::uint64_t> idle_us_{0};
  std::atomic<bool> any_{false};
};

}  // namespace pairwire
