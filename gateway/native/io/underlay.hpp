// The underlay of a port: a UDP socket or a socket on an Ethernet. What is different about the
// two is known here, in `Endpoint` and in the associated data; workers and paths use one as the
// other. A wire (transport `ip`) is a socket on an Ethernet whose frames the workers make
// themselves.
#pragma once

#include <cstddef>
#include <optional>
#include <span>

#include "core/bytes.hpp"
#include "core/endpoint.hpp"
#include "core/frame.hpp"
#include "io/ethernet.hpp"
#include "io/udp.hpp"

namespace pairwire {

/// A socket as the broker made it. Does not own it.
struct Underlay {
  Underlay() = default;
  Underlay(UdpSocket socket) : fd(socket.fd), v4_only(socket.v4_only) {}  // NOLINT: one of two
  [[nodiscard]] static Underlay of_ethernet(int socket) {
    Underlay underlay;
    underlay.fd = socket;
    underlay.transport = Transport::kEthernet;
    return underlay;
  }

  /// The interface of a link port of level `ip`: whole frames, of which some carry sealed packets.
  [[nodiscard]] static Underlay of_wire(int socket) {
    Underlay underlay;
    underlay.fd = socket;
    underlay.transport = Transport::kIp;
    return underlay;
  }

  /// Whether the socket takes and gives frames.
  [[nodiscard]] bool is_packet() const { return transport != Transport::kUdp; }
  [[nodiscard]] bool is_wire() const { return transport == Transport::kIp; }
  [[nodiscard]] bool is_ethernet() const { return transport == Transport::kEthernet; }
  [[nodiscard]] UdpSocket udp() const { return {fd, v4_only}; }

  int fd = -1;
  bool v4_only = false;
  Transport transport = Transport::kUdp;
};

/// Sends one sealed frame; false if the kernel did not take it. For the few outside a batch.
inline bool send_frame(const Underlay& underlay, const Endpoint& to, ConstBytes frame) noexcept {
  return underlay.is_packet() ? send_ethernet(underlay.fd, to, frame)
                              : send_datagram(underlay.udp(), to, frame);
}

/// Threads: one, the worker that owns it.
class UnderlaySender {
 public:
  UnderlaySender(const Underlay& underlay, DropCounters& drops) {
    if (underlay.is_packet()) {
      ethernet_.emplace(underlay.fd, drops);
    } else {
      udp_.emplace(underlay.udp(), drops);
    }
  }

  [[nodiscard]] Bytes reserve(const Endpoint& to, std::size_t size) {
    return ethernet_ ? ethernet_->reserve(to, size) : udp_->reserve(to, size);
  }
  /// Room for a whole frame, outer headers and all. Only for a wire.
  [[nodiscard]] Bytes reserve_frame(std::size_t size) { return ethernet_->reserve_frame(size); }
  /// Whether `frames` frames of `bytes` bytes in all, to one endpoint, can be reserved without a
  /// flush, one behind the other. Never on an Ethernet, where headers stand between them.
  [[nodiscard]] bool fits(std::size_t frames, std::size_t bytes) const noexcept {
    return udp_ && udp_->fits(frames, bytes);
  }
  /// Only for UDP: an Ethernet broadcasts a frame by itself.
  void push(const Endpoint& to, ConstBytes bytes, std::size_t frame_size, std::size_t frames) {
    if (udp_) udp_->push(to, bytes, frame_size, frames);
  }
  [[nodiscard]] std::size_t pending() const noexcept {
    return ethernet_ ? ethernet_->pending() : udp_->pending();
  }
  [[nodiscard]] std::optional<Endpoint> take_too_long() noexcept {
    return ethernet_ ? ethernet_->take_too_long() : udp_->take_too_long();
  }
  void flush() { ethernet_ ? ethernet_->flush() : udp_->flush(); }

 private:
  std::optional<UdpSender> udp_;
  std::optional<EthernetSender> ethernet_;
};

/// Threads: one, the worker that owns it.
class UnderlayReceiver {
 public:
  explicit UnderlayReceiver(const Underlay& underlay) {
    if (underlay.is_packet()) {
      ethernet_.emplace(underlay.fd, underlay.is_wire());
    } else {
      udp_.emplace(underlay.udp());
    }
  }
  [[nodiscard]] std::span<const UdpReceiver::Train> receive(bool& failed) {
    return ethernet_ ? ethernet_->receive(failed) : udp_->receive(failed);
  }

 private:
  std::optional<UdpReceiver> udp_;
  std::optional<EthernetReceiver> ethernet_;
};

}  // namespace pairwire
