// See plain-side.hpp.
#include "core/plain-side.hpp"

#include <openssl/crypto.h>
#include <openssl/rand.h>

#include <algorithm>
#include <array>

#include "crypto/hmac.hpp"
#include "crypto/openssl.hpp"
#include "io/tap.hpp"
#include "l2/vnet-header.hpp"

namespace pairwire {
namespace {

constexpr std::string_view kProbeLabel = "pairwire/1 loop probe";
constexpr std::size_t kProbeKeys = 2;
/// How far the time of a probe may be from ours.
constexpr std::uint64_t kProbeAgeMs = 30'000;
/// What was learned is collected for so long, but for the first of it.
constexpr std::uint64_t kCollectMs = 20;
/// How late a port may notice that it is its turn.
constexpr std::uint64_t kPhaseStepMs = 100;

using ProbeMac = std::array<std::uint8_t, kLoopProbeMacSize>;

ProbeMac probe_mac(const Secret<kKeySize>& key, ConstBytes authenticated) {
  std::array<std::uint8_t, kProbeLabel.size() + kLoopProbeSize> text{};
  auto end = std::ranges::copy(kProbeLabel, text.begin()).out;
  end = std::ranges::copy(authenticated, end).out;
  const auto digest = hmac_sha256(key.bytes(), ConstBytes(text.begin(), end));
  ProbeMac mac{};
  std::copy_n(digest.begin(), mac.size(), mac.begin());
  return mac;
}

std::uint64_t random_nonce() {
  std::array<std::uint8_t, 8> bytes{};
  require_crypto(RAND_bytes(bytes.data(), static_cast<int>(bytes.size())) == 1, "RAND_bytes");
  return load_be<std::uint64_t>(bytes) | 1;  // 0 is none.
}

}  // namespace

PlainSide::PlainSide(PortTables& tables, const ServerClock& clock, Listener listener)
    : tables_(tables), clock_(clock), listener_(std::move(listener)) {}

LoopState& PlainSide::loop() {
  if (!loop_) loop_.emplace(tables_.settings().member);
  return *loop_;
}

void PlainSide::set_key(std::span<const std::uint8_t, kKeySize> key, std::uint64_t pw_id) {
  std::erase_if(keys_, [&](const auto& one) { return one->pw_id == pw_id; });
  auto made = std::make_unique<Key>();
  made->pw_id = pw_id;
  made->key = Secret<kKeySize>(key);
  const auto place =
      std::ranges::find_if(keys_, [&](const auto& one) { return one->pw_id < pw_id; });
  keys_.insert(place, std::move(made));
  if (keys_.size() > kProbeKeys) keys_.pop_back();
}

void PlainSide::forget_keys_up_to(std::uint64_t pw_id) {
  std::erase_if(keys_, [&](const auto& one) { return one->pw_id <= pw_id; });
}

void PlainSide::retell() {
  tell_loop_ = true;
  retell_ = true;
}

// --- What workers have seen ---------------------------------------------------------------------

void PlainSide::take(PlainShare& share, std::uint64_t now_ms) {
  HeardProbe probe;
  while (share.probes.take(probe)) heard(ConstBytes(probe.bytes).first(probe.size), now_ms);
  LearnedReport report;
  while (share.learned.take(report)) {
    const VlanMac address = VlanMac::from_integer(report.address);
    if (report.gone) {
      // In the order in which it happened: who went and came back is here.
      if (!learned_.empty()) flush(now_ms);
      unlearned_.push_back(address);
      if (unlearned_.size() == kMaxReported) flush(now_ms);
      continue;
    }
    if (!unlearned_.empty()) flush(now_ms);
    const std::uint64_t age = now_ms - std::min(report.seen_ms, now_ms);
    learned_.push_back(
        {address, static_cast<std::uint32_t>(std::min<std::uint64_t>(age, UINT32_MAX))});
    if (learned_.size() == kMaxReported) flush(now_ms);
  }
  if (now_ms >= next_flush_ms_) flush(now_ms);
}

void PlainSide::flush(std::uint64_t now_ms) {
  if (learned_.empty() && unlearned_.empty()) return;
  if (!learned_.empty()) listener_.learned(learned_);
  if (!unlearned_.empty()) listener_.unlearned(unlearned_);
  learned_.clear();
  unlearned_.clear();
  next_flush_ms_ = now_ms + kCollectMs;
}

void PlainSide::heard(ConstBytes frame, std::uint64_t now_ms) {
  const std::uint64_t server_ms = clock_.server_ms(now_ms);
  const auto received = parse_loop_probe(frame);
  const auto good = [&] {
    if (!received || server_ms == 0) return false;
    const std::uint64_t time = received->probe.time_ms;
    if ((time > server_ms ? time - server_ms : server_ms - time) > kProbeAgeMs) return false;
    return std::ranges::any_of(keys_, [&](const auto& key) {
      const ProbeMac mac = probe_mac(key->key, received->authenticated);
      return CRYPTO_memcmp(mac.data(), received->mac.data(), mac.size()) == 0;
    });
  };
  if (!good()) {
    ++counters_.probes_refused;
    return;
  }
  ++counters_.probes_heard;
  loop().heard(received->probe.id, received->probe.nonce, now_ms);
  update(now_ms);
}

// --- Probes and state ---------------------------------------------------------------------------

void PlainSide::send_probe(std::uint64_t now_ms) {
  const PortSettings& settings = tables_.settings();
  if (settings.macs.empty()) return;
  std::array<std::uint8_t, kVnetHeaderSize + kLoopProbeSize> packet{};
  const std::uint64_t nonce = random_nonce();
  const auto written = write_loop_probe(
      {static_cast<std::uint8_t>(phase_), clock_.server_ms(now_ms), nonce, settings.member},
      settings.macs.front(), std::span(packet).subspan<kVnetHeaderSize, kLoopProbeSize>());
  if (!written) return;
  const ProbeMac mac = probe_mac(keys_.front()->key, written->authenticated);
  std::ranges::copy(mac, written->mac.begin());
  loop().sent(nonce);  // First: it may come back before the call does.
  if (tap_write(tap_, ConstBytes(packet).first(kVnetHeaderSize + written->size))) {
    ++counters_.probes_sent;
  }
}

/// Says what has changed.
void PlainSide::update(std::uint64_t now_ms) {
  const LoopPhase phase = loop().phase(now_ms);
  const std::string_view other = loop().other(now_ms);
  if (phase == phase_ && other == other_ && !tell_loop_) return;
  if (phase != phase_ && phase != LoopPhase::kForward) look_ = true;
  const bool begins = phase != phase_;
  tell_loop_ = false;
  phase_ = phase;
  other_ = other;
  const bool forward = phase == LoopPhase::kForward;
  tables_.set_forwarding(forward);
  if (forward && begins) {
    announcer_.begin(tables_.own_list(), now_ms);
  } else if (!forward) {
    announcer_.stop();
  }
  listener_.loop(phase, other);
}

/// Another TAP may be on another LAN: it is listened to before anything is forwarded.
void PlainSide::set_tap(int fd) {
  tap_ = fd;
  if (fd >= 0 || !loop_) return;
  loop_->set_able(false, 0);
  tables_.set_forwarding(false);
}

PlainSide::Due PlainSide::run(std::uint64_t now_ms) {
  if (tables_.settings().kind != PortKind::kPlain) return {};
  const std::uint64_t server_ms = clock_.server_ms(now_ms);
  // Who carries nothing must not keep others from it.
  const bool able =
      tap_ >= 0 && !keys_.empty() && tables_.lease_good(server_ms) && tables_.own_complete();
  loop().set_able(able, now_ms);
  if (now_ms >= next_probe_ms_) {
    next_probe_ms_ = now_ms + LoopState::kProbeEveryMs;
    look_ = true;
    if (able) send_probe(now_ms);
  }
  update(now_ms);
  if (now_ms >= next_flush_ms_) flush(now_ms);
  Due due;
  due.next = next_probe_ms_;
  if (const auto announce = announcer_.run(tap_, now_ms)) due.next = std::min(*due.next, *announce);
  // A phase ends by itself at most so late.
  if (phase_ != LoopPhase::kForward) due.next = std::min(*due.next, now_ms + kPhaseStepMs);
  if (!learned_.empty() || !unlearned_.empty()) due.next = std::min(*due.next, next_flush_ms_);
  due.look = std::exchange(look_, false);
  due.retell = std::exchange(retell_, false);
  return due;
}

}  // namespace pairwire
