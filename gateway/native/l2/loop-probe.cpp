// See loop-probe.hpp.
#include "l2/loop-probe.hpp"

#include <algorithm>

namespace pairwire {
namespace {

constexpr std::array<std::uint8_t, 4> kMagic{'P', 'W', 'L', 'P'};

constexpr std::size_t kVersionAt = 4;
constexpr std::size_t kStateAt = 5;
constexpr std::size_t kReservedAt = 6;
constexpr std::size_t kTimeAt = 8;
constexpr std::size_t kNonceAt = 16;
constexpr std::size_t kLengthAt = 24;
static_assert(kLengthAt + 1 == kLoopProbeHeadSize);

}  // namespace

bool is_loop_probe(ConstBytes frame) noexcept {
  if (!std::ranges::equal(frame.first<MacAddress::kSize>(), kLoopProbeDestination.bytes())) {
    return false;
  }
  const auto ethernet = parse_ethernet(frame);
  return ethernet && ethernet->ethertype == kLoopProbeEtherType;
}

std::optional<ReceivedLoopProbe> parse_loop_probe(ConstBytes frame) noexcept {
  const auto ethernet = parse_ethernet(frame);
  if (!ethernet || !is_loop_probe(frame)) return std::nullopt;
  const ConstBytes payload = frame.subspan(ethernet->size);
  if (payload.size() < kLoopProbeHeadSize) return std::nullopt;
  if (!std::ranges::equal(payload.first<kMagic.size()>(), kMagic) ||
      payload[kVersionAt] != kLoopProbeVersion || payload[kReservedAt] != 0 ||
      payload[kReservedAt + 1] != 0) {
    return std::nullopt;
  }
  const std::size_t length = payload[kLengthAt];
  if (length == 0 || length > kLoopProbeIdSize) return std::nullopt;
  const std::size_t end = kLoopProbeHeadSize + length;
  if (payload.size() < end + kLoopProbeMacSize) return std::nullopt;
  LoopProbe probe;
  probe.state = payload[kStateAt];
  probe.time_ms = load_be<std::uint64_t>(payload.subspan<kTimeAt, 8>());
  probe.nonce = load_be<std::uint64_t>(payload.subspan<kNonceAt, 8>());
  probe.id = {reinterpret_cast<const char*>(payload.data()) + kLoopProbeHeadSize, length};
  return ReceivedLoopProbe{probe, payload.first(end),
                           payload.subspan(end).first<kLoopProbeMacSize>()};
}

std::optional<WrittenLoopProbe> write_loop_probe(
    const LoopProbe& probe, const MacAddress& source,
    std::span<std::uint8_t, kLoopProbeSize> out) noexcept {
  if (probe.id.empty() || probe.id.size() > kLoopProbeIdSize) return std::nullopt;
  std::ranges::copy(kLoopProbeDestination.bytes(), out.begin());
  std::ranges::copy(source.bytes(), out.begin() + MacAddress::kSize);
  store_be<std::uint16_t>(out.subspan<12, 2>(), kLoopProbeEtherType);
  const Bytes payload = out.subspan<kEthernetHeaderSize>();
  std::ranges::copy(kMagic, payload.begin());
  payload[kVersionAt] = kLoopProbeVersion;
  payload[kStateAt] = probe.state;
  payload[kReservedAt] = payload[kReservedAt + 1] = 0;
  store_be<std::uint64_t>(payload.subspan<kTimeAt, 8>(), probe.time_ms);
  store_be<std::uint64_t>(payload.subspan<kNonceAt, 8>(), probe.nonce);
  payload[kLengthAt] = static_cast<std::uint8_t>(probe.id.size());
  std::ranges::copy(probe.id, payload.begin() + kLoopProbeHeadSize);
  const std::size_t end = kLoopProbeHeadSize + probe.id.size();
  return WrittenLoopProbe{payload.first(end), payload.subspan(end).first<kLoopProbeMacSize>(),
                          kEthernetHeaderSize + end + kLoopProbeMacSize};
}

}  // namespace pairwire
