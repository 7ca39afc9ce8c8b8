// The decisions of a relay, without sockets: what to do with one datagram.
//
//   hello, proof wrong or ticket over        refused
//   hello, token of another address, or none receipt; nothing is kept (stateless)
//   hello with the token of its address      receipt; index <-> address registered for 60 s, at
//   most
//                                            two indices for each address: a member that renews its
//                                            boot key is found under both for a while
//   forward from a registered address, with its token, to a registered index   passed on
//   forward from elsewhere                   "unknown", within a budget
//
// So nothing goes to an address that has not answered from there, no answer is longer than its
// question, and nobody sends but who holds a ticket.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string_view>
#include <unordered_map>

#include "core/clock.hpp"
#include "core/relay-frame.hpp"

namespace pairwire {

// X(name, sentence): what happened to datagrams, as metrics name it.
// clang-format off
#define PAIRWIRE_RELAY_COUNTS(X)                                                                   \
  X(forwarded,           "Sealed frames passed on.")                                               \
  X(receipts,            "Hellos answered.")                                                       \
  X(malformed,           "No message of the protocol.")                                            \
  X(hello_refused,       "Hellos with a wrong proof or an expired ticket.")                        \
  X(hello_limited,       "Hellos over the limit.")                                                 \
  X(table_full,          "Hellos refused because too many members are registered.")                \
  X(unknown_source,      "Frames from an address that is not registered.")                         \
  X(wrong_token,         "Frames whose token is not that of their address.")                       \
  X(unknown_destination, "Frames for a member that is not registered.")                            \
  X(rate_limited,        "Frames over a member's limit.")                                          \
  X(send_failed,         "Datagrams that the kernel did not take.")
// clang-format on

enum class RelayCount : std::uint8_t {
#define PAIRWIRE_ENUMERATOR(name, sentence) name,
  PAIRWIRE_RELAY_COUNTS(PAIRWIRE_ENUMERATOR)
#undef PAIRWIRE_ENUMERATOR
};
#define PAIRWIRE_NAME(name, sentence) std::string_view{#name},
inline constexpr std::array kRelayCountNames{PAIRWIRE_RELAY_COUNTS(PAIRWIRE_NAME)};
#undef PAIRWIRE_NAME

/// Threads: one.
class RelayTable {
 public:
  struct Limits {
    std::size_t members = 65'536;
    std::uint32_t frames_per_second = 100'000;  ///< for each member
    std::uint32_t hellos_per_second = 20'000;   ///< all together: each costs three HMACs
    std::uint32_t unknowns_per_second = 1'000;  ///< all together
    std::uint64_t lifetime_ms = 60'000;         ///< without a hello
  };

  RelayTable(RelayKey key, const Limits& limits);

  /// What to send. `forward`: the datagram itself, whose header was written anew; else `control`.
  struct Action {
    Endpoint to;
    bool forward = false;
    std::size_t control_size = 0;
    RelayControl control{};
  };

  /// Takes one datagram, whose header it may change. Nothing to send is counted, always.
  /// `wall_ms` is compared with tickets, `now_us` only moves on. Throws CryptoError.
  [[nodiscard]] std::optional<Action> receive(const Endpoint& from, Bytes datagram,
                                              std::uint64_t now_us, std::uint64_t wall_ms);

  /// Forgets who has been silent for too long.
  void expire(std::uint64_t now_us);

  void count(RelayCount what, std::uint64_t number = 1) {
    counts_[static_cast<std::size_t>(what)] += number;
  }
  [[nodiscard]] std::uint64_t counted(RelayCount what) const {
    return counts_[static_cast<std::size_t>(what)];
  }
  [[nodiscard]] std::size_t members() const { return by_index_.size(); }

 private:
  struct Member {
    Endpoint address;
    std::uint64_t token = 0;
    std::uint64_t heard_us = 0;
    TokenBucket frames;
  };
  struct AddressHash {
    std::uint64_t seed = 0;
    std::size_t operator()(const Endpoint& endpoint) const noexcept;
  };

  std::optional<Action> hello(const Endpoint& from, ConstBytes datagram, std::uint64_t now_us,
                              std::uint64_t wall_ms);
  std::optional<Action> forward(const RelayHeader& header, const Endpoint& from, Bytes datagram,
                                std::uint64_t now_us);
  bool enter(const RelayHello& hello, const Endpoint& from, std::uint64_t now_us);
  void leave(const Endpoint& address, std::uint32_t index);
  std::optional<Action> refuse(RelayCount why) {
    count(why);
    return std::nullopt;
  }

  std::array<std::uint8_t, kRelayKeySize> key_{};
  const Limits limits_;
  TokenBucket hellos_;
  TokenBucket unknowns_;
  std::unordered_map<std::uint32_t, Member> by_index_;
  /// The one that was new last stands first; 0: none. Each is in by_index_ with this address.
  std::unordered_map<Endpoint, std::array<std::uint32_t, 2>, AddressHash> by_address_;
  std::array<std::uint64_t, kRelayCountNames.size()> counts_{};
};

}  // namespace pairwire
