// Sleeping until a descriptor is ready, and waking another thread that does.
#pragma once

#include <poll.h>

#include <chrono>
#include <cstdint>

namespace pairwire {

/// Waits until `fd` can be written to; false after `limit`.
bool wait_writable(int fd, std::chrono::milliseconds limit) noexcept;

/// Waits until `fd` can be read or the eventfd `wake` is written to, at most `timeout_ms` (-1: for
/// ever). Empties the eventfd. Returns false if `fd` is in a state of error, so that the caller
/// does not spin.
bool wait_readable(int fd, int wake, int timeout_ms) noexcept;

/// Adds 1 to an eventfd.
void wake_up(int eventfd) noexcept;

}  // namespace pairwire
