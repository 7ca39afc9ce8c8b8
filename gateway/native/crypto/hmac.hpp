// HMAC-SHA256 (RFC 2104).
#pragma once

#include <array>
#include <cstdint>

#include "core/bytes.hpp"
#include "crypto/kdf.hpp"

namespace pairwire {

/// Throws CryptoError if libcrypto fails.
[[nodiscard]] std::array<std::uint8_t, kHashSize> hmac_sha256(ConstBytes key, ConstBytes data);

}  // namespace pairwire
