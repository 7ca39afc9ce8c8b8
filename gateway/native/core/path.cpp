// Paths, by probes only: nothing else than an answer with the right token says that an address
// reaches a member.
//
//   unconfirmed --- first candidate that answers ---> confirmed
//        ^                                                |  a probe each 15 s
//        |                                                v  unanswered: 3 more, 1 s apart
//        +----- all candidates, back-off to 15 s ----- doubtful ---> silent (45 s, told once)
//
// Only pairs that carried a frame in the last 3 min are probed.
//
// A relay is one more address to be tried, with these differences. It is the first where none of
// the member's addresses is on a network of ours, so nothing waits for probes. While it is in use
// the candidates are probed as well, 5 times with back-off, then once a minute, and the first that
// answers takes over at once. And it is at hand when a direct path stops answering: after two
// probes without answer, if the relay's was answered. An endpoint that no pair uses goes back to
// the relay, because the NAT boxes between have forgotten the rest.
//
// Frames that go out while nothing comes back for 2 s are reason enough for a probe at once.
//
// A frame from another address (`heard_elsewhere`) starts a trial: a probe there and one to the
// endpoint in use. Who only copies our traffic can get an answer from there too, so the endpoint
// moves only if the old one does not answer meanwhile (QUIC, RFC 9000 section 9.3.3; threats.md
// M13).
//
// A confirmed path has its MTU searched for: path-mtu.hpp. Each padded probe goes together with a
// small one, so that silence tells a path that swallows long packets from one that is dead. By a
// relay no more is searched for than what it is given.
#include "core/path.hpp"

#include <openssl/rand.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "core/path-frame.hpp"
#include "core/relay-client.hpp"

