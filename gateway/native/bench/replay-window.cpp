// The replay window: frames in order, in a shuffled order, and repeated ones.
#include "core/replay-window.hpp"

#include <memory>

#include "bench/harness.hpp"

namespace pairwire::bench {
namespace {

const Registered registered([](Runner& runner) {
  const auto window = std::make_unique<ReplayWindow>();
  // Counters start again with each measurement, so each gets its own part of the range.
  std::uint64_t base = 0;
  const auto measure = [&](std::string_view order, auto&& counter_of) {
    base += std::uint64_t{1} << 48;
    runner.measure("replay_window", {{"order", order}}, [&](std::uint64_t i) {
      const std::uint64_t counter = base + counter_of(i);
      const bool accepted = window->would_accept(counter) && window->accept(counter);
      keep(&accepted);
    });
  };
  measure("sequential", [](std::uint64_t i) { return i; });
  // 64 neighbours in another order, as two paths would deliver them.
  measure("shuffled", [](std::uint64_t i) { return i ^ 0x2a; });
  measure("repeated", [](std::uint64_t) { return std::uint64_t{0}; });
});

}  // namespace
}  // namespace pairwire::bench
