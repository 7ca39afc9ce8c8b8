// Encoding and parsing of the sealed frame, docs/protocol.md section 2.
#include "core/frame.hpp"

#include <algorithm>

namespace pairwire {
namespace {

constexpr std::uint8_t kPartialChecksum = 0x01;
constexpr std::uint8_t kPartMask = 0x06;
constexpr unsigned kPartShift = 1;
constexpr std::uint8_t kLastPart = 0x08;
constexpr std::uint8_t kReserved = 0xf0;
// Every bit of the description's first byte has exactly one meaning.
static_assert((kPartialChecksum ^ kPartMask ^ kLastPart ^ kReserved) == 0xff);

bool is_known_kind(std::uint8_t kind) {
  return kind >= static_cast<std::uint8_t>(Kind::kPair) &&
         kind <= static_cast<std::uint8_t>(Kind::kRelay);
}

}  // namespace

std::optional<Shim> parse_shim(ConstBytes frame, Transport transport) {
  if (frame.size() < kFrameOverhead) return std::nullopt;
  const auto in = frame.first<kShimSize>();
  const auto version = static_cast<std::uint8_t>(in[0] >> 4);
  const auto kind = static_cast<std::uint8_t>(in[0] & 0x0f);
  if (version != kFrameVersion || !is_known_kind(kind)) return std::nullopt;

  const Shim shim{.kind = static_cast<Kind>(kind),
                  .flags = in[1],
                  .kid = load_be<std::uint16_t>(in.subspan<2, 2>()),
                  .index = load_be<std::uint32_t>(in.subspan<4, 4>()),
                  .counter = load_be<std::uint64_t>(in.subspan<8, 8>())};
  if (transport != Transport::kEthernet && shim.subnet_tag() != 0) return std::nullopt;
  return shim;
}

void write_shim(const Shim& shim, std::span<std::uint8_t, kShimSize> out) {
  out[0] = static_cast<std::uint8_t>(kFrameVersion << 4 | static_cast<std::uint8_t>(shim.kind));
  out[1] = shim.flags;
  store_be<std::uint16_t>(out.subspan<2, 2>(), shim.kid);
  store_be<std::uint32_t>(out.subspan<4, 4>(), shim.index);
  store_be<std::uint64_t>(out.subspan<8, 8>(), shim.counter);
}

std::optional<InnerHeader> parse_inner_header(std::span<const std::uint8_t, kInnerHeaderSize> in) {
  const std::uint8_t bits = in[4];
  const auto part = static_cast<std::uint8_t>((bits & kPartMask) >> kPartShift);
  if ((bits & kReserved) != 0 || part >= kMaxParts) return std::nullopt;
  return InnerHeader{
      .time = load_be<std::uint32_t>(in.first<4>()),
      .description = {.partial_checksum = (bits & kPartialChecksum) != 0,
                      .part = part,
                      .last_part = (bits & kLastPart) != 0,
                      .train = in[5],
                      .padding = load_be<std::uint16_t>(in.subspan<6, 2>())},
  };
}

void write_inner_header(const InnerHeader& header, std::span<std::uint8_t, kInnerHeaderSize> out) {
  const Description& description = header.description;
  store_be<std::uint32_t>(out.first<4>(), header.time);
  out[4] = static_cast<std::uint8_t>((description.partial_checksum ? kPartialChecksum : 0) |
                                     (description.part << kPartShift & kPartMask) |
                                     (description.last_part ? kLastPart : 0));
  out[5] = description.train;
  store_be<std::uint16_t>(out.subspan<6, 2>(), description.padding);
}

FrameTime freshness_tolerance(std::chrono::milliseconds base,
                              std::chrono::milliseconds sample_age) {
  using std::chrono::milliseconds;
  // Half the circle in whole seconds: beyond it every time would be fresh anyway, and below it
  // none of the sums can overflow.
  constexpr FrameTime farthest = (FrameTime{1} << 31) - 1;
  constexpr auto limit = milliseconds{std::int64_t{farthest} * 1000 / kFrameTimePerSecond};
  const milliseconds safe_base = std::clamp(base, milliseconds{0}, limit);
  // 200 ppm is one part in 5,000.
  const milliseconds drift = std::clamp(sample_age, milliseconds{0}, limit * 5000) / 5000;
  const milliseconds total = std::min(safe_base + drift, limit);
  return static_cast<FrameTime>((total.count() * kFrameTimePerSecond + 999) / 1000);
}

}  // namespace pairwire
