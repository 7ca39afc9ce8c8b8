// X25519 (RFC 7748), for boot keys.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "crypto/secret.hpp"

namespace pairwire {

inline constexpr std::size_t kX25519Size = 32;

/// A key pair; the private half is wiped when the object goes.
struct X25519KeyPair {
  Secret<kX25519Size> private_key;
  std::array<std::uint8_t, kX25519Size> public_key;
};

/// A new random key pair. Throws CryptoError if libcrypto or its random generator fails.
[[nodiscard]] X25519KeyPair generate_x25519();

/// The public half of a private key. Throws CryptoError.
[[nodiscard]] std::array<std::uint8_t, kX25519Size> x25519_public(
    const Secret<kX25519Size>& private_key);

/// The shared secret, or nothing if it is all zero: then the peer's key is a point of small order,
/// and the secret would not depend on our private key (RFC 7748 section 6.1).
/// Throws CryptoError if libcrypto fails otherwise.
[[nodiscard]] std::optional<Secret<kX25519Size>> x25519(
    const Secret<kX25519Size>& private_key, std::span<const std::uint8_t, kX25519Size> peer_public);

}  // namespace pairwire
