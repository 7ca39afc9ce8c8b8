// Traffic keys and their kids: docs/protocol.md section 3, with HKDF-SHA256 (RFC 5869).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "core/bytes.hpp"
#include "crypto/secret.hpp"

namespace pairwire {

inline constexpr std::size_t kHashSize = 32;
inline constexpr std::size_t kKeySize = 32;

using PublicKey = std::span<const std::uint8_t, kKeySize>;

/// HKDF-Extract (RFC 5869 section 2.2). An empty salt stands for 32 zero bytes.
/// Throws CryptoError if libcrypto fails, as all functions here do.
[[nodiscard]] Secret<kHashSize> hkdf_extract(ConstBytes salt, ConstBytes ikm);

/// HKDF-Expand (RFC 5869 section 2.3): fills `out`, at most 255 * 32 bytes, else std::length_error.
void hkdf_expand(const Secret<kHashSize>& secret, ConstBytes info, Bytes out);

/// `fields(x, y, ...)` of docs/protocol.md section 1: each field is its 16-bit length and itself,
/// so no two lists of fields have the same bytes. An integer is a field of 8 bytes.
class Fields {
 public:
  /// Appends a field; std::length_error above 65,535 bytes.
  Fields& add(ConstBytes field);
  Fields& add(std::string_view field);
  /// Appends one field with the bytes of `prefix` and then those of `field`: a typed id.
  Fields& add(std::string_view prefix, std::string_view field);
  Fields& add(std::uint64_t value);

  [[nodiscard]] ConstBytes bytes() const { return bytes_; }

 private:
  std::vector<std::uint8_t> bytes_;
};

/// Key of one direction (or of one sender's group frames) and its name on the wire.
struct TrafficKey {
  Secret<kKeySize> key;
  std::uint16_t kid = 0;
};

/// What the key from sender to receiver of a pair is derived from, besides secrets. The boot keys
/// are the public halves.
struct PairInputs {
  std::string_view subnet;
  std::string_view sender;    // Member id without the prefix "member:".
  std::string_view receiver;  // The same.
  PublicKey sender_boot;
  PublicKey receiver_boot;
  std::uint64_t pw_id;
};

/// The same for two link ports.
struct NetInputs {
  std::string_view sender;    // "NETID/PORT" without the prefix "net:".
  std::string_view receiver;  // The same.
  PublicKey sender_boot;
  PublicKey receiver_boot;
  std::uint64_t pw_id;
};

/// The same for the group frames of one sender.
struct GroupInputs {
  std::string_view subnet;
  std::string_view sender;  // Member id without the prefix "member:".
  PublicKey sender_boot;
  std::uint64_t pw_id;
};

/// Pair: `pair_key` is KEY_ab from the key server, `shared` is X25519(boot_a, boot_b). With sender
/// and receiver exchanged it gives the key of the other direction.
[[nodiscard]] TrafficKey derive_pair_key(const Secret<kKeySize>& pair_key,
                                         const Secret<kKeySize>& shared, const PairInputs& inputs);

/// Net: `net_key` is NETKEY, `shared` is X25519(boot_A, boot_B).
[[nodiscard]] TrafficKey derive_net_key(const Secret<kKeySize>& net_key,
                                        const Secret<kKeySize>& shared, const NetInputs& inputs);

/// Group: `group_key` is KEY_M.
[[nodiscard]] TrafficKey derive_group_key(const Secret<kKeySize>& group_key,
                                          const GroupInputs& inputs);

}  // namespace pairwire
