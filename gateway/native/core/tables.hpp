// Everything that the workers of one port look up, and the control thread's way to change it.
//
//   inbound    sender index  -> Incarnation -> keys by kid      (RcuMap)
//   outbound   MAC address   -> Peer -> send key, endpoint      (RcuMap)
//              group         -> send key, all Peers online      (RcuMap's idea with a plain array)
//   both       PortSettings                                     (one immutable snapshot)
//
// A member (Peer) may run under several boot keys for a while: each is an Incarnation with a sender
// index of its own. Every command costs O(1) with 10,000 members, but for those that are about the
// group key, which has one receive key for each member.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "core/endpoint.hpp"
#include "core/keys.hpp"
#include "core/path-state.hpp"
#include "core/rcu-map.hpp"
#include "core/rcu.hpp"
#include "crypto/x25519.hpp"
#include "l2/group-guard.hpp"
#include "l2/mac.hpp"

namespace pairwire {

/// A command that can't be done; the text is for the controller and contains no secret.
class CommandError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Implementation constants.
inline constexpr std::size_t kMaxKeysPerSender = 4;
inline constexpr std::size_t kStaleKids = 8;
inline constexpr std::size_t kMaxBoots = 8;
inline constexpr std::size_t kMaxIncarnations = 4;
/// Group generations that were dropped and whose windows are kept, should they come again.
inline constexpr std::size_t kKeptGroups = 2;
inline constexpr std::size_t kMaxRefusedMacs = 8192;
inline constexpr std::uint64_t kIncarnationGraceMs = 10'000;
inline constexpr FrameTime kGroupKeySlack = kFrameTimePerSecond / 4;  ///< 250 ms
static_assert(kFrameTimePerSecond % 4 == 0);

/// What port.set says, as the workers need it. Immutable once published.
struct PortSettings {
  std::string subnet;
  std::string member;
  std::vector<MacAddress> macs;  ///< our own
  Suite suite = Suite::kAes256Gcm;
  Backend backend = Backend::kLibcrypto;
  std::uint16_t udp_port = 0;
  std::uint32_t freshness_ms = 0;  ///< 0: not checked
  std::uint16_t hold_frames = 0;   ///< 0: holding is off
  std::uint16_t hold_ms = 0;
  std::uint32_t hold_bytes = 0;
  std::uint32_t storm_frames = 0;  ///< 0: no limit
  std::vector<Ipv4Prefix> broadcasts;

  [[nodiscard]] bool owns(const MacAddress& mac) const noexcept {
    for (const MacAddress& own : macs) {
      if (own == mac) return true;
    }
    return false;
  }
};

class Peer;

/// One start of a member's data plane: a sender index and what is received under it.
///
/// Threads: the atomics are read by inbound workers and written by the control thread; the rest is
/// immutable.
struct Incarnation {
  std::uint32_t index = 0;
  Peer* peer = nullptr;  ///< null: ourselves
  std::array<std::uint8_t, kX25519Size> boot{};
  std::array<std::atomic<ReceiveKey*>, kMaxKeysPerSender> pair_keys{};
  std::array<std::atomic<ReceiveKey*>, kMaxKeysPerSender> group_keys{};
  /// kid + 1 of retired keys; 0 is empty. `next_stale` is the control thread's.
  std::array<std::atomic<std::uint32_t>, kStaleKids> stale_kids{};
  std::size_t next_stale = 0;
  std::uint64_t retire_ms = 0;  ///< when it goes; 0: it is the current one. The control thread's

