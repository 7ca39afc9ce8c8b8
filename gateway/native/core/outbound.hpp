// From the TAP to the underlay: one worker. The story is in outbound.cpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "core/address-guard.hpp"
#include "core/crew.hpp"
#include "core/hold-queue.hpp"
#include "core/learned-table.hpp"
#include "core/worker.hpp"
#include "io/underlay.hpp"
#include "l2/segment.hpp"

namespace pairwire {

/// Threads: one at a time, which calls `batch`; made and destroyed by the control thread while
/// nobody does. Speaks to it through `WorkerShare` only.
class Outbound {
 public:
  /// `crew` may be empty, and may be shared with the other direction; it outlives this object.
  Outbound(WorkerShare& share, int tap, const Underlay& underlay, std::size_t hold_capacity,
           Crew& crew);

  /// Everything that can be done without waiting, at most one batch. Returns whether there was
  /// anything. The caller is online in the RCU domain.
  bool batch();

  /// Whether the last batch with anything in it was one short packet, behind which nothing
  /// waited.
  [[nodiscard]] bool lone() const noexcept { return alone_ && short_; }

  /// After the last batch: gives up what waits for a key.
  void end();

 private:
  struct Now {
    std::uint64_t us = 0;
    std::uint64_t ms = 0;
    FrameTime time = 0;  ///< what is sealed into frames
    bool lease = false;  ///< keys may be used
  };

  /// A packet that has been numbered and has its place in the sender's arena, and is to be sealed.
  struct Piece {
    Segmenter segmenter;
    std::unique_ptr<std::uint8_t[]> packet;  ///< what the segments lie in
    const SendKey* key = nullptr;
    const Endpoint* to = nullptr;
    std::uint64_t first = 0;
    Kind kind = Kind::kPair;
    std::size_t outside = 0;  ///< bytes at the front of a segment that are not sealed
    Bytes out;                ///< for all frames, one behind the other
  };

