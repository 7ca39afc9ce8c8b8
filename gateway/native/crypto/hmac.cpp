// See hmac.hpp.
#include "crypto/hmac.hpp"

#include <openssl/evp.h>
#include <openssl/hmac.h>

#include "crypto/openssl.hpp"

namespace pairwire {

std::array<std::uint8_t, kHashSize> hmac_sha256(ConstBytes key, ConstBytes data) {
  std::array<std::uint8_t, kHashSize> digest{};
  unsigned int size = 0;
  require_crypto(HMAC(EVP_sha256(), key.data(), static_cast<int>(key.size()), data.data(),
                      data.size(), digest.data(), &size) != nullptr &&
                     size == digest.size(),
                 "HMAC");
  return digest;
}

}  // namespace pairwire
