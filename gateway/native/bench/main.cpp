// pairwire-native-bench [--filter TEXT] [--ms N]: prints one line of JSON for each measurement.
// --filter: only names that contain TEXT; --ms: length of each of the 5 repetitions (default 100).
#include <charconv>
#include <iostream>
#include <span>

#include "bench/harness.hpp"

int main(int argc, char** argv) {
  pairwire::bench::Runner::Options options;
  const std::span arguments(argv, static_cast<std::size_t>(argc));
  for (std::size_t i = 1; i < arguments.size(); i += 2) {
    const std::string_view name = arguments[i];
    const std::string_view value = i + 1 < arguments.size() ? arguments[i + 1] : "";
    unsigned ms = 0;
    const char* const end = value.data() + value.size();
    if (name == "--filter" && !value.empty()) {
      options.filter = value;
    } else if (name == "--ms" && std::from_chars(value.data(), end, ms).ptr == end && ms > 0) {
      options.repetition = std::chrono::milliseconds(ms);
    } else {
      std::cerr << "usage: pairwire-native-bench [--filter TEXT] [--ms N]\n";
      return 2;
    }
  }
  pairwire::bench::Runner runner(options);
  for (const auto benchmark : pairwire::bench::benchmarks()) benchmark(runner);
}
