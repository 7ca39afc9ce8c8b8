// Shows the plain side by which port members are reached, when a plain port begins to forward:
// bridges there may know another port, or none, and would send to the wrong place for as long as
// they remember it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "l2/mac.hpp"

namespace pairwire {

/// Threads: one.
class Announcer {
 public:
  /// So many frames at a time, so far apart: some thousands a second, which any bridge takes.
  static constexpr std::size_t kBurst = 64;
  static constexpr std::uint64_t kPauseMs = 20;

  /// These addresses are to be announced, and nothing that was left of others.
  void begin(std::vector<MacAddress> macs, std::uint64_t now_ms);
  /// The port does not forward any more.
  void stop() { left_.clear(); }
  /// Sends what is due to the TAP. Returns when to call again, in boot ms, if anything is left.
  std::optional<std::uint64_t> run(int tap, std::uint64_t now_ms);

  [[nodiscard]] std::uint64_t sent() const { return sent_; }

 private:
  std::vector<MacAddress> left_;
  std::uint64_t next_ms_ = 0;
  std::uint64_t sent_ = 0;
};

}  // namespace pairwire
