// See port.hpp.
#include "core/port.hpp"

#include <algorithm>
#include <span>

#include "io/wait.hpp"

namespace pairwire {
namespace {

/// Address space only; pages are taken when frames come to wait.
constexpr std::size_t kSmallestHold = std::size_t{4} << 20;
constexpr std::size_t kLargestHold = std::size_t{256} << 20;

}  // namespace

Port::Port(const ServerClock& clock, std::vector<int> wakes, int control_wake,
           PathManager::Listener listener, std::function<void(ConstBytes receipt)> seen,
           PlainSide::Listener plain)
    : clock_(clock),
      wakes_(std::move(wakes)),
      control_wake_(control_wake),
      paths_(tables_, clock, std::move(listener)),
      relay_(tables_,
             {.seen = std::move(seen), .changed = [this] { paths_.relay_changed(boot_ms()); }}),
      plain_(tables_, clock, std::move(plain)) {}

Port::~Port() {
  stop();
}

void Port::start(const PortIo& io) {
  stop();
  const std::size_t hold =
      std::clamp<std::size_t>(tables_.settings().hold_bytes, kSmallestHold, kLargestHold);
  const std::size_t count = std::min({std::max(io.taps.size(), io.underlays.size()), kMaxLanes});
  for (std::size_t i = 0; i < count; ++i) {
    const std::span<const int, Lane::kWakeFds> wakes(&wakes_.at(i * Lane::kWakeFds),
                                                     Lane::kWakeFds);
    lanes_.push_back(
        std::make_unique<Lane>(tables_, clock_, wakes, control_wake_,
                               Lane::Io{io.taps[i % io.taps.size()],
                                        io.underlays[i % io.underlays.size()], io.merge, hold},
                               io.lane, i));
  }
  // Only now: a thread that starts must not see a half-made list.
  for (std::size_t i = 0; i < count; ++i) lanes_[i]->start();
  paths_.set_socket(io.underlays.front());
  relay_.set_socket(io.underlays.front());
  plain_.set_tap(io.taps.front());
  plain_.retell();
}

void Port::stop() {
  paths_.set_socket({});
  relay_.set_socket({});
  plain_.set_tap(-1);
  for (const auto& lane : lanes_) lane->ask_to_stop();
  for (const auto& lane : lanes_) {
    lane->join();
    add(ended_outbound_, lane->out().counters);
    add(ended_inbound_, lane->in().counters);
    for (std::size_t i = 0; i < kDropReasonCount; ++i) {
      const auto reason = static_cast<DropReason>(i);
      ended_drops_[i] += lane->in().drops.get(reason) + lane->out().drops.get(reason);
    }
    ended_lost_ += lane->in().events.lost() + lane->out().events.lost();
    if (const PlainShare* const plain = lane->out().plain.get()) {
      ended_plain_.learn_full += plain->learn_full.load(std::memory_order_relaxed);
      ended_plain_.probes_over += plain->probes_over.load(std::memory_order_relaxed);
    }
    ended_gifts_ += lane->gifts();
    ended_helped_ += lane->helped();
  }
  lanes_.clear();
}

std::optional<std::uint64_t> Port::run_plain(std::uint64_t now_ms) {
  const PlainSide::Due due = plain_.run(now_ms);
  if (!due.look && !due.retell) return due.next;
  for (const auto& lane : lanes_) {
    PlainShare* const share = lane->out().plain.get();
    if (share == nullptr) continue;
    if (due.retell) share->retell.store(true, std::memory_order_release);
    share->look.store(true, std::memory_order_release);
    wake_up(lane->out().wake);
  }
  return due.next;
}

void Port::take_plain(std::uint64_t now_ms) {
  for (const auto& lane : lanes_) {
    if (lane->out().plain != nullptr) plain_.take(*lane->out().plain, now_ms);
  }
}

Port::PlainCounters Port::plain_counters() const {
  PlainCounters sum = ended_plain_;
  for (const auto& lane : lanes_) {
    const PlainShare* const plain = lane->out().plain.get();
    if (plain == nullptr) continue;
    sum.learned += plain->learned_now.load(std::memory_order_relaxed);
    sum.learn_full += plain->learn_full.load(std::memory_order_relaxed);
    sum.probes_over += plain->probes_over.load(std::memory_order_relaxed);
  }
  return sum;
}

void Port::wake_holders() {
  if (tables_.version() == woken_version_) return;
  woken_version_ = tables_.version();
  for (const auto& lane : lanes_) {
    for (WorkerShare* const share : {&lane->in(), &lane->out()}) {
      if (share->holding.load(std::memory_order_seq_cst)) wake_up(share->wake);
    }
  }
}

void Port::add(Counters& sum, const WorkerCounters& counters) {
  sum.frames += counters.frames.load(std::memory_order_relaxed);
  sum.bytes += counters.bytes.load(std::memory_order_relaxed);
  sum.packets += counters.supers.load(std::memory_order_relaxed);
  sum.batches += counters.batches.load(std::memory_order_relaxed);
  sum.held += counters.held.load(std::memory_order_relaxed);
  sum.parts += counters.parts.load(std::memory_order_relaxed);
  sum.cut += counters.cut.load(std::memory_order_relaxed);
  sum.unasked += counters.unasked.load(std::memory_order_relaxed);
  sum.answers_over += counters.answers_over.load(std::memory_order_relaxed);
  sum.relay_over += counters.relay_over.load(std::memory_order_relaxed);
  sum.claims_over += counters.claims_over.load(std::memory_order_relaxed);
  sum.relayed += counters.relayed.load(std::memory_order_relaxed);
  sum.told_too_big += counters.told_too_big.load(std::memory_order_relaxed);
  sum.mss_clamped += counters.mss_clamped.load(std::memory_order_relaxed);
  sum.answered_arp += counters.answered_arp.load(std::memory_order_relaxed);
  sum.answered_nd += counters.answered_nd.load(std::memory_order_relaxed);
}

Port::Counters Port::counters(bool outbound) const {
  Counters sum = outbound ? ended_outbound_ : ended_inbound_;
  for (const auto& lane : lanes_) add(sum, (outbound ? lane->out() : lane->in()).counters);
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
  for (const auto& lane : lanes_) {
    sum += lane->in().drops.get(reason) + lane->out().drops.get(reason);
  }
  return sum;
}

std::uint64_t Port::events_lost() const {
  std::uint64_t sum = ended_lost_;
  for (const auto& lane : lanes_) sum += lane->in().events.lost() + lane->out().events.lost();
  return sum;
}

std::uint64_t Port::helped() const {
  std::uint64_t sum = ended_helped_;
  for (const auto& lane : lanes_) sum += lane->helped();
  return sum;
}

std::uint64_t Port::gifts() const {
  std::uint64_t sum = ended_gifts_;
  for (const auto& lane : lanes_) sum += lane->gifts();
  return sum;
}

}  // namespace pairwire
