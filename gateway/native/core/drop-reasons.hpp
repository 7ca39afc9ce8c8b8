// Why a frame was not passed on: one list that yields the enum, the names that metrics and logs
// use, and the counters. scripts/generate.ts reads the names from here too.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace pairwire {

// X(name, sentence). The order is the order of the counters in shared memory: append only.
// clang-format off
#define PAIRWIRE_DROP_REASONS(X)                                                                   \
  /* Receiving, in the order of docs/protocol.md section 4. */                                     \
  X(malformed,            "Length, version, kind, flags or reserved bits are not as specified.")   \
  X(foreign_subnet,       "The subnet tag of the frame is not ours.")                              \
  X(unknown_index,        "No member with this sender index is known.")                            \
  X(reflected,            "The sender index is our own.")                                          \
  X(unknown_kid,          "No key of this sender has this kid.")                                   \
  X(stale_kid,            "The kid is one of the sender's last 8 retired keys.")                   \
  X(lease_over,           "There is no lease of the key yet, or it is over.")                      \
  X(replayed,             "The counter was accepted before or has left the window.")               \
  X(not_authentic,        "The tag does not fit.")                                                 \
  X(not_fresh,            "The time inside is too far from ours.")                                 \
  X(before_group_key,     "A group frame is older than the installation of its key.")              \
  X(wrong_source_mac,     "The inner source MAC address does not belong to the sender.")           \
  X(wrong_destination,    "The inner destination MAC address is not one of ours.")                 \
  X(group_unicast_mac,    "A group frame has a unicast MAC destination.")                          \
  X(group_unicast_ip,     "A group frame carries a unicast IP destination.")                       \
  /* Sending. */                                                                                   \
  X(hold_full,            "The hold queue had no room while a key was asked for.")                 \
  X(hold_expired,         "The frame waited too long for a key.")                                  \
  X(hold_off,             "There is no key yet, and holding is turned off.")                       \
  X(no_such_member,       "Nobody owns the destination MAC address.")                              \
  X(tap_source_mac,       "A frame from a TAP has a source MAC address that is not its own.")      \
  X(loop,                 "A TAP delivered our own EtherType or a packet for our own endpoint.")   \
  X(oversize,             "The frame does not fit the path, not even in 3 parts.")                 \
  X(no_endpoint,          "No underlay address of the member is known.")                           \
  X(no_key,               "No usable key for the destination is held.")                            \
  X(counter_limit,        "The traffic key has sealed as much as it may.")                         \
  X(send_failed,          "The kernel did not take the sealed frame.")                             \
  /* Both directions. */                                                                           \
  X(not_in_group,         "The policy keeps the member, or us, out of group traffic.")             \
  X(tap_write_failed,     "The kernel did not take the opened frame at the TAP.")                  \
  X(orphaned,             "The keys were wiped because the control plane stayed away too long.")   \
  X(storm,                "Storm control: more group frames than the limit.")                      \
  X(fragment_expired,     "Other parts of the frame did not come within 500 ms.")                  \
  X(inner_ethertype_own,  "The opened frame carries our own EtherType.")                           \
  X(fragment_evicted,     "A part gave way to newer ones of its sender: 64 sets, 256 KiB.")              \
  X(not_our_relay,        "A relayed frame came from elsewhere than the relay in use.")            \
  X(no_relay,             "The member is reached by relay, and none takes our frames now.")        \
  /* Plain ports. */                                                                               \
  X(plain_spoof,          "A frame from the plain side has a member's own source address.")        \
  X(plain_not_for_members, "A frame from the plain side is for nobody in the subnet.")             \
  X(plain_own_destination, "A frame for a member's own address does not leave a plain port.")      \
  X(plain_broadcast,      "A group frame does not leave this plain port as configured.")           \
  X(plain_reserved,       "A frame of bridges among themselves does not cross a plain port.")      \
  X(plain_standby,        "Another plain port forwards, or this one is blocked or listens first.") \
  X(pinned_elsewhere,     "The inner source address is pinned behind another plain port.")     \
  /* The address guard, where a frame enters and where it is received. */                          \
  X(arp_spoof,            "ARP that is malformed or claims an address of another.")                \
  X(nd_spoof,             "Neighbour discovery that is malformed, hides or claims an address of another.") \
  X(ra_guard,             "A router advertisement from a member without the right `router`.")      \
  X(redirect_guard,       "An ICMPv6 redirect from a member without the right `router`.")          \
  X(dhcp_guard,           "A DHCP server's message from a member without the right `dhcp`.")           \
  /* Link ports, where a packet enters and where it is received. */                                \
  X(net_source,           "The source of a packet is not in the subnet that it comes from.")       \
  X(net_destination,      "The destination of a packet is in no subnet that it may go to.")        \
  X(net_not_ip,           "A frame at a link port carries no unicast IP packet.")                  \
  X(net_clear,            "What came to a link port from outside is not sealed and may not pass.") \
  X(net_source_route,     "A packet that names a way of its own does not cross a link.")           \
  X(net_outer,            "The packet inside is not what its outer header says.")
