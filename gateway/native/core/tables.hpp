// Everything that the workers of one port look up, and the control thread's way to change it.
//
//   inbound    sender index  -> Incarnation -> keys by kid      (RcuMap)
//   outbound   MAC address   -> Peer -> send key, endpoint      (RcuMap)
//              group         -> send key, all Peers online      (RcuMap's idea with a plain array)
//              (VLAN, MAC)   -> member with a plain port        (BehindTable)
//   both       PortSettings                                     (one immutable snapshot)
//              addresses that are members' own                  (OwnAddresses)
//              IP address   -> MAC address that announces it    (Bindings)
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

#include "core/behind-table.hpp"
#include "core/bindings.hpp"
#include "core/endpoint.hpp"
#include "core/frame.hpp"
#include "core/keys.hpp"
#include "core/net-routes.hpp"
#include "core/own-addresses.hpp"
#include "core/path-state.hpp"
#include "core/plain-port.hpp"
#include "core/rcu-map.hpp"
#include "core/rcu.hpp"
#include "core/relay-frame.hpp"
#include "core/sent-packets.hpp"
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
/// Of a sender index, for each of our own boot keys, or for the group.
inline constexpr std::size_t kMaxKeysPerSender = 4;
/// Places for receive keys of a sender index: two of our boot keys live at once while one replaces
/// the other.
inline constexpr std::size_t kKeyPlaces = 2 * kMaxKeysPerSender;
inline constexpr std::size_t kStaleKids = 8;
inline constexpr std::size_t kMaxBoots = 8;
inline constexpr std::size_t kMaxIncarnations = 4;
/// Group generations that were dropped and whose windows are kept, should they come again.
inline constexpr std::size_t kKeptGroups = 2;
inline constexpr std::size_t kMaxRefusedMacs = 8192;
/// Other subnets of one link port.
inline constexpr std::size_t kMaxNets = 64;
inline constexpr std::uint64_t kIncarnationGraceMs = 10'000;
inline constexpr FrameTime kGroupKeySlack = kFrameTimePerSecond / 4;  ///< 250 ms
static_assert(kFrameTimePerSecond % 4 == 0);
/// Of a sealed frame's length, where the path is not known to have one.
inline constexpr std::uint32_t kNoFrameLimit = ~std::uint32_t{0};
/// What crosses any path: an outer packet of 1,280 bytes less IPv6 and UDP header.
inline constexpr std::uint32_t kSafeFrame = 1'280 - 48;

/// Bits of what a grant allows, as port.set and peer.set say it.
inline constexpr std::uint8_t kRightRouter = 1;
inline constexpr std::uint8_t kRightDhcp = 2;
/// Not a right: the subnet's policy keeps this member out of group traffic.
inline constexpr std::uint8_t kNoGroup = 4;

/// What port.set says, as the workers need it. Immutable once published.
struct PortSettings {
  std::string subnet;
  std::string member;
  std::string net;               ///< a link port's: the net id of our subnet
  std::vector<MacAddress> macs;  ///< our own
  Suite suite = Suite::kAes256Gcm;
  Backend backend = Backend::kLibcrypto;
  Transport transport = Transport::kUdp;
  std::uint8_t subnet_tag = 0;     ///< `ethernet` only
  std::uint16_t udp_port = 0;      ///< `udp` only
  std::uint16_t underlay_mtu = 0;  ///< of the interface below; 0: not known
  std::uint32_t freshness_ms = 0;  ///< 0: not checked
  std::uint16_t hold_frames = 0;   ///< 0: holding is off
  std::uint16_t hold_ms = 0;
  std::uint32_t hold_bytes = 0;
  std::uint32_t storm_frames = 0;  ///< 0: no limit
  std::vector<Ipv4Prefix> broadcasts;
  std::uint8_t rights = 0;  ///< of our own grant: kRight*, kNoGroup
  bool pairwise = false;    ///< each copy of a group frame is sealed under its receiver's pair key
  bool answer = false;      ///< questions for bound addresses are answered here
  /// `ip` only: IP protocols that cross in clear besides ARP and neighbour discovery.
  std::vector<std::uint8_t> pass;
  /// What the operator says may be behind other nets, whether key servers agree or not.
  std::vector<IpPrefix> elsewhere;
  PortKind kind = PortKind::kHost;
  // The rest is a plain port's.
  BroadcastPolicy broadcast = BroadcastPolicy::kAll;
  bool pass_stp = false;
  std::uint32_t learn_ms = 300'000;  ///< how long an address is remembered that is not seen again

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
  std::array<std::atomic<ReceiveKey*>, kKeyPlaces> pair_keys{};
  std::array<std::atomic<ReceiveKey*>, kKeyPlaces> group_keys{};
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
  Peer(std::string name, std::uint32_t id_number, Net* other = nullptr)
      : id(std::move(name)), number(id_number), net(other) {}

