// See speed.hpp.
#include "control/speed.hpp"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/frame.hpp"
#include "crypto/aead.hpp"

namespace pairwire {
namespace {

/// Inner frames: the smallest, voice, full frames with room for our header, jumbo.
constexpr std::array<std::size_t, 4> kSizes{64, 256, 1420, 8900};
constexpr std::size_t kRepetitions = 5;
constexpr std::chrono::milliseconds kRepetition{8};

/// Nanoseconds for one call: the median, so that an interruption does not count.
template <typename Operation>
double nanoseconds(const Operation& operation) {
  using Clock = std::chrono::steady_clock;
  std::uint64_t counter = 0;
  const auto run = [&](std::uint64_t calls) {
    const auto start = Clock::now();
    for (std::uint64_t i = 0; i < calls; ++i) operation(counter++);
    return Clock::now() - start;
  };
  std::uint64_t calls = 16;
  while (run(calls) < kRepetition) calls *= 2;
  std::array<double, kRepetitions> each{};
  for (double& one : each) {
    const std::chrono::duration<double, std::nano> time = run(calls);
    one = time.count() / static_cast<double>(calls);
  }
  std::ranges::sort(each);
  return each[kRepetitions / 2];
}

std::string measure(Backend backend, Suite suite, std::size_t size) {
  const std::array<std::uint8_t, kAeadKeySize> key_bytes{1, 2, 3};
  const auto key = make_aead_key(backend, suite, key_bytes);
  const std::array<std::uint8_t, kShimSize> shim{0x11};
  const std::vector<std::uint8_t> frame(size, 9);
  std::array<std::uint8_t, kAeadHeadSize> head{};
  std::vector<std::uint8_t> sealed(size + kAeadHeadSize);
  std::vector<std::uint8_t> opened(size);
  std::array<std::uint8_t, kAeadTagSize> tag{};
  const double seal = nanoseconds(
      [&](std::uint64_t counter) { key->seal_parts(counter, shim, head, frame, sealed, tag); });
  key->seal_parts(0, shim, head, frame, sealed, tag);
  const double open = nanoseconds([&](std::uint64_t) {
    if (!key->open_parts(0, shim, sealed, tag, head, opened)) {
      throw std::logic_error("what was sealed does not open");
    }
  });
  std::array<char, 200> line;
  std::snprintf(line.data(), line.size(),
                R"({"backend":"%s","suite":"%s","size":%zu,"seal_ns":%.1f,"open_ns":%.1f})",
                std::string(backend_name(backend)).c_str(), std::string(suite_name(suite)).c_str(),
                size, seal, open);
  return line.data();
}

}  // namespace

int print_speed() {
  std::string results;
  for (const Backend backend : {Backend::kIpsecMb, Backend::kLibcrypto, Backend::kNull}) {
    if (!backend_available(backend)) continue;
    for (const Suite suite : {Suite::kAes256Gcm, Suite::kChaCha20Poly1305}) {
      for (const std::size_t size : kSizes) {
        results.append(results.empty() ? "" : ",\n").append(measure(backend, suite, size));
      }
    }
  }
  std::printf("{\"results\":[\n%s\n]}\n", results.c_str());
  return 0;
}

}  // namespace pairwire
