// The part of the AEAD that is the same for every backend: nonce, sizes, wiping, choice.
#include "crypto/aead.hpp"

#include <openssl/crypto.h>

#include <limits>
#include <stdexcept>
#include <string>

#include "crypto/aead-backends.hpp"
#include "crypto/kdf.hpp"
#include "crypto/x25519.hpp"

namespace pairwire {
namespace {

// libcrypto counts in int. A frame is at most 64 KiB, so nothing legitimate comes near.
constexpr std::size_t kMaxPiece = std::numeric_limits<int>::max() / 2;

AeadNonce nonce_of(std::uint64_t counter) {
  AeadNonce nonce{};
  store_be<std::uint64_t>(std::span(nonce).last<8>(), counter);
  return nonce;
}

void require_sizes(std::size_t head, std::size_t body, std::size_t whole, std::size_t aad) {
  if (body > kMaxPiece || aad > kMaxPiece || whole != head + body) [[unlikely]] {
    throw std::length_error("AEAD: sizes of input and output don't fit");
  }
}

void wipe(Bytes bytes) {
  // An empty span may have no address.
  if (!bytes.empty()) OPENSSL_cleanse(bytes.data(), bytes.size());
}

}  // namespace

void AeadKey::seal(std::uint64_t counter, ConstBytes aad, ConstBytes plain, Bytes out,
                   AeadTag tag) const {
  require_sizes(0, plain.size(), out.size(), aad.size());
  do_seal(nonce_of(counter), aad, {}, plain, out, tag);
}

void AeadKey::seal_parts(std::uint64_t counter, ConstBytes aad, AeadConstHead head, ConstBytes body,
                         Bytes out, AeadTag tag) const {
  require_sizes(head.size(), body.size(), out.size(), aad.size());
  do_seal(nonce_of(counter), aad, head, body, out, tag);
}

bool AeadKey::open(std::uint64_t counter, ConstBytes aad, ConstBytes cipher, AeadConstTag tag,
                   Bytes out) const {
  require_sizes(0, out.size(), cipher.size(), aad.size());
  return open_and_wipe(nonce_of(counter), aad, cipher, tag, {}, out);
}

bool AeadKey::open_parts(std::uint64_t counter, ConstBytes aad, ConstBytes cipher, AeadConstTag tag,
                         AeadHead head, Bytes body) const {
  require_sizes(head.size(), body.size(), cipher.size(), aad.size());
  return open_and_wipe(nonce_of(counter), aad, cipher, tag, head, body);
}

void AeadKey::seal_with_nonce_for_testing_only(const AeadNonce& nonce, ConstBytes aad,
                                               ConstBytes plain, Bytes out, AeadTag tag) const {
  require_sizes(0, plain.size(), out.size(), aad.size());
  do_seal(nonce, aad, {}, plain, out, tag);
}

bool AeadKey::open_with_nonce_for_testing_only(const AeadNonce& nonce, ConstBytes aad,
                                               ConstBytes cipher, AeadConstTag tag,
                                               Bytes out) const {
  require_sizes(0, out.size(), cipher.size(), aad.size());
  return open_and_wipe(nonce, aad, cipher, tag, {}, out);
}

bool AeadKey::open_and_wipe(const AeadNonce& nonce, ConstBytes aad, ConstBytes cipher,
                            AeadConstTag tag, Bytes head, Bytes body) const {
  if (do_open(nonce, aad, cipher, tag, head, body)) [[likely]] {
    return true;
  }
  wipe(head);
  wipe(body);
  return false;
}

std::string_view suite_name(Suite suite) {
  return suite == Suite::kAes256Gcm ? "aes-256-gcm" : "chacha20-poly1305";
}

std::optional<Suite> parse_suite(std::string_view name) {
  for (const Suite suite : {Suite::kAes256Gcm, Suite::kChaCha20Poly1305}) {
    if (name == suite_name(suite)) return suite;
  }
  return std::nullopt;
}

std::string_view backend_name(Backend backend) {
  switch (backend) {
    case Backend::kIpsecMb:
      return "ipsec-mb";
    case Backend::kLibcrypto:
      return "libcrypto";
    case Backend::kNull:
      break;
  }
  return "null";
}

std::optional<Backend> parse_backend(std::string_view name) {
  for (const Backend backend : {Backend::kIpsecMb, Backend::kLibcrypto, Backend::kNull}) {
    if (name == backend_name(backend)) return backend;
  }
  return std::nullopt;
}

bool backend_available(Backend backend) {
  // The null build has nothing else, so that a setting can't make it encrypt after all and spoil
  // what is measured; every other build has everything but it.
  if (kNullAead || backend == Backend::kNull) return kNullAead && backend == Backend::kNull;
  return backend == Backend::kLibcrypto || ipsec_mb::available();
}

Backend best_backend() {
  if constexpr (kNullAead) return Backend::kNull;
  return ipsec_mb::available() ? Backend::kIpsecMb : Backend::kLibcrypto;
}

std::unique_ptr<AeadKey> make_aead_key(Backend backend, Suite suite, AeadKeyBytes key) {
  if (!backend_available(backend)) {
    throw std::invalid_argument("AEAD backend is not available: " +
                                std::string(backend_name(backend)));
  }
#if defined(PAIRWIRE_NULL_AEAD)
  static_cast<void>(suite);
  static_cast<void>(key);
  return null_aead::make();
#else
  return backend == Backend::kIpsecMb ? ipsec_mb::make(suite, key) : libcrypto::make(suite, key);
#endif
}

void preload_crypto() {
  libcrypto::preload();
  static_cast<void>(ipsec_mb::available());
  // Fetches HMAC, SHA-256 and X25519.
  const X25519KeyPair pair = generate_x25519();
  static_cast<void>(hkdf_extract({}, pair.public_key));
}

}  // namespace pairwire
