// See spare-cores.hpp.
#include "core/spare-cores.hpp"

#include <unistd.h>

#include <array>
#include <charconv>
#include <optional>
#include <string_view>
#include <utility>

namespace pairwire {
namespace {

constexpr std::uint64_t kLookEveryUs = 1'000'000;
constexpr std::uint64_t kSpareParts = 8;  ///< one of so many has to be idle

/// The second of the two numbers, in microseconds: seconds with two decimals.
std::optional<std::uint64_t> parse_idle_us(std::string_view text) {
  const std::size_t space = text.find(' ');
  if (space == std::string_view::npos) return std::nullopt;
  text.remove_prefix(space + 1);
  const char* const end = text.data() + text.size();
  std::uint64_t seconds = 0;
  std::uint64_t hundredths = 0;
  const auto whole = std::from_chars(text.data(), end, seconds);
  if (whole.ec != std::errc() || whole.ptr == end || *whole.ptr != '.') return std::nullopt;
  const auto part = std::from_chars(whole.ptr + 1, end, hundredths);
  if (part.ec != std::errc() || part.ptr != whole.ptr + 3) return std::nullopt;
  return seconds * 1'000'000 + hundredths * 10'000;
}

}  // namespace

SpareCores::SpareCores(UniqueFd uptime, std::size_t cores) noexcept
    : uptime_(std::move(uptime)), cores_(cores) {}

bool SpareCores::any(std::uint64_t now_us) noexcept {
  std::uint64_t looked = looked_us_.load(std::memory_order_relaxed);
  if (uptime_ && now_us >= looked + kLookEveryUs &&
      looked_us_.compare_exchange_strong(looked, now_us, std::memory_order_relaxed)) {
    look(looked == 0 ? 0 : now_us - looked);
  }
  return any_.load(std::memory_order_relaxed);
}

/// `passed_us`: since the last time; 0 if there was none.
void SpareCores::look(std::uint64_t passed_us) noexcept {
  std::array<char, 64> text;
  const ssize_t size = pread(uptime_.get(), text.data(), text.size(), 0);
  const auto idle =
      size > 0 ? parse_idle_us({text.data(), static_cast<std::size_t>(size)}) : std::nullopt;
  const std::uint64_t before = idle_us_.exchange(idle.value_or(0), std::memory_order_relaxed);
  const bool comparable = idle && passed_us != 0 && before != 0 && *idle >= before;
  any_.store(comparable && (*idle - before) * kSpareParts >= passed_us * cores_,
             std::memory_order_relaxed);
}

}  // namespace pairwire
