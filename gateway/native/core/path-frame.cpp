// See path-frame.hpp.
#include "core/path-frame.hpp"

#include <algorithm>

namespace pairwire {

std::optional<PathMessage> parse_path(ConstBytes payload) {
  if (payload.size() < kPathPayload) return std::nullopt;
  const std::uint8_t type = payload[0];
  if (type < 1 || type > 3 || payload[1] != 0 || payload[2] != 0 || payload[3] != 0) {
    return std::nullopt;
  }
  return PathMessage{static_cast<PathType>(type), load_be<std::uint64_t>(payload.subspan<4, 8>())};
}

std::optional<std::array<std::uint8_t, kPathFrame>> seal_path(const SendKey& key,
                                                              const PathMessage& message,
                                                              FrameTime time) {
  const auto counter = key.counter->take(1, kInnerHeaderSize + kPathPayload);
  if (!counter) return std::nullopt;
  std::array<std::uint8_t, kPathFrame> frame{};
  const std::span all(frame);
  write_shim({Kind::kPath, 0, key.kid, key.index, *counter}, all.first<kShimSize>());
  const auto plain = all.subspan<kShimSize, kInnerHeaderSize + kPathPayload>();
  write_inner_header({time, {}}, plain.first<kInnerHeaderSize>());
  plain[kInnerHeaderSize] = static_cast<std::uint8_t>(message.type);
  store_be<std::uint64_t>(plain.last<8>(), message.token);
  key.aead->seal(*counter, all.first<kShimSize>(), plain, plain, all.last<kFrameTagSize>());
  return frame;
}

}  // namespace pairwire