  const std::string id;
  const std::uint32_t number;  ///< never reused; what events carry instead of a pointer
  /// The other subnet that this is a link port of; null for members of ours. `id` then is NET/ID.
  Net* const net;

  // Written by the control thread, read by workers.
  std::atomic<SendKey*> send{nullptr};
  std::atomic<const Endpoint*> endpoint{nullptr};
  std::atomic<const MacList*> macs{nullptr};
  std::atomic<bool> plain{false};       ///< may send what machines behind it say
  std::atomic<std::uint8_t> rights{0};  ///< of its grant: kRight*, kNoGroup

  /// The longest sealed frame for the endpoint in use: as assumed, and as proved by a probe.
  std::atomic<std::uint32_t> max_frame{kNoFrameLimit};
  std::atomic<std::uint32_t> proved_frame{kNoFrameLimit};
  /// A relay is in use, and the first tries for a direct path are over.
  std::atomic<bool> relay_settled{false};

  // Counted by outbound workers.
  alignas(64) std::atomic<std::uint64_t> tx_frames{0};
  std::atomic<std::uint64_t> tx_bytes{0};
  std::atomic<std::uint64_t> tx_ms{0};  ///< boot time of the last frame; 0 never

  // Counted by inbound workers.
  alignas(64) std::atomic<std::uint64_t> rx_frames{0};
  std::atomic<std::uint64_t> rx_bytes{0};
  std::atomic<std::uint64_t> rx_ms{0};
  std::atomic<std::uint64_t> elsewhere_ms{0};  ///< when we last told of another source address
  std::atomic<std::uint64_t> other_key_ms{0};  ///< when we last told of another generation

