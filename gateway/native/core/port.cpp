// See port.hpp.
#include "core/port.hpp"

#include <pthread.h>

#include <algorithm>
#include <string>

#include "io/wait.hpp"

namespace pairwire {
namespace {

/// Address space only; pages are taken when frames come to wait.
constexpr std::size_t kSmallestHold = std::size_t{4} << 20;
constexpr std::size_t kLargestHold = std::size_t{256} << 20;

}  // namespace

Port::Port(const ServerClock& clock, std::vector<int> wakes, int control_wake,
           PathManager::Listener listener)
    : clock_(clock),
      wakes_(std::move(wakes)),
      control_wake_(control_wake),
      paths_(tables_, clock, std::move(listener)) {}

Port::~Port() {
  stop();
}

void Port::start(const PortIo& io) {
  stop();
  const std::size_t hold =
      std::clamp<std::size_t>(tables_.settings().hold_bytes, kSmallestHold, kLargestHold);
  std::size_t wake = 0;
  const auto add_worker = [&]() -> Worker& {
    workers_.push_back(std::make_unique<Worker>(tables_, clock_, wakes_.at(wake++), control_wake_));
    return *workers_.back();
  };
  for (std::size_t i = 0; i < std::min(io.taps.size(), kMaxWorkers); ++i) {
    Worker& worker = add_worker();
    worker.outbound =
        std::make_unique<Outbound>(worker.share, io.taps[i], io.udps[i % io.udps.size()], hold);
  }
  for (std::size_t i = 0; i < std::min(io.udps.size(), kMaxWorkers); ++i) {
    Worker& worker = add_worker();
    worker.inbound =
        std::make_unique<Inbound>(worker.share, io.taps[i % io.taps.size()], io.udps[i], io.merge);
  }
  // Only now: a thread that starts must not see a half-made list.
  for (const auto& worker : workers_) {
    Worker& one = *worker;
    one.thread = std::thread([&one] {
      pthread_setname_np(pthread_self(), one.outbound ? "pw-outbound" : "pw-inbound");
      one.outbound ? one.outbound->run() : one.inbound->run();
    });
  }
  paths_.set_socket(io.udps.front());
}

void Port::stop() {
  paths_.set_socket({});
  for (const auto& worker : workers_) {
    worker->share.stop.store(true, std::memory_order_release);
    wake_up(worker->share.wake);
  }
  for (const auto& worker : workers_) {
    if (worker->thread.joinable()) worker->thread.join();
    add(worker->outbound ? ended_outbound_ : ended_inbound_, worker->share.counters);
    for (std::size_t i = 0; i < kDropReasonCount; ++i) {
      ended_drops_[i] += worker->share.drops.get(static_cast<DropReason>(i));
    }
    ended_lost_ += worker->share.events.lost();
  }
  workers_.clear();
}

void Port::wake_holders() {
  if (tables_.version() == woken_version_) return;
  woken_version_ = tables_.version();
  for (const auto& worker : workers_) {
    if (worker->share.holding.load(std::memory_order_seq_cst)) wake_up(worker->share.wake);
  }
}

void Port::add(Counters& sum, const WorkerCounters& counters) {
  sum.frames += counters.frames.load(std::memory_order_relaxed);
  sum.bytes += counters.bytes.load(std::memory_order_relaxed);
  sum.packets += counters.supers.load(std::memory_order_relaxed);
  sum.batches += counters.batches.load(std::memory_order_relaxed);
  sum.held += counters.held.load(std::memory_order_relaxed);
}

Port::Counters Port::counters(bool outbound) const {
  Counters sum = outbound ? ended_outbound_ : ended_inbound_;
  for (const auto& worker : workers_) {
    if ((worker->outbound != nullptr) == outbound) add(sum, worker->share.counters);
  }
  return sum;
}

Port::Counters Port::outbound_counters() const {
  return counters(true);
}
Port::Counters Port::inbound_counters() const {
  return counters(false);
}

std::uint64_t Port::drops(DropReason reason) const {
  std::uint64_t sum = ended_drops_[static_cast<std::size_t>(reason)];
  for (const auto& worker : workers_) sum += worker->share.drops.get(reason);
  return sum;
}

std::uint64_t Port::events_lost() const {
  std::uint64_t sum = ended_lost_;
  for (const auto& worker : workers_) sum += worker->share.events.lost();
  return sum;
}

}  // namespace pairwire
