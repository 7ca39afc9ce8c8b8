// See relay-frame.hpp. Layouts:
//
//   header   0x15 | 0 | type (2) | index (4) | token (8)
//   hello    header | not after (8) | nonce (8) | zeros (24) | mac (16)
//   receipt  header | nonce (8) | time (8) | address (16) | port (2) | registered (1) | zeros (5)
//            | mac (16)
#include "core/relay-frame.hpp"

#include <openssl/crypto.h>

#include <algorithm>
#include <string_view>

#include "core/frame.hpp"
#include "crypto/hmac.hpp"
#include "crypto/kdf.hpp"

namespace pairwire {
namespace {

constexpr std::string_view kTicketLabel = "pairwire/1 relay ticket";
constexpr std::string_view kTokenLabel = "pairwire/1 relay token";
constexpr std::string_view kReceiptLabel = "pairwire/1 relay receipt";

constexpr std::size_t kMacAt = kRelayControlSize - kRelayMacSize;

RelayMac short_mac(ConstBytes key, ConstBytes data) {
  const auto digest = hmac_sha256(key, data);
  RelayMac mac{};
  std::copy_n(digest.begin(), mac.size(), mac.begin());
  return mac;
}

bool zero(ConstBytes bytes) {
  return std::ranges::all_of(bytes, [](std::uint8_t byte) { return byte == 0; });
}

}  // namespace

std::optional<RelayHeader> parse_relay_header(ConstBytes datagram) {
  if (!is_relay_frame(datagram) || datagram[1] != 0) return std::nullopt;
  const auto type = load_be<std::uint16_t>(datagram.subspan<2, 2>());
  const std::size_t size = datagram.size();
  switch (static_cast<RelayType>(type)) {
    case RelayType::kForward:
      // A frame within a frame would be a way to let relays work for each other.
      if (size < kRelayHeaderSize + kFrameOverhead || is_relay_frame(datagram.subspan(16))) {
        return std::nullopt;
      }
      break;
    case RelayType::kHello:
    case RelayType::kReceipt:
      if (size != kRelayControlSize) return std::nullopt;
      break;
    case RelayType::kUnknown:
      if (size != kRelayHeaderSize) return std::nullopt;
      break;
    default:
      return std::nullopt;
  }
  const auto index = load_be<std::uint32_t>(datagram.subspan<4, 4>());
  if (index == 0) return std::nullopt;
  return RelayHeader{static_cast<RelayType>(type), index,
                     load_be<std::uint64_t>(datagram.subspan<8, 8>())};
}

void write_relay_header(const RelayHeader& header, std::span<std::uint8_t, kRelayHeaderSize> out) {
  out[0] = kRelayFirstByte;
  out[1] = 0;
  store_be<std::uint16_t>(out.subspan<2, 2>(), static_cast<std::uint16_t>(header.type));
  store_be<std::uint32_t>(out.subspan<4, 4>(), header.index);
  store_be<std::uint64_t>(out.subspan<8, 8>(), header.token);
}

std::array<std::uint8_t, kRelayKeySize> relay_ticket_key(RelayKey relay_key, std::uint32_t index,
                                                         std::uint64_t not_after_ms) {
  return hmac_sha256(relay_key, Fields().add(kTicketLabel).add(index).add(not_after_ms).bytes());
}

RelayControl make_hello(const RelayTicket& ticket, std::uint64_t token, std::uint64_t nonce) {
  RelayControl hello{};
  const std::span all(hello);
  write_relay_header({RelayType::kHello, ticket.index, token}, all.first<kRelayHeaderSize>());
  store_be<std::uint64_t>(all.subspan<16, 8>(), ticket.not_after_ms);
  store_be<std::uint64_t>(all.subspan<24, 8>(), nonce);
  std::ranges::copy(short_mac(ticket.key, all.first<kMacAt>()), all.begin() + kMacAt);
  return hello;
}

std::optional<RelayHello> check_hello(ConstBytes message, RelayKey relay_key,
                                      std::uint64_t now_ms) {
  const auto header = parse_relay_header(message);
  if (!header || header->type != RelayType::kHello) return std::nullopt;
  const auto not_after = load_be<std::uint64_t>(message.subspan<16, 8>());
  if (not_after < now_ms || !zero(message.subspan(32, 24))) return std::nullopt;
  const auto key = relay_ticket_key(relay_key, header->index, not_after);
  const RelayMac expected = short_mac(key, message.first(kMacAt));
  if (CRYPTO_memcmp(expected.data(), message.data() + kMacAt, expected.size()) != 0) {
    return std::nullopt;
  }
  return RelayHello{header->index, header->token, load_be<std::uint64_t>(message.subspan<24, 8>())};
}

std::uint64_t relay_token(RelayKey relay_key, std::uint32_t index, const Endpoint& source) {
  const auto digest = hmac_sha256(
      relay_key, Fields().add(kTokenLabel).add(index).add(source.ip).add(source.port).bytes());
  const auto token = load_be<std::uint64_t>(std::span(digest).first<8>());
  return token == 0 ? 1 : token;
}

RelayControl make_receipt(RelayKey relay_key, const RelayHello& hello, const Endpoint& seen,
                          std::uint64_t token, bool registered, std::uint64_t now_ms) {
  RelayControl receipt{};
  const std::span all(receipt);
  write_relay_header({RelayType::kReceipt, hello.index, token}, all.first<kRelayHeaderSize>());
  store_be<std::uint64_t>(all.subspan<16, 8>(), hello.nonce);
  store_be<std::uint64_t>(all.subspan<24, 8>(), now_ms);
  std::ranges::copy(seen.ip, all.begin() + 32);
  store_be<std::uint16_t>(all.subspan<48, 2>(), seen.port);
  all[50] = registered ? 1 : 0;
  const RelayMac mac = short_mac(
      relay_key,
      Fields().add(kReceiptLabel).add(hello.index).add(now_ms).add(seen.ip).add(seen.port).bytes());
  std::ranges::copy(mac, all.begin() + kMacAt);
  return receipt;
}

std::optional<RelayReceipt> parse_receipt(ConstBytes message) {
  const auto header = parse_relay_header(message);
  if (!header || header->type != RelayType::kReceipt) return std::nullopt;
  if (message[50] > 1 || !zero(message.subspan(51, 5))) return std::nullopt;
  const auto seen =
      Endpoint::from(message.subspan(32, 16), load_be<std::uint16_t>(message.subspan<48, 2>()));
  if (!seen) return std::nullopt;
  return RelayReceipt{header->index, header->token,
                      load_be<std::uint64_t>(message.subspan<16, 8>()), *seen, message[50] == 1};
}

bool same_token(std::uint64_t a, std::uint64_t b) {
  return CRYPTO_memcmp(&a, &b, sizeof(a)) == 0;
}

}  // namespace pairwire
