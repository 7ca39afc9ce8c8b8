// A small benchmark harness: one line of JSON for each measurement.
//
//   {"bench":"aead.seal","backend":"ipsec-mb","suite":"aes-256-gcm","size":64,"ns":24.1,
//    "ns_min":23.9,"tsc_cycles":62.0,"iterations":8000000}
//
// ns is the median of 5 repetitions, ns_min the best of them. tsc_cycles counts the time stamp
// counter, which runs at a fixed rate whatever the clock of the core does (x86-64 only).
#pragma once

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <iostream>
#include <string>
#include <string_view>
#include <vector>
#if defined(__x86_64__)
#include <x86intrin.h>
#endif

namespace pairwire::bench {

/// Keeps the compiler from leaving out the computation of what `pointer` points at.
inline void keep(const void* pointer) {
  asm volatile("" : : "r"(pointer) : "memory");
}

/// Labels behind the name; values are JSON already.
struct Label {
  std::string_view name;
  std::string json;

  Label(std::string_view label, std::string_view text) : name(label) {
    json.append(1, '"').append(text).append(1, '"');
  }
  Label(std::string_view label, std::uint64_t number) : name(label), json(std::to_string(number)) {}
};

class Runner {
 public:
  struct Options {
    std::string filter;  // Only benchmarks whose name contains this.
    std::chrono::nanoseconds repetition = std::chrono::milliseconds(100);
  };
  explicit Runner(Options options) : options_(std::move(options)) {}

  /// Measures `operation(i)`, called with i = 0, 1, 2, ..., and prints a line.
  template <typename Operation>
  void measure(std::string_view name, const std::vector<Label>& labels, Operation&& operation) {
    if (name.find(options_.filter) == std::string_view::npos) return;
    std::uint64_t i = 0;
    // Double until a repetition is long enough to be measured; this is the warm-up too.
    std::uint64_t iterations = 1;
    while (run(operation, i, iterations).time < options_.repetition) iterations *= 2;

    std::array<Sample, 5> samples;
    for (Sample& sample : samples) sample = run(operation, i, iterations);
    std::ranges::sort(samples, {}, &Sample::time);
    print(name, labels, samples[samples.size() / 2], samples.front(), iterations);
  }

 private:
  struct Sample {
    std::chrono::nanoseconds time{};
    std::uint64_t cycles = 0;
  };

  static std::uint64_t cycle_counter() {
#if defined(__x86_64__)
    return __rdtsc();
#else
    return 0;
#endif
  }

  template <typename Operation>
  static Sample run(Operation& operation, std::uint64_t& i, std::uint64_t iterations) {
    using Clock = std::chrono::steady_clock;
    const Clock::time_point start = Clock::now();
    const std::uint64_t start_cycles = cycle_counter();
    for (std::uint64_t end = i + iterations; i < end; ++i) operation(i);
    const std::uint64_t end_cycles = cycle_counter();
    return {.time = Clock::now() - start, .cycles = end_cycles - start_cycles};
  }

  static void print(std::string_view name, const std::vector<Label>& labels, const Sample& median,
                    const Sample& best, std::uint64_t iterations) {
    const auto each = [&](auto total) {
      return std::to_string(static_cast<double>(total) / static_cast<double>(iterations));
    };
    std::cout << R"({"bench":")" << name << '"';
    for (const Label& label : labels) std::cout << R"(,")" << label.name << R"(":)" << label.json;
    std::cout << R"(,"ns":)" << each(median.time.count()) << R"(,"ns_min":)"
              << each(best.time.count());
    if (median.cycles != 0) std::cout << R"(,"tsc_cycles":)" << each(median.cycles);
    std::cout << R"(,"iterations":)" << iterations << "}" << std::endl;
  }

  Options options_;
};

using Benchmark = void (*)(Runner&);

/// All benchmarks of the program; each file adds its own with a `Registered` at namespace scope.
inline std::vector<Benchmark>& benchmarks() {
  static std::vector<Benchmark> all;
  return all;
}

struct Registered {
  explicit Registered(Benchmark benchmark) { benchmarks().push_back(benchmark); }
};

}  // namespace pairwire::bench