  [[nodiscard]] bool is_stale(std::uint16_t kid) const noexcept {
    for (const auto& stale : stale_kids) {
      if (stale.load(std::memory_order_relaxed) == std::uint32_t{kid} + 1) return true;
    }
    return false;
  }
};

/// Both traffic keys of (own boot, peer's boot, pwId, KEY). The control thread's.
struct PairKeyRecord {
  std::uint32_t boot = 0;
  std::uint32_t peer_index = 0;
  std::uint64_t pw_id = 0;
  KeyDigest key{};  ///< of KEY_ab, to know it again
  std::uint16_t kid_send = 0;
  std::uint16_t kid_receive = 0;
  std::uint64_t chosen = 0;  ///< 0: not for sending; else the latest choice wins
  std::unique_ptr<SendKey> send;
  std::unique_ptr<ReceiveKey> receive;
};

/// Immutable list of a member's addresses.
using MacList = std::vector<MacAddress>;

/// A member that we know.
///
/// Threads: see the groups of fields.
class Peer {
 public:
  Peer(std::string name, std::uint32_t id_number) : id(std::move(name)), number(id_number) {}

  const std::string id;
  const std::uint32_t number;  ///< never reused; what events carry instead of a pointer

  // Written by the control thread, read by workers.
  std::atomic<SendKey*> send{nullptr};
  std::atomic<const Endpoint*> endpoint{nullptr};
  std::atomic<const MacList*> macs{nullptr};

  // Counted by outbound workers.
  alignas(64) std::atomic<std::uint64_t> tx_frames{0};
  std::atomic<std::uint64_t> tx_bytes{0};
  std::atomic<std::uint64_t> tx_ms{0};  ///< boot time of the last frame; 0 never

  // Counted by inbound workers.
  alignas(64) std::atomic<std::uint64_t> rx_frames{0};
  std::atomic<std::uint64_t> rx_bytes{0};
  std::atomic<std::uint64_t> rx_ms{0};
  std::atomic<std::uint64_t> elsewhere_ms{0};  ///< when we last told of another source address

  // The control thread's.
  bool online = false;
  std::size_t slot = kNoSlot;  ///< place among the group destinations
  std::vector<Endpoint> candidates;
  PathState path;
  std::vector<std::unique_ptr<Incarnation>> incarnations;  ///< the current one is the last
  std::vector<std::unique_ptr<PairKeyRecord>> records;
  std::unique_ptr<const Endpoint> owned_endpoint;
  std::unique_ptr<const MacList> owned_macs;

  static constexpr std::size_t kNoSlot = ~std::size_t{0};

  [[nodiscard]] bool owns(const MacAddress& mac) const noexcept {
    const MacList* const list = macs.load(std::memory_order_acquire);
    for (const MacAddress& own : *list) {
      if (own == mac) return true;
    }
    return false;
  }
};

/// The tables of one port.
///
/// Threads: functions in the section 'Workers' by any worker that is online in `rcu`, and by the
/// control thread; all others by the control thread only.
class PortTables {
 public:
  PortTables();
  ~PortTables();
  PortTables(const PortTables&) = delete;
  PortTables& operator=(const PortTables&) = delete;

  RcuDomain& rcu() { return rcu_; }

  // --- Workers ----------------------------------------------------------------------------------

  [[nodiscard]] const PortSettings& settings() const noexcept {
    return *settings_.load(std::memory_order_acquire);
  }
  /// Null for an index that nobody has; `peer` of the result is null for our own.
  [[nodiscard]] const Incarnation* sender(std::uint32_t index) const noexcept {
    return senders_.find(index);
  }
  [[nodiscard]] Peer* destination(const MacAddress& mac) const noexcept {
    return destinations_.find(mac.to_integer());
  }
  [[nodiscard]] SendKey* group_send() const noexcept {
    return group_send_.load(std::memory_order_acquire);
  }
  /// Whether the controller said that nobody has this address.
  [[nodiscard]] bool refused(const MacAddress& mac, std::uint64_t now_ms) const noexcept {
    const std::atomic<std::uint64_t>* const until = refused_.find(mac.to_integer());
    return until != nullptr && now_ms < until->load(std::memory_order_relaxed);
  }
  /// Calls `use(peer)` for each member that group frames go to.
  template <typename Use>
  void for_each_online(Use use) const {
    const OnlineArray& array = *online_.load(std::memory_order_acquire);
    const std::size_t used = array.used.load(std::memory_order_acquire);
    for (std::size_t i = 0; i < used; ++i) {
      if (Peer* const peer = array.peers[i].load(std::memory_order_acquire)) use(*peer);
    }
  }
  /// Whether keys may be used at this key-server time.
  [[nodiscard]] bool lease_good(std::uint64_t server_ms) const noexcept {
    return server_ms != 0 && server_ms <= lease_.load(std::memory_order_relaxed);
  }
  /// Goes up with every change that may help a frame that waits.
  [[nodiscard]] std::uint64_t version() const noexcept {
    return version_.load(std::memory_order_acquire);
  }

