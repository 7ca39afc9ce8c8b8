// From the TAP to the underlay: one worker. The story is in outbound.cpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "core/hold-queue.hpp"
#include "core/worker.hpp"
#include "io/udp.hpp"
#include "l2/segment.hpp"

namespace pairwire {

/// Threads: one, which calls `run` (or, in tests, `batch`); made and destroyed by the control
/// thread while that one does not run. Speaks to it through `WorkerShare` only.
class Outbound {
 public:
  Outbound(WorkerShare& share, int tap, UdpSocket udp, std::size_t hold_capacity);

  /// Until `share.stop`.
  void run();

  /// Everything that can be done without waiting, at most one batch. Returns whether the TAP may
  /// have more. The caller is online in the RCU domain.
  bool batch();

 private:
  struct Now {
    std::uint64_t us = 0;
    std::uint64_t ms = 0;
    FrameTime time = 0;  ///< what is sealed into frames
    bool lease = false;  ///< keys may be used
  };

  void take_time();
  void take(Bytes packet, bool held);
  [[nodiscard]] bool is_loop(ConstBytes frame, const PortSettings& settings) const;
  void take_unicast(const MacAddress& destination, Bytes packet, bool held);
  void take_group(Bytes packet, bool held);
  void hold_unicast(const MacAddress& destination, ConstBytes packet);
  void hold_group(ConstBytes packet);
  void look_at_held();
  void release_unicast(std::uint64_t mac);
  void expire_held();
  bool begin(Bytes packet);
  void seal(Bytes out, const SendKey& key, Kind kind, std::uint64_t counter, ConstBytes segment,
            std::size_t place);
  void send_unicast(Peer& peer, SendKey& key, Bytes packet);
  void send_group(SendKey& key, Bytes packet);
  [[nodiscard]] std::optional<std::uint64_t> take_numbers(SendKey& key, std::uint32_t peer);
  void put(const WorkerEvent& event);
  [[nodiscard]] int wait_limit_ms() const;

  WorkerShare& share_;
  const int tap_;
  UdpSender sender_;
  Segmenter segmenter_;
  std::size_t total_bytes_ = 0;  ///< plaintext of the segments at hand, at most
  Now now_;

  HoldQueue held_;
  HoldQueue held_group_;
  std::uint64_t version_ = 0;  ///< of the tables, when the held frames were last looked at
  std::uint64_t next_expiry_us_ = 0;
  std::vector<std::uint64_t> ready_;
  RecentlyAsked asked_;
  TokenBucket ask_budget_{500, 200};
  std::uint32_t storm_rate_ = 0;
  TokenBucket storm_{0, 0};
  bool told_ = false;  ///< events were put in this batch

  std::unique_ptr<std::uint8_t[]> packet_;
  std::unique_ptr<std::uint8_t[]> released_;
  std::unique_ptr<std::uint8_t[]> group_;
};

}  // namespace pairwire
