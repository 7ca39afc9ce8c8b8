// Helpers that take over part of a worker's arithmetic.
//
//   worker    reads, numbers      seals 0, 2, ..      waits    sends, in order
//   helper                          seals 1, 3, ..
//
// The worker hands out pieces of work that don't depend on each other and goes on when all of them
// are done, so the order of frames is decided by the worker alone, as without helpers. It takes
// pieces itself: a helper that is late costs nothing but what it would have saved.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <thread>
#include <vector>

#include "core/spin-lock.hpp"

namespace pairwire {

/// Threads: made and destroyed by the control thread; `run` by any worker of the lane it belongs
/// to. One caller at a time has the helpers, another does its work alone.
class Crew {
 public:
  /// More would wait for each other: reading and sending stay with the worker.
  static constexpr std::size_t kMaxHelpers = 7;

  /// Starts `helpers` threads, named after `lane`.
  Crew(std::size_t helpers, std::size_t lane);
  ~Crew();
  Crew(const Crew&) = delete;
  Crew& operator=(const Crew&) = delete;

  /// Whether there is anybody to help.
  [[nodiscard]] bool empty() const { return threads_.empty(); }

  /// Calls `work(i)` for each i below `count`, by this thread and the helpers, and returns when all
  /// calls have. What `work` writes is seen by the caller. It must not throw.
  template <typename Work>
  void run(std::size_t count, Work& work) {
    if (count < 2 || empty() || !caller_.try_lock()) {
      for (std::size_t i = 0; i < count; ++i) work(i);
      return;
    }
    share(count, [](void* at, std::size_t i) { (*static_cast<Work*>(at))(i); }, &work);
    caller_.unlock();
  }

  /// Pieces that helpers did, for `stats`.
  [[nodiscard]] std::uint64_t helped() const { return helped_.load(std::memory_order_relaxed); }

 private:
  using Call = void (*)(void*, std::size_t);

  // `state_` is all that caller and helpers agree on. A helper that has read an old one finds it
  // changed when it claims a piece, so it never works on what is over.
  //
  //   | round, 32 bits | pieces left to claim, 32 bits |
  static constexpr std::uint64_t kRound = std::uint64_t{1} << 32;
  static constexpr std::uint64_t kLeft = kRound - 1;

  void share(std::size_t count, Call call, void* at);
  void help();
  bool claim(std::uint64_t& state, std::size_t& piece);

  SpinLock caller_;
  alignas(64) std::atomic<std::uint64_t> state_{0};
  alignas(64) std::atomic<std::size_t> done_{0};
  // Written by the caller before a round, read by whoever has claimed a piece of it.
  std::atomic<Call> call_{nullptr};
  std::atomic<void*> at_{nullptr};
  std::atomic<std::uint32_t> bell_{0};      ///< changes when there is work; helpers sleep on it
  std::atomic<std::uint32_t> sleeping_{0};  ///< helpers that wait for the bell
  std::atomic<bool> stop_{false};
  std::atomic<std::uint64_t> helped_{0};
  std::vector<std::thread> threads_;
};

}  // namespace pairwire
