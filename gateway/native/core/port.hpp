// One port: its tables, its paths and its lanes.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/clock.hpp"
#include "core/lane.hpp"
#include "core/path.hpp"
#include "core/plain-side.hpp"
#include "core/relay-client.hpp"
#include "core/tables.hpp"
#include "core/worker.hpp"

namespace pairwire {

/// What a port's lanes read and write. The descriptors belong to the caller and outlive `stop`.
struct PortIo {
  std::vector<int> taps;            ///< one for each queue
  std::vector<Underlay> underlays;  ///< one for each socket of the port
  MergeOptions merge;
  LaneOptions lane;
};

/// Threads: the control thread's. The threads of its lanes run between `start` and `stop`; each
/// direction of a lane shares one WorkerShare with the control thread, and all share the tables.
class Port {
 public:
  /// Pairs of a TAP queue and a socket.
  static constexpr std::size_t kMaxLanes = 4;
  /// Eventfds that a port needs: no new ones can be made in the sandbox.
  static constexpr std::size_t kWakeFds = Lane::kWakeFds * kMaxLanes;

  /// `wakes` has kWakeFds eventfds (non-blocking), `control_wake` wakes the control thread.
  Port(const ServerClock& clock, std::vector<int> wakes, int control_wake,
       PathManager::Listener listener, std::function<void(ConstBytes receipt)> seen,
       PlainSide::Listener plain);
  ~Port();
  Port(const Port&) = delete;
  Port& operator=(const Port&) = delete;

  PortTables& tables() { return tables_; }
  PathManager& paths() { return paths_; }
  RelayClient& relay() { return relay_; }
  PlainSide& plain() { return plain_; }

  void start(const PortIo& io);
  /// Waits for the threads; they stop within a batch.
  void stop();
  [[nodiscard]] bool running() const { return !lanes_.empty(); }

  /// What a plain port's other side takes: its workers' reports, and what is due. Returns when to
  /// call again, in boot ms.
  std::optional<std::uint64_t> run_plain(std::uint64_t now_ms);
  void take_plain(std::uint64_t now_ms);
  struct PlainCounters {
    std::uint64_t learned = 0;  ///< addresses that are known now
    std::uint64_t learn_full = 0;
    std::uint64_t probes_over = 0;
  };
  [[nodiscard]] PlainCounters plain_counters() const;

  /// Tells workers with waiting frames that tables have changed.
  void wake_holders();

  /// Takes the workers' events, one call of `use` for each.
  template <typename Use>
  void take_events(Use use) {
    for (const auto& lane : lanes_) {
      for (WorkerShare* const share : {&lane->in(), &lane->out()}) {
        WorkerEvent event;
        while (share->events.take(event)) use(event);
      }
    }
  }

  struct Counters {
    std::uint64_t frames = 0;
    std::uint64_t bytes = 0;
    std::uint64_t packets = 0;
    std::uint64_t batches = 0;
    std::uint64_t held = 0;
    std::uint64_t parts = 0;
    std::uint64_t cut = 0;
    std::uint64_t unasked = 0;
    std::uint64_t answers_over = 0;
    std::uint64_t relay_over = 0;
    std::uint64_t claims_over = 0;
    std::uint64_t relayed = 0;
    std::uint64_t told_too_big = 0;
    std::uint64_t mss_clamped = 0;
    std::uint64_t answered_arp = 0;
    std::uint64_t answered_nd = 0;
  };
  /// Sums over the workers of one direction, also of those that have ended.
  [[nodiscard]] Counters outbound_counters() const;
  [[nodiscard]] Counters inbound_counters() const;
  [[nodiscard]] std::uint64_t drops(DropReason reason) const;
  [[nodiscard]] std::uint64_t events_lost() const;
  /// How often a second thread took the outbound direction of a lane over.
  [[nodiscard]] std::uint64_t gifts() const;
  /// Pieces of work that helpers did.
  [[nodiscard]] std::uint64_t helped() const;
  [[nodiscard]] std::size_t lanes() const { return lanes_.size(); }

 private:
  static void add(Counters& sum, const WorkerCounters& counters);
  [[nodiscard]] Counters counters(bool outbound) const;

  const ServerClock& clock_;
  const std::vector<int> wakes_;
  const int control_wake_;
  PortTables tables_;
  PathManager paths_;
  RelayClient relay_;
  PlainSide plain_;
  std::vector<std::unique_ptr<Lane>> lanes_;
  std::uint64_t woken_version_ = 0;

  // What lanes that ended had counted.
  Counters ended_outbound_;
  Counters ended_inbound_;
  std::array<std::uint64_t, kDropReasonCount> ended_drops_{};
  PlainCounters ended_plain_;
  std::uint64_t ended_lost_ = 0;
  std::uint64_t ended_gifts_ = 0;
  std::uint64_t ended_helped_ = 0;
};

}  // namespace pairwire
