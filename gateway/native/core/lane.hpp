// One queue of a port's TAP, one of its sockets, and the threads that serve them.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>

#include "core/crew.hpp"
#include "core/idle-spin.hpp"
#include "core/inbound.hpp"
#include "core/outbound.hpp"
#include "core/spare-cores.hpp"
#include "core/worker.hpp"

namespace pairwire {

/// How the threads of a port wait and share their work.
struct LaneOptions {
  /// How long to look again before sleeping, if it is likely to be worth it. 0: sleep at once.
  std::uint32_t spin_us = 0;
  /// Threads that help with sealing and opening; 0 to Crew::kMaxHelpers.
  std::uint32_t helpers = 0;
  /// A second thread takes the outbound direction over when both are busy.
  bool second_thread = true;
  /// The first thread is one of SCHED_BATCH while there are some. Outlives the lane; null: never.
  SpareCores* spare_cores = nullptr;
  /// When they are: the first thread has worked so long without a break, and the lesser direction
  /// took so many hundredths of it.
  std::uint32_t busy_us = 1'000;
  std::uint32_t busy_percent = 25;

  friend bool operator==(const LaneOptions&, const LaneOptions&) = default;
};

/// Threads: made, started, stopped and destroyed by the control thread. In between, the first
/// thread serves the inbound direction and, unless it has given it away, the outbound one; the
/// second thread serves that while it has it. `turn_` says who, so each direction has one thread at
/// any time.
class Lane {
 public:
  /// A lane waits on two eventfds: the first wakes the inbound direction, the second the outbound.
  static constexpr std::size_t kWakeFds = 2;

  struct Io {
    int tap = -1;
    Underlay underlay;
    MergeOptions merge;
    std::size_t hold_capacity = 0;
  };
  /// Starts the helpers, but not the threads that they help. `number` is for names of threads.
  Lane(PortTables& tables, const ServerClock& clock, std::span<const int, kWakeFds> wakes,
       int control_wake, const Io& io, const LaneOptions& options, std::size_t number = 0);
  ~Lane();
  Lane(const Lane&) = delete;
  Lane& operator=(const Lane&) = delete;

  void start();
  /// Tells the threads to end; `join` waits for it. They end within a batch.
  void ask_to_stop();
  void join();

  /// What each direction shares with the control thread.
  WorkerShare& in() { return in_; }
  WorkerShare& out() { return out_; }
  [[nodiscard]] const WorkerShare& in() const { return in_; }
  [[nodiscard]] const WorkerShare& out() const { return out_; }
  /// How often the outbound direction went to the second thread.
  [[nodiscard]] std::uint64_t gifts() const { return gifts_.load(std::memory_order_relaxed); }
  /// Whether it is there now.
  [[nodiscard]] bool given() const { return turn() == Turn::kSecond; }
  /// Pieces of work that helpers did.
  [[nodiscard]] std::uint64_t helped() const { return crew_.helped(); }

 private:
  enum class Turn : std::uint32_t { kFirst, kSecond, kStop };

  /// What a thread did since it last slept.
  struct Busy {
    std::uint64_t since_us = 0;
    std::uint64_t in_us = 0;
    std::uint64_t out_us = 0;
  };

  void run_first();
  void run_second();
  void serve(bool both, IdleSpin& after_in, IdleSpin& after_out);
  void sleep_first(bool both);
  void choose_policy();
  bool serve_outbound(IdleSpin& spin);
  [[nodiscard]] bool worth_giving(const Busy& busy) const;
  void give();
  void give_back();
  [[nodiscard]] bool stopped() const { return in_.stop.load(std::memory_order_acquire); }
  [[nodiscard]] Turn turn() const { return turn_.load(std::memory_order_acquire); }

  const LaneOptions options_;
  const int tap_;
  const int underlay_;
  const std::size_t number_;
  WorkerShare in_;
  WorkerShare out_;
  Crew crew_;
  Outbound outbound_;
  Inbound inbound_;
  /// Changed by the thread whose turn it is, and to kStop by the control thread.
  std::atomic<Turn> turn_{Turn::kFirst};
  std::atomic<std::uint64_t> gifts_{0};
  IdleSpin* last_ = nullptr;  ///< that of the direction that worked last; the first thread's
  bool only_tap_ = false;     ///< the last sleep was ended by the TAP and nothing else
  bool tap_sound_ = true;
  bool underlay_sound_ = true;
  bool batch_ = false;  ///< the first thread is one of SCHED_BATCH
  std::thread first_;
  std::thread second_;
};

}  // namespace pairwire
