// X25519 by libcrypto's EVP interface.
#include "crypto/x25519.hpp"

#include <openssl/err.h>
#include <openssl/evp.h>

#include "crypto/openssl.hpp"

namespace pairwire {
namespace {

PkeyPtr load_private(const Secret<kX25519Size>& key) {
  PkeyPtr loaded(
      EVP_PKEY_new_raw_private_key(EVP_PKEY_X25519, nullptr, key.bytes().data(), kX25519Size));
  require_crypto(loaded != nullptr, "EVP_PKEY_new_raw_private_key");
  return loaded;
}

std::array<std::uint8_t, kX25519Size> raw_public(const EVP_PKEY* key) {
  std::array<std::uint8_t, kX25519Size> bytes;
  std::size_t size = bytes.size();
  require_crypto(EVP_PKEY_get_raw_public_key(key, bytes.data(), &size) == 1 && size == bytes.size(),
                 "EVP_PKEY_get_raw_public_key");
  return bytes;
}

}  // namespace

X25519KeyPair generate_x25519() {
  const PkeyPtr key(EVP_PKEY_Q_keygen(nullptr, nullptr, "X25519"));
  require_crypto(key != nullptr, "EVP_PKEY_Q_keygen");
  X25519KeyPair pair{.private_key = {}, .public_key = raw_public(key.get())};
  std::size_t size = kX25519Size;
  require_crypto(
      EVP_PKEY_get_raw_private_key(key.get(), pair.private_key.writable().data(), &size) == 1 &&
          size == kX25519Size,
      "EVP_PKEY_get_raw_private_key");
  return pair;
}

std::array<std::uint8_t, kX25519Size> x25519_public(const Secret<kX25519Size>& private_key) {
  return raw_public(load_private(private_key).get());
}

std::optional<Secret<kX25519Size>> x25519(const Secret<kX25519Size>& private_key,
                                          std::span<const std::uint8_t, kX25519Size> peer_public) {
  const PkeyPtr own = load_private(private_key);
  const PkeyPtr peer(
      EVP_PKEY_new_raw_public_key(EVP_PKEY_X25519, nullptr, peer_public.data(), kX25519Size));
  require_crypto(peer != nullptr, "EVP_PKEY_new_raw_public_key");
  const PkeyContextPtr context(EVP_PKEY_CTX_new(own.get(), nullptr));
  require_crypto(context != nullptr, "EVP_PKEY_CTX_new");
  require_crypto(EVP_PKEY_derive_init(context.get()) == 1, "EVP_PKEY_derive_init");
  require_crypto(EVP_PKEY_derive_set_peer(context.get(), peer.get()) == 1,
                 "EVP_PKEY_derive_set_peer");

  Secret<kX25519Size> shared;
  std::size_t size = kX25519Size;
  const bool derived = EVP_PKEY_derive(context.get(), shared.writable().data(), &size) == 1;
  // libcrypto itself refuses the all-zero result; other versions and providers need not, so it is
  // looked at here too. Nothing else can go wrong at this point.
  if (!derived || size != kX25519Size || shared == Secret<kX25519Size>()) {
    ERR_clear_error();
    return std::nullopt;
  }
  return shared;
}

}  // namespace pairwire
