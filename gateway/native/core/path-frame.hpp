// Path frames: docs/protocol.md section 2.4.
#pragma once

#include <array>
#include <cstdint>
#include <optional>

#include "core/endpoint.hpp"
#include "core/frame.hpp"
#include "core/keys.hpp"

namespace pairwire {

inline constexpr std::size_t kPathPayload = 12;
inline constexpr std::size_t kPathFrame = kFrameOverhead + kPathPayload;

enum class PathType : std::uint8_t { kProbe = 1, kAnswer = 2, kKeepalive = 3 };

struct PathMessage {
  PathType type = PathType::kKeepalive;
  std::uint64_t token = 0;
};

/// Reads the payload of a path frame; nothing if it is malformed.
[[nodiscard]] std::optional<PathMessage> parse_path(ConstBytes payload);

/// Seals a path frame for an address; nothing if the key has sealed as much as it may. `tag`: the
/// subnet's, on `ethernet`.
[[nodiscard]] std::optional<std::array<std::uint8_t, kPathFrame>> seal_path(
    const SendKey& key, const Endpoint& to, const PathMessage& message, FrameTime time,
    std::uint8_t tag);

/// The same with padding behind the payload, so that it fills `frame`, which has at least
/// kPathFrame bytes. False if the key has sealed as much as it may.
[[nodiscard]] bool seal_padded_path(const SendKey& key, const Endpoint& to,
                                    const PathMessage& message, FrameTime time, std::uint8_t tag,
                                    Bytes frame);

}  // namespace pairwire
