// What the two kinds of worker have in common: the port's tables, their counters, how they are
// stopped and woken.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "core/clock.hpp"
#include "core/drop-reasons.hpp"
#include "core/plain-share.hpp"
#include "core/rcu.hpp"
#include "core/tables.hpp"
#include "core/worker-events.hpp"

namespace pairwire {

/// A frame of an ordinary Ethernet is shorter, a super-frame is not.
inline constexpr std::size_t kShortPacket = 2'048;

/// Counters of one worker besides its drops. One writer, as in DropCounters.
struct WorkerCounters {
  std::atomic<std::uint64_t> frames{0};   ///< sealed, or opened and accepted
  std::atomic<std::uint64_t> bytes{0};    ///< of inner frames
  std::atomic<std::uint64_t> supers{0};   ///< packets read from or written to the TAP
  std::atomic<std::uint64_t> batches{0};  ///< wake-ups with something to do
  std::atomic<std::uint64_t> relayed{0};  ///< frames by way of a relay
  std::atomic<std::uint64_t> held{0};     ///< frames that were put aside to wait for a key
  std::atomic<std::uint64_t> parts{0};    ///< of frames too long for their path, sealed or opened
  std::atomic<std::uint64_t> cut{0};      ///< such frames, cut or put together again
  std::atomic<std::uint64_t> unasked{0};  ///< questions for a key that were over a budget
  std::atomic<std::uint64_t> answers_over{0};  ///< path answers over what a member may have
  std::atomic<std::uint64_t> relay_over{0};    ///< messages of the relay over what it may have
  std::atomic<std::uint64_t> claims_over{0};   ///< addresses of our host that nobody was told of
  std::atomic<std::uint64_t> told_too_big{0};  ///< ICMP answers to packets too long for their path
  std::atomic<std::uint64_t> mss_clamped{0};   ///< SYNs whose offer was lowered to the path
  std::atomic<std::uint64_t> answered_arp{0};  ///< questions for bound addresses, answered here
  std::atomic<std::uint64_t> answered_nd{0};

  static void add(std::atomic<std::uint64_t>& counter, std::uint64_t value) noexcept {
    counter.store(counter.load(std::memory_order_relaxed) + value, std::memory_order_relaxed);
  }
};

/// What one worker shares with the control thread.
///
/// Threads: the control thread makes it, before the worker starts, and destroys it after the worker
/// has ended; each part says who may use it meanwhile.
struct WorkerShare {
  WorkerShare(PortTables& port_tables, const ServerClock& server_clock, int wake_fd, int control_fd)
      : tables(port_tables),
        clock(server_clock),
        reader(port_tables.rcu().add_reader()),
        wake(wake_fd),
        control_wake(control_fd) {}

  PortTables& tables;
  const ServerClock& clock;
  std::unique_ptr<RcuDomain::Reader> reader;  ///< the worker's
  const int wake;                             ///< eventfd that wakes the worker
  const int control_wake;                     ///< eventfd that wakes the control thread
  std::atomic<bool> stop{false};
  std::atomic<bool> holding{false};  ///< frames wait for a key: wake me when tables change
  DropCounters drops;
  WorkerCounters counters;
  WorkerEvents events;
  /// At the worker that reads a plain port's TAP; else null.
  std::unique_ptr<PlainShare> plain;
};

/// "Asked lately?" for things that are asked of the key server. Direct-mapped: a collision only
/// means that something is asked twice.
///
/// Threads: one.
class RecentlyAsked {
 public:
  static constexpr std::uint64_t kQuietUs = 200'000;

  /// True if `key` was asked for within 200 ms, or another time.
  [[nodiscard]] bool lately(std::uint64_t key, std::uint64_t now_us,
                            std::uint64_t quiet_us = kQuietUs) const noexcept {
    const Entry& entry = entries_[place(key)];
    return entry.key == key && now_us - entry.time_us < quiet_us && entry.time_us != 0;
  }
  /// `key` is asked for now.
  void note(std::uint64_t key, std::uint64_t now_us) noexcept {
    entries_[place(key)] = {key, now_us};
  }

 private:
  struct Entry {
    std::uint64_t key = 0;
    std::uint64_t time_us = 0;
  };
  static std::size_t place(std::uint64_t key) noexcept { return (key * 0x9e3779b97f4a7c15U) >> 55; }

  std::array<Entry, 512> entries_{};
};

}  // namespace pairwire