  // --- Control thread: commands -----------------------------------------------------------------
  // They throw CommandError, with nothing changed.

  void set_settings(std::unique_ptr<const PortSettings> settings);
  void set_lease(std::uint64_t not_after_ms);

  struct BootMade {
    std::uint32_t boot;
    std::array<std::uint8_t, kX25519Size> public_key;
  };
  BootMade make_boot();
  void set_boot_index(std::uint32_t boot, std::uint32_t index);
  void drop_boot(std::uint32_t boot);

  struct PeerSetting {
    std::string_view peer;
    std::uint32_t index;
    std::span<const std::uint8_t, kX25519Size> boot;
    std::vector<MacAddress> macs;
    std::vector<Endpoint> endpoints;
    bool online;
  };
  Peer& set_peer(PeerSetting setting, std::uint64_t now_ms);
  void remove_peer(std::string_view id);

  struct Installed {
    std::uint16_t kid_send;
    std::uint16_t kid_receive;
    bool fresh;  ///< false: it was held already, and nothing was reset
  };
  Installed install_pair_key(std::string_view peer, std::uint32_t boot,
                             std::span<const std::uint8_t, kKeySize> key, std::uint64_t pw_id,
                             bool send);
  void install_group_key(std::span<const std::uint8_t, kKeySize> key, std::uint64_t pw_id,
                         bool send, std::uint64_t now_ms);
  /// An empty `peer` is the group key, here and below.
  void use_key(std::string_view peer, std::uint64_t pw_id);
  void drop_key(std::string_view peer, std::uint64_t pw_id, std::uint32_t grace_ms,
                std::uint64_t now_ms);
  void refuse_mac(const MacAddress& mac, std::uint32_t ms, std::uint64_t now_ms);

  // --- Control thread: the rest -----------------------------------------------------------------

  /// Does what is due (grace periods) and frees what no worker holds. Returns when to call again,
  /// in boot ms.
  std::optional<std::uint64_t> run_timers(std::uint64_t now_ms);

  [[nodiscard]] Peer* peer(std::string_view id) const;
  [[nodiscard]] Peer* peer_by_number(std::uint32_t number) const;
  [[nodiscard]] const std::unordered_map<std::string, std::unique_ptr<Peer>>& peers() const {
    return peers_;
  }
  /// Where frames for the member go from now on.
  void set_endpoint(Peer& peer, const Endpoint& endpoint);

  struct BootState {
    std::uint32_t boot;
    std::array<std::uint8_t, kX25519Size> public_key;
    std::uint32_t index;
  };
  [[nodiscard]] std::vector<BootState> boots() const;
  struct GroupState {
    std::uint64_t pw_id;
    bool send;
  };
  [[nodiscard]] std::vector<GroupState> group_keys() const;

 private:
  /// A boot key, and the state of all traffic keys made with it.
  struct BootKey : LockedAllocated {
    std::uint32_t number = 0;
    X25519KeyPair keys;
    std::unique_ptr<Incarnation> self;  ///< once there is an index
    KeyStateStore states;

