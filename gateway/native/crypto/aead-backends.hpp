// What aead.cpp knows of each backend. Not for use outside this folder.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "crypto/aead.hpp"

namespace pairwire {

using AeadKeyBytes = std::span<const std::uint8_t, kAeadKeySize>;

namespace libcrypto {
std::unique_ptr<AeadKey> make(Suite suite, AeadKeyBytes key);
void preload();
}  // namespace libcrypto

namespace ipsec_mb {
/// False if the build has no intel-ipsec-mb or the processor lacks AES or carry-less
/// multiplication.
bool available();
std::unique_ptr<AeadKey> make(Suite suite, AeadKeyBytes key);
}  // namespace ipsec_mb

namespace null_aead {
std::unique_ptr<AeadKey> make();
}  // namespace null_aead

}  // namespace pairwire
