// Frames that wait for a key: limits, order, expiry, eviction.
#include "core/hold-queue.hpp"

#include <doctest/doctest.h>

#include <map>

#include "test/support.hpp"

using namespace pairwire;
using namespace pairwire::test;
using Result = HoldQueue::Result;

namespace {

std::vector<std::vector<std::uint8_t>> take_all(HoldQueue& queue, std::uint64_t key) {
  std::vector<std::vector<std::uint8_t>> frames;
  std::vector<std::uint8_t> scratch(70'000);
  queue.release(key, scratch, [&](Bytes frame, const HoldQueue::Note&) {
    frames.emplace_back(frame.begin(), frame.end());
  });
  return frames;
}

}  // namespace

TEST_CASE("hold queue: gives back what was held, in order, super-frames too") {
  HoldQueue queue({16, 64, 1 << 20, false}, 1);
  Random random(1);
  std::map<std::uint64_t, std::vector<std::vector<std::uint8_t>>> expected;
  std::uint64_t evicted = 0;
  for (const std::size_t size : {60U, 2048U, 2049U, 65'000U, 1U, 4096U}) {
    for (const std::uint64_t key : {7U, 9U}) {
      const auto frame = random.bytes(size);
      const bool first = expected[key].empty();
      CHECK(queue.hold(key, frame, {}, 64, 100, evicted) ==
            (first ? Result::kFirst : Result::kHeld));
      expected[key].push_back(frame);
    }
  }
  CHECK(take_all(queue, 9) == expected[9]);
  CHECK(queue.has(7));
  CHECK_FALSE(queue.has(9));
  CHECK(take_all(queue, 7) == expected[7]);
  CHECK(queue.empty());
  CHECK(queue.bytes() == 0);
  CHECK(evicted == 0);
}

TEST_CASE("hold queue: one destination can't take the place of others") {
  HoldQueue queue({16, 64, 1 << 20, false}, 1);
  std::uint64_t evicted = 0;
  const std::vector<std::uint8_t> frame(100);
  for (int i = 0; i < 4; ++i) CHECK(queue.hold(1, frame, {}, 4, 100, evicted) != Result::kFull);
  CHECK(queue.hold(1, frame, {}, 4, 100, evicted) == Result::kFull);
  CHECK(queue.hold(2, frame, {}, 4, 100, evicted) == Result::kFirst);
  CHECK(queue.size() == 5);
}

TEST_CASE(
    "hold queue: without eviction the new frame is refused when bytes, frames or keys are full") {
  const std::vector<std::uint8_t> frame(2048);
  std::uint64_t evicted = 0;
  SUBCASE("bytes") {
    HoldQueue queue({16, 64, 3 * 2048, false}, 1);
    for (std::uint64_t key = 0; key < 3; ++key) {
      CHECK(queue.hold(key, frame, {}, 9, 100, evicted) == Result::kFirst);
    }
    CHECK(queue.hold(4, frame, {}, 9, 100, evicted) == Result::kFull);
    CHECK(queue.drop(1) == 1);
    CHECK(queue.hold(4, frame, {}, 9, 100, evicted) == Result::kFirst);
  }
  SUBCASE("frames") {
    HoldQueue queue({16, 2, 1 << 20, false}, 1);
    CHECK(queue.hold(1, frame, {}, 9, 100, evicted) == Result::kFirst);
    CHECK(queue.hold(1, frame, {}, 9, 100, evicted) == Result::kHeld);
    CHECK(queue.hold(2, frame, {}, 9, 100, evicted) == Result::kFull);
  }
  SUBCASE("keys") {
    HoldQueue queue({2, 64, 1 << 20, false}, 1);
    CHECK(queue.hold(1, frame, {}, 9, 100, evicted) == Result::kFirst);
    CHECK(queue.hold(2, frame, {}, 9, 100, evicted) == Result::kFirst);
    CHECK(queue.hold(3, frame, {}, 9, 100, evicted) == Result::kFull);
    CHECK(queue.hold(2, frame, {}, 9, 100, evicted) == Result::kHeld);
  }
  SUBCASE("a frame that is too long for all of it") {
    HoldQueue queue({2, 64, 4096, false}, 1);
    CHECK(queue.hold(1, std::vector<std::uint8_t>(4097), {}, 9, 100, evicted) == Result::kFull);
  }
  CHECK(evicted == 0);
}

TEST_CASE("hold queue: with eviction a flood can't keep a later frame out, nor grow the queue") {
  HoldQueue queue({256, 256, 1 << 20, true}, 42);
  const std::vector<std::uint8_t> frame(500);
  std::uint64_t evicted = 0;
  for (std::uint64_t key = 0; key < 100'000; ++key) {
    CHECK_MESSAGE(queue.hold(key, frame, {}, 4, 100, evicted) != Result::kFull, key);
    if (key % 1000 == 0) CHECK(queue.size() <= 256);
  }
  CHECK(queue.size() == 256);
  CHECK(evicted == 100'000 - 256);
  CHECK(queue.hold(1'000'000, frame, {}, 4, 100, evicted) == Result::kFirst);
  CHECK(queue.has(1'000'000));
}

TEST_CASE("hold queue: expires by each frame's own deadline") {
  HoldQueue queue({16, 64, 1 << 20, false}, 1);
  std::uint64_t evicted = 0;
  const std::vector<std::uint8_t> frame(10);
  queue.hold(1, frame, {}, 9, 100, evicted);
  queue.hold(1, frame, {}, 9, 200, evicted);
  queue.hold(2, frame, {}, 9, 300, evicted);
  CHECK(queue.expire(99) == 0);
  CHECK(queue.expire(100) == 1);
  CHECK(queue.expire(250) == 1);
  CHECK_FALSE(queue.has(1));
  CHECK(queue.clear() == 1);
  CHECK(queue.empty());
}

TEST_CASE("hold queue: tells of each frame that goes in vain, and of no other") {
  std::vector<int> gone;
  HoldQueue queue({4, 4, 16'384, true}, 1,
                  [&](const HoldQueue::Note& note) { gone.push_back(note[0]); });
  const std::vector<std::uint8_t> frame(100);
  std::vector<std::uint8_t> scratch(100);
  std::uint64_t evicted = 0;
  const auto hold = [&](std::uint64_t key, std::uint8_t name, std::uint64_t deadline) {
    HoldQueue::Note note{};
    note[0] = name;
    static_cast<void>(queue.hold(key, frame, note, 4, deadline, evicted));
  };
  hold(1, 1, 10);
  hold(1, 2, 20);
  hold(2, 3, 20);
  hold(3, 4, 30);
  queue.release(3, scratch, [](Bytes, const HoldQueue::Note&) {});
  CHECK(gone.empty());
  CHECK(queue.expire(10) == 1);
  CHECK(gone == std::vector<int>{1});
  CHECK(queue.drop(1) == 1);
  CHECK(gone == std::vector<int>{1, 2});
  for (std::uint8_t i = 5; i < 9; ++i) hold(i, i, 50);
  CHECK(evicted == 1);
  CHECK(gone.size() == 3);
  CHECK(queue.clear() == 4);
  CHECK(gone.size() == 7);
  CHECK(std::ranges::count(gone, 4) == 0);
}

TEST_CASE("hold queue: random use against a model") {
  HoldQueue queue({8, 32, 64 * 2048, false}, 3);
  std::map<std::uint64_t, std::vector<std::vector<std::uint8_t>>> model;
  Random random(5);
  std::uint64_t evicted = 0;
  for (int i = 0; i < 20'000; ++i) {
    const std::uint64_t key = random.below(12);
    if (random.below(4) != 0) {
      const auto frame = random.bytes(1 + random.below(5000));
      const auto result = queue.hold(key, frame, {}, 6, 1, evicted);
      if (result != Result::kFull) model[key].push_back(frame);
    } else {
      CHECK(take_all(queue, key) == model[key]);
      model[key].clear();
    }
    std::size_t frames = 0;
    for (const auto& [k, list] : model) frames += list.size();
    CHECK(queue.size() == frames);
  }
}
