/// Reading what rtnetlink answers: lengths are checked, types are those of the kernel's headers.
/// Apart from the socket, so that fuzzers can reach it.
#pragma once

#include <sys/types.h>

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "device-list.hpp"

namespace pairwire::devices {

struct Link {
  int index = 0;
  std::string kind;  ///< "tun" for TUN and TAP, empty for a physical interface
  bool tap = false;
  bool persistent = false;
  std::optional<uid_t> owner;
  std::array<std::uint8_t, 6> mac{};
  std::uint32_t mtu = 0;
  unsigned short type = 0;  ///< ARPHRD_*
  unsigned flags = 0;       ///< IFF_*
  bool enslaved = false;    ///< part of a bridge, bond or the like
  int master = 0;           ///< index of that
};

struct AssignedAddress {
  int index = 0;
  InterfaceAddress address;
};

/// What a datagram from the kernel meant for the request with its number.
struct AnswerEnd {
  bool ended = false;  ///< no more is to come
  int error = 0;       ///< errno, positive; 0: none
};

/// Appends the messages of one datagram that answer request `sequence` to `answers`, aligned;
/// others are left out. `dump`: an answer of many messages, which ends with NLMSG_DONE.
AnswerEnd take_answers(std::span<const std::uint8_t> datagram, std::uint32_t sequence, bool dump,
                       std::vector<std::uint8_t>& answers);

/// The interface in an answer to RTM_GETLINK.
/// @throws std::runtime_error if it is too short to be one
Link parse_link(std::span<const std::uint8_t> answer);

/// The addresses in the answers to a dump of RTM_GETADDR; what is cut short ends the list.
std::vector<AssignedAddress> parse_addresses(std::span<const std::uint8_t> answers);

}  // namespace pairwire::devices
