// Sleeping until a descriptor is ready, and waking another thread that does.
#pragma once

#include <poll.h>

#include <chrono>
#include <cstdint>
#include <span>

namespace pairwire {

/// Waits until `fd` can be written to; false after `limit`.
bool wait_writable(int fd, std::chrono::milliseconds limit) noexcept;

/// A descriptor to wait for. One of -1 is left out.
struct Waited {
  int fd = -1;
  bool readable = false;  ///< set
  bool failed = false;    ///< set: in a state of error, and waiting for it again would not sleep
};

/// Waits until one of `fds` can be read or one of the eventfds `wakes` is written to, at most
/// `timeout_ms` (-1: for ever). Empties the eventfds. True if nothing but `fds` ended it.
bool wait_readable(std::span<Waited> fds, std::span<const int> wakes, int timeout_ms) noexcept;

/// Adds 1 to an eventfd.
void wake_up(int eventfd) noexcept;

}  // namespace pairwire
