// See keys.hpp.
#include "core/keys.hpp"

#include <openssl/evp.h>

#include "crypto/openssl.hpp"

namespace pairwire {

KeyDigest digest_of(std::span<const std::uint8_t, kKeySize> key) {
  KeyDigest digest{};
  unsigned int size = 0;
  if (EVP_Digest(key.data(), key.size(), digest.data(), &size, EVP_sha256(), nullptr) != 1) {
    throw CryptoError("SHA-256");
  }
  return digest;
}

SendCounter& KeyStateStore::counter(const KeyDigest& digest) {
  auto& counter = counters_[digest];
  if (counter == nullptr) counter = std::make_unique<SendCounter>();
  return *counter;
}

ReplayWindow& KeyStateStore::window(const KeyDigest& digest) {
  auto& window = windows_[digest];
  if (window == nullptr) window = std::make_unique<ReplayWindow>();
  return *window;
}

}  // namespace pairwire
