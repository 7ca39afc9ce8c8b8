// See path-frame.hpp.
#include "core/path-frame.hpp"

#include <algorithm>

#include "core/associated-data.hpp"

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
                                                              const Endpoint& to,
                                                              const PathMessage& message,
                                                              FrameTime time, std::uint8_t tag) {
  std::array<std::uint8_t, kPathFrame> frame;
  if (!seal_padded_path(key, to, message, time, tag, frame)) return std::nullopt;
  return frame;
}

bool seal_padded_path(const SendKey& key, const Endpoint& to, const PathMessage& message,
                      FrameTime time, std::uint8_t tag, Bytes frame) {
  const Bytes plain = frame.subspan(kShimSize, frame.size() - kShimSize - kFrameTagSize);
  const auto counter = key.counter->take(1, plain.size());
  if (!counter) return false;
  std::ranges::fill(plain, std::uint8_t{0});
  const auto shim = frame.first<kShimSize>();
  write_shim({Kind::kPath, tag, key.kid, key.index, *counter}, shim);
  write_inner_header({time, {}}, plain.first<kInnerHeaderSize>());
  const Bytes payload = plain.subspan(kInnerHeaderSize);
  payload[0] = static_cast<std::uint8_t>(message.type);
  store_be<std::uint64_t>(payload.subspan<4, 8>(), message.token);
  const AssociatedData aad(shim, to, Way::kSending);
  key.aead->seal(*counter, aad.bytes(), plain, plain, frame.last<kFrameTagSize>());
  return true;
}

}  // namespace pairwire
