// What workers tell the control thread.
#pragma once

#include <cstdint>

#include "core/drop-reasons.hpp"
#include "core/endpoint.hpp"
#include "core/event-ring.hpp"
#include "core/relay-frame.hpp"
#include "l2/ip-address.hpp"
#include "l2/mac.hpp"

namespace pairwire {

/// One event. Members are named by number, because a pointer might be stale when it is read.
struct WorkerEvent {
  enum class Kind : std::uint8_t {
    kMissMac,         ///< mac, vlan
    kMissGroup,       ///< -
    kMissIndex,       ///< index, kid, group, from
    kKeyWorn,         ///< peer (0: group key), number = pwId
    kOtherKey,        ///< peer, group, number = pwId, index = own boot key of a frame of theirs:
                      ///< not what we send with
    kHeardElsewhere,  ///< peer, from
    kPathAnswer,      ///< peer, from, number = token, time_us
    kRelay,           ///< relay (all of it or the header, by its type), time_us
    kSpoof,           ///< mac, vlan: a source on the plain side that is a member's own
    kTooLong,         ///< from: where a frame was for that the kernel found too long
    kClaim,           ///< ip, mac: an address that our host says is its own
    kGuarded,         ///< reason, peer (0: our own TAP), mac, ip (may be none)
  };
  Kind kind = Kind::kMissGroup;
  bool group = false;
  DropReason reason{};
  std::uint16_t kid = 0;
  std::uint16_t vlan = 0;
  std::uint32_t index = 0;
  std::uint32_t peer = 0;
  MacAddress mac;
  IpAddress ip;
  Endpoint from;
  std::uint64_t number = 0;
  std::uint64_t time_us = 0;
  RelayControl relay{};
};

using WorkerEvents = EventRing<WorkerEvent, 1024>;

}  // namespace pairwire
