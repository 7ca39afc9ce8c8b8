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
// A frame from another address (`heard_elsewhere`) starts a trial: a probe there and one to the
// endpoint in use. Who only copies our traffic can get an answer from there too, so the endpoint
// moves only if the old one does not answer meanwhile (QUIC, RFC 9000 section 9.3.3; threats.md
// M13).
#include "core/path.hpp"

#include <openssl/rand.h>

#include <algorithm>
#include <utility>

#include "core/path-frame.hpp"

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
  // At once, not at the next scan: keys are asked for because there is something to send. With
  // holding off there no longer is: the sender's next frame comes first, and is what the receiver
  // asks about (document 002).
  if (tables_.settings().hold_frames == 0) return;
  if (peer.send.load(std::memory_order_relaxed) != nullptr) watch(peer, now_ms);
}

void PathManager::candidates_set(Peer& peer, std::uint64_t now_ms) {
  PathState& path = peer.path;
  if (!path.confirmed && !peer.candidates.empty() &&
      std::ranges::find(peer.candidates, *peer.owned_endpoint) == peer.candidates.end()) {
    tables_.set_endpoint(peer, peer.candidates.front());
  }
  if (!path.watched || path.confirmed) return;
  path.unanswered = 0;
  path.next_ms = now_ms;
}

void PathManager::watch(Peer& peer, std::uint64_t now_ms) {
  PathState& path = peer.path;
  if (path.watched) return;
  path.watched = true;
  path.started_ms = now_ms;
  path.unanswered = 0;
  path.silent_reported = false;
  path.next_ms = now_ms;
  watched_.push_back(peer.number);
  if (!tend(peer, now_ms)) {
    path.watched = false;
    watched_.pop_back();
  }
}

/// Finds pairs that are used again.
void PathManager::find_used(std::uint64_t now_ms) {
  for (const auto& [id, peer] : tables_.peers()) {
    if (peer->path.watched || peer->send.load(std::memory_order_relaxed) == nullptr) continue;
    const std::uint64_t used = std::max(peer->tx_ms.load(std::memory_order_relaxed),
                                        peer->rx_ms.load(std::memory_order_relaxed));
    if (used != 0 && now_ms - std::min(used, now_ms) < kUsedMs) watch(*peer, now_ms);
  }
}

std::optional<std::uint64_t> PathManager::run(std::uint64_t now_ms) {
  if (udp_.fd < 0 || tables_.peers().empty()) return std::nullopt;
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
      return true;
    }
    next = std::min(next, peer->path.next_ms);
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
  if (used + kUsedMs < now_ms) return false;
  end_trial(peer, now_ms);
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
  } else {
    probe_all(peer, now_ms);
  }
  ++path.unanswered;
  const std::uint64_t tries = path.unanswered;
  path.next_ms =
      now_ms + (tries <= kRepeats + 1 ? kRepeatMs : std::min(kProbeMs, kRepeatMs * (tries - 2)));
  return true;
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
    path.confirmed = true;
    path.unanswered = 0;
    path.next_ms = now_ms + kProbeMs;
    // Not an answer that was under way when the peer moved.
    if (probe.sent_us >= path.roamed_us) path.endpoint_answered = true;
  } else if (!path.confirmed) {
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
  const std::uint64_t patience =
      std::clamp<std::uint64_t>(4 * path.rtt_us / 1000, kShortestTrialMs, kLongestTrialMs);
  if (now_ms < path.roamed_ms + patience) return;
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
  listener_.moved(peer);
}

void PathManager::probe(Peer& peer, const Endpoint& to, std::uint64_t now_ms) {
  const SendKey* const key = peer.send.load(std::memory_order_relaxed);
  const std::uint64_t server = clock_.server_ms(now_ms);
  if (key == nullptr || udp_.fd < 0 || !tables_.lease_good(server)) return;
  const std::uint64_t token = random_token();
  if (token == 0) return;
  PathState& path = peer.path;
  path.probes[path.next_probe] = {token, to, boot_us()};
  path.next_probe = (path.next_probe + 1) % PathState::kMaxProbes;
  const auto frame = seal_path(*key, {PathType::kProbe, token}, frame_time(server));
  // An address that can't be reached shows as one that does not answer.
  if (frame) static_cast<void>(send_datagram(udp_, to, *frame));
}

void PathManager::probe_all(Peer& peer, std::uint64_t now_ms) {
  if (peer.owned_endpoint != nullptr) probe(peer, *peer.owned_endpoint, now_ms);
  for (const Endpoint& candidate : peer.candidates) {
    if (peer.owned_endpoint == nullptr || candidate != *peer.owned_endpoint) {
      probe(peer, candidate, now_ms);
    }
  }
}

}  // namespace pairwire
