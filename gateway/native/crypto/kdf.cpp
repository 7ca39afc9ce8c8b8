// HKDF-SHA256 and the derivations of docs/protocol.md section 3.
#include "crypto/kdf.hpp"

#include <openssl/evp.h>
#include <openssl/hmac.h>

#include <algorithm>
#include <array>
#include <limits>
#include <stdexcept>

#include "crypto/openssl.hpp"

namespace pairwire {
namespace {

constexpr std::string_view kPairLabel = "pairwire/1 pair";
constexpr std::string_view kNetLabel = "pairwire/1 net";
constexpr std::string_view kGroupLabel = "pairwire/1 group";
constexpr std::string_view kKidLabel = "pairwire/1 kid";
constexpr std::string_view kMemberPrefix = "member:";
constexpr std::string_view kNetPrefix = "net:";

/// HMAC-SHA256 of `text`.
void hmac(ConstBytes key, ConstBytes text, std::span<std::uint8_t, kHashSize> out) {
  static constexpr std::uint8_t none = 0;  // For an empty span, which may have no address.
  unsigned int written = 0;
  const auto* const result =
      HMAC(EVP_sha256(), key.empty() ? &none : key.data(), static_cast<int>(key.size()),
           text.empty() ? &none : text.data(), text.size(), out.data(), &written);
  require_crypto(result != nullptr && written == kHashSize, "HMAC");
}

ConstBytes as_bytes(std::string_view text) {
  // NOLINTNEXTLINE: char and unsigned char may be read as each other.
  return {reinterpret_cast<const std::uint8_t*>(text.data()), text.size()};
}

/// Section 3.2, last line, and 3.3.
TrafficKey expand_traffic_key(const Secret<kHashSize>& secret, const Fields& info) {
  TrafficKey result;
  hkdf_expand(secret, info.bytes(), result.key.writable());

  Fields label;
  label.add(kKidLabel);
  std::vector<std::uint8_t> kid_info(label.bytes().begin(), label.bytes().end());
  kid_info.insert(kid_info.end(), info.bytes().begin(), info.bytes().end());
  std::array<std::uint8_t, 2> kid;
  hkdf_expand(secret, kid_info, kid);
  result.kid = load_be<std::uint16_t>(kid);
  return result;
}

}  // namespace

Secret<kHashSize> hkdf_extract(ConstBytes salt, ConstBytes ikm) {
  Secret<kHashSize> secret;
  // HMAC fills a short key with zeros, so an empty salt is the RFC's 32 zero bytes.
  hmac(salt, ikm, secret.writable());
  return secret;
}

void hkdf_expand(const Secret<kHashSize>& secret, ConstBytes info, Bytes out) {
  if (out.size() > 255 * kHashSize) throw std::length_error("HKDF-Expand: output too long");
  // T(n) = HMAC(PRK, T(n - 1) || info || n), with T(0) empty.
  std::vector<std::uint8_t> text(kHashSize + info.size() + 1);
  std::ranges::copy(info, text.begin() + kHashSize);
  Secret<kHashSize> block;
  std::size_t skip = kHashSize;  // T(0) is left out.
  for (std::uint8_t n = 1; !out.empty(); ++n) {
    text.back() = n;
    hmac(secret.bytes(), std::span(text).subspan(skip), block.writable());
    const std::size_t size = std::min(out.size(), kHashSize);
    std::ranges::copy(block.bytes().first(size), out.begin());
    out = out.subspan(size);
    std::ranges::copy(block.bytes(), text.begin());
    skip = 0;
  }
  OPENSSL_cleanse(text.data(), text.size());
}

Fields& Fields::add(ConstBytes field) {
  if (field.size() > std::numeric_limits<std::uint16_t>::max()) {
    throw std::length_error("fields: a field is longer than 65,535 bytes");
  }
  std::array<std::uint8_t, 2> size;
  store_be<std::uint16_t>(size, static_cast<std::uint16_t>(field.size()));
  bytes_.insert(bytes_.end(), size.begin(), size.end());
  bytes_.insert(bytes_.end(), field.begin(), field.end());
  return *this;
}

Fields& Fields::add(std::string_view field) {
  return add(as_bytes(field));
}

Fields& Fields::add(std::string_view prefix, std::string_view field) {
  std::vector<std::uint8_t> whole(prefix.begin(), prefix.end());
  whole.insert(whole.end(), field.begin(), field.end());
  return add(whole);
}

Fields& Fields::add(std::uint64_t value) {
  std::array<std::uint8_t, sizeof(value)> bytes;
  store_be<std::uint64_t>(bytes, value);
  return add(bytes);
}

TrafficKey derive_pair_key(const Secret<kKeySize>& pair_key, const Secret<kKeySize>& shared,
                           const PairInputs& inputs) {
  Fields info;
  info.add(kPairLabel)
      .add(inputs.subnet)
      .add(kMemberPrefix, inputs.sender)
      .add(kMemberPrefix, inputs.receiver)
      .add(inputs.sender_boot)
      .add(inputs.receiver_boot)
      .add(inputs.pw_id);
  return expand_traffic_key(hkdf_extract(pair_key.bytes(), shared.bytes()), info);
}

TrafficKey derive_net_key(const Secret<kKeySize>& net_key, const Secret<kKeySize>& shared,
                          const NetInputs& inputs) {
  Fields info;
  info.add(kNetLabel)
      .add(kNetPrefix, inputs.sender)
      .add(kNetPrefix, inputs.receiver)
      .add(inputs.sender_boot)
      .add(inputs.receiver_boot)
      .add(inputs.pw_id);
  return expand_traffic_key(hkdf_extract(net_key.bytes(), shared.bytes()), info);
}

TrafficKey derive_group_key(const Secret<kKeySize>& group_key, const GroupInputs& inputs) {
  Fields info;
  info.add(kGroupLabel)
      .add(inputs.subnet)
      .add(kMemberPrefix, inputs.sender)
      .add(inputs.sender_boot)
      .add(inputs.pw_id);
  return expand_traffic_key(hkdf_extract({}, group_key.bytes()), info);
}

}  // namespace pairwire
