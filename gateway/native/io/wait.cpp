// See wait.hpp.
#include "io/wait.hpp"

#include <unistd.h>

#include <array>

namespace pairwire {

bool wait_writable(int fd, std::chrono::milliseconds limit) noexcept {
  pollfd entry{fd, POLLOUT, 0};
  return poll(&entry, 1, static_cast<int>(limit.count())) > 0 && (entry.revents & POLLOUT) != 0;
}

bool wait_readable(int fd, int wake, int timeout_ms) noexcept {
  std::array<pollfd, 2> entries{pollfd{fd, POLLIN, 0}, pollfd{wake, POLLIN, 0}};
  if (poll(entries.data(), entries.size(), timeout_ms) <= 0) return true;
  if ((entries[1].revents & POLLIN) != 0) {
    std::uint64_t count = 0;
    // Non-blocking; another wake-up between poll and read is taken along.
    static_cast<void>(!read(wake, &count, sizeof(count)));
  }
  return (entries[0].revents & POLLIN) != 0 ||
         (entries[0].revents & (POLLERR | POLLHUP | POLLNVAL)) == 0;
}

void wake_up(int eventfd) noexcept {
  const std::uint64_t one = 1;
  // Fails only if the counter is full, and then the other side is awake.
  static_cast<void>(!write(eventfd, &one, sizeof(one)));
}

}  // namespace pairwire