namespace pairwire {
namespace {

constexpr std::uint64_t kUsedMs = 180'000;
constexpr std::uint64_t kProbeMs = 15'000;
constexpr std::uint64_t kRepeatMs = 1'000;
constexpr std::uint32_t kRepeats = 3;
constexpr std::uint64_t kSilentMs = 45'000;
constexpr std::uint64_t kScanMs = 1'000;
constexpr std::uint64_t kShortestTrialMs = 200;
constexpr std::uint64_t kLongestTrialMs = 1'000;
/// An address that lost a trial is not tried again for so long: a peer with two addresses may send
/// from one and answer at both, for ever.
constexpr std::uint64_t kRejectedMs = 60'000;
constexpr std::uint64_t kProbeLifeUs = 20'000'000;
/// So long may frames go out without an answer of any kind.
constexpr std::uint64_t kUnheardMs = 2'000;
/// Unanswered probes after which the relay takes over.
constexpr std::uint32_t kRelayAfter = 2;
constexpr std::uint32_t kDirectTries = 5;
constexpr std::uint64_t kDirectAgainMs = 60'000;

/// What stands before the sealed frame in a packet to an endpoint: IP, UDP and, on the way by a
/// relay, its header. On an Ethernet the MTU is that of the sealed frame.
std::uint32_t outer_headers(const Endpoint& to) {
  constexpr std::uint32_t v4 = 20;
  constexpr std::uint32_t v6 = 40;
  constexpr std::uint32_t udp = 8;
  if (to.ethernet) return 0;
  const std::uint32_t relay = to.relayed == 0 ? 0 : std::uint32_t{kRelayHeaderSize};
  return (to.is_v4() ? v4 : v6) + udp + relay;
}

/// Where the search for the MTU of a path begins, if the interface gives `interface`; 0: no search.
std::uint32_t longest_packet(const Endpoint& to, std::uint32_t interface) {
  if (to.relayed == 0) return interface;
  return std::min(interface, std::uint32_t{kMaxRelayedFrame} + outer_headers(to));
}

std::uint64_t random_token() {
  std::uint64_t token = 0;
  while (token == 0) {
    // Without randomness the probe is not sent; see `probe`.
    if (RAND_bytes(reinterpret_cast<unsigned char*>(&token), sizeof(token)) != 1) return 0;
  }
  return token;
}

}  // namespace

PathManager::PathManager(PortTables& tables, const ServerClock& clock, Listener listener)
    : tables_(tables), clock_(clock), listener_(std::move(listener)) {}

void PathManager::key_installed(Peer& peer, std::uint64_t now_ms) {
  // Now, not at the next scan: keys are asked for because there is something to send. With
  // holding off there no longer is: the sender's next frame comes first, and is what the receiver
  // asks about (document 002).
  if (tables_.settings().hold_frames == 0) return;
  if (peer.send.load(std::memory_order_relaxed) != nullptr) watch(peer, now_ms);
}

void PathManager::candidates_set(Peer& peer, std::uint64_t now_ms) {
  PathState& path = peer.path;
  path.direct_tries = 0;
  path.direct_next_ms = now_ms;
  const Endpoint* const used = peer.owned_endpoint.get();
  const bool outdated = this->outdated(peer);
  const bool candidate =
      used != nullptr && std::ranges::find(peer.candidates, *used) != peer.candidates.end();
  if (outdated) path.confirmed = false;
  if (!path.confirmed && (outdated || !candidate || peer.relay_first)) choose_first(peer);
  follow_mtu(peer, now_ms);
  if (!path.watched) return;
  if (path.confirmed) {
    // It has moved, perhaps: an address that it names no more is asked first.
    if (!candidate) path.next_ms = now_ms;
    return;
  }
  path.unanswered = 0;
  path.next_ms = now_ms;
}

/// Where frames go before anything has answered.
void PathManager::choose_first(Peer& peer) {
  if (peer.net != nullptr) return;  // Only where it has answered.
  const auto relay = by_relay(peer);
  std::optional<Endpoint> first;
  if (relay && (peer.relay_first || peer.candidates.empty())) {
    first = relay;
  } else if (!peer.candidates.empty()) {
    first = peer.candidates.front();
  }
  if (!first || (peer.owned_endpoint != nullptr && *peer.owned_endpoint == *first)) return;
  tables_.set_endpoint(peer, *first);
}

/// The way to a member through the relay, if we are registered there.
std::optional<Endpoint> PathManager::by_relay(const Peer& peer) const {
  const RelayUse* const relay = tables_.relay();
  // Link ports of other subnets register at relays of their own.
  if (relay == nullptr || relay->token == 0 || peer.incarnations.empty() || peer.net != nullptr) {
    return std::nullopt;
  }
  Endpoint endpoint = relay->address;
  endpoint.relayed = peer.incarnations.back()->index;
  return endpoint;
}

/// Whether the way through the relay that is used is none any more: not this relay, or a start of
/// the member that is forgotten. One that is not yet is registered there beside the new one.
bool PathManager::outdated(const Peer& peer) const {
  const Endpoint* const used = peer.owned_endpoint.get();
  if (used == nullptr || used->relayed == 0) return false;
  auto relay = by_relay(peer);
  if (!relay) return true;
  relay->relayed = used->relayed;
  return *relay != *used || std::ranges::none_of(peer.incarnations, [&](const auto& start) {
    return start->index == used->relayed;
  });
}

void PathManager::relay_changed(std::uint64_t now_ms) {
  for (const auto& [id, peer] : tables_.peers()) {
    PathState& path = peer->path;
    if (outdated(*peer)) path.confirmed = false;
    if (path.confirmed) continue;
    choose_first(*peer);
    path.unanswered = 0;
    path.next_ms = now_ms;
  }
}

void PathManager::watch(Peer& peer, std::uint64_t now_ms) {
  PathState& path = peer.path;
  if (path.watched) return;
  path.watched = true;
  path.started_ms = now_ms;
  path.unanswered = 0;
  path.silent_reported = false;
  const bool usable = peer.net == nullptr && peer.owned_endpoint != nullptr;
  path.next_ms = now_ms + (usable ? kFramesFirstMs : 0);
  watched_.push_back(peer.number);
  if (!tend(peer, now_ms)) {
    path.watched = false;
    watched_.pop_back();
  }
}

/// Finds pairs that are used again, and ways through the relay that are none any more.
void PathManager::find_used(std::uint64_t now_ms) {
  for (const auto& [id, peer] : tables_.peers()) {
    if (outdated(*peer)) {
      peer->path.confirmed = false;
      if (const auto relay = by_relay(*peer)) {
        tables_.set_endpoint(*peer, *relay);
      } else {
        choose_first(*peer);
      }
      peer->path.unanswered = 0;
      peer->path.next_ms = now_ms;
    }
    if (peer->path.watched || peer->send.load(std::memory_order_relaxed) == nullptr) continue;
    // A way between subnets is held open, also by NAT boxes, and known to work before it is used.
    if (peer->net != nullptr) {
      watch(*peer, now_ms);
      continue;
    }
    const std::uint64_t used = std::max(peer->tx_ms.load(std::memory_order_relaxed),
                                        peer->rx_ms.load(std::memory_order_relaxed));
    if (used != 0 && now_ms - std::min(used, now_ms) < kUsedMs) watch(*peer, now_ms);
  }
}

std::optional<std::uint64_t> PathManager::run(std::uint64_t now_ms) {
  if (underlay_.fd < 0 || tables_.peers().empty()) return std::nullopt;
  if (now_ms >= next_scan_ms_) {
    next_scan_ms_ = now_ms + kScanMs;
    find_used(now_ms);
  }
  std::uint64_t next = next_scan_ms_;
  std::erase_if(watched_, [&](std::uint32_t number) {
    Peer* const peer = tables_.peer_by_number(number);
    if (peer == nullptr) return true;
    if (!tend(*peer, now_ms)) {
      peer->path.watched = false;
      if (peer->relay_first && by_relay(*peer)) {
        peer->path.confirmed = false;
        choose_first(*peer);
      }
      return true;
    }
    next = std::min(next, peer->path.next_ms);
    if (peer->path.confirmed && peer->path.mtu.state() != PathMtu::State::kOff) {
      next = std::min(next, peer->path.mtu.next_ms());
    }
    if (peer->path.roamed_ms != 0) next = std::min(next, now_ms + kShortestTrialMs);
    return false;
  });
  return next;
}

bool PathManager::tend(Peer& peer, std::uint64_t now_ms) {
  PathState& path = peer.path;
  if (peer.send.load(std::memory_order_relaxed) == nullptr) return false;
  const std::uint64_t used =
      std::max({peer.tx_ms.load(std::memory_order_relaxed),
                peer.rx_ms.load(std::memory_order_relaxed), path.started_ms});
  if (peer.net == nullptr && used + kUsedMs < now_ms) return false;
  end_trial(peer, now_ms);
  look_for_direct(peer, now_ms);
  if (stopped_answering(peer, now_ms)) path.next_ms = now_ms;
  tend_mtu(peer, now_ms);
  if (now_ms < path.next_ms) return true;

  const std::uint64_t since = std::max(path.answered_ms, path.started_ms);
  if (now_ms - since >= kSilentMs) {
    path.alive = false;
    path.confirmed = false;
    if (!std::exchange(path.silent_reported, true)) listener_.silent(peer);
  }
  if (path.unanswered > kRepeats) path.confirmed = false;
  if (path.confirmed) {
    probe(peer, *peer.owned_endpoint, now_ms);
    const auto relay = by_relay(peer);
    if (path.unanswered != 0 && relay && peer.owned_endpoint->relayed == 0) {
      probe(peer, *relay, now_ms);
    }
  } else {
    probe_all(peer, now_ms);
  }
  ++path.unanswered;
  const std::uint64_t tries = path.unanswered;
  path.next_ms =
      now_ms + (tries <= kRepeats + 1 ? kRepeatMs : std::min(kProbeMs, kRepeatMs * (tries - 2)));
  return true;
}

/// Frames go out, nothing comes back, and no probe is out that would tell why.
bool PathManager::stopped_answering(const Peer& peer, std::uint64_t now_ms) const {
  const PathState& path = peer.path;
  if (!path.confirmed || path.unanswered != 0) return false;
  const std::uint64_t sent = peer.tx_ms.load(std::memory_order_relaxed);
  const std::uint64_t heard =
      std::max(peer.rx_ms.load(std::memory_order_relaxed), path.answered_ms);
  return sent > heard + kUnheardMs && now_ms > path.answered_ms + kUnheardMs;
}

/// While the relay is in use: is there a direct path by now?
void PathManager::look_for_direct(Peer& peer, std::uint64_t now_ms) {
  PathState& path = peer.path;
  if (!path.confirmed || peer.owned_endpoint->relayed == 0 || now_ms < path.direct_next_ms) return;
  probe_candidates(peer, now_ms);
  const std::uint32_t tries = path.direct_tries++;
  path.direct_next_ms =
      now_ms + (tries < kDirectTries ? kRepeatMs << std::min(tries, kDirectTries) : kDirectAgainMs);
}

void PathManager::answered(std::uint32_t number, std::uint64_t token, std::uint64_t time_us,
                           std::uint64_t now_ms) {
  Peer* const peer = tables_.peer_by_number(number);
  if (peer == nullptr || token == 0) return;
  PathState& path = peer->path;
  const auto found = std::ranges::find(path.probes, token, &PathState::Probe::token);
  if (found == path.probes.end() || time_us < found->sent_us ||
      time_us - found->sent_us > kProbeLifeUs) {
    return;
  }
  const PathState::Probe probe = std::exchange(*found, {});
  path.answered_ms = now_ms;
  path.alive = true;
  path.silent_reported = false;

  if (peer->owned_endpoint != nullptr && *peer->owned_endpoint == probe.to) {
    if (probe.size != 0) {
      if (path.mtu_endpoint == probe.to) path.mtu.answered(probe.size, now_ms);
      return apply_mtu(*peer);  // The round trip is that of a short packet.
    }
    path.small_answer_ms = now_ms;
    path.confirmed = true;
    path.unanswered = 0;
    path.next_ms = now_ms + kProbeMs;
    // Not an answer that was under way when the peer moved.
    if (probe.sent_us >= path.roamed_us) path.endpoint_answered = true;
  } else if (!path.confirmed || (peer->owned_endpoint->relayed != 0 && probe.to.relayed == 0) ||
             (probe.to.relayed != 0 && path.unanswered >= kRelayAfter)) {
    move(*peer, probe.to, now_ms);
  } else if (path.roamed_ms != 0 && probe.to == path.roamed) {
    path.roamed_answered = true;
    return;  // The round trip is not that of the endpoint in use.
  } else {
    return;
  }
  const auto sample = static_cast<std::uint32_t>(time_us - probe.sent_us);
  path.rtt_us = path.rtt_us == 0 ? sample : path.rtt_us - path.rtt_us / 8 + sample / 8;
}

void PathManager::heard_elsewhere(std::uint32_t number, const Endpoint& from,
                                  std::uint64_t now_ms) {
  Peer* const peer = tables_.peer_by_number(number);
  if (peer == nullptr || peer->send.load(std::memory_order_relaxed) == nullptr) return;
  watch(*peer, now_ms);
  PathState& path = peer->path;
  const bool lately_rejected = path.confirmed && path.rejected_ms != 0 && path.rejected == from &&
                               now_ms - path.rejected_ms < kRejectedMs;
  if (path.roamed_ms != 0 || lately_rejected) return;
  path.roamed = from;
  path.roamed_answered = false;
  path.endpoint_answered = false;
  path.roamed_ms = now_ms;
  path.roamed_us = boot_us();
  probe(*peer, from, now_ms);
  if (peer->owned_endpoint != nullptr) probe(*peer, *peer->owned_endpoint, now_ms);
}

/// Decides about another address once both had the time to answer.
void PathManager::end_trial(Peer& peer, std::uint64_t now_ms) {
  PathState& path = peer.path;
  if (path.roamed_ms == 0) return;
  if (now_ms < path.roamed_ms + patience(path)) return;
  if (path.roamed_answered && !path.endpoint_answered) {
    move(peer, path.roamed, now_ms);
  } else if (path.roamed_answered) {
    path.rejected = path.roamed;
    path.rejected_ms = now_ms;
  }
  path.roamed_ms = 0;
}

void PathManager::move(Peer& peer, const Endpoint& to, std::uint64_t now_ms) {
  PathState& path = peer.path;
  tables_.set_endpoint(peer, to);
  path.confirmed = true;
  path.unanswered = 0;
  path.rtt_us = 0;
  path.next_ms = now_ms + kProbeMs;
  path.direct_tries = 0;
  path.direct_next_ms = now_ms + kRepeatMs;
  follow_mtu(peer, now_ms);
  listener_.moved(peer);
}

/// How long an answer may take.
std::uint64_t PathManager::patience(const PathState& path) {
  return std::clamp<std::uint64_t>(4 * path.rtt_us / 1000, kShortestTrialMs, kLongestTrialMs);
}

// --- The path's MTU -----------------------------------------------------------------------------

/// Begins anew for another endpoint or another MTU of the interface.
void PathManager::follow_mtu(Peer& peer, std::uint64_t now_ms) {
  PathState& path = peer.path;
  if (peer.owned_endpoint == nullptr) return;
  const std::uint32_t top = longest_packet(*peer.owned_endpoint, tables_.settings().underlay_mtu);
  if (path.mtu_endpoint == *peer.owned_endpoint && path.mtu.top() == top) return;
  path.mtu_endpoint = *peer.owned_endpoint;
  path.mtu.start(top, now_ms);
  apply_mtu(peer);
}

void PathManager::tend_mtu(Peer& peer, std::uint64_t now_ms) {
  PathState& path = peer.path;
  follow_mtu(peer, now_ms);
  if (!path.confirmed) return;
  const std::uint64_t sent = peer.tx_ms.load(std::memory_order_relaxed);
  const PathMtu::Evidence evidence{.sending = sent + PathMtu::kConfirmMs >= now_ms,
                                   .small_answer_ms = path.small_answer_ms,
                                   .patience_ms = patience(path)};
  while (const std::uint32_t size = path.mtu.due(now_ms, evidence)) {
    if (probe(peer, path.mtu_endpoint, now_ms, size)) {
      probe(peer, path.mtu_endpoint, now_ms);
    } else {
      path.mtu.refused(size, now_ms);
    }
  }
  apply_mtu(peer);
}

/// Tells the workers.
void PathManager::apply_mtu(Peer& peer) {
  const PathMtu& mtu = peer.path.mtu;
  const bool known = mtu.state() != PathMtu::State::kOff;
  const std::uint32_t outside = outer_headers(peer.path.mtu_endpoint);
  peer.max_frame.store(known ? mtu.current() - outside : kNoFrameLimit, std::memory_order_relaxed);
  peer.proved_frame.store(known ? mtu.proved() - outside : kNoFrameLimit,
                          std::memory_order_relaxed);
  peer.relay_settled.store(
      peer.path.mtu_endpoint.relayed != 0 && peer.path.direct_tries > kDirectTries,
      std::memory_order_relaxed);
}

void PathManager::too_long(const Endpoint& to, std::uint64_t now_ms) {
  for (const std::uint32_t number : watched_) {
    Peer* const peer = tables_.peer_by_number(number);
    if (peer != nullptr && peer->path.mtu_endpoint == to) peer->path.mtu.suspect(now_ms);
  }
}

// --- Probes -------------------------------------------------------------------------------------

bool PathManager::probe(Peer& peer, const Endpoint& to, std::uint64_t now_ms, std::uint32_t size) {
  const SendKey* const key = peer.send.load(std::memory_order_relaxed);
  const std::uint64_t server = clock_.server_ms(now_ms);
  if (key == nullptr || underlay_.fd < 0 || !tables_.lease_good(server)) return true;
  const std::uint64_t token = random_token();
  if (token == 0) return true;
  PathState& path = peer.path;
  const std::uint64_t now_us = boot_us();
  const PathState::Probe& before = path.probes[path.next_probe];
  if (before.token != 0 && now_us - before.sent_us <= kProbeLifeUs) ++probes_forgotten_;
  path.probes[path.next_probe] = {token, to, now_us, size};
  path.next_probe = (path.next_probe + 1) % PathState::kMaxProbes;
  padded_.resize(size == 0 ? kPathFrame : size - outer_headers(to));
  if (!seal_padded_path(*key, to, {PathType::kProbe, token}, frame_time(server),
                        tables_.settings().subnet_tag, padded_)) {
    return true;
  }
  // An address that can't be reached shows as one that does not answer.
  errno = 0;
  return send_sealed(underlay_, tables_, to, padded_) || errno != EMSGSIZE;
}

void PathManager::probe_all(Peer& peer, std::uint64_t now_ms) {
  const auto relay = by_relay(peer);
  if (peer.owned_endpoint != nullptr) probe(peer, *peer.owned_endpoint, now_ms);
  if (relay && (peer.owned_endpoint == nullptr || *relay != *peer.owned_endpoint)) {
    probe(peer, *relay, now_ms);
  }
  probe_candidates(peer, now_ms);
}

void PathManager::probe_candidates(Peer& peer, std::uint64_t now_ms) {
  for (const Endpoint& candidate : peer.candidates) {
    if (peer.owned_endpoint == nullptr || candidate != *peer.owned_endpoint) {
      probe(peer, candidate, now_ms);
    }
  }
}

}  // namespace pairwire
