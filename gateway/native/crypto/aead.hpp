// Sealing and opening with a traffic key: AES-256-GCM (NIST SP 800-38D) and ChaCha20-Poly1305
// (RFC 8439), by intel-ipsec-mb or by libcrypto.
//
// The nonce is 4 zero bytes and the 64-bit counter of the frame (docs/protocol.md section 2.2).
// Who calls `seal` must never use a counter twice with one key.
//
// Pieces: the plaintext of a frame is an 8-byte header that we make and a payload that lies where
// the kernel put it; `seal_parts` takes them from two places, `open_parts` puts them to two places,
// so a payload is opened straight into where it is needed.
//
//   seal_parts:   head (8) + body  ->  ciphertext | tag
//   open_parts:   ciphertext | tag  ->  head (8) + body
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string_view>

#include "core/bytes.hpp"
#include "core/locked-memory.hpp"

namespace pairwire {

inline constexpr std::size_t kAeadKeySize = 32;
inline constexpr std::size_t kAeadTagSize = 16;
inline constexpr std::size_t kAeadNonceSize = 12;
inline constexpr std::size_t kAeadHeadSize = 8;

using AeadTag = std::span<std::uint8_t, kAeadTagSize>;
using AeadConstTag = std::span<const std::uint8_t, kAeadTagSize>;
using AeadHead = std::span<std::uint8_t, kAeadHeadSize>;
using AeadConstHead = std::span<const std::uint8_t, kAeadHeadSize>;
using AeadNonce = std::array<std::uint8_t, kAeadNonceSize>;

/// Cipher of a subnet; both ends have it from the subnet's settings.
enum class Suite : std::uint8_t { kAes256Gcm, kChaCha20Poly1305 };

/// Library that does the work. kNull exists only in builds made for measuring (`kNullAead`).
enum class Backend : std::uint8_t { kIpsecMb, kLibcrypto, kNull };

/// True in pairwire-dataplane-null, where nothing is encrypted; no setting can bring it about.
#if defined(PAIRWIRE_NULL_AEAD)
inline constexpr bool kNullAead = true;
#else
inline constexpr bool kNullAead = false;
#endif

/// "aes-256-gcm", "chacha20-poly1305".
[[nodiscard]] std::string_view suite_name(Suite suite);
[[nodiscard]] std::optional<Suite> parse_suite(std::string_view name);

/// "ipsec-mb", "libcrypto", "null".
[[nodiscard]] std::string_view backend_name(Backend backend);
/// Any name that `backend_name` gives; whether this build and machine have it is another question.
[[nodiscard]] std::optional<Backend> parse_backend(std::string_view name);

/// True if the backend is part of this build and this processor has the instructions for it.
[[nodiscard]] bool backend_available(Backend backend);

/// The fastest backend available: ipsec-mb where there is one, else libcrypto.
[[nodiscard]] Backend best_backend();

/// One traffic key, expanded. Wiped when it is destroyed.
///
/// Spans: an output may lie exactly on its input or not touch it; anything between is a mistake of
/// the caller. A size that does not fit throws std::length_error.
/// Threads: any number may seal and open with one object at the same time. Nothing is allocated
/// for a frame (libcrypto: once the first frames have made its contexts).
class AeadKey : public LockedAllocated {
 public:
  virtual ~AeadKey() = default;
  AeadKey(const AeadKey&) = delete;
  AeadKey& operator=(const AeadKey&) = delete;

  /// Seals `plain` into `out` (same size, may be in place) and writes the tag.
  /// Throws CryptoError if the library fails.
  void seal(std::uint64_t counter, ConstBytes aad, ConstBytes plain, Bytes out, AeadTag tag) const;

  /// Seals `head || body` into `out`, which is 8 bytes longer than `body`. In place means that
  /// `body` is `out` from byte 8 on; `head` may not lie in `out`.
  void seal_parts(std::uint64_t counter, ConstBytes aad, AeadConstHead head, ConstBytes body,
                  Bytes out, AeadTag tag) const;

  /// Opens `cipher` into `out` (same size, may be in place). Returns whether the tag is right, all
  /// 16 bytes compared in constant time; if not, `out` is wiped.
  [[nodiscard]] bool open(std::uint64_t counter, ConstBytes aad, ConstBytes cipher,
                          AeadConstTag tag, Bytes out) const;

  /// Opens `cipher`, 8 bytes longer than `body`, into `head` and `body`. In place means that `body`
  /// is `cipher` from byte 8 on; `head` may not lie in `cipher`. If the tag is wrong, both are
  /// wiped.
  [[nodiscard]] bool open_parts(std::uint64_t counter, ConstBytes aad, ConstBytes cipher,
                                AeadConstTag tag, AeadHead head, Bytes body) const;

  /// As `seal` and `open`, with a whole nonce: published vectors don't start theirs with 4 zeros.
  void seal_with_nonce_for_testing_only(const AeadNonce& nonce, ConstBytes aad, ConstBytes plain,
                                        Bytes out, AeadTag tag) const;
  [[nodiscard]] bool open_with_nonce_for_testing_only(const AeadNonce& nonce, ConstBytes aad,
                                                      ConstBytes cipher, AeadConstTag tag,
                                                      Bytes out) const;

 protected:
  AeadKey() = default;

 private:
  // Sizes have been checked: `out` holds `head` and `body`, `cipher` fills `head` and `body`.
  // `head` is empty or 8 bytes. The base class wipes what a failed do_open wrote.
  virtual void do_seal(const AeadNonce& nonce, ConstBytes aad, ConstBytes head, ConstBytes body,
                       Bytes out, AeadTag tag) const = 0;
  virtual bool do_open(const AeadNonce& nonce, ConstBytes aad, ConstBytes cipher, AeadConstTag tag,
                       Bytes head, Bytes body) const = 0;

  bool open_and_wipe(const AeadNonce& nonce, ConstBytes aad, ConstBytes cipher, AeadConstTag tag,
                     Bytes head, Bytes body) const;
};

/// Expands a traffic key. The caller's copy of the key bytes stays the caller's to wipe.
/// Throws std::invalid_argument if the backend is not available, CryptoError if the library fails.
[[nodiscard]] std::unique_ptr<AeadKey> make_aead_key(
    Backend backend, Suite suite, std::span<const std::uint8_t, kAeadKeySize> key);

/// Loads every algorithm that this folder uses. libcrypto reads its configuration and providers
/// from files at first use; call this before a sandbox takes `open` away.
/// Throws CryptoError if an algorithm is missing.
void preload_crypto();

}  // namespace pairwire
