// From the underlay to the TAP: one worker. The story is in inbound.cpp.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "core/address-guard.hpp"
#include "core/crew.hpp"
#include "core/hold-queue.hpp"
#include "core/outer-ip.hpp"
#include "core/path-frame.hpp"
#include "core/reassembly.hpp"
#include "core/worker.hpp"
#include "io/underlay.hpp"
#include "l2/icmp-error.hpp"
#include "l2/merge.hpp"

namespace pairwire {

/// Threads: one at a time, which calls `batch`; made and destroyed by the control thread while
/// nobody does. Speaks to it through `WorkerShare` only.
class Inbound {
 public:
  /// `crew` as in Outbound.
  Inbound(WorkerShare& share, int tap, const Underlay& underlay, MergeOptions options, Crew& crew);

  /// Everything that can be done without waiting, at most one batch. Returns whether there was
  /// anything. The caller is online in the RCU domain.
  bool batch();

  /// Whether the last batch with anything in it was one short datagram, or several that the
  /// kernel had joined to one, behind which nothing waited.
  [[nodiscard]] bool lone() const noexcept { return lone_; }

  /// After the last batch: gives up what waits for a key.
  void end();

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

  /// A frame of a batch that a crew member has opened where it lay, before its turn came.
  struct Early {
    const ReceiveKey* key = nullptr;  ///< null: not looked at; open it in its turn
    bool authentic = false;
    std::array<std::uint8_t, kInnerHeaderSize> head{};
  };

  void take_time();
  void open_early(std::span<const UdpReceiver::Train> trains);
  void open_train_early(const UdpReceiver::Train& train, std::span<Early> early);
  void receive(const Endpoint& from, ConstBytes datagram, bool held);
  void receive_relay(const Endpoint& from, ConstBytes datagram);
  void receive_wire(Bytes frame, bool held);
  void receive_over_ip(Bytes frame, const OuterIp& outer, bool held);
  void receive_complaint(ConstBytes frame, const IcmpError& error);
  void deliver_in_clear(ConstBytes frame);
  [[nodiscard]] bool take_over(const Shim& shim, Bytes frame);
  [[nodiscard]] bool find_keys(const Shim& shim, const Incarnation& sender);
  void hold(const Shim& shim, const Endpoint& from, ConstBytes datagram, DropReason reason);
  void look_at_held();
  [[nodiscard]] const ReceiveKey* open(const Shim& shim, const Endpoint& from, ConstBytes datagram,
                                       AeadHead head, Bytes body);
  [[nodiscard]] bool take_early(ConstBytes opened, AeadHead head, Bytes body) const;
  [[nodiscard]] std::optional<InnerHeader> check_opened(const Shim& shim, const ReceiveKey& key,
                                                        AeadConstHead head);
  void receive_inner(const Shim& shim, const Incarnation& sender, const Endpoint& from,
                     ConstBytes datagram);
  void receive_part(const Shim& shim, const Incarnation& sender, const Endpoint& from,
                    ConstBytes datagram);
  void take_opened(const Opened& opened, ConstBytes frame, ChecksumClaim claim);
  [[nodiscard]] std::optional<Bytes> place_for(std::size_t length, const Shim& shim);
  [[nodiscard]] bool check_addresses(const Opened& opened, ConstBytes frame);
  [[nodiscard]] bool check_net(const Peer& peer, ConstBytes frame);
  void write_outside(const Shim& shim, const Endpoint& from, ConstBytes body, Bytes out) const;
  [[nodiscard]] bool passes_guard(const Peer& peer, ConstBytes frame);
  void deliver_padded(const Opened& opened, ConstBytes body);
  void receive_path(const Shim& shim, const Incarnation& sender, const Endpoint& from,
                    ConstBytes datagram);
  void compare_generations(Peer& peer, const ReceiveKey& key);
  void heard(Peer& peer, const Endpoint& from, std::size_t bytes);
  void write_out();
  void put(const WorkerEvent& event);

  WorkerShare& share_;
  const int tap_;
  const Underlay underlay_;
  UnderlayReceiver receiver_;
  std::unique_ptr<std::uint8_t[]> merge_buffer_;
  Merger merger_;
  Now now_;

  Crew& crew_;
  /// kEarlyFrames for each train of a batch; empty without a crew.
  std::vector<Early> early_;
  const Early* early_at_ = nullptr;  ///< that of the frame at hand, or null

  /// Transport `ip`: the frame at hand, and what its outer header says; else empty and nothing.
  Bytes wire_frame_;
  OuterIp outer_;
  TokenBucket look_budget_;
  TokenBucket complaint_budget_;
  TokenBucket clear_budget_;

  std::array<ReceiveKey*, kMaxKeysPerSender> keys_{};  ///< that fit the frame at hand
  std::size_t key_count_ = 0;

  Reassembler parts_;

  HoldQueue held_;
  std::uint64_t version_ = 0;
  std::vector<std::uint64_t> ready_;
  RecentlyAsked asked_;
  TokenBucket ask_budget_{100, 100};
  /// Budgets by source prefix, direct-mapped by a seeded hash.
  std::vector<TokenBucket> source_budgets_;
  /// Budgets of members for answers to probes, direct-mapped by their number.
  std::vector<TokenBucket> answer_budgets_;
  TokenBucket relay_budget_{50, 50};
  std::uint64_t seed_;
  GuardReports guard_reports_;
  bool told_ = false;
  bool lone_ = false;  ///< see lone()

  std::unique_ptr<std::uint8_t[]> released_;
  std::unique_ptr<std::uint8_t[]> padded_;
};

}  // namespace pairwire