    [[nodiscard]] std::uint32_t index() const { return self ? self->index : 0; }
  };
  /// KEY_M of one generation: kept, because members come later.
  struct GroupGeneration : LockedAllocated {
    std::uint64_t pw_id = 0;
    Secret<kKeySize> key;
    std::uint64_t chosen = 0;  ///< as in PairKeyRecord
    KeyStateStore states;
    std::unique_ptr<SendKey> send;
    std::uint32_t send_boot = 0;
    /// By sender index.
    std::unordered_map<std::uint32_t, std::unique_ptr<ReceiveKey>> receive;
  };
  /// What must not be forgotten of a generation that was dropped.
  struct RetiredGroup {
    std::uint64_t pw_id = 0;
    KeyDigest key{};  ///< of KEY_M
    KeyStateStore states;
  };
  struct OnlineArray {
    explicit OnlineArray(std::size_t size)
        : capacity(size), peers(std::make_unique<std::atomic<Peer*>[]>(size)) {}
    const std::size_t capacity;
    std::atomic<std::size_t> used{0};
    std::unique_ptr<std::atomic<Peer*>[]> peers;
  };
  enum class Due : std::uint8_t { kIncarnation, kPairKey, kGroupKey };
  struct Timer {
    Due due;
    std::uint32_t peer = 0;
    std::uint32_t index = 0;
    std::uint64_t pw_id = 0;
  };

  [[nodiscard]] Peer& require_peer(std::string_view id) const;
  [[nodiscard]] BootKey& require_boot(std::uint32_t boot) const;
  [[nodiscard]] BootKey* newest_boot() const;
  [[nodiscard]] BootKey* boot_by_number(std::uint32_t boot) const;
  Incarnation& add_incarnation(Peer& peer, const PeerSetting& setting, std::uint64_t now_ms);
  void start_retiring(Peer& peer, Incarnation& old, std::uint64_t now_ms);
  void make_current(Peer& peer, std::uint32_t index, std::uint64_t now_ms);
  void retire_incarnation(Peer& peer, std::uint32_t index);
  void retire_record(Peer& peer, PairKeyRecord& record);
  void refresh_send(Peer& peer);
  void refresh_group_send();
  void add_group_receive(GroupGeneration& generation, Incarnation& sender, std::string_view id,
                         std::uint64_t now_ms);
  void retire_group(std::uint64_t pw_id);
  void set_macs(Peer& peer, std::vector<MacAddress> macs);
  void set_online(Peer& peer, bool online);
  void drop_pair_keys(Peer& peer, std::uint64_t pw_id);
  void changed() { version_.fetch_add(1, std::memory_order_acq_rel); }

  RcuDomain rcu_;
  const std::uint64_t seed_;

  // Shown to workers. Declared behind what they use, so taken down first.
  RcuMap<Incarnation> senders_;
  RcuMap<Peer> destinations_;
  RcuMap<std::atomic<std::uint64_t>> refused_;
  std::atomic<const PortSettings*> settings_{nullptr};
  std::atomic<SendKey*> group_send_{nullptr};
  std::atomic<OnlineArray*> online_{nullptr};
  std::atomic<std::uint64_t> lease_{0};
  std::atomic<std::uint64_t> version_{1};

  // The control thread's.
  std::unique_ptr<const PortSettings> owned_settings_;
  std::unique_ptr<OnlineArray> owned_online_;
  std::vector<std::size_t> online_holes_;
  std::vector<std::unique_ptr<BootKey>> boots_;  ///< the newest is the last
  std::uint32_t next_boot_ = 1;
  std::vector<std::unique_ptr<GroupGeneration>> groups_;
  std::deque<std::unique_ptr<RetiredGroup>> retired_groups_;  ///< the oldest first
  std::unordered_map<std::string, std::unique_ptr<Peer>> peers_;
  std::unordered_map<std::uint32_t, Peer*> by_number_;
  std::uint32_t next_peer_ = 1;
  std::uint64_t next_choice_ = 1;
  std::unordered_map<std::uint64_t, std::unique_ptr<std::atomic<std::uint64_t>>> refused_macs_;
  std::multimap<std::uint64_t, Timer> timers_;
};

}  // namespace pairwire