  void take_time();
  void take(Bytes packet, bool held);
  [[nodiscard]] bool is_loop(ConstBytes frame, const PortSettings& settings) const;
  [[nodiscard]] bool take_from_plain_side(ConstBytes frame, bool held);
  void take_probe(ConstBytes frame);
  void learn(const VlanMac& source);
  void look_at_learned();
  [[nodiscard]] bool tell_learned(const VlanMac& address, std::uint64_t seen_ms, bool gone);
  [[nodiscard]] bool is_for_members(const VlanMac& destination);
  void take_unicast(const VlanMac& destination, Bytes packet, bool held);
  void take_for_net(Bytes packet);
  void pass_in_clear(Bytes packet);
  void send_over_ip(Net& net, Peer& peer, SendKey& key, Bytes packet);
  [[nodiscard]] std::size_t path_mtu(const Net& net) const;
  [[nodiscard]] bool passes_guard(const Announcement& what, const MacAddress& source);
  void claim(const Announcement& what, const MacAddress& source);
  [[nodiscard]] bool answer(const Announcement& question, const MacAddress& source);
  void take_group(const Announcement& what, Bytes packet, bool held);
  void ask_for(const VlanMac& destination);
  void hold_unicast(const VlanMac& destination, ConstBytes packet);
  void hold_group(ConstBytes packet);
  void look_at_held();
  void release_unicast(std::uint64_t address);
  void expire_held();
  bool begin(Segmenter& segmenter, Bytes packet);
  void fit_segments(Bytes packet, std::size_t longest_frame);
  /// What kind of frame a segment is sealed in.
  struct Form {
    Form(Kind frame_kind, bool addresses_inside = false, ConstBytes outer_addresses = {})
        : kind(frame_kind), inside(addresses_inside), outer(outer_addresses) {}
    Kind kind;
    /// On an Ethernet: a pair frame that carries both inner addresses, because the outer ones are
    /// those of the two members.
    bool inside;
    /// On `ip`: source and destination of the outer header.
    ConstBytes outer;
  };
  /// Which part of a segment is sealed.
  struct Part {
    bool fragment = false;  ///< false: all of it
    std::uint8_t number = 0;
    bool last = false;
  };
  void seal(Bytes out, const SendKey& key, Form form, const Endpoint& to, std::uint64_t counter,
            ConstBytes segment, std::size_t place, ChecksumClaim claim) const {
    seal(out, key, form, to, counter, segment, place, claim, Part{});
  }
  void seal(Bytes out, const SendKey& key, Form form, const Endpoint& to, std::uint64_t counter,
            ConstBytes segment, std::size_t place, ChecksumClaim claim, Part part) const;
  void seal_piece(Piece& piece) const;
  void seal_pieces();
  void make_room();
  void keep_packet(Piece& piece, ConstBytes packet);
  void flush();
  void send_unicast_ethernet(SendKey& key, Segmenter& segmenter, std::uint64_t first,
                             const Endpoint* inside);
  [[nodiscard]] std::size_t outside_of(const Peer& peer, bool inside) const;
  [[nodiscard]] bool carries_addresses(const Peer& peer, ConstBytes frame) const;
  void relay_train(const Endpoint& to, ConstBytes train, std::size_t frame_size);
  [[nodiscard]] bool relay_usable() const;
  void send_group_ethernet(SendKey& key, Segmenter& segmenter, std::uint64_t first,
                           std::size_t room);
  void send_unicast(Peer& peer, SendKey& key, Bytes packet);
  void send_group(SendKey& key, Bytes packet);
  void send_pairwise(Bytes packet);
  void send_copy(Peer& peer, ConstBytes segment, std::size_t place, ChecksumClaim claim);
  void ask_once(const VlanMac& destination);
  [[nodiscard]] std::optional<std::uint64_t> take_numbers(SendKey& key, std::size_t frames,
                                                          std::size_t bytes, std::uint32_t peer);
  [[nodiscard]] std::size_t group_limit(const Segmenter& segmenter) const;
  [[nodiscard]] std::optional<std::size_t> count_frames(const Segmenter& segmenter,
                                                        std::size_t outside, std::size_t room);
  void send_unicast_cut(Peer& peer, SendKey& key, Bytes packet, std::size_t limit);
  void count_sent(Peer& peer, std::size_t frames, std::size_t bytes);
  void count_part(Part part);
  template <typename Use>
  static void for_each_part(ConstBytes payload, std::size_t room, Use use);
  void tell_too_long();
  void tell_too_big(ConstBytes frame, std::size_t segment_size, std::size_t room);
  void put(const WorkerEvent& event);

  WorkerShare& share_;
  const int tap_;
  const bool ethernet_;
  const bool wire_;
  UnderlaySender sender_;
  Crew& crew_;
  /// Packets at hand. The next one is read to the place behind those that wait for being sealed.
  std::vector<Piece> pieces_;
  std::size_t waiting_ = 0;
  Now now_;

  HoldQueue held_;
  HoldQueue held_group_;
  std::uint64_t version_ = 0;  ///< of the tables, when the held frames were last looked at
  std::uint64_t next_expiry_us_ = 0;
  std::uint64_t next_too_long_us_ = 0;
  std::vector<std::uint64_t> ready_;
  RecentlyAsked asked_;
  TokenBucket ask_budget_{500, 200};
  std::uint32_t storm_rate_ = 0;
  TokenBucket storm_{0, 0};
  /// At a plain port.
  std::unique_ptr<LearnedTable> learned_;
  TokenBucket spoof_budget_{1, 1};
  TokenBucket stranger_budget_{20, 20};
  TokenBucket probe_budget_{200, 200};

  GuardReports guard_reports_;
  RecentlyAsked claimed_;
  TokenBucket claim_budget_{20, 20};

  /// On a wire.
  PathLimit wire_limit_;
  TokenBucket clear_budget_;

  bool told_ = false;   ///< events were put in this batch
  bool alone_ = false;  ///< the last batch with anything in it was one packet
  bool short_ = false;  ///< and a short one

  /// Budgets of sources for ICMP answers, direct-mapped by a hash of the address.
  std::vector<TokenBucket> answer_budgets_;

  std::unique_ptr<std::uint8_t[]> released_;
  std::unique_ptr<std::uint8_t[]> group_;
};

}  // namespace pairwire
