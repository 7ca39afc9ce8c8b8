// What members and a relay say to each other: docs/protocol.md section 2.6. Each message begins
// with 16 bytes in the form of a shim of kind relay.
//
//   hello    member -> relay   "my index, until when, proof of the ticket, your last token"
//   receipt  relay -> member   "the address that I saw, a token bound to it, proof for the server"
//   forward  both ways         a sealed frame follows; index of the other end, token on the way in
//   unknown  relay -> member   "you are not registered": the token of the frame that was refused
//
// One parser for each; nothing in a result is authentic but what a function here checked.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "core/bytes.hpp"
#include "core/endpoint.hpp"

namespace pairwire {

// --- Specification constants --------------------------------------------------------------------

inline constexpr std::size_t kRelayHeaderSize = 16;
/// Hello and receipt: as long as each other, so that an answer never amplifies.
inline constexpr std::size_t kRelayControlSize = 72;
/// The longest frame that is given to a relay: with its header it fits an Ethernet below IPv6,
/// whatever is below its receiver.
inline constexpr std::size_t kMaxRelayedFrame = 1'500 - 40 - 8 - kRelayHeaderSize;
inline constexpr std::size_t kRelayMacSize = 16;
inline constexpr std::size_t kRelayKeySize = 32;
/// First byte: version 1, kind relay.
inline constexpr std::uint8_t kRelayFirstByte = 0x15;

enum class RelayType : std::uint16_t { kForward = 0, kHello = 1, kReceipt = 2, kUnknown = 3 };

struct RelayHeader {
  RelayType type = RelayType::kForward;
  std::uint32_t index = 0;
  std::uint64_t token = 0;
};

/// Whether a datagram claims to be of kind relay. For the fast path: says nothing else.
[[nodiscard]] inline bool is_relay_frame(ConstBytes datagram) {
  return datagram.size() >= kRelayHeaderSize && datagram[0] == kRelayFirstByte;
}

/// Nothing if it is malformed: too short, another kind, flags set, an unknown type, or a length
/// that its type does not have.
[[nodiscard]] std::optional<RelayHeader> parse_relay_header(ConstBytes datagram);
void write_relay_header(const RelayHeader& header, std::span<std::uint8_t, kRelayHeaderSize> out);

using RelayKey = std::span<const std::uint8_t, kRelayKeySize>;
using RelayMac = std::array<std::uint8_t, kRelayMacSize>;
using RelayControl = std::array<std::uint8_t, kRelayControlSize>;

/// What the key server gave a member to register with: who has `key` is that member.
struct RelayTicket {
  std::uint32_t index = 0;
  std::uint64_t not_after_ms = 0;  ///< key-server time
  std::array<std::uint8_t, kRelayKeySize> key{};
};

/// The ticket's key, from the key that key server and relay share. Throws CryptoError.
[[nodiscard]] std::array<std::uint8_t, kRelayKeySize> relay_ticket_key(RelayKey relay_key,
                                                                       std::uint32_t index,
                                                                       std::uint64_t not_after_ms);

/// `token` of the last receipt, or 0; `nonce` comes back in the answer. Throws CryptoError.
[[nodiscard]] RelayControl make_hello(const RelayTicket& ticket, std::uint64_t token,
                                      std::uint64_t nonce);

struct RelayHello {
  std::uint32_t index = 0;
  std::uint64_t token = 0;
  std::uint64_t nonce = 0;
};
/// A hello whose proof is right and whose ticket is not over. `message` passed
/// `parse_relay_header` as a hello. Throws CryptoError.
[[nodiscard]] std::optional<RelayHello> check_hello(ConstBytes message, RelayKey relay_key,
                                                    std::uint64_t now_ms);

/// The token of a source address: the same as long as the key is. Never 0. Throws CryptoError.
[[nodiscard]] std::uint64_t relay_token(RelayKey relay_key, std::uint32_t index,
                                        const Endpoint& source);

/// Throws CryptoError.
[[nodiscard]] RelayControl make_receipt(RelayKey relay_key, const RelayHello& hello,
                                        const Endpoint& seen, std::uint64_t token, bool registered,
                                        std::uint64_t now_ms);

/// What a member can read of a receipt; only the key server can check it.
struct RelayReceipt {
  std::uint32_t index = 0;
  std::uint64_t token = 0;
  std::uint64_t nonce = 0;
  Endpoint seen;
  bool registered = false;
};
/// `message` passed `parse_relay_header` as a receipt.
[[nodiscard]] std::optional<RelayReceipt> parse_receipt(ConstBytes message);

/// Compares in constant time.
[[nodiscard]] bool same_token(std::uint64_t a, std::uint64_t b);

/// The relay that a port uses, as its workers see it. Immutable once published.
struct RelayUse {
  Endpoint address;
  std::uint64_t token = 0;  ///< 0: not registered, nothing is sent through it
};

}  // namespace pairwire
