// From the underlay to the TAP: one worker. The story is in inbound.cpp.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "core/hold-queue.hpp"
#include "core/path-frame.hpp"
#include "core/worker.hpp"
#include "io/udp.hpp"
#include "l2/merge.hpp"

namespace pairwire {

/// Threads: one, which calls `run` (or, in tests, `batch`); made and destroyed by the control
/// thread while that one does not run. Speaks to it through `WorkerShare` only.
class Inbound {
 public:
  Inbound(WorkerShare& share, int tap, UdpSocket udp, MergeOptions options);

  /// Until `share.stop`.
  void run();

  /// Everything that can be done without waiting, at most one batch. Returns whether the socket may
  /// have more. The caller is online in the RCU domain.
  bool batch();

 private:
  struct Now {
    std::uint64_t us = 0;
    std::uint64_t ms = 0;
    FrameTime time = 0;
    FrameTime tolerance = 0;
    bool check_time = false;
    bool lease = false;
  };
  /// A frame that has opened.
  struct Opened {
    const Shim& shim;
    const Incarnation& sender;
    const ReceiveKey& key;
    const Endpoint& from;
    InnerHeader inner;
  };

  void take_time();
  void receive(const Endpoint& from, ConstBytes datagram, bool held);
  [[nodiscard]] bool find_keys(const Shim& shim, const Incarnation& sender);
  void hold(const Shim& shim, const Endpoint& from, ConstBytes datagram, DropReason reason);
  void look_at_held();
  [[nodiscard]] const ReceiveKey* open(const Shim& shim, ConstBytes datagram, AeadHead head,
                                       Bytes body);
  [[nodiscard]] std::optional<InnerHeader> check_opened(const Shim& shim, const ReceiveKey& key,
                                                        AeadConstHead head);
  void receive_inner(const Shim& shim, const Incarnation& sender, const Endpoint& from,
                     ConstBytes datagram);
  [[nodiscard]] bool check_addresses(const Opened& opened, ConstBytes frame);
  void deliver_padded(const Opened& opened, ConstBytes body);
  void receive_path(const Shim& shim, const Incarnation& sender, const Endpoint& from,
                    ConstBytes datagram);
  void heard(Peer& peer, const Endpoint& from, std::size_t bytes);
  void write_out();
  void put(const WorkerEvent& event);

  WorkerShare& share_;
  const int tap_;
  const UdpSocket udp_;
  UdpReceiver receiver_;
  std::unique_ptr<std::uint8_t[]> merge_buffer_;
  Merger merger_;
  Now now_;

  std::array<ReceiveKey*, kMaxKeysPerSender> keys_{};  ///< that fit the frame at hand
  std::size_t key_count_ = 0;

  HoldQueue held_;
  std::uint64_t version_ = 0;
  std::vector<std::uint64_t> ready_;
  RecentlyAsked asked_;
  TokenBucket ask_budget_{100, 100};
  /// Budgets by source prefix, direct-mapped by a seeded hash.
  std::vector<TokenBucket> source_budgets_;
  /// Budgets of members for answers to probes, direct-mapped by their number.
  std::vector<TokenBucket> answer_budgets_;
  std::uint64_t seed_;
  bool told_ = false;

  std::unique_ptr<std::uint8_t[]> released_;
  std::unique_ptr<std::uint8_t[]> padded_;
};

}  // namespace pairwire
