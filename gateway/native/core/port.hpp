// One port: its tables, its paths and its workers.
#pragma once

#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#include "core/clock.hpp"
#include "core/inbound.hpp"
#include "core/outbound.hpp"
#include "core/path.hpp"
#include "core/tables.hpp"
#include "core/worker.hpp"

namespace pairwire {

/// What a port's workers read and write. The descriptors belong to the caller and outlive `stop`.
struct PortIo {
  std::vector<int> taps;        ///< one for each queue
  std::vector<UdpSocket> udps;  ///< one for each socket of the port
  MergeOptions merge;
};

/// Threads: the control thread's. Its workers run between `start` and `stop`; each pair of worker
/// and control thread shares one WorkerShare, and all share the tables.
class Port {
 public:
  /// Workers of one direction; more make sense once TAP queues and sockets are sharded.
  static constexpr std::size_t kMaxWorkers = 1;
  /// Eventfds that a port needs: no new ones can be made in the sandbox.
  static constexpr std::size_t kWakeFds = 2 * kMaxWorkers;

  /// `wakes` has kWakeFds eventfds (non-blocking), `control_wake` wakes the control thread.
  Port(const ServerClock& clock, std::vector<int> wakes, int control_wake,
       PathManager::Listener listener);
  ~Port();
  Port(const Port&) = delete;
  Port& operator=(const Port&) = delete;

  PortTables& tables() { return tables_; }
  PathManager& paths() { return paths_; }

  void start(const PortIo& io);
  /// Waits for the workers; they stop within a batch.
  void stop();
  [[nodiscard]] bool running() const { return !workers_.empty(); }

  /// Tells workers with waiting frames that tables have changed.
  void wake_holders();

  /// Takes the workers' events, one call of `use` for each.
  template <typename Use>
  void take_events(Use use) {
    for (const auto& worker : workers_) {
      WorkerEvent event;
      while (worker->share.events.take(event)) use(event);
    }
  }

  struct Counters {
    std::uint64_t frames = 0;
    std::uint64_t bytes = 0;
    std::uint64_t packets = 0;
    std::uint64_t batches = 0;
    std::uint64_t held = 0;
  };
  /// Sums over the workers of one direction, also of those that have ended.
  [[nodiscard]] Counters outbound_counters() const;
  [[nodiscard]] Counters inbound_counters() const;
  [[nodiscard]] std::uint64_t drops(DropReason reason) const;
  [[nodiscard]] std::uint64_t events_lost() const;

 private:
  /// A thread with what it works on. Exactly one of the two is there.
  struct Worker {
    Worker(PortTables& tables, const ServerClock& clock, int wake, int control_wake)
        : share(tables, clock, wake, control_wake) {}
    WorkerShare share;
    std::unique_ptr<Outbound> outbound;
    std::unique_ptr<Inbound> inbound;
    std::thread thread;
  };

  [[nodiscard]] Counters counters(bool outbound) const;
  static void add(Counters& sum, const WorkerCounters& counters);

  const ServerClock& clock_;
  const std::vector<int> wakes_;
  const int control_wake_;
  PortTables tables_;
  PathManager paths_;
  std::vector<std::unique_ptr<Worker>> workers_;
  std::uint64_t woken_version_ = 0;

  // What workers that ended had counted.
  Counters ended_outbound_;
  Counters ended_inbound_;
  std::array<std::uint64_t, kDropReasonCount> ended_drops_{};
  std::uint64_t ended_lost_ = 0;
};

}  // namespace pairwire
