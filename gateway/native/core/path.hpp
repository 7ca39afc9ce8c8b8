// Which underlay address reaches a member, and whether any does. The rules are in path.cpp.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "core/clock.hpp"
#include "core/tables.hpp"
#include "io/underlay.hpp"

namespace pairwire {

/// The paths of one port.
///
/// Threads: the control thread's. Workers answer probes and pass on the answers they get.
class PathManager {
 public:
  /// So long the first probe waits where frames can go without it: those that waited for the key
  /// go first, and their answers come.
  static constexpr std::uint64_t kFramesFirstMs = 10;

  struct Listener {
    std::function<void(const Peer&)> moved;   ///< another endpoint is used from now on
    std::function<void(const Peer&)> silent;  ///< no answer for 45 s
  };

  PathManager(PortTables& tables, const ServerClock& clock, Listener listener);

  /// The socket to probe through; without one nothing is probed.
  void set_socket(const Underlay& underlay) { underlay_ = underlay; }

  /// There may be a key to send with now.
  void key_installed(Peer& peer, std::uint64_t now_ms);
  /// `peer.candidates` may have changed.
  void candidates_set(Peer& peer, std::uint64_t now_ms);
  /// An authentic answer to a probe.
  void answered(std::uint32_t peer, std::uint64_t token, std::uint64_t time_us,
                std::uint64_t now_ms);
  /// An authentic frame from an address other than the endpoint in use.
  void heard_elsewhere(std::uint32_t peer, const Endpoint& from, std::uint64_t now_ms);

  /// The port registered with a relay, or is registered no more.
  void relay_changed(std::uint64_t now_ms);
  /// The kernel did not take a frame for this address because of its length.
  void too_long(const Endpoint& to, std::uint64_t now_ms);

  /// Probes that were out when others took their places: an answer to them counts for nothing.
  [[nodiscard]] std::uint64_t probes_forgotten() const { return probes_forgotten_; }

  /// Does what is due. Returns when to call again, in boot ms; nothing if there are no members.
  std::optional<std::uint64_t> run(std::uint64_t now_ms);

 private:
  void watch(Peer& peer, std::uint64_t now_ms);
  void find_used(std::uint64_t now_ms);
  /// False if the pair is not in use any more.
  bool tend(Peer& peer, std::uint64_t now_ms);
  void end_trial(Peer& peer, std::uint64_t now_ms);
  void move(Peer& peer, const Endpoint& to, std::uint64_t now_ms);
  /// `size`: of the outer packet, for a padded one; 0: as short as can be. False if our kernel did
  /// not take it because of its length.
  bool probe(Peer& peer, const Endpoint& to, std::uint64_t now_ms, std::uint32_t size = 0);
  void follow_mtu(Peer& peer, std::uint64_t now_ms);
  void tend_mtu(Peer& peer, std::uint64_t now_ms);
  static void apply_mtu(Peer& peer);
  static std::uint64_t patience(const PathState& path);
  void probe_all(Peer& peer, std::uint64_t now_ms);
  void probe_candidates(Peer& peer, std::uint64_t now_ms);
  void look_for_direct(Peer& peer, std::uint64_t now_ms);
  void choose_first(Peer& peer);
  [[nodiscard]] bool stopped_answering(const Peer& peer, std::uint64_t now_ms) const;
  [[nodiscard]] std::optional<Endpoint> by_relay(const Peer& peer) const;
  [[nodiscard]] bool outdated(const Peer& peer) const;

  PortTables& tables_;
  const ServerClock& clock_;
  Listener listener_;
  Underlay underlay_;
  std::vector<std::uint32_t> watched_;
  std::uint64_t next_scan_ms_ = 0;
  std::uint64_t probes_forgotten_ = 0;
  std::vector<std::uint8_t> padded_;  ///< a probe that is being sealed
};

}  // namespace pairwire
