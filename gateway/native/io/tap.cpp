// See tap.hpp.
#include "io/tap.hpp"

#include <unistd.h>

#include <cerrno>
#include <chrono>

#include "io/wait.hpp"

namespace pairwire {

TapRead tap_read(int fd, Bytes buffer, std::size_t& size) noexcept {
  for (;;) {
    const ssize_t got = read(fd, buffer.data(), buffer.size());
    if (got > 0) {
      size = static_cast<std::size_t>(got);
      return TapRead::kPacket;
    }
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && errno == EAGAIN) return TapRead::kEmpty;
    return TapRead::kFailed;  // EBADFD: the device was taken away.
  }
}

bool tap_write(int fd, ConstBytes packet) noexcept {
  for (bool again = true;;) {
    if (write(fd, packet.data(), packet.size()) >= 0) return true;
    if (errno == EINTR) continue;
    // A TAP takes a frame at once or never; other descriptors (tests) may want a moment.
    if (errno != EAGAIN || !again || !wait_writable(fd, std::chrono::milliseconds(10))) {
      return false;
    }
    again = false;
  }
}

}  // namespace pairwire
