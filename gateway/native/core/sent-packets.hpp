// What was lately sealed on the transport `ip`, so that a router's complaint about a sealed packet
// can be told to whom the packet inside came from: the router quotes what it saw, the shim and
// noise, and the sender knows the packet by its own header only.
//
// A ring of the starts of packets. It is short: complaints come within a round trip, from routers
// that are near, or about one of many packets of a flow, of which the newest does as well.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>

#include "core/bytes.hpp"
#include "core/frame.hpp"
#include "core/spin-lock.hpp"

namespace pairwire {

/// Threads: one worker notes, another one looks; a spin lock of some nanoseconds. The control
/// thread makes room before there are workers.
class SentPackets {
 public:
  static constexpr std::size_t kEntries = 1'024;
  /// The header and at least the 8 bytes behind it that RFC 792 and RFC 4443 want quoted; of an
  /// IPv6 packet with extension headers perhaps less.
  static constexpr std::size_t kStart = 128;

  /// The start of a packet; how much of it there is.
  struct Start {
    std::array<std::uint8_t, kStart> bytes{};
    std::size_t size = 0;
    [[nodiscard]] ConstBytes view() const { return ConstBytes(bytes).first(size); }
  };

  /// Before the first note; a port that notes nothing needs no memory.
  void make_room() {
    if (!entries_) entries_ = std::make_unique<std::array<Entry, kEntries>>();
  }

  /// `packet`, an IP packet with a whole header, was sealed in frames with the numbers `first` and
  /// `count - 1` following ones.
  void note(std::uint32_t index, std::uint16_t kid, std::uint64_t first, std::size_t count,
            ConstBytes packet) noexcept;

  /// The packet that a quote of a sealed one is about: `addresses` as it names them, `shim` what
  /// there is of it, 8 bytes at least. The very packet if the quote reaches to its number and it is
  /// still known, else the newest one between the two. Nothing if this port has sealed none like
  /// it.
  [[nodiscard]] std::optional<Start> find(ConstBytes addresses, ConstBytes shim) const noexcept;

 private:
  struct Entry {
    std::uint64_t first = 0;
    std::uint32_t count = 0;  ///< 0: empty
    std::uint32_t index = 0;
    std::uint16_t kid = 0;
    Start start;
  };

  mutable SpinLock lock_;
  std::unique_ptr<std::array<Entry, kEntries>> entries_;
  std::size_t next_ = 0;
};

}  // namespace pairwire
