// How long a full socket may hold a sender up.
#pragma once

#include <cerrno>
#include <chrono>

#include "io/wait.hpp"

namespace pairwire {

/// Once for a batch, not for each of its messages, or a queue that is stuck would keep the worker
/// from being stopped for seconds, and the control thread with it. Meanwhile the TAP's own queue
/// fills, which is what slows the sender down.
///
/// Threads: one, the worker whose sender owns it.
class Patience {
 public:
  /// At the beginning of a batch.
  void renew() noexcept { left_ = kForABatch; }

  /// After a message was refused with `error`: waits if the socket was full. False if another
  /// error, or still full.
  [[nodiscard]] bool worth_another_try(int fd, int error) noexcept {
    if (error == EINTR) return true;
    if (error != EAGAIN && error != ENOBUFS) return false;
    if (wait_writable(fd, left_)) return true;
    left_ = std::chrono::milliseconds{0};
    return false;
  }

 private:
  static constexpr std::chrono::milliseconds kForABatch{50};

  std::chrono::milliseconds left_{};
};

}  // namespace pairwire