// clang-format on

/// Reason of a drop; the number is the place of its counter.
enum class DropReason : std::uint8_t {
#define PAIRWIRE_ENUMERATOR(name, sentence) name,
  PAIRWIRE_DROP_REASONS(PAIRWIRE_ENUMERATOR)
#undef PAIRWIRE_ENUMERATOR
};

#define PAIRWIRE_ONE(name, sentence) +1
inline constexpr std::size_t kDropReasonCount = 0 PAIRWIRE_DROP_REASONS(PAIRWIRE_ONE);
#undef PAIRWIRE_ONE

namespace detail {

#define PAIRWIRE_NAME(name, sentence) std::string_view{#name},
inline constexpr std::array<std::string_view, kDropReasonCount> kDropReasonNames{
    PAIRWIRE_DROP_REASONS(PAIRWIRE_NAME)};
#undef PAIRWIRE_NAME

#define PAIRWIRE_SENTENCE(name, sentence) std::string_view{sentence},
inline constexpr std::array<std::string_view, kDropReasonCount> kDropReasonSentences{
    PAIRWIRE_DROP_REASONS(PAIRWIRE_SENTENCE)};
#undef PAIRWIRE_SENTENCE

}  // namespace detail

/// Name as in docs/protocol.md section 4, in logs and as the value of the metrics' label.
[[nodiscard]] constexpr std::string_view drop_reason_name(DropReason reason) {
  return detail::kDropReasonNames[static_cast<std::size_t>(reason)];
}

/// One sentence for people.
[[nodiscard]] constexpr std::string_view drop_reason_sentence(DropReason reason) {
  return detail::kDropReasonSentences[static_cast<std::size_t>(reason)];
}

/// Drops of one thread. All zero at the start; fit for memory shared with a reading process.
///
/// Threads: one thread counts, any may read. A line of its own in the cache, so that the counters
/// of two threads never get in each other's way.
class alignas(64) DropCounters {
 public:
  void count(DropReason reason, std::uint64_t frames = 1) {
    std::atomic<std::uint64_t>& counter = counters_[static_cast<std::size_t>(reason)];
    // Load and store, not fetch_add: there is one writer, and a locked instruction costs 20 cycles.
    counter.store(counter.load(std::memory_order_relaxed) + frames, std::memory_order_relaxed);
  }
  [[nodiscard]] std::uint64_t get(DropReason reason) const {
    return counters_[static_cast<std::size_t>(reason)].load(std::memory_order_relaxed);
  }

 private:
  // A counter with a hidden lock would not work between processes.
  static_assert(std::atomic<std::uint64_t>::is_always_lock_free);
  std::array<std::atomic<std::uint64_t>, kDropReasonCount> counters_{};
};

}  // namespace pairwire
