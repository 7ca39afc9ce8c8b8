// Batches of sealed frames straight on an Ethernet: AF_PACKET, EtherType 0x88B5, no IP.
//
//   arena   | destination | source | 88 b5 | frame | destination | source | 88 b5 | frame | ...
//            \_________________ ______________/
//               one message of the sendmmsg
//
// The kernel neither cuts nor joins frames of our EtherType, so a batch has one message for each.
// An Endpoint of this transport holds two MAC addresses: that of the far end and our own.
#pragma once

#include <sys/socket.h>
#include <sys/uio.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <utility>

#include "core/bytes.hpp"
#include "core/drop-reasons.hpp"
#include "core/endpoint.hpp"
#include "io/patience.hpp"
#include "io/udp.hpp"

namespace pairwire {

/// What stands in front of a sealed frame: destination, source, EtherType.
inline constexpr std::size_t kOuterHeaderSize = 14;

/// Sends one frame; false if the kernel did not take it. For the few outside a batch.
bool send_ethernet(int fd, const Endpoint& to, ConstBytes frame) noexcept;

/// Threads: one, the worker that owns it (the socket may be shared).
class EthernetSender {
 public:
  /// `fd`: an AF_PACKET socket as the broker made it, bound to one interface.
  EthernetSender(int fd, DropCounters& drops);

  /// Room for the next sealed frame to `to`, which must be filled; or the batch is flushed first
  /// and then there is room. `size` is at most UdpSender::kMaxFrame, as on the other transport.
  [[nodiscard]] Bytes reserve(const Endpoint& to, std::size_t size);

  /// Room for the next frame from its destination on, which must be filled.
  [[nodiscard]] Bytes reserve_frame(std::size_t size);

  /// Bytes that wait.
  [[nodiscard]] std::size_t pending() const noexcept { return used_; }

  /// Sends what waits. Frames that the kernel does not take are counted.
  void flush();

  /// As in UdpSender.
  [[nodiscard]] std::optional<Endpoint> take_too_long() noexcept {
    return std::exchange(too_long_, std::nullopt);
  }

 private:
  static constexpr std::size_t kArena = 4 * 65'536;
  static constexpr std::size_t kMessages = 256;
  static_assert(UdpSender::kMaxFrame + kOuterHeaderSize <= kArena);

  const int fd_;
  DropCounters& drops_;
  Patience patience_;
  std::optional<Endpoint> too_long_;
  std::unique_ptr<std::uint8_t[]> arena_;
  std::size_t used_ = 0;
  std::size_t count_ = 0;
  std::array<iovec, kMessages> parts_;
  std::array<mmsghdr, kMessages> messages_;
};

/// Threads: one, the worker that owns it.
class EthernetReceiver {
 public:
  /// `whole`: frames are given from their destination on.
  explicit EthernetReceiver(int fd, bool whole = false);

  /// Receives what is there without waiting: trains of one frame each, from the shim on. The result
  /// is good until the next call; `failed` is set if the socket is unusable.
  [[nodiscard]] std::span<const UdpReceiver::Train> receive(bool& failed);

 private:
  static constexpr std::size_t kMessages = 64;
  /// Longer than any frame that a gateway's MTU allows; what is longer is cut, and its tag then
  /// fails. An odd number of cache lines, so that frames don't get in each other's way in a cache.
  static constexpr std::size_t kBuffer = 161 * 64;

  const int fd_;
  const bool whole_;
  std::unique_ptr<std::uint8_t[]> buffers_;
  std::array<UdpReceiver::Train, kMessages> trains_;
  std::array<iovec, kMessages> parts_;
  std::array<mmsghdr, kMessages> messages_;
};

}  // namespace pairwire
