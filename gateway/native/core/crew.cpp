// See crew.hpp.
#include "core/crew.hpp"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <string>

#include "core/clock.hpp"
#include "core/idle-spin.hpp"

namespace pairwire {
namespace {

/// A helper looks for the next round for so long before it sleeps, if rounds come that often.
constexpr std::uint64_t kSpinUs = 50;
/// Between two looks at the clock.
constexpr int kLooks = 32;
/// Looks at a helper that does not get ready before somebody else may have this core.
constexpr int kPatience = 4096;

}  // namespace

Crew::Crew(std::size_t helpers, std::size_t lane) {
  helpers = std::min(helpers, kMaxHelpers);
  threads_.reserve(helpers);
  for (std::size_t i = 0; i < helpers; ++i) {
    threads_.emplace_back([this, lane, i] {
      const std::string name = "pw-lane" + std::to_string(lane) + "-crew" + std::to_string(i);
      pthread_setname_np(pthread_self(), name.c_str());
      help();
    });
  }
}

Crew::~Crew() {
  stop_.store(true, std::memory_order_release);
  bell_.fetch_add(1, std::memory_order_acq_rel);
  bell_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

/// Takes one piece of the round that `state` belongs to; false if there is none left, or another
/// round has begun.
bool Crew::claim(std::uint64_t& state, std::size_t& piece) {
  while ((state & kLeft) != 0) {
    const std::uint64_t before = state;
    if (state_.compare_exchange_weak(state, before - 1, std::memory_order_acq_rel)) {
      piece = static_cast<std::size_t>((before & kLeft) - 1);
      state = before - 1;
      return true;
    }
    if ((state & ~kLeft) != (before & ~kLeft)) return false;
  }
  return false;
}

void Crew::share(std::size_t count, Call call, void* at) {
  // Nobody has a piece of the last round any more: `share` waited for that.
  call_.store(call, std::memory_order_relaxed);
  at_.store(at, std::memory_order_relaxed);
  done_.store(0, std::memory_order_relaxed);
  const std::uint64_t round = (state_.load(std::memory_order_relaxed) & ~kLeft) + kRound;
  state_.store(round | count, std::memory_order_seq_cst);
  // A helper that goes to sleep says so before its last look at `state_`.
  if (sleeping_.load(std::memory_order_seq_cst) != 0) {
    bell_.fetch_add(1, std::memory_order_acq_rel);
    bell_.notify_all();
  }
  std::uint64_t state = round | count;
  std::size_t piece = 0;
  std::size_t own = 0;
  while (claim(state, piece)) {
    call(at, piece);
    ++own;
  }
  // The helpers are in the middle of a piece, so this is over soon; but one may have lost its core.
  for (int looks = 1; done_.load(std::memory_order_acquire) + own < count; ++looks) {
    SpinLock::pause();
    if (looks % kPatience == 0) sched_yield();
  }
}

void Crew::help() {
  IdleSpin spin(kSpinUs);
  while (!stop_.load(std::memory_order_acquire)) {
    const std::uint32_t bell = bell_.load(std::memory_order_acquire);
    std::uint64_t state = state_.load(std::memory_order_acquire);
    std::size_t piece = 0;
    bool any = false;
    while (claim(state, piece)) {
      call_.load(std::memory_order_relaxed)(at_.load(std::memory_order_relaxed), piece);
      done_.fetch_add(1, std::memory_order_acq_rel);
      helped_.fetch_add(1, std::memory_order_relaxed);
      any = true;
    }
    if (any) {
      spin.worked(boot_us());
      continue;
    }
    if (spin.look_again(boot_us())) {
      for (int i = 0; i < kLooks; ++i) SpinLock::pause();
      continue;
    }
    sleeping_.fetch_add(1, std::memory_order_seq_cst);
    if ((state_.load(std::memory_order_seq_cst) & kLeft) == 0) {
      bell_.wait(bell, std::memory_order_acquire);
    }
    sleeping_.fetch_sub(1, std::memory_order_relaxed);
  }
}

}  // namespace pairwire
