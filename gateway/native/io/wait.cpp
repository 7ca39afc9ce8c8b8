// See wait.hpp.
#include "io/wait.hpp"

#include <unistd.h>

#include <array>

namespace pairwire {
namespace {

/// More than a lane has: TAP, socket, two eventfds.
constexpr std::size_t kMaxWaited = 8;

}  // namespace

bool wait_writable(int fd, std::chrono::milliseconds limit) noexcept {
  pollfd entry{fd, POLLOUT, 0};
  return poll(&entry, 1, static_cast<int>(limit.count())) > 0 && (entry.revents & POLLOUT) != 0;
}

bool wait_readable(std::span<Waited> fds, std::span<const int> wakes, int timeout_ms) noexcept {
  std::array<pollfd, kMaxWaited> entries{};
  std::size_t count = 0;
  const auto add = [&](int fd) {
    if (count < entries.size())
      entries[count++] = {fd, POLLIN, 0};  // -1 is left out by the kernel.
  };
  for (const Waited& waited : fds) add(waited.fd);
  for (const int wake : wakes) add(wake);
  const bool ready = poll(entries.data(), count, timeout_ms) > 0;
  for (std::size_t i = 0; i < fds.size(); ++i) {
    const short events = ready ? entries[i].revents : short{0};
    fds[i].readable = (events & POLLIN) != 0;
    fds[i].failed = !fds[i].readable && (events & (POLLERR | POLLHUP | POLLNVAL)) != 0;
  }
  bool only_fds = ready;
  for (std::size_t i = fds.size(); i < count; ++i) {
    if (!ready || (entries[i].revents & POLLIN) == 0) continue;
    only_fds = false;
    std::uint64_t counted = 0;
    // Non-blocking; another wake-up between poll and read is taken along.
    static_cast<void>(!read(entries[i].fd, &counted, sizeof(counted)));
  }
  return only_fds;
}

void wake_up(int eventfd) noexcept {
  const std::uint64_t one = 1;
  // Fails only if the counter is full, and then the other side is awake.
  static_cast<void>(!write(eventfd, &one, sizeof(one)));
}

}  // namespace pairwire
