// The replay window against a set that remembers everything, at its borders, and under threads.
#include "core/replay-window.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <barrier>
#include <limits>
#include <memory>
#include <set>
#include <thread>
#include <vector>

#include "test/support.hpp"

namespace pairwire::test {
namespace {

constexpr std::uint64_t kLast = std::numeric_limits<std::uint64_t>::max();

/// What the window should do, in the plainest way.
class NaiveWindow {
 public:
  [[nodiscard]] bool would_accept(std::uint64_t counter) const {
    if (seen_.empty()) return true;
    const std::uint64_t highest = *seen_.rbegin();
    if (counter > highest) return true;
    return highest - counter < ReplayWindow::kSize && !seen_.contains(counter);
  }
  bool accept(std::uint64_t counter) {
    return would_accept(counter) && seen_.insert(counter).second;
  }

 private:
  std::set<std::uint64_t> seen_;
};

TEST_CASE("replay window: every counter once, the empty one takes any") {
  for (const std::uint64_t counter : {std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{8191},
                                      std::uint64_t{8192}, std::uint64_t{1} << 36, kLast}) {
    ReplayWindow window;
    CHECK(window.would_accept(counter));
    CHECK(window.accept(counter));
    CHECK_FALSE(window.would_accept(counter));
    CHECK_FALSE(window.accept(counter));
  }
}

TEST_CASE("replay window: exactly 8,192 counters wide, up to the largest") {
  constexpr std::uint64_t size = ReplayWindow::kSize;
  // Every place of the highest counter within its block.
  for (std::uint64_t offset = 0; offset < 130; ++offset) {
    for (const std::uint64_t highest : {size + offset, kLast - offset}) {
      CAPTURE(highest);
      ReplayWindow window;
      CHECK(window.accept(highest));
      CHECK_FALSE(window.would_accept(highest - size));
      CHECK_FALSE(window.accept(highest - size));
      CHECK(window.would_accept(highest - size + 1));
      CHECK(window.accept(highest - size + 1));
      CHECK_FALSE(window.accept(highest - size + 1));
    }
  }
}

TEST_CASE("replay window: counter 0 after others") {
  ReplayWindow window;
  CHECK(window.accept(5));
  CHECK(window.accept(0));
  CHECK_FALSE(window.accept(0));
  CHECK_FALSE(window.accept(5));
}

TEST_CASE("replay window: same as the naive model under random jumps") {
  Random random(21);
  for (int run = 0; run < 30; ++run) {
    const auto window = std::make_unique<ReplayWindow>();
    NaiveWindow model;
    // Some runs end near the largest counter.
    std::uint64_t position = run % 5 == 0 ? kLast - 3'000'000 : random.below(200);
    for (int step = 0; step < 4000; ++step) {
      std::uint64_t counter = position;
      switch (random.below(8)) {
        case 0:  // Within the window or a little too old.
        case 1:
          counter = position - std::min(position, random.below(ReplayWindow::kSize + 200));
          break;
        case 2:  // Around its old end.
          counter = position - std::min(position, ReplayWindow::kSize - 2 + random.below(4));
          break;
        case 3:  // A repeat.
          break;
        case 4: {  // A jump that may clear some blocks, or all of them.
          const std::uint64_t jump = random.below(random.below(20) == 0 ? 20'000 : 700);
          counter = position + std::min(kLast - position, jump);
          break;
        }
        default:  // Order on the wire, with small gaps.
          counter = position + std::min(kLast - position, random.below(3));
          break;
      }
      CAPTURE(run);
      CAPTURE(step);
      CAPTURE(counter);
      REQUIRE(window->would_accept(counter) == model.would_accept(counter));
      REQUIRE(window->accept(counter) == model.accept(counter));
      position = std::max(position, counter);
    }
  }
}

TEST_CASE("replay window: of many threads exactly one gets each counter") {
  constexpr std::uint64_t rounds = 20;
  constexpr std::uint64_t threads = 4;
  ReplayWindow window;
  std::vector<std::atomic<unsigned>> accepted(rounds * ReplayWindow::kSize);
  std::atomic<unsigned> wrongly_refused{0};
  // In a round all threads try all counters of one window's length, each in its own order, while
  // the window moves. No counter can become too old before its round ends, so each must be
  // accepted, once.
  std::barrier<> next_round(threads);
  {
    std::vector<std::jthread> running;
    for (std::uint64_t t = 0; t < threads; ++t) {
      running.emplace_back([&, t] {
        Random random(t);
        for (std::uint64_t round = 0; round < rounds; ++round) {
          const std::uint64_t order = random.below(ReplayWindow::kSize);
          for (std::uint64_t i = 0; i < ReplayWindow::kSize; ++i) {
            const std::uint64_t counter = round * ReplayWindow::kSize + (i ^ order);
            const bool would = window.would_accept(counter);
            if (!window.accept(counter)) continue;
            accepted[counter].fetch_add(1);
            if (!would) wrongly_refused.fetch_add(1);
          }
          next_round.arrive_and_wait();
        }
      });
    }
  }
  CHECK(wrongly_refused == 0);
  CHECK(std::ranges::all_of(accepted, [](const auto& count) { return count == 1; }));
}

}  // namespace
}  // namespace pairwire::test
