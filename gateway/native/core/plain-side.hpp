// The control thread's part of a plain port: sends loop probes, listens to those of others, says
// who forwards, and passes on what was learned.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/announcer.hpp"
#include "core/clock.hpp"
#include "core/locked-memory.hpp"
#include "core/loop-state.hpp"
#include "core/plain-share.hpp"
#include "core/tables.hpp"
#include "crypto/kdf.hpp"

namespace pairwire {

/// Threads: the control thread's. Does nothing at a port of another kind.
class PlainSide {
 public:
  struct Learned {
    VlanMac address;
    std::uint32_t age_ms = 0;
  };
  /// What the control plane is told.
  struct Listener {
    std::function<void(std::span<const Learned>)> learned;
    std::function<void(std::span<const VlanMac>)> unlearned;
    std::function<void(LoopPhase, std::string_view other)> loop;
  };
  /// The longest list that the listener is given.
  static constexpr std::size_t kMaxReported = 256;

  PlainSide(PortTables& tables, const ServerClock& clock, Listener listener);

  /// The TAP to write to; -1 while there is none.
  void set_tap(int fd);
  /// A key of loop probes; the two newest count.
  void set_key(std::span<const std::uint8_t, kKeySize> key, std::uint64_t pw_id);
  /// Who was revoked knows this key and those before it.
  void forget_keys_up_to(std::uint64_t pw_id);
  /// A new controller: says everything once more.
  void retell();

  /// Takes what a worker has put into its rings.
  void take(PlainShare& share, std::uint64_t now_ms);
  /// Does what is due. Returns when to call again, in boot ms. `look` is set if workers are to look
  /// through what they have learned, and to be woken for it; `retold` if they are to tell all.
  struct Due {
    std::optional<std::uint64_t> next;
    bool look = false;
    bool retell = false;
  };
  Due run(std::uint64_t now_ms);

  [[nodiscard]] LoopPhase phase() const { return phase_; }
  [[nodiscard]] const std::string& other() const { return other_; }

  struct Counters {
    std::uint64_t probes_sent = 0;
    std::uint64_t probes_heard = 0;    ///< authentic
    std::uint64_t probes_refused = 0;  ///< malformed, forged or too old
  };
  [[nodiscard]] const Counters& counters() const { return counters_; }
  [[nodiscard]] std::uint64_t announced() const { return announcer_.sent(); }

 private:
  struct Key : LockedAllocated {
    std::uint64_t pw_id = 0;
    Secret<kKeySize> key;
  };

  void heard(ConstBytes frame, std::uint64_t now_ms);
  void send_probe(std::uint64_t now_ms);
  void update(std::uint64_t now_ms);
  void flush(std::uint64_t now_ms);
  [[nodiscard]] LoopState& loop();

  PortTables& tables_;
  const ServerClock& clock_;
  const Listener listener_;
  int tap_ = -1;
  std::vector<std::unique_ptr<Key>> keys_;  ///< the newest first
  std::optional<LoopState> loop_;
  LoopPhase phase_ = LoopPhase::kStandby;
  std::string other_;
  bool tell_loop_ = true;
  bool retell_ = false;
  bool look_ = false;
  std::uint64_t next_probe_ms_ = 0;
  std::vector<Learned> learned_;
  std::vector<VlanMac> unlearned_;
  std::uint64_t next_flush_ms_ = 0;
  Announcer announcer_;
  Counters counters_;
};

}  // namespace pairwire
