// Which plain port of a subnet forwards on a plain side: a machine without I/O, driven by probes
// that were found authentic and by time (threats.md C11).
//
//   standby (listening) -- 2.2 s without a lower id --> forward
//   forward  -- a probe of a lower id --> standby -- 3.5 s without one --> forward
//   any      -- a probe of our own -----> blocked -- 30 s without one --> as the others say
//   any      -- nothing to find loops with (no key, no time) --> standby, and listening anew
//
// All send probes whatever their state, so who takes over and whether a loop is still there is
// found out without anybody's help.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace pairwire {

enum class LoopPhase : std::uint8_t { kForward = 1, kStandby = 2, kBlocked = 3 };

/// As events and status name it.
[[nodiscard]] std::string_view loop_phase_name(LoopPhase phase);

/// Threads: one. Times are boot times in ms, and never go back.
class LoopState {
 public:
  static constexpr std::uint64_t kProbeEveryMs = 1'000;
  /// Two probes of another port, with room for them to be late.
  static constexpr std::uint64_t kListenMs = 2'200;
  static constexpr std::uint64_t kLowerMs = 3'500;
  static constexpr std::uint64_t kBlockMs = 30'000;

  explicit LoopState(std::string own_id) : own_(std::move(own_id)) {}

  /// Whether loops can be found now: there is a key for probes, and a time.
  void set_able(bool able, std::uint64_t now_ms);
  [[nodiscard]] bool able() const { return able_since_ms_.has_value(); }

  /// We sent a probe.
  void sent(std::uint64_t nonce);
  /// A probe was heard.
  void heard(std::string_view id, std::uint64_t nonce, std::uint64_t now_ms);

  [[nodiscard]] LoopPhase phase(std::uint64_t now_ms) const;
  /// The member that forwards while we are standby; empty while we listen, and else.
  [[nodiscard]] std::string_view other(std::uint64_t now_ms) const;

 private:
  /// As many as are sent while a probe could be believed.
  static constexpr std::size_t kNonces = 64;

  [[nodiscard]] bool lower_heard(std::uint64_t now_ms) const;

  const std::string own_;
  std::array<std::uint64_t, kNonces> nonces_{};  ///< 0: none
  std::size_t next_nonce_ = 0;
  std::optional<std::uint64_t> able_since_ms_;
  std::optional<std::uint64_t> own_ms_;    ///< when we last heard ourselves
  std::optional<std::uint64_t> lower_ms_;  ///< when we last heard any lower id
  std::string lowest_;                     ///< the lowest of them, and when it was heard
  std::uint64_t lowest_ms_ = 0;
};

}  // namespace pairwire
