// How long a packet may be on the way to one member: DPLPMTUD, RFC 8899, by probes only. What the
// underlay says (EMSGSIZE, ICMP) is no more than a reason to probe.
//
//                 start: what the interface gives is assumed, and probed at once
//                   |
//                   v       answered
//              confirming ------------> done ----+  2 s, while frames are sent: confirm again
//               |      ^                 ^  |    |  10 min: search again, from the top
//   unanswered, |      +-----------------|--+----+
//   small ones  |                        |
//   are not     v     nothing between    |
//      base, searching ------------------+
//               |  ^
//               +--+  half-way between what was answered and what was not
//
// Sizes are those of outer packets, IP header included.
#pragma once

#include <cstdint>

namespace pairwire {

/// The search for one path. No I/O and no clock of its own.
///
/// Threads: the control thread's.
class PathMtu {
 public:
  /// Assumed to work everywhere (IPv6, RFC 8200), and never gone below.
  static constexpr std::uint32_t kBase = 1'280;
  static constexpr std::uint32_t kTries = 3;
  static constexpr std::uint64_t kConfirmMs = 2'000;
  static constexpr std::uint64_t kRaiseMs = 600'000;  ///< PMTU_RAISE_TIMER
  static constexpr std::uint64_t kDeadMs = 1'000;
  static constexpr std::uint64_t kSuspectMs = 200;

  enum class State : std::uint8_t { kOff, kConfirming, kSearching, kDone };

  /// A new path, or another interface. `top`: what the interface gives; 0: not known, nothing is
  /// searched for.
  void start(std::uint32_t top, std::uint64_t now_ms);

  /// What is assumed, and what was answered (at least kBase).
  [[nodiscard]] std::uint32_t current() const { return current_; }
  [[nodiscard]] std::uint32_t proved() const { return proved_; }
  [[nodiscard]] std::uint32_t top() const { return top_; }
  [[nodiscard]] State state() const { return state_; }

  /// What is known of the path besides.
  struct Evidence {
    bool sending = false;               ///< frames were sent within kConfirmMs
    std::uint64_t small_answer_ms = 0;  ///< when a small probe was answered last
    std::uint64_t patience_ms = 0;      ///< how long an answer may take
  };
  /// The size of the probe that is to be sent now, together with a small one; 0: none. Call again
  /// until it is 0.
  [[nodiscard]] std::uint32_t due(std::uint64_t now_ms, const Evidence& evidence);
  /// When to call `due` again.
  [[nodiscard]] std::uint64_t next_ms() const { return next_ms_; }

  /// A probe of this size was answered.
  void answered(std::uint32_t size, std::uint64_t now_ms);
  /// Our own kernel did not take a probe of this size: it is longer than the interface allows.
  void refused(std::uint32_t size, std::uint64_t now_ms);
  /// Somebody says that a packet was too long: look, and believe nothing.
  void suspect(std::uint64_t now_ms);

 private:
  void confirm(std::uint64_t now_ms);
  void fail(std::uint64_t now_ms);
  void search_on(std::uint64_t now_ms);
  void finish(std::uint64_t now_ms);

  State state_ = State::kOff;
  std::uint32_t top_ = 0;
  std::uint32_t current_ = 0;
  std::uint32_t proved_ = 0;
  std::uint32_t failed_ = 0;     ///< the smallest size that is taken for too long
  std::uint32_t candidate_ = 0;  ///< what is probed
  std::uint32_t tries_ = 0;      ///< probes of it that are out
  bool answered_once_ = false;   ///< the candidate was answered before: its silence may be chance
  std::uint64_t first_try_ms_ = 0;
  std::uint64_t next_ms_ = 0;
  std::uint64_t raise_ms_ = 0;
  std::uint64_t suspected_ms_ = 0;
};

}  // namespace pairwire
