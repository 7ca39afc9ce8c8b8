// Owners for libcrypto's objects, and the exception for its failures.
#pragma once

#include <openssl/evp.h>

#include <memory>
#include <stdexcept>

namespace pairwire {

/// A cryptographic library refused an operation that cannot fail with right arguments: memory ran
/// out, or the algorithm is missing from this installation. The text names the call only.
class CryptoError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// Throws CryptoError naming `call` unless `ok`.
inline void require_crypto(bool ok, const char* call) {
  if (!ok) [[unlikely]] {
    throw CryptoError(call);
  }
}

/// Deleter for std::unique_ptr made from a C function.
template <auto Free>
struct FreeWith {
  template <typename T>
  void operator()(T* object) const noexcept {
    Free(object);
  }
};

using CipherPtr = std::unique_ptr<EVP_CIPHER, FreeWith<EVP_CIPHER_free>>;
using CipherContextPtr = std::unique_ptr<EVP_CIPHER_CTX, FreeWith<EVP_CIPHER_CTX_free>>;
using PkeyPtr = std::unique_ptr<EVP_PKEY, FreeWith<EVP_PKEY_free>>;
using PkeyContextPtr = std::unique_ptr<EVP_PKEY_CTX, FreeWith<EVP_PKEY_CTX_free>>;

}  // namespace pairwire
