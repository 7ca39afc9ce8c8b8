// See loop-state.hpp.
#include "core/loop-state.hpp"

#include <algorithm>

namespace pairwire {

std::string_view loop_phase_name(LoopPhase phase) {
  switch (phase) {
    case LoopPhase::kForward:
      return "forward";
    case LoopPhase::kStandby:
      return "standby";
    case LoopPhase::kBlocked:
      return "blocked";
  }
  return "";
}

void LoopState::set_able(bool able, std::uint64_t now_ms) {
  if (!able) {
    able_since_ms_.reset();
  } else if (!able_since_ms_) {
    able_since_ms_ = now_ms;
  }
}

void LoopState::sent(std::uint64_t nonce) {
  nonces_[next_nonce_] = nonce;
  next_nonce_ = (next_nonce_ + 1) % kNonces;
}

void LoopState::heard(std::string_view id, std::uint64_t nonce, std::uint64_t now_ms) {
  if (id == own_) {
    // Of a former start of ours, or one that was kept back for long: no loop that is there now.
    if (nonce == 0 || std::ranges::find(nonces_, nonce) == nonces_.end()) return;
    own_ms_ = now_ms;
    return;
  }
  if (id > own_) return;
  lower_ms_ = now_ms;
  if (lowest_.empty() || id <= lowest_ || now_ms - lowest_ms_ >= kLowerMs) {
    lowest_ = id;
    lowest_ms_ = now_ms;
  }
}

bool LoopState::lower_heard(std::uint64_t now_ms) const {
  return lower_ms_ && now_ms - *lower_ms_ < kLowerMs;
}

LoopPhase LoopState::phase(std::uint64_t now_ms) const {
  if (own_ms_ && now_ms - *own_ms_ < kBlockMs) return LoopPhase::kBlocked;
  if (!able_since_ms_ || now_ms - *able_since_ms_ < kListenMs) return LoopPhase::kStandby;
  return lower_heard(now_ms) ? LoopPhase::kStandby : LoopPhase::kForward;
}

std::string_view LoopState::other(std::uint64_t now_ms) const {
  if (phase(now_ms) != LoopPhase::kStandby || !lower_heard(now_ms)) return {};
  return lowest_;
}

}  // namespace pairwire
