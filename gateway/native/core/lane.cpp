// Who serves which direction of a lane, and when.
//
//            first thread                              second thread
//   idle     sleeps on TAP and socket                  sleeps
//   light    both directions, one after the other      sleeps
//   heavy    inbound                                   outbound
//
// One thread for both is quicker as long as it has time: the answer to a frame that it wrote to the
// TAP is often there when it looks, so nobody has to be woken, and a lane takes one core from the
// applications, not two. When both directions keep it busy for a while, the outbound one goes to
// the second thread, which gives it back when it has little to do.
//
// A thread that has nothing to do looks again for some microseconds if that has paid lately
// (idle-spin.hpp), and else sleeps in `poll`. It does not yield meanwhile: where another thread
// wants the core, Linux makes who yields wait for a whole time slice (measured: half the TCP
// throughput). Behind a lone packet it does not even look whether there is nothing to do, for
// `poll` finds that out as well: Linux woke on this core whom the packet is for, who waits for us
// to leave it.
#include "core/lane.hpp"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <array>
#include <string>
#include <utility>

#include "io/wait.hpp"

namespace pairwire {
namespace {

/// A descriptor in a state of error is looked at again so often.
constexpr int kFailedWaitMs = 200;
/// While frames wait for a key, their time-out is looked at so often.
constexpr int kHoldingWaitMs = 20;
/// How often the second thread asks itself whether it is still needed, and the hundredths of its
/// time below which it is not.
constexpr std::uint64_t kReviewUs = 10'000;
constexpr std::uint64_t kGiveBackPercent = 15;

void name_thread(std::size_t number, const char* what) {
  const std::string name = "pw-lane" + std::to_string(number) + what;
  pthread_setname_np(pthread_self(), name.c_str());
}

}  // namespace

Lane::Lane(PortTables& tables, const ServerClock& clock, std::span<const int, kWakeFds> wakes,
           int control_wake, const Io& io, const LaneOptions& options, std::size_t number)
    : options_(options),
      tap_(io.tap),
      underlay_(io.underlay.fd),
      number_(number),
      in_(tables, clock, wakes[0], control_wake),
      out_(tables, clock, wakes[1], control_wake),
      crew_(options.helpers, number),
      outbound_(out_, io.tap, io.underlay, io.hold_capacity, crew_),
      inbound_(in_, io.tap, io.underlay, io.merge, crew_) {}

Lane::~Lane() {
  ask_to_stop();
  join();
}

void Lane::start() {
  first_ = std::thread([this] {
    name_thread(number_, "");
    run_first();
  });
  if (!options_.second_thread) return;
  second_ = std::thread([this] {
    name_thread(number_, "-out");
    run_second();
  });
}

void Lane::ask_to_stop() {
  in_.stop.store(true, std::memory_order_release);
  out_.stop.store(true, std::memory_order_release);
  turn_.store(Turn::kStop, std::memory_order_release);
  turn_.notify_all();
  wake_up(in_.wake);
  wake_up(out_.wake);
}

void Lane::join() {
  if (first_.joinable()) first_.join();
  if (second_.joinable()) second_.join();
  outbound_.end();
  inbound_.end();
}

// --- First thread -------------------------------------------------------------------------------

void Lane::run_first() {
  IdleSpin after_in(options_.spin_us);
  IdleSpin after_out(options_.spin_us);
  while (!stopped()) {
    // Only this thread gives the direction away, so it stays ours until we do.
    const bool both = turn() == Turn::kFirst;
    in_.reader->online();
    if (both) out_.reader->online();
    serve(both, after_in, after_out);
    in_.reader->offline();
    if (turn() == (both ? Turn::kSecond : Turn::kFirst)) continue;  // Given away, or back.
    if (both) out_.reader->offline();
    choose_policy();
    if (!stopped()) sleep_first(both);
  }
}

/// Until there is nothing to do, or the outbound direction has been given away or back. Given away,
/// it is offline.
void Lane::serve(bool both, IdleSpin& after_in, IdleSpin& after_out) {
  if (last_ == nullptr) last_ = &after_in;
  Busy busy;
  std::uint64_t now = boot_us();
  busy.since_us = now;
  while (!stopped()) {
    // However busy the inbound direction is: else nobody would look at the TAP.
    if (!both && turn() == Turn::kFirst) return;
    const std::uint64_t begin = now;
    const std::uint64_t accepted = in_.counters.frames.load(std::memory_order_relaxed);
    const bool came = std::exchange(only_tap_, false) ? false : inbound_.batch();
    const bool good = in_.counters.frames.load(std::memory_order_relaxed) != accepted;
    in_.reader->quiescent();
    now = boot_us();
    busy.in_us += now - begin;
    bool went = false;
    if (both) {
      const std::uint64_t middle = now;
      went = outbound_.batch();
      out_.reader->quiescent();
      now = boot_us();
      busy.out_us += now - middle;
    }
    if (came || went) {
      // What strangers send teaches nothing: else some thousand forged datagrams a second would
      // keep a core awake.
      if (good || went) {
        last_->worked(begin);
        last_ = went ? &after_out : &after_in;
      }
      if (both && worth_giving(busy)) return give();
      if (now - busy.since_us > kReviewUs) busy = {now, 0, 0};
      const bool lone = (!came || inbound_.lone()) && (!went || outbound_.lone());
      if (!both || !lone) continue;
    }
    if (!last_->look_again(now)) return;
    busy = {now, 0, 0};
  }
}

bool Lane::worth_giving(const Busy& busy) const {
  if (!options_.second_thread) return false;
  const std::uint64_t in_all = busy.in_us + busy.out_us;
  return in_all >= options_.busy_us &&
         std::min(busy.in_us, busy.out_us) * 100 >= in_all * options_.busy_percent;
}

void Lane::give() {
  out_.reader->offline();
  gifts_.store(gifts_.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
  // Fails if the control thread wants us to stop.
  Turn expected = Turn::kFirst;
  turn_.compare_exchange_strong(expected, Turn::kSecond, std::memory_order_acq_rel);
  turn_.notify_all();
}

void Lane::sleep_first(bool both) {
  int limit = in_.holding.load(std::memory_order_relaxed) ? kHoldingWaitMs : -1;
  if (both && out_.holding.load(std::memory_order_relaxed)) limit = kHoldingWaitMs;
  if (!underlay_sound_ || (both && !tap_sound_)) limit = kFailedWaitMs;
  std::array<Waited, 2> fds{Waited{underlay_sound_ ? underlay_ : -1},
                            Waited{both && tap_sound_ ? tap_ : -1}};
  const std::array<int, 2> wakes{in_.wake, both ? out_.wake : -1};
  const bool only_fds = wait_readable(fds, wakes, limit);
  // Who woke us would wait for a look at the socket in vain. The other way round it is not in vain:
  // what comes in is often answered at once, by the kernel while it is handed over.
  only_tap_ = only_fds && fds[1].readable && !fds[0].readable && !fds[0].failed;
  // A descriptor that failed is left out of the next sleep, once.
  underlay_sound_ = !fds[0].failed;
  tap_sound_ = !fds[1].failed;
}

/// Pushes others aside when it is woken only where there is no other core (spare-cores.hpp).
void Lane::choose_policy() {
  if (options_.spare_cores == nullptr) return;
  const bool batch = options_.spare_cores->any(boot_us());
  if (batch == batch_) return;
  const sched_param none{};
  if (sched_setscheduler(0, batch ? SCHED_BATCH : SCHED_OTHER, &none) == 0) batch_ = batch;
}

// --- Second thread ------------------------------------------------------------------------------

void Lane::run_second() {
  IdleSpin spin(options_.spin_us);
  while (!stopped()) {
    const Turn now = turn();
    if (now != Turn::kSecond) {
      turn_.wait(now, std::memory_order_acquire);
      continue;
    }
    out_.reader->online();
    const bool needed = serve_outbound(spin);
    out_.reader->offline();
    if (!needed) give_back();
  }
}

/// False when the direction may go back.
bool Lane::serve_outbound(IdleSpin& spin) {
  std::uint64_t review = boot_us() + kReviewUs;
  std::uint64_t worked_us = 0;
  std::uint64_t now = boot_us();
  while (!stopped()) {
    const std::uint64_t begin = now;
    const bool went = outbound_.batch();
    out_.reader->quiescent();
    now = boot_us();
    if (went) {
      worked_us += now - begin;
      spin.worked(begin);
    }
    if (now >= review) {
      if (worked_us * 100 < kReviewUs * kGiveBackPercent) return false;
      review = now + kReviewUs;
      worked_us = 0;
    }
    if (went) continue;
    if (spin.look_again(now)) continue;
    out_.reader->offline();
    std::array<Waited, 1> fds{Waited{tap_}};
    const std::array<int, 1> wakes{out_.wake};
    wait_readable(fds, wakes, static_cast<int>(kReviewUs / 1000));
    if (fds[0].failed) return false;  // The first thread knows how to wait for it.
    out_.reader->online();
    now = boot_us();
  }
  return false;
}

void Lane::give_back() {
  Turn expected = Turn::kSecond;
  if (turn_.compare_exchange_strong(expected, Turn::kFirst, std::memory_order_acq_rel)) {
    wake_up(in_.wake);  // The first thread looks at the TAP from now on.
  }
}

}  // namespace pairwire