  // The control thread's.
  bool online = false;
  /// The generation that we send with while the peer still sends with an older one, since when, and
  /// when we last told of it.
  std::uint64_t ahead_pw_id = 0;
  std::uint64_t ahead_since_ms = 0;
  std::uint64_t ahead_told_ms = 0;
  /// It has shown that it knows our boot keys up to this one, whatever is sent with to others.
  std::uint32_t knows_boot = 0;
  /// None of its addresses is on a network of ours: try the relay first, where there is one.
  bool relay_first = false;
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
  /// For other tables that strangers can fill.
  [[nodiscard]] std::uint64_t seed() const { return seed_; }

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
  /// What is known of an address that no member owns; null if nothing is.
  [[nodiscard]] const Behind* behind(const VlanMac& address, std::uint64_t now_ms) const noexcept {
    return behind_.find(address, now_ms);
  }
  /// The member that a unicast frame for this address is sealed for: its owner or, if it has none,
  /// who it is behind. Null if nobody is known.
  [[nodiscard]] Peer* route(const VlanMac& address, std::uint64_t now_ms) const noexcept {
    if (Peer* const owner = destination(address.mac)) return owner;
    const Behind* const found = behind(address, now_ms);
    if (found == nullptr || own_.contains(address.mac)) return nullptr;
    Peer* const peer = found->member->peer.load(std::memory_order_acquire);
    return peer != nullptr && peer->plain.load(std::memory_order_relaxed) ? peer : nullptr;
  }
  /// Whether an address is a member's own: ours, a known member's, or one that we were told of.
  [[nodiscard]] bool is_own(const MacAddress& mac) const noexcept {
    return settings().owns(mac) || destination(mac) != nullptr || own_.contains(mac);
  }
  /// The binding of an IP address; null if it has none.
  [[nodiscard]] const Binding* binding(const IpAddress& ip) const noexcept {
    return bindings_.find(ip);
  }
  /// Whether a plain port may take from its plain side and emit there: it is the one that forwards,
  /// and knows all addresses that must not appear there.
  [[nodiscard]] bool plain_side_open() const noexcept {
    return forwarding_.load(std::memory_order_acquire) && own_complete();
  }
  /// Whether all addresses that are members' own were told.
  [[nodiscard]] bool own_complete() const noexcept { return own_.complete(); }
  /// Which subnets there are, for a link port.
  [[nodiscard]] const NetRoutes& routes() const noexcept {
    return *routes_.load(std::memory_order_acquire);
  }
  [[nodiscard]] SendKey* group_send() const noexcept {
    return group_send_.load(std::memory_order_acquire);
  }
  /// The relay in use; null if there is none.
  [[nodiscard]] const RelayUse* relay() const noexcept {
    return relay_.load(std::memory_order_acquire);
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
  /// The first boot key with an index is sent with at once, a later one after `after_ms`: peers
  /// need time to hear of it. Saying it again puts nothing off.
  void set_boot_index(std::uint32_t boot, std::uint32_t index, std::uint32_t after_ms,
                      std::uint64_t now_ms);
  void drop_boot(std::uint32_t boot, std::uint32_t grace_ms, std::uint64_t now_ms);

  struct PeerSetting {
    std::string_view peer;
    std::uint32_t index;
    std::span<const std::uint8_t, kX25519Size> boot;
    std::vector<MacAddress> macs;
    std::vector<Endpoint> endpoints;
    bool online;
    bool relay_first = false;
    bool plain = false;
    std::uint8_t rights = 0;
    std::string_view net = {};  ///< a link port of that subnet, and `peer` is NET/ID
  };
  Peer& set_peer(PeerSetting setting, std::uint64_t now_ms);
  void remove_peer(std::string_view id);

  struct Installed {
    std::uint16_t kid_send;
    std::uint16_t kid_receive;
    bool fresh;  ///< false: it was held already, and nothing was reset
  };
  /// With this boot key and with the older ones that are still there, for every start of the peer:
  /// an end may use any of them until it has heard of the newest. The answer is about this boot key
  /// and the peer's current start.
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

  /// See OwnAddresses.
  void set_own(std::span<const MacAddress> macs, bool reset, bool more);
  void remove_own(std::span<const MacAddress> macs);
  struct BehindSetting {
    VlanMac address;
    std::uint32_t ms;  ///< 0: until it is forgotten
    bool pinned;
  };
  /// These addresses are behind the plain port of `member`, which may be ourselves, and need not be
  /// known yet.
  void set_behind(std::string_view member, std::span<const BehindSetting> settings,
                  std::uint64_t now_ms);
  void forget_behind(std::span<const VlanMac> addresses);
  /// See Bindings.
  void set_bindings(std::span<const Bindings::Setting> settings, bool reset, bool more,
                    std::uint64_t now_ms);
  void remove_bindings(std::span<const IpAddress> ips);
  /// Replaces the prefixes of a net; an empty one is ours.
  void set_routes(std::string_view net, std::vector<IpPrefix> prefixes);
  /// Those that have prefixes.
  [[nodiscard]] std::vector<std::string> routed_nets() const;
  /// A plain port may forward, or not.
  void set_forwarding(bool forwarding) { forwarding_.store(forwarding, std::memory_order_release); }

  /// What a frame of a peer under another generation than the one that we send with means.
  enum class OtherKey : std::uint8_t {
    kNothing,
    kCommitted,  ///< a newer one: the peer was told to change, so we change too
    kLagging,    ///< an older one, for more than a second: the peer was not told
  };
  OtherKey heard_other_key(std::uint32_t peer, std::uint64_t pw_id, std::uint64_t now_ms);
  /// A frame of a peer to this boot key of ours: to that peer we send with it from now on, if it is
  /// newer than what we did send with.
  void heard_boot(std::uint32_t peer, std::uint32_t boot);
  /// The same for a group frame: true if it was under a newer generation, which we send with from
  /// now on.
  bool heard_newer_group_key(std::uint64_t pw_id);

  // --- Control thread: the rest -----------------------------------------------------------------

  /// Does what is due (grace periods) and frees what no worker holds. Returns when to call again,
  /// in boot ms.
  std::optional<std::uint64_t> run_timers(std::uint64_t now_ms);

  [[nodiscard]] Peer* peer(std::string_view id) const;
  [[nodiscard]] Peer* peer_by_number(std::uint32_t number) const;
  [[nodiscard]] const std::unordered_map<std::string, std::unique_ptr<Peer>>& peers() const {
    return peers_;
  }
  /// How often a limit of these tables was reached.
  struct Limits {
    std::uint64_t refusals_lost = 0;      ///< addresses that nobody has, and no room to remember it
    std::uint64_t starts_pushed_out = 0;  ///< a member's oldest start went before its time
  };
  [[nodiscard]] const Limits& limits() const { return limits_; }
  [[nodiscard]] std::size_t behind_count() const { return behind_.size(); }
  [[nodiscard]] std::uint64_t behind_evicted() const { return behind_.evicted(); }
  [[nodiscard]] std::size_t own_count() const { return own_.size(); }
  [[nodiscard]] std::size_t binding_count() const { return bindings_.size(); }
  [[nodiscard]] std::vector<MacAddress> own_list() const { return own_.list(); }

  /// A link port of level `ip`: what its workers have sealed lately.
  [[nodiscard]] SentPackets& sent() { return sent_; }

  void set_relay(std::unique_ptr<const RelayUse> relay);
  /// Where frames for the member go from now on.
  void set_endpoint(Peer& peer, const Endpoint& endpoint);

  struct BootState {
    std::uint32_t boot;
    std::array<std::uint8_t, kX25519Size> public_key;
    std::uint32_t index;
    bool send;
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
    std::uint64_t use_ms = 0;           ///< when to send with it; 0: not waited for
    std::uint64_t drop_ms = 0;          ///< when it goes; 0: it stays
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
  enum class Due : std::uint8_t { kIncarnation, kPairKey, kGroupKey, kBootUse, kBootDrop };
  struct Timer {
    Due due;
    std::uint32_t peer = 0;
    std::uint32_t index = 0;  ///< or number of a boot key
    std::uint64_t pw_id = 0;
  };

  [[nodiscard]] Peer& require_peer(std::string_view id) const;
  [[nodiscard]] BootKey& require_boot(std::uint32_t boot) const;
  [[nodiscard]] BootKey* newest_boot() const;
  [[nodiscard]] BootKey* boot_by_number(std::uint32_t boot) const;
  void use_boot(BootKey& boot);
  void forget_boot(std::uint32_t boot);
  std::optional<Installed> install_pair_record(Peer& peer, BootKey& boot, Incarnation& incarnation,
                                               std::span<const std::uint8_t, kKeySize> key,
                                               std::uint64_t pw_id, std::uint64_t choice);
  Incarnation& add_incarnation(Peer& peer, const PeerSetting& setting, std::uint64_t now_ms);
  void start_retiring(Peer& peer, Incarnation& old, std::uint64_t now_ms);
  void make_current(Peer& peer, std::uint32_t index, std::uint64_t now_ms);
  void retire_incarnation(Peer& peer, std::uint32_t index);
  void retire_record(Peer& peer, PairKeyRecord& record);
  void make_room(Peer& peer, std::uint32_t index, std::uint32_t boot);
  void refresh_send(Peer& peer);
  void refresh_group_send();
  [[nodiscard]] Net& net_named(std::string_view id);
  void choose_port(Net& net);
  void forget_unused_nets();
  [[nodiscard]] std::string own_name() const;
  void add_group_receive(GroupGeneration& generation, Incarnation& sender, std::string_view id,
                         std::uint64_t now_ms);
  void retire_group(std::uint64_t pw_id);
  void set_macs(Peer& peer, std::vector<MacAddress> macs);
  void forget_refusal(const MacAddress& mac);
  void set_online(Peer& peer, bool online);
  void drop_pair_keys(Peer& peer, std::uint64_t pw_id);
  void changed() { version_.fetch_add(1, std::memory_order_acq_rel); }

  RcuDomain rcu_;
  const std::uint64_t seed_;

  // Shown to workers. Declared behind what they use, so taken down first.
  RcuMap<Incarnation> senders_;
  RcuMap<Peer> destinations_;
  RcuMap<std::atomic<std::uint64_t>> refused_;
  OwnAddresses own_;
  BehindTable behind_;
  Bindings bindings_;
  std::atomic<bool> forwarding_{false};
  std::atomic<const NetRoutes*> routes_{nullptr};
  std::atomic<const PortSettings*> settings_{nullptr};
  std::atomic<SendKey*> group_send_{nullptr};
  std::atomic<const RelayUse*> relay_{nullptr};
  std::atomic<OnlineArray*> online_{nullptr};
  std::atomic<std::uint64_t> lease_{0};
  std::atomic<std::uint64_t> version_{1};

  // The control thread's.
  std::unique_ptr<const PortSettings> owned_settings_;
  std::unique_ptr<const RelayUse> owned_relay_;
  std::unique_ptr<const NetRoutes> owned_routes_;
  std::map<std::string, std::unique_ptr<Net>, std::less<>> nets_;
  std::map<std::string, std::vector<IpPrefix>, std::less<>> prefixes_;  ///< by net; empty: ours
  SentPackets sent_;
  std::unique_ptr<OnlineArray> owned_online_;
  std::vector<std::size_t> online_holes_;
  std::vector<std::unique_ptr<BootKey>> boots_;  ///< the newest is the last
  std::uint32_t next_boot_ = 1;
  std::uint32_t send_boot_ = 0;  ///< the one that we send with; 0: none has an index
  std::vector<std::unique_ptr<GroupGeneration>> groups_;
  std::deque<std::unique_ptr<RetiredGroup>> retired_groups_;  ///< the oldest first
  std::unordered_map<std::string, std::unique_ptr<Peer>> peers_;
  std::unordered_map<std::uint32_t, Peer*> by_number_;
  std::uint32_t next_peer_ = 1;
  std::uint64_t next_choice_ = 1;
  std::unordered_map<std::uint64_t, std::unique_ptr<std::atomic<std::uint64_t>>> refused_macs_;
  std::multimap<std::uint64_t, Timer> timers_;
  std::uint64_t next_purge_ms_ = 0;
  Limits limits_;
};

}  // namespace pairwire
