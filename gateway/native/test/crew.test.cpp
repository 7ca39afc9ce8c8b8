// Helpers do each piece exactly once, and idle-spin knows when waiting awake pays.
#include "core/crew.hpp"

#include <doctest/doctest.h>

#include <atomic>
#include <thread>
#include <vector>

#include "core/idle-spin.hpp"

using namespace pairwire;

TEST_CASE("Crew: each piece is done once, and its result is seen") {
  Crew crew(3, 0);
  std::vector<std::uint64_t> results;
  for (std::size_t round = 0; round < 3000; ++round) {
    const std::size_t count = round % 17;
    results.assign(count, 0);
    auto work = [&](std::size_t i) { results[i] += round * 100 + i; };
    crew.run(count, work);
    std::size_t wrong = 0;
    for (std::size_t i = 0; i < count; ++i) wrong += results[i] == round * 100 + i ? 0 : 1;
    REQUIRE(wrong == 0);
  }
}

TEST_CASE("Crew: two callers at once both get their work done") {
  Crew crew(1, 0);
  std::atomic<std::uint64_t> sum{0};
  const auto call = [&] {
    for (int round = 0; round < 2000; ++round) {
      auto work = [&](std::size_t i) { sum.fetch_add(i + 1, std::memory_order_relaxed); };
      crew.run(4, work);
    }
  };
  std::thread other(call);
  call();
  other.join();
  CHECK(sum == 2 * 2000 * 10);
}

TEST_CASE("Crew: without helpers the caller does it all") {
  Crew crew(0, 0);
  CHECK(crew.empty());
  std::size_t done = 0;
  auto work = [&](std::size_t) { ++done; };
  crew.run(5, work);
  CHECK(done == 5);
  CHECK(crew.helped() == 0);
}

TEST_CASE("IdleSpin: waits awake where the next piece of work comes soon, and only there") {
  IdleSpin spin(50);
  std::uint64_t now = 1'000'000;
  CHECK_FALSE(spin.look_again(now));  // Nothing is known yet.
  // Gaps of 20 us: worth it, for 50 us and no longer.
  for (int i = 0; i < 16; ++i) spin.worked(now += 20), static_cast<void>(spin.look_again(now));
  CHECK(spin.look_again(now + 10));
  CHECK_FALSE(spin.look_again(now + 60));
  // Gaps of 2 ms: not worth it any more.
  for (int i = 0; i < 32; ++i) {
    spin.worked(now += 2'000);
    static_cast<void>(spin.look_again(now));
  }
  CHECK_FALSE(spin.look_again(now));
}

TEST_CASE("IdleSpin: a longest wait of 0 turns it off") {
  IdleSpin spin(0);
  std::uint64_t now = 1'000'000;
  for (int i = 0; i < 16; ++i) {
    CHECK_FALSE(spin.look_again(now));
    spin.worked(now += 1);
  }
}
