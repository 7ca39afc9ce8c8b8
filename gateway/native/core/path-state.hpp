// What the control thread knows of the underlay path to one member; path.cpp works on it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "core/endpoint.hpp"
#include "core/path-mtu.hpp"

namespace pairwire {

/// Threads: the control thread's.
struct PathState {
  /// A probe that is out.
  struct Probe {
    std::uint64_t token = 0;
    Endpoint to;
    std::uint64_t sent_us = 0;  ///< 0: none
    std::uint32_t size = 0;     ///< of the outer packet, if it was to find out about that; else 0
  };
  static constexpr std::size_t kMaxProbes = 32;

  std::array<Probe, kMaxProbes> probes{};
  std::size_t next_probe = 0;

  bool watched = false;    ///< in the list of pairs in use
  bool confirmed = false;  ///< the endpoint in use has answered
  bool alive = false;      ///< something answered within the last 45 s
  bool silent_reported = false;
  std::uint32_t unanswered = 0;      ///< probes to the endpoint in use since its last answer
  std::uint32_t rtt_us = 0;          ///< smoothed, RFC 6298; 0: not measured
  std::uint64_t started_ms = 0;      ///< when probing began
  std::uint64_t answered_ms = 0;     ///< last answer from anywhere
  std::uint64_t next_ms = 0;         ///< next probe
  std::uint32_t direct_tries = 0;    ///< rounds of probes to candidates while the relay is in use
  std::uint64_t direct_next_ms = 0;  ///< the next of them

  PathMtu mtu;  ///< of the path to `mtu_endpoint`
  Endpoint mtu_endpoint;
  std::uint64_t small_answer_ms = 0;  ///< last answer of the endpoint in use to a small probe

  /// Another address that frames came from, and whether it answered.
  Endpoint roamed;
  bool roamed_answered = false;
  bool endpoint_answered = false;  ///< the endpoint in use, to a probe sent during the trial
  std::uint64_t roamed_us = 0;     ///< when the trial began, to compare with probes
  std::uint64_t roamed_ms = 0;     ///< when its trial began; 0: none
  Endpoint rejected;               ///< answered, but the endpoint in use did too
  std::uint64_t rejected_ms = 0;
};

}  // namespace pairwire
