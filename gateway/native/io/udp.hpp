// Batches of sealed frames over a UDP socket: UDP_SEGMENT out, UDP_GRO in.
//
//   arena   | frame | frame | frame | fr. | frame | frame | ...
//            \____________ ____________/ \______ _______/
//              train: one message with       next train
//              UDP_SEGMENT, all of one
//              size, the last may be shorter
//
// All trains of a batch leave in one sendmmsg.
#pragma once

#include <netinet/in.h>
#include <sys/socket.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "core/bytes.hpp"
#include "core/drop-reasons.hpp"
#include "core/endpoint.hpp"
#include "io/patience.hpp"

namespace pairwire {

// Implementation constants.
inline constexpr std::size_t kMaxTrainFrames = 64;  ///< UDP_MAX_SEGMENTS before Linux 6.9
/// 65,535 less IPv4 and UDP header is 65,507; rounded down to have room for IP options.
inline constexpr std::size_t kMaxTrainBytes = 65'400;
static_assert(kMaxTrainBytes < 65'507);

/// A socket as the broker made it. Does not own it.
struct UdpSocket {
  int fd = -1;
  bool v4_only = false;  ///< AF_INET, because the host has no IPv6

  /// Finds out which. Needs no more than getsockopt(SO_DOMAIN).
  [[nodiscard]] static UdpSocket of(int fd) noexcept;
};

/// The name of an endpoint as a socket wants it.
union UdpName {
  sockaddr any;
  sockaddr_in v4;
  sockaddr_in6 v6;

  /// Returns the size, or 0 if the socket can't reach such an endpoint.
  socklen_t set(const Endpoint& endpoint, bool v4_only) noexcept;
  [[nodiscard]] Endpoint get() const noexcept;
};

/// Sends one datagram; false if the kernel did not take it. For the few frames outside a batch.
bool send_datagram(UdpSocket socket, const Endpoint& to, ConstBytes datagram) noexcept;

/// Threads: one, the worker that owns it (the socket may be shared).
class UdpSender {
 public:
  /// A frame up to this size can be reserved.
  static constexpr std::size_t kMaxFrame = kMaxTrainBytes;

  /// Sealed frames that wait lie here.
  static constexpr std::size_t kArena = 8 * 65'536;

  UdpSender(UdpSocket socket, DropCounters& drops);

  /// Whether `frames` frames of `bytes` bytes in all, to one endpoint, can be reserved without a
  /// flush.
  [[nodiscard]] bool fits(std::size_t frames, std::size_t bytes) const noexcept {
    const std::size_t trains = frames / kMaxTrainFrames + bytes / kMaxTrainBytes + 3;
    return used_ + bytes <= kArena && count_ + trains <= kMessages;
  }

  /// Room for the next frame to `to`, which must be filled; or the batch is flushed first and
  /// then there is room. `size` is at most kMaxFrame.
  [[nodiscard]] Bytes reserve(const Endpoint& to, std::size_t size);

  /// Appends a train that lies elsewhere: `bytes` must stay as they are until `flush`.
  void push(const Endpoint& to, ConstBytes bytes, std::size_t frame_size, std::size_t frames);

  /// Bytes that wait.
  [[nodiscard]] std::size_t pending() const noexcept { return used_; }

  /// Sends what waits. Frames that the kernel does not take are counted.
  void flush();

  /// Where the last frame was for that the kernel found too long; once for each.
  [[nodiscard]] std::optional<Endpoint> take_too_long() noexcept {
    return std::exchange(too_long_, std::nullopt);
  }

  /// Messages handed to the kernel and frames in them, for `stats`.
  struct Counts {
    std::uint64_t calls = 0;
    std::uint64_t trains = 0;
    std::uint64_t frames = 0;
  };
  [[nodiscard]] const Counts& counts() const noexcept { return counts_; }

 private:
  static constexpr std::size_t kMessages = 256;

  struct Train {
    const std::uint8_t* at = nullptr;
    std::size_t bytes = 0;
    std::size_t frame_size = 0;
    std::size_t frames = 0;
    bool closed = false;
  };
  struct alignas(cmsghdr) Control {
    std::array<std::uint8_t, CMSG_SPACE(sizeof(std::uint16_t))> bytes;
  };

  Train& add_train(const Endpoint& to);
  void count_refused(std::size_t index, int error, std::size_t frames);
  void send_failed_train(std::size_t index, int error);
  void send_alone(std::size_t index, std::size_t first, std::size_t count, bool& any_taken);
  bool send_part(std::size_t index, std::size_t first, std::size_t count);

  UdpSocket socket_;
  DropCounters& drops_;
  Patience patience_;
  std::optional<Endpoint> too_long_;
  bool segment_ = true;  ///< false once the kernel refused UDP_SEGMENT where datagrams went through
  std::unique_ptr<std::uint8_t[]> arena_;
  std::size_t used_ = 0;
  std::size_t count_ = 0;
  Counts counts_;
  std::array<Train, kMessages> trains_;
  std::array<Endpoint, kMessages> to_;
  std::array<UdpName, kMessages> names_;
  std::array<iovec, kMessages> parts_;
  std::array<Control, kMessages> controls_;
  std::array<mmsghdr, kMessages> messages_;
};

/// Threads: one, the worker that owns it.
class UdpReceiver {
 public:
  /// Datagrams of equal size from one source, as UDP_GRO joined them; the last may be shorter.
  struct Train {
    Endpoint from;
    Bytes bytes;
    std::size_t frame_size;
  };

  /// Trains that one call gives at most.
  static constexpr std::size_t kMessages = 16;

  explicit UdpReceiver(UdpSocket socket);

  /// Receives what is there without waiting. The result is good until the next call; `failed` is
  /// set if the socket is unusable.
  [[nodiscard]] std::span<const Train> receive(bool& failed);

 private:
  static constexpr std::size_t kBuffer = 65'536;

  struct alignas(cmsghdr) Control {
    std::array<std::uint8_t, CMSG_SPACE(sizeof(int))> bytes;
  };

  UdpSocket socket_;
  std::unique_ptr<std::uint8_t[]> buffers_;
  std::array<Train, kMessages> trains_;
  std::array<UdpName, kMessages> names_;
  std::array<iovec, kMessages> parts_;
  std::array<Control, kMessages> controls_;
  std::array<mmsghdr, kMessages> messages_;
};

}  // namespace pairwire
