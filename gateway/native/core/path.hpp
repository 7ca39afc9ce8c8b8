// Which underlay address reaches a member, and whether any does. The rules are in path.cpp.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "core/clock.hpp"
#include "core/tables.hpp"
#include "io/udp.hpp"

namespace pairwire {

/// The paths of one port.
///
/// Threads: the control thread's. Workers answer probes and pass on the answers they get.
class PathManager {
 public:
  struct Listener {
    std::function<void(const Peer&)> moved;   ///< another endpoint is used from now on
    std::function<void(const Peer&)> silent;  ///< no answer for 45 s
  };

  PathManager(PortTables& tables, const ServerClock& clock, Listener listener);

  /// The socket to probe through; without one nothing is probed.
  void set_socket(UdpSocket udp) { udp_ = udp; }

  /// There may be a key to send with now.
  void key_installed(Peer& peer, std::uint64_t now_ms);
  /// `peer.candidates` may have changed.
  void candidates_set(Peer& peer, std::uint64_t now_ms);
  /// An authentic answer to a probe.
  void answered(std::uint32_t peer, std::uint64_t token, std::uint64_t time_us,
                std::uint64_t now_ms);
  /// An authentic frame from an address other than the endpoint in use.
  void heard_elsewhere(std::uint32_t peer, const Endpoint& from, std::uint64_t now_ms);

  /// Does what is due. Returns when to call again, in boot ms; nothing if there are no members.
  std::optional<std::uint64_t> run(std::uint64_t now_ms);

 private:
  void watch(Peer& peer, std::uint64_t now_ms);
  void find_used(std::uint64_t now_ms);
  /// False if the pair is not in use any more.
  bool tend(Peer& peer, std::uint64_t now_ms);
  void end_trial(Peer& peer, std::uint64_t now_ms);
  void move(Peer& peer, const Endpoint& to, std::uint64_t now_ms);
  void probe(Peer& peer, const Endpoint& to, std::uint64_t now_ms);
  void probe_all(Peer& peer, std::uint64_t now_ms);

  PortTables& tables_;
  const ServerClock& clock_;
  Listener listener_;
  UdpSocket udp_;
  std::vector<std::uint32_t> watched_;
  std::uint64_t next_scan_ms_ = 0;
};

}  // namespace pairwire
