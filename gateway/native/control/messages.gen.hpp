/// What the control plane and the data plane say to each other.
///
/// Made by scripts/generate.ts from gateway/dataplane/schema.json: change that file. The
/// TypeScript side is gateway/dataplane/messages.gen.ts. Frame: 4-byte big-endian length,
/// then one MessagePack map {t, id?, ...fields}; commands and answers carry id, events none.
///
/// Threads: functions of their arguments alone.
// clang-format off
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "codec.hpp"

namespace pairwire::messages {

/// A longer message closes the connection.
inline constexpr std::size_t kMaxMessage = 1048576;

struct Endpoint {
  BoundedBytes<16> ip;
  std::uint16_t port{};
};

struct Boot {
  std::uint32_t boot{};
  std::array<std::uint8_t, 32> public_{};
  std::uint32_t index{};
  bool send{};
};

struct PairKey {
  std::string peer;  ///< at most 127 bytes
  std::uint32_t boot{};
  std::uint32_t peer_index{};
  std::uint64_t pw_id{};
  std::uint16_t kid_send{};
  std::uint16_t kid_receive{};
  bool send{};
};

struct GroupKey {
  std::uint64_t pw_id{};
  bool send{};
};

struct PortState {
  std::uint16_t port{};
  std::string subnet;  ///< at most 63 bytes
  std::string member;  ///< at most 63 bytes
  std::vector<Boot> boots;  ///< at most 8
  std::vector<PairKey> pair_keys;  ///< at most 16384
  std::vector<GroupKey> group_keys;  ///< at most 8
  std::vector<std::string> nets;  ///< at most 65, each at most 63 bytes
};

struct BehindEntry {
  std::uint16_t vlan{};
  std::array<std::uint8_t, 6> mac{};
  std::uint32_t ms{};
  bool pinned{};
};

struct Prefix {
  BoundedBytes<16> ip;
  std::uint8_t bits{};
};

struct Binding {
  BoundedBytes<16> ip;
  std::array<std::uint8_t, 6> mac{};
};

struct BehindKey {
  std::uint16_t vlan{};
  std::array<std::uint8_t, 6> mac{};
};

struct LearnedEntry {
  std::uint16_t vlan{};
  std::array<std::uint8_t, 6> mac{};
  std::uint32_t age_ms{};
};

struct Counter {
  std::string name;  ///< at most 40 bytes
  std::uint64_t value{};
};

struct PeerStats {
  std::string peer;  ///< at most 127 bytes
  std::uint32_t index{};
  Endpoint endpoint;
  bool relayed{};
  bool confirmed{};
  bool alive{};
  std::uint32_t rtt_us{};
  std::uint32_t path_mtu{};
  bool path_mtu_proved{};
  std::uint64_t heard_ms_ago{};
  std::uint64_t tx_frames{};
  std::uint64_t tx_bytes{};
  std::uint64_t rx_frames{};
  std::uint64_t rx_bytes{};
  std::uint64_t pw_id{};
  bool has_key{};
};

struct PortStats {
  std::uint16_t port{};
  std::vector<Counter> drops;  ///< at most 64
  std::vector<Counter> counters;  ///< at most 64
  std::string backend;  ///< at most 20 bytes
  std::string suite;  ///< at most 20 bytes
  std::string tap;  ///< at most 15 bytes
  std::uint16_t mtu{};
  bool offload{};
  Endpoint relay;
  bool relay_registered{};
  std::uint32_t relay_rtt_us{};
  Endpoint seen;
  std::string kind;  ///< at most 8 bytes
  std::string loop;  ///< at most 10 bytes
  std::string loop_other;  ///< at most 63 bytes
  std::uint32_t learned{};
  std::uint32_t behind{};
  std::vector<PeerStats> peers;  ///< at most 16384
};

/// Downwards. Texts and byte strings of 32 bytes (keys) refer to the buffer that was decoded: they
/// are valid while it lives, and its owner wipes it.
namespace command {

/// Claims control. An older or equal epoch is refused; the connection of the former controller is cut off.
struct Attach {
  static constexpr std::string_view kType = "attach";
  std::uint64_t epoch{};
};

/// Opens the connection for `stats` only.
struct Observe {
  static constexpr std::string_view kType = "observe";
};

/// Makes a port or changes it. Devices are named as the broker delivered them: transport `udp` uses udpPort, `ethernet` device (an interface) and tag, `ip` (of `link` only) device, a wire. spinUs: how long its threads look for more before they sleep; underlayMtu: what the interface below `udp` gives, where the search for each path's MTU begins; 0 for no search. helpers: threads that help with sealing and opening, 255 for as many as suit the machine. kind: `host`, `plain` or `link`, which fixes what the port is until it is removed. net: of `link`, the net id of our subnet. pass: of `ip`, the IP protocols that cross in clear besides ARP and neighbour discovery, TCP and UDP never; elsewhere: what the operator says may be behind other nets, whether key servers agree or not: nothing goes there or comes from there in clear. The three after it are about `plain`: broadcast, which group frames of members leave it, `all`, `essential` or `none`; stp, whether frames for 01:80:c2:00:00:00 `pass` or are dropped (`drop`); learnSeconds, after how long an address that was not seen again is forgotten. rights: what the own member's grant allows, bit 0 `router` (router advertisements, redirects), bit 1 `dhcp` (what a DHCP server says). bit 2, which is no right: the policy keeps the member out of group traffic. answer: ARP requests and neighbour solicitations for bound addresses are answered here. pairwise: each copy of a group frame is sealed under its receiver's pair key, and no group key is needed.
struct PortSet {
  static constexpr std::string_view kType = "port.set";
  std::uint16_t port{};
  std::string_view subnet;  ///< at most 63 bytes
  std::string_view member;  ///< at most 63 bytes
  std::string_view tap;  ///< at most 15 bytes
  std::string_view transport;  ///< at most 10 bytes
  std::uint16_t udp_port{};
  std::uint16_t underlay_mtu{};
  std::string_view device;  ///< at most 15 bytes
  std::vector<std::array<std::uint8_t, 6>> macs;  ///< at most 64
  std::string_view suite;  ///< at most 20 bytes
  std::string_view backend;  ///< at most 20 bytes
  std::uint16_t spin_us{};
  std::uint8_t helpers{};
  std::uint8_t tag{};
  std::uint32_t freshness_ms{};
  std::uint16_t hold_frames{};
  std::uint16_t hold_ms{};
  std::uint32_t hold_bytes{};
  std::uint32_t storm_frames{};
  std::string_view kind;  ///< at most 8 bytes
  std::string_view net;  ///< at most 63 bytes
  BoundedBytes<16> pass;
  std::vector<Prefix> elsewhere;  ///< at most 1024
  std::string_view broadcast;  ///< at most 10 bytes
  std::string_view stp;  ///< at most 4 bytes
  std::uint16_t learn_seconds{};
  std::uint8_t rights{};
  bool answer{};
  bool pairwise{};
  std::vector<BoundedBytes<16>> broadcasts;  ///< at most 16
};

/// Takes a port away and wipes its keys.
struct PortRemove {
  static constexpr std::string_view kType = "port.remove";
  std::uint16_t port{};
};

/// Makes a boot key pair. The private half stays inside.
struct BootMake {
  static constexpr std::string_view kType = "boot.make";
  std::uint16_t port{};
};

/// The sender index that the key server drew for a boot record. The first boot key with an index is sent with at once, a later one after afterMs, because peers need time to hear of it; to a peer that uses it already, or that has no key with us yet, at once. Saying it again puts nothing off.
struct BootIndex {
  static constexpr std::string_view kType = "boot.index";
  std::uint16_t port{};
  std::uint32_t boot{};
  std::uint32_t index{};
  std::uint32_t after_ms{};
};

/// Forgets a boot key and every key made with it, after graceMs. Saying it again puts nothing off.
struct BootDrop {
  static constexpr std::string_view kType = "boot.drop";
  std::uint16_t port{};
  std::uint32_t boot{};
  std::uint32_t grace_ms{};
};

/// Key-server time minus CLOCK_BOOTTIME, ms, and the boot time of the sample.
struct Clock {
  static constexpr std::string_view kType = "clock";
  std::int64_t offset_ms{};
  std::uint64_t sampled_boot_ms{};
};

/// All keys of the port are good until this key-server time, ms.
struct Lease {
  static constexpr std::string_view kType = "lease";
  std::uint16_t port{};
  std::uint64_t not_after_ms{};
};

/// A member that may be heard. A new index adds to the old one, which the data plane retires 10 s later. Endpoints in order of preference. relayFirst: none of them is on a network of ours. plain: its token has the role `plain`, so that it may send what machines behind it say: from any source that is neither a member's own nor pinned behind another. rights: of its grant, as in port.set.
struct PeerSet {
  static constexpr std::string_view kType = "peer.set";
  std::uint16_t port{};
  std::string_view peer;  ///< at most 127 bytes
  std::uint32_t index{};
  std::span<const std::uint8_t, 32> boot{detail::kZeros<32>};
  std::vector<std::array<std::uint8_t, 6>> macs;  ///< at most 64
  std::vector<Endpoint> endpoints;  ///< at most 8
  bool online{};
  bool relay_first{};
  bool plain{};
  std::uint8_t rights{};
};

/// A link port of another subnet that may be heard, for a port of kind `link`. peer: NET/ID, which is what it is called in all other messages; key.pair gives it the net key.
struct LinkSet {
  static constexpr std::string_view kType = "link.set";
  std::uint16_t port{};
  std::string_view net;  ///< at most 63 bytes
  std::string_view peer;  ///< at most 127 bytes
  std::uint32_t index{};
  std::span<const std::uint8_t, 32> boot{detail::kZeros<32>};
  std::vector<Endpoint> endpoints;  ///< at most 8
  bool online{};
};

/// Which IP prefixes are behind a net, for a port of kind `link`; net empty: ours. Replaces what was told of that net before. A packet from or to another address neither leaves nor comes in.
struct RoutesSet {
  static constexpr std::string_view kType = "routes.set";
  std::uint16_t port{};
  std::string_view net;  ///< at most 63 bytes
  std::vector<Prefix> prefixes;  ///< at most 64
};

/// Forgets a member, its keys and addresses at once.
struct PeerRemove {
  static constexpr std::string_view kType = "peer.remove";
  std::uint16_t port{};
  std::string_view peer;  ///< at most 127 bytes
};

/// Derives and installs both traffic keys of a pair, under this boot key and the older ones that are still held, and for every start of the peer. A key already held is left as it is. `send`: also send with it from now on. The answer is about this boot key and the peer's current start.
struct KeyPair {
  static constexpr std::string_view kType = "key.pair";
  std::uint16_t port{};
  std::string_view peer;  ///< at most 127 bytes
  std::uint32_t boot{};
  std::span<const std::uint8_t, 32> key{detail::kZeros<32>};
  std::uint64_t pw_id{};
  bool send{};
};

/// Installs the group key: for sending with own boot (if `send`), for receiving from every known peer.
struct KeyGroup {
  static constexpr std::string_view kType = "key.group";
  std::uint16_t port{};
  std::span<const std::uint8_t, 32> key{detail::kZeros<32>};
  std::uint64_t pw_id{};
  bool send{};
};

/// Sends with this generation from now on; peer empty: the group key.
struct KeyUse {
  static constexpr std::string_view kType = "key.use";
  std::uint16_t port{};
  std::string_view peer;  ///< at most 127 bytes
  std::uint64_t pw_id{};
};

/// Forgets a generation and older ones after graceMs; peer empty: the group key.
struct KeyDrop {
  static constexpr std::string_view kType = "key.drop";
  std::uint16_t port{};
  std::string_view peer;  ///< at most 127 bytes
  std::uint64_t pw_id{};
  std::uint32_t grace_ms{};
};

/// No key for this address for so long; frames held for it are dropped (`no_such_member`).
struct MacRefuse {
  static constexpr std::string_view kType = "mac.refuse";
  std::uint16_t port{};
  std::array<std::uint8_t, 6> mac{};
  std::uint32_t ms{};
};

/// Addresses that are members' own, those with a tombstone included: they are never behind a plain port. reset: a new list begins. more: it goes on in the next command; with the first that says false it is complete, and what it did not name is forgotten. A plain port does nothing before its first complete list.
struct OwnSet {
  static constexpr std::string_view kType = "own.set";
  std::uint16_t port{};
  bool reset{};
  bool more{};
  std::vector<std::array<std::uint8_t, 6>> macs;  ///< at most 8192
};

/// These are nobody's own any more.
struct OwnRemove {
  static constexpr std::string_view kType = "own.remove";
  std::uint16_t port{};
  std::vector<std::array<std::uint8_t, 6>> macs;  ///< at most 8192
};

/// Addresses behind the plain port of this peer: learned there, or unknown ones that are given to it. ms: how long that counts, 0 until it is forgotten. pinned: frames with this source are accepted from this peer alone. An own address of a member always goes before. Of more than a data plane holds the oldest goes.
struct BehindSet {
  static constexpr std::string_view kType = "behind.set";
  std::uint16_t port{};
  std::string_view peer;  ///< at most 127 bytes
  std::vector<BehindEntry> entries;  ///< at most 4096
};

/// These are behind nobody any more.
struct BehindForget {
  static constexpr std::string_view kType = "behind.forget";
  std::uint16_t port{};
  std::vector<BehindKey> entries;  ///< at most 4096
};

/// Addresses that are bound: the IP address (4 or 16 bytes) is announced by this MAC address only. Replaces what was bound to the same IP address. reset, more: as in own.set; what a complete list did not name is bound no longer.
struct BindSet {
  static constexpr std::string_view kType = "bind.set";
  std::uint16_t port{};
  bool reset{};
  bool more{};
  std::vector<Binding> entries;  ///< at most 4096
};

/// These IP addresses are bound no longer.
struct BindRemove {
  static constexpr std::string_view kType = "bind.remove";
  std::uint16_t port{};
  std::vector<BoundedBytes<16>> ips;  ///< at most 4096
};

/// A key of loop probes, made from the group key of this generation; the two newest are kept.
struct ProbeKey {
  static constexpr std::string_view kType = "probe.key";
  std::uint16_t port{};
  std::span<const std::uint8_t, 32> key{detail::kZeros<32>};
  std::uint64_t pw_id{};
};

/// The relay of a port on `udp`, and the ticket to register with (docs/protocol.md 2.5); no addresses: none. Says hello at once, so it is repeated when own addresses have changed.
struct RelaySet {
  static constexpr std::string_view kType = "relay.set";
  std::uint16_t port{};
  std::vector<Endpoint> addresses;  ///< at most 4
  std::uint32_t index{};
  std::uint64_t not_after_ms{};
  std::span<const std::uint8_t, 32> ticket{detail::kZeros<32>};
};

/// Counters and peers of all ports.
struct Stats {
  static constexpr std::string_view kType = "stats";
};

/// Forgets all keys, peers and ports.
struct Wipe {
  static constexpr std::string_view kType = "wipe";
};

}  // namespace command

/// Upwards, in answer to a command.
namespace answer {

struct Done {
  static constexpr std::string_view kType = "done";
};

struct Attached {
  static constexpr std::string_view kType = "attached";
  std::array<std::uint8_t, 16> instance{};
  std::uint16_t version{};
  std::vector<std::string> backends;  ///< at most 4, each at most 20 bytes
  std::vector<PortState> ports;  ///< at most 16
};

struct BootMade {
  static constexpr std::string_view kType = "boot.made";
  std::uint32_t boot{};
  std::array<std::uint8_t, 32> public_{};
};

struct KeyInstalled {
  static constexpr std::string_view kType = "key.installed";
  std::uint16_t kid_send{};
  std::uint16_t kid_receive{};
  bool fresh{};
};

struct Stats {
  static constexpr std::string_view kType = "stats";
  std::uint64_t uptime_ms{};
  std::vector<PortStats> ports;  ///< at most 16
  std::uint64_t events_lost{};
};

struct Failed {
  static constexpr std::string_view kType = "failed";
  std::string why;  ///< at most 200 bytes
};

}  // namespace answer

/// Upwards, unasked.
namespace event {

/// A frame from the TAP for an address without a key (own address of the question: ours). vlan: of its outermost tag, 0 without one.
struct MissMac {
  static constexpr std::string_view kType = "miss.mac";
  std::uint16_t port{};
  std::array<std::uint8_t, 6> mac{};
  std::uint16_t vlan{};
};

/// A group frame from the TAP and no group key to send with.
struct MissGroup {
  static constexpr std::string_view kType = "miss.group";
  std::uint16_t port{};
};

/// A frame with a sender index or kid that is not held. group: it was a group frame.
struct MissIndex {
  static constexpr std::string_view kType = "miss.index";
  std::uint16_t port{};
  std::uint32_t index{};
  std::uint16_t kid{};
  bool group{};
  Endpoint from;
};

/// A peer answered a probe at another address, which is used from now on.
struct EndpointMoved {
  static constexpr std::string_view kType = "endpoint.moved";
  std::uint16_t port{};
  std::string peer;  ///< at most 127 bytes
  Endpoint endpoint;
};

/// What the relay said of our address, for the key server, which alone can check it.
struct RelaySeen {
  static constexpr std::string_view kType = "relay.seen";
  std::uint16_t port{};
  std::array<std::uint8_t, 72> receipt{};
};

/// A peer with a key has not answered probes for 45 s.
struct PeerSilent {
  static constexpr std::string_view kType = "peer.silent";
  std::uint16_t port{};
  std::string peer;  ///< at most 127 bytes
};

/// A traffic key for sending reached its rekey limit (docs/protocol.md 3.4); peer empty: the group key.
struct KeyWorn {
  static constexpr std::string_view kType = "key.worn";
  std::uint16_t port{};
  std::string peer;  ///< at most 127 bytes
  std::uint64_t pw_id{};
};

/// A frame opened under a newer generation than the one in use, so the peer was told to change: it is used from now on; peer empty: the group key.
struct KeyCommitted {
  static constexpr std::string_view kType = "key.committed";
  std::uint16_t port{};
  std::string peer;  ///< at most 127 bytes
  std::uint64_t pw_id{};
};

/// A peer has sent with this older generation for a second since we changed: it was not told.
struct KeyLagging {
  static constexpr std::string_view kType = "key.lagging";
  std::uint16_t port{};
  std::string peer;  ///< at most 127 bytes
  std::uint64_t pw_id{};
};

/// Sources that a plain port saw on its plain side: new ones at once, known ones again every third of learnSeconds while they are seen.
struct Learned {
  static constexpr std::string_view kType = "learned";
  std::uint16_t port{};
  std::vector<LearnedEntry> entries;  ///< at most 256
};

/// Addresses that a plain port has forgotten: not seen for learnSeconds, or it went out of use.
struct Unlearned {
  static constexpr std::string_view kType = "unlearned";
  std::uint16_t port{};
  std::vector<BehindKey> entries;  ///< at most 256
};

/// A plain port may `forward`, is `standby` (other: the member that forwards; empty: it listens first), or is `blocked`, because it heard itself.
struct LoopState {
  static constexpr std::string_view kType = "loop.state";
  std::uint16_t port{};
  std::string state;  ///< at most 10 bytes
  std::string other;  ///< at most 63 bytes
};

/// A frame from the plain side had a source that is a member's own. At most one a second for each port; all are counted.
struct Spoof {
  static constexpr std::string_view kType = "spoof";
  std::uint16_t port{};
  std::array<std::uint8_t, 6> mac{};
  std::uint16_t vlan{};
  std::string kind;  ///< at most 24 bytes
};

/// Our host has announced one of its addresses (ARP, neighbour discovery) that is not bound to the MAC address it names, so to nobody or to another one (then the frame is refused all the same, unless both are its own); or it is bound already and was not told of for 300 s. At most 20 a second for each port, and one address every 2 s.
struct Claim {
  static constexpr std::string_view kType = "claim";
  std::uint16_t port{};
  BoundedBytes<16> ip;
  std::array<std::uint8_t, 6> mac{};
};

/// The address guard refused a frame. kind: `arp`, `nd`, `ra`, `redirect` or `dhcp`. peer: who sent it, empty if it came from our own host or bridge. mac: its source. ip: the address that it claimed, empty without one. At most 10 a second for each port; all are counted.
struct Guarded {
  static constexpr std::string_view kType = "guarded";
  std::uint16_t port{};
  std::string kind;  ///< at most 10 bytes
  std::string peer;  ///< at most 127 bytes
  std::array<std::uint8_t, 6> mac{};
  BoundedBytes<16> ip;
};

/// All keys were wiped: orphaned, or the machine was resumed from a snapshot.
struct KeysWiped {
  static constexpr std::string_view kType = "keys.wiped";
  std::string why;  ///< at most 40 bytes
};

/// A line for the log of the control plane.
struct Log {
  static constexpr std::string_view kType = "log";
  std::uint8_t level{};
  std::string text;  ///< at most 500 bytes
};

}  // namespace event

using Command = std::variant<command::Attach, command::Observe, command::PortSet, command::PortRemove, command::BootMake, command::BootIndex, command::BootDrop, command::Clock, command::Lease, command::PeerSet, command::LinkSet, command::RoutesSet, command::PeerRemove, command::KeyPair, command::KeyGroup, command::KeyUse, command::KeyDrop, command::MacRefuse, command::OwnSet, command::OwnRemove, command::BehindSet, command::BehindForget, command::BindSet, command::BindRemove, command::ProbeKey, command::RelaySet, command::Stats, command::Wipe>;
using Answer = std::variant<answer::Done, answer::Attached, answer::BootMade, answer::KeyInstalled, answer::Stats, answer::Failed>;
using Event = std::variant<event::MissMac, event::MissGroup, event::MissIndex, event::EndpointMoved, event::RelaySeen, event::PeerSilent, event::KeyWorn, event::KeyCommitted, event::KeyLagging, event::Learned, event::Unlearned, event::LoopState, event::Spoof, event::Claim, event::Guarded, event::KeysWiped, event::Log>;

/// A command as it came in.
struct Request {
  std::uint32_t id = 0;
  Command command;
};

using DecodeResult = std::variant<Request, DecodeError>;

namespace detail {

inline void read_value(const msgpack::object& value, Endpoint& out, std::string_view name, Problem& problem) {
  MapReader map(value, name, problem);
  map.value("ip", out.ip);
  map.value("port", out.port);
  map.finish();
}

inline void read_value(const msgpack::object& value, BehindEntry& out, std::string_view name, Problem& problem) {
  MapReader map(value, name, problem);
  map.value("vlan", out.vlan);
  map.value("mac", out.mac);
  map.value("ms", out.ms);
  map.value("pinned", out.pinned);
  map.finish();
}

inline void read_value(const msgpack::object& value, Prefix& out, std::string_view name, Problem& problem) {
  MapReader map(value, name, problem);
  map.value("ip", out.ip);
  map.value("bits", out.bits);
  map.finish();
}

inline void read_value(const msgpack::object& value, Binding& out, std::string_view name, Problem& problem) {
  MapReader map(value, name, problem);
  map.value("ip", out.ip);
  map.value("mac", out.mac);
  map.finish();
}

inline void read_value(const msgpack::object& value, BehindKey& out, std::string_view name, Problem& problem) {
  MapReader map(value, name, problem);
  map.value("vlan", out.vlan);
  map.value("mac", out.mac);
  map.finish();
}

inline void read_fields([[maybe_unused]] MapReader& map, [[maybe_unused]] command::Attach& out) {
  map.value("epoch", out.epoch);
}

inline void read_fields([[maybe_unused]] MapReader& map, [[maybe_unused]] command::Observe& out) {
}

inline void read_fields([[maybe_unused]] MapReader& map, [[maybe_unused]] command::PortSet& out) {
  map.value("port", out.port);
  map.text("subnet", out.subnet, 63);
  map.text("member", out.member, 63);
  map.text("tap", out.tap, 15);
  map.text("transport", out.transport, 10);
  map.value("udpPort", out.udp_port);
  map.value("underlayMtu", out.underlay_mtu);
  map.text("device", out.device, 15);
  map.list("macs", out.macs, 64, [](const msgpack::object& value, std::array<std::uint8_t, 6>& item, std::string_view name, Problem& problem) { read_value(value, item, name, problem); });
  map.text("suite", out.suite, 20);
  map.text("backend", out.backend, 20);
  map.value("spinUs", out.spin_us);
  map.value("helpers", out.helpers);
  map.value("tag", out.tag);
  map.value("freshnessMs", out.freshness_ms);
  map.value("holdFrames", out.hold_frames);
  map.value("holdMs", out.hold_ms);
  map.value("holdBytes", out.hold_bytes);
  map.value("stormFrames", out.storm_frames);
  map.text("kind", out.kind, 8);
  map.text("net", out.net, 63);
  map.value("pass", out.pass);
  map.list("elsewhere", out.elsewhere, 1024, [](const msgpack::object& value, Prefix& item, std::string_view name, Problem& problem) { read_value(value, item, name, problem); });
  map.text("broadcast", out.broadcast, 10);
  map.text("stp", out.stp, 4);
  map.value("learnSeconds", out.learn_seconds);
  map.value("rights", out.rights);
  map.value("answer", out.answer);
  map.value("pairwise", out.pairwise);
  map.list("broadcasts", out.broadcasts, 16, [](const msgpack::object& value, BoundedBytes<16>& item, std::string_view name, Problem& problem) { read_value(value, item, name, problem); });
}

inline void read_fields([[maybe_unused]] MapReader& map, [[maybe_unused]] command::PortRemove& out) {
  map.value("port", out.port);
}

inline void read_fields([[maybe_unused]] MapReader& map, [[maybe_unused]] command::BootMake& out) {
  map.value("port", out.port);
}

inline void read_fields([[maybe_unused]] MapReader& map, [[maybe_unused]] command::BootIndex& out) {
  map.value("port", out.port);
  map.value("boot", out.boot);
  map.value("index", out.index);
  map.value("afterMs", out.after_ms);
}

inline void read_fields([[maybe_unused]] MapReader& map, [[maybe_unused]] command::BootDrop& out) {
  map.value("port", out.port);
  map.value("boot", out.boot);
  map.value("graceMs", out.grace_ms);
}

inline void read_fields([[maybe_unused]] MapReader& map, [[maybe_unused]] command::Clock& out) {
  map.value("offsetMs", out.offset_ms);
  map.value("sampledBootMs", out.sampled_boot_ms);
}

inline void read_fields([[maybe_unused]] MapReader& map, [[maybe_unused]] command::Lease& out) {
  map.value("port", out.port);
  map.value("notAfterMs", out.not_after_ms);
}

inline void read_fields([[maybe_unused]] MapReader& map, [[maybe_unused]] command::PeerSet& out) {
  map.value("port", out.port);
  map.text("peer", out.peer, 127);
  map.value("index", out.index);
  map.value("boot", out.boot);
  map.list("macs", out.macs, 64, [](const msgpack::object& value, std::array<std::uint8_t, 6>& item, std::string_view name, Problem& problem) { read_value(value, item, name, problem); });
  map.list("endpoints", out.endpoints, 8, [](const msgpack::object& value, Endpoint& item, std::string_view name, Problem& problem) { read_value(value, item, name, problem); });
  map.value("online", out.online);
  map.value("relayFirst", out.relay_first);
  map.value("plain", out.plain);
  map.value("rights", out.rights);
}

inline void read_fields([[maybe_unused]] MapReader& map, [[maybe_unused]] command::LinkSet& out) {
  map.value("port", out.port);
  map.text("net", out.net, 63);
  map.text("peer", out.peer, 127);
  map.value("index", out.index);
  map.value("boot", out.boot);
  map.list("endpoints", out.endpoints, 8, [](const msgpack::object& value, Endpoint& item, std::string_view name, Problem& problem) { read_value(value, item, name, problem); });
  map.value("online", out.online);
}

inline void read_fields([[maybe_unused]] MapReader& map, [[maybe_unused]] command::RoutesSet& out) {
  map.value("port", out.port);
  map.text("net", out.net, 63);
  map.list("prefixes", out.prefixes, 64, [](const msgpack::object& value, Prefix& item, std::string_view name, Problem& problem) { read_value(value, item, name, problem); });
}

inline void read_fields([[maybe_unused]] MapReader& map, [[maybe_unused]] command::PeerRemove& out) {
  map.value("port", out.port);
  map.text("peer", out.peer, 127);
}

inline void read_fields([[maybe_unused]] MapReader& map, [[maybe_unused]] command::KeyPair& out) {
  map.value("port", out.port);
  map.text("peer", out.peer, 127);
  map.value("boot", out.boot);
  map.value("key", out.key);
  map.value("pwId", out.pw_id);
  map.value("send", out.send);
}

inline void read_fields([[maybe_unused]] MapReader& map, [[maybe_unused]] command::KeyGroup& out) {
  map.value("port", out.port);
  map.value("key", out.key);
  map.value("pwId", out.pw_id);
  map.value("send", out.send);
}

inline void read_fields([[maybe_unused]] MapReader& map, [[maybe_unused]] command::KeyUse& out) {
  map.value("port", out.port);
  map.text("peer", out.peer, 127);
  map.value("pwId", out.pw_id);
}

inline void read_fields([[maybe_unused]] MapReader& map, [[maybe_unused]] command::KeyDrop& out) {
  map.value("port", out.port);
  map.text("peer", out.peer, 127);
  map.value("pwId", out.pw_id);
  map.value("graceMs", out.grace_ms);
}

inline void read_fields([[maybe_unused]] MapReader& map, [[maybe_unused]] command::MacRefuse& out) {
  map.value("port", out.port);
  map.value("mac", out.mac);
  map.value("ms", out.ms);
}

inline void read_fields([[maybe_unused]] MapReader& map, [[maybe_unused]] command::OwnSet& out) {
  map.value("port", out.port);
  map.value("reset", out.reset);
  map.value("more", out.more);
  map.list("macs", out.macs, 8192, [](const msgpack::object& value, std::array<std::uint8_t, 6>& item, std::string_view name, Problem& problem) { read_value(value, item, name, problem); });
}

inline void read_fields([[maybe_unused]] MapReader& map, [[maybe_unused]] command::OwnRemove& out) {
  map.value("port", out.port);
  map.list("macs", out.macs, 8192, [](const msgpack::object& value, std::array<std::uint8_t, 6>& item, std::string_view name, Problem& problem) { read_value(value, item, name, problem); });
}

inline void read_fields([[maybe_unused]] MapReader& map, [[maybe_unused]] command::BehindSet& out) {
  map.value("port", out.port);
  map.text("peer", out.peer, 127);
  map.list("entries", out.entries, 4096, [](const msgpack::object& value, BehindEntry& item, std::string_view name, Problem& problem) { read_value(value, item, name, problem); });
}

inline void read_fields([[maybe_unused]] MapReader& map, [[maybe_unused]] command::BehindForget& out) {
  map.value("port", out.port);
  map.list("entries", out.entries, 4096, [](const msgpack::object& value, BehindKey& item, std::string_view name, Problem& problem) { read_value(value, item, name, problem); });
}

inline void read_fields([[maybe_unused]] MapReader& map, [[maybe_unused]] command::BindSet& out) {
  map.value("port", out.port);
  map.value("reset", out.reset);
  map.value("more", out.more);
  map.list("entries", out.entries, 4096, [](const msgpack::object& value, Binding& item, std::string_view name, Problem& problem) { read_value(value, item, name, problem); });
}

inline void read_fields([[maybe_unused]] MapReader& map, [[maybe_unused]] command::BindRemove& out) {
  map.value("port", out.port);
  map.list("ips", out.ips, 4096, [](const msgpack::object& value, BoundedBytes<16>& item, std::string_view name, Problem& problem) { read_value(value, item, name, problem); });
}

inline void read_fields([[maybe_unused]] MapReader& map, [[maybe_unused]] command::ProbeKey& out) {
  map.value("port", out.port);
  map.value("key", out.key);
  map.value("pwId", out.pw_id);
}

inline void read_fields([[maybe_unused]] MapReader& map, [[maybe_unused]] command::RelaySet& out) {
  map.value("port", out.port);
  map.list("addresses", out.addresses, 4, [](const msgpack::object& value, Endpoint& item, std::string_view name, Problem& problem) { read_value(value, item, name, problem); });
  map.value("index", out.index);
  map.value("notAfterMs", out.not_after_ms);
  map.value("ticket", out.ticket);
}

inline void read_fields([[maybe_unused]] MapReader& map, [[maybe_unused]] command::Stats& out) {
}

inline void read_fields([[maybe_unused]] MapReader& map, [[maybe_unused]] command::Wipe& out) {
}

template <typename Message>
DecodeResult read_command(const msgpack::object& root, std::uint32_t id) {
  Problem problem;
  Message message;
  std::string_view type;
  std::uint32_t same_id = 0;
  MapReader map(root, {}, problem);
  map.text("t", type, Message::kType.size());
  map.value("id", same_id);
  read_fields(map, message);
  map.finish();
  if (problem.failed()) return DecodeError{problem.code(), Message::kType, problem.field(), id};
  return Request{id, Command(std::move(message))};
}

inline void write_item(FrameWriter& writer, const Endpoint& value) {
  writer.map(2);
  writer.value("ip", value.ip);
  writer.value("port", value.port);
}

inline void write_item(FrameWriter& writer, const Boot& value) {
  writer.map(4);
  writer.value("boot", value.boot);
  writer.value("public", value.public_);
  writer.value("index", value.index);
  writer.value("send", value.send);
}

inline void write_item(FrameWriter& writer, const PairKey& value) {
  writer.map(7);
  writer.text("peer", value.peer, 127);
  writer.value("boot", value.boot);
  writer.value("peerIndex", value.peer_index);
  writer.value("pwId", value.pw_id);
  writer.value("kidSend", value.kid_send);
  writer.value("kidReceive", value.kid_receive);
  writer.value("send", value.send);
}

inline void write_item(FrameWriter& writer, const GroupKey& value) {
  writer.map(2);
  writer.value("pwId", value.pw_id);
  writer.value("send", value.send);
}

inline void write_item(FrameWriter& writer, const PortState& value) {
  writer.map(7);
  writer.value("port", value.port);
  writer.text("subnet", value.subnet, 63);
  writer.text("member", value.member, 63);
  writer.list("boots", value.boots, 8, [](FrameWriter& out, std::string_view name, const auto& item) { static_cast<void>(name); write_item(out, item); });
  writer.list("pairKeys", value.pair_keys, 16384, [](FrameWriter& out, std::string_view name, const auto& item) { static_cast<void>(name); write_item(out, item); });
  writer.list("groupKeys", value.group_keys, 8, [](FrameWriter& out, std::string_view name, const auto& item) { static_cast<void>(name); write_item(out, item); });
  writer.list("nets", value.nets, 65, [](FrameWriter& out, std::string_view name, const auto& item) { out.text_item(name, item, 63); });
}

inline void write_item(FrameWriter& writer, const BehindEntry& value) {
  writer.map(4);
  writer.value("vlan", value.vlan);
  writer.value("mac", value.mac);
  writer.value("ms", value.ms);
  writer.value("pinned", value.pinned);
}

inline void write_item(FrameWriter& writer, const Prefix& value) {
  writer.map(2);
  writer.value("ip", value.ip);
  writer.value("bits", value.bits);
}

inline void write_item(FrameWriter& writer, const Binding& value) {
  writer.map(2);
  writer.value("ip", value.ip);
  writer.value("mac", value.mac);
}

inline void write_item(FrameWriter& writer, const BehindKey& value) {
  writer.map(2);
  writer.value("vlan", value.vlan);
  writer.value("mac", value.mac);
}

inline void write_item(FrameWriter& writer, const LearnedEntry& value) {
  writer.map(3);
  writer.value("vlan", value.vlan);
  writer.value("mac", value.mac);
  writer.value("ageMs", value.age_ms);
}

inline void write_item(FrameWriter& writer, const Counter& value) {
  writer.map(2);
  writer.text("name", value.name, 40);
  writer.value("value", value.value);
}

inline void write_item(FrameWriter& writer, const PeerStats& value) {
  writer.map(16);
  writer.text("peer", value.peer, 127);
  writer.value("index", value.index);
  writer.key("endpoint");
  write_item(writer, value.endpoint);
  writer.value("relayed", value.relayed);
  writer.value("confirmed", value.confirmed);
  writer.value("alive", value.alive);
  writer.value("rttUs", value.rtt_us);
  writer.value("pathMtu", value.path_mtu);
  writer.value("pathMtuProved", value.path_mtu_proved);
  writer.value("heardMsAgo", value.heard_ms_ago);
  writer.value("txFrames", value.tx_frames);
  writer.value("txBytes", value.tx_bytes);
  writer.value("rxFrames", value.rx_frames);
  writer.value("rxBytes", value.rx_bytes);
  writer.value("pwId", value.pw_id);
  writer.value("hasKey", value.has_key);
}

inline void write_item(FrameWriter& writer, const PortStats& value) {
  writer.map(18);
  writer.value("port", value.port);
  writer.list("drops", value.drops, 64, [](FrameWriter& out, std::string_view name, const auto& item) { static_cast<void>(name); write_item(out, item); });
  writer.list("counters", value.counters, 64, [](FrameWriter& out, std::string_view name, const auto& item) { static_cast<void>(name); write_item(out, item); });
  writer.text("backend", value.backend, 20);
  writer.text("suite", value.suite, 20);
  writer.text("tap", value.tap, 15);
  writer.value("mtu", value.mtu);
  writer.value("offload", value.offload);
  writer.key("relay");
  write_item(writer, value.relay);
  writer.value("relayRegistered", value.relay_registered);
  writer.value("relayRttUs", value.relay_rtt_us);
  writer.key("seen");
  write_item(writer, value.seen);
  writer.text("kind", value.kind, 8);
  writer.text("loop", value.loop, 10);
  writer.text("loopOther", value.loop_other, 63);
  writer.value("learned", value.learned);
  writer.value("behind", value.behind);
  writer.list("peers", value.peers, 16384, [](FrameWriter& out, std::string_view name, const auto& item) { static_cast<void>(name); write_item(out, item); });
}

inline void write_message(FrameWriter& writer, std::uint32_t id, const command::Attach& value) {
  writer.map(3);
  writer.text("t", command::Attach::kType, command::Attach::kType.size());
  writer.value("id", id);
  writer.value("epoch", value.epoch);
}

inline void write_message(FrameWriter& writer, std::uint32_t id, [[maybe_unused]] const command::Observe& value) {
  writer.map(2);
  writer.text("t", command::Observe::kType, command::Observe::kType.size());
  writer.value("id", id);
}

inline void write_message(FrameWriter& writer, std::uint32_t id, const command::PortSet& value) {
  writer.map(32);
  writer.text("t", command::PortSet::kType, command::PortSet::kType.size());
  writer.value("id", id);
  writer.value("port", value.port);
  writer.text("subnet", value.subnet, 63);
  writer.text("member", value.member, 63);
  writer.text("tap", value.tap, 15);
  writer.text("transport", value.transport, 10);
  writer.value("udpPort", value.udp_port);
  writer.value("underlayMtu", value.underlay_mtu);
  writer.text("device", value.device, 15);
  writer.list("macs", value.macs, 64, [](FrameWriter& out, std::string_view name, const auto& item) { out.item(name, item); });
  writer.text("suite", value.suite, 20);
  writer.text("backend", value.backend, 20);
  writer.value("spinUs", value.spin_us);
  writer.value("helpers", value.helpers);
  writer.value("tag", value.tag);
  writer.value("freshnessMs", value.freshness_ms);
  writer.value("holdFrames", value.hold_frames);
  writer.value("holdMs", value.hold_ms);
  writer.value("holdBytes", value.hold_bytes);
  writer.value("stormFrames", value.storm_frames);
  writer.text("kind", value.kind, 8);
  writer.text("net", value.net, 63);
  writer.value("pass", value.pass);
  writer.list("elsewhere", value.elsewhere, 1024, [](FrameWriter& out, std::string_view name, const auto& item) { static_cast<void>(name); write_item(out, item); });
  writer.text("broadcast", value.broadcast, 10);
  writer.text("stp", value.stp, 4);
  writer.value("learnSeconds", value.learn_seconds);
  writer.value("rights", value.rights);
  writer.value("answer", value.answer);
  writer.value("pairwise", value.pairwise);
  writer.list("broadcasts", value.broadcasts, 16, [](FrameWriter& out, std::string_view name, const auto& item) { out.item(name, item); });
}

inline void write_message(FrameWriter& writer, std::uint32_t id, const command::PortRemove& value) {
  writer.map(3);
  writer.text("t", command::PortRemove::kType, command::PortRemove::kType.size());
  writer.value("id", id);
  writer.value("port", value.port);
}

inline void write_message(FrameWriter& writer, std::uint32_t id, const command::BootMake& value) {
  writer.map(3);
  writer.text("t", command::BootMake::kType, command::BootMake::kType.size());
  writer.value("id", id);
  writer.value("port", value.port);
}

inline void write_message(FrameWriter& writer, std::uint32_t id, const command::BootIndex& value) {
  writer.map(6);
  writer.text("t", command::BootIndex::kType, command::BootIndex::kType.size());
  writer.value("id", id);
  writer.value("port", value.port);
  writer.value("boot", value.boot);
  writer.value("index", value.index);
  writer.value("afterMs", value.after_ms);
}

inline void write_message(FrameWriter& writer, std::uint32_t id, const command::BootDrop& value) {
  writer.map(5);
  writer.text("t", command::BootDrop::kType, command::BootDrop::kType.size());
  writer.value("id", id);
  writer.value("port", value.port);
  writer.value("boot", value.boot);
  writer.value("graceMs", value.grace_ms);
}

inline void write_message(FrameWriter& writer, std::uint32_t id, const command::Clock& value) {
  writer.map(4);
  writer.text("t", command::Clock::kType, command::Clock::kType.size());
  writer.value("id", id);
  writer.value("offsetMs", value.offset_ms);
  writer.value("sampledBootMs", value.sampled_boot_ms);
}

inline void write_message(FrameWriter& writer, std::uint32_t id, const command::Lease& value) {
  writer.map(4);
  writer.text("t", command::Lease::kType, command::Lease::kType.size());
  writer.value("id", id);
  writer.value("port", value.port);
  writer.value("notAfterMs", value.not_after_ms);
}

inline void write_message(FrameWriter& writer, std::uint32_t id, const command::PeerSet& value) {
  writer.map(12);
  writer.text("t", command::PeerSet::kType, command::PeerSet::kType.size());
  writer.value("id", id);
  writer.value("port", value.port);
  writer.text("peer", value.peer, 127);
  writer.value("index", value.index);
  writer.value("boot", value.boot);
  writer.list("macs", value.macs, 64, [](FrameWriter& out, std::string_view name, const auto& item) { out.item(name, item); });
  writer.list("endpoints", value.endpoints, 8, [](FrameWriter& out, std::string_view name, const auto& item) { static_cast<void>(name); write_item(out, item); });
  writer.value("online", value.online);
  writer.value("relayFirst", value.relay_first);
  writer.value("plain", value.plain);
  writer.value("rights", value.rights);
}

inline void write_message(FrameWriter& writer, std::uint32_t id, const command::LinkSet& value) {
  writer.map(9);
  writer.text("t", command::LinkSet::kType, command::LinkSet::kType.size());
  writer.value("id", id);
  writer.value("port", value.port);
  writer.text("net", value.net, 63);
  writer.text("peer", value.peer, 127);
  writer.value("index", value.index);
  writer.value("boot", value.boot);
  writer.list("endpoints", value.endpoints, 8, [](FrameWriter& out, std::string_view name, const auto& item) { static_cast<void>(name); write_item(out, item); });
  writer.value("online", value.online);
}

inline void write_message(FrameWriter& writer, std::uint32_t id, const command::RoutesSet& value) {
  writer.map(5);
  writer.text("t", command::RoutesSet::kType, command::RoutesSet::kType.size());
  writer.value("id", id);
  writer.value("port", value.port);
  writer.text("net", value.net, 63);
  writer.list("prefixes", value.prefixes, 64, [](FrameWriter& out, std::string_view name, const auto& item) { static_cast<void>(name); write_item(out, item); });
}

inline void write_message(FrameWriter& writer, std::uint32_t id, const command::PeerRemove& value) {
  writer.map(4);
  writer.text("t", command::PeerRemove::kType, command::PeerRemove::kType.size());
  writer.value("id", id);
  writer.value("port", value.port);
  writer.text("peer", value.peer, 127);
}

inline void write_message(FrameWriter& writer, std::uint32_t id, const command::KeyPair& value) {
  writer.map(8);
  writer.text("t", command::KeyPair::kType, command::KeyPair::kType.size());
  writer.value("id", id);
  writer.value("port", value.port);
  writer.text("peer", value.peer, 127);
  writer.value("boot", value.boot);
  writer.value("key", value.key);
  writer.value("pwId", value.pw_id);
  writer.value("send", value.send);
}

inline void write_message(FrameWriter& writer, std::uint32_t id, const command::KeyGroup& value) {
  writer.map(6);
  writer.text("t", command::KeyGroup::kType, command::KeyGroup::kType.size());
  writer.value("id", id);
  writer.value("port", value.port);
  writer.value("key", value.key);
  writer.value("pwId", value.pw_id);
  writer.value("send", value.send);
}

inline void write_message(FrameWriter& writer, std::uint32_t id, const command::KeyUse& value) {
  writer.map(5);
  writer.text("t", command::KeyUse::kType, command::KeyUse::kType.size());
  writer.value("id", id);
  writer.value("port", value.port);
  writer.text("peer", value.peer, 127);
  writer.value("pwId", value.pw_id);
}

inline void write_message(FrameWriter& writer, std::uint32_t id, const command::KeyDrop& value) {
  writer.map(6);
  writer.text("t", command::KeyDrop::kType, command::KeyDrop::kType.size());
  writer.value("id", id);
  writer.value("port", value.port);
  writer.text("peer", value.peer, 127);
  writer.value("pwId", value.pw_id);
  writer.value("graceMs", value.grace_ms);
}

inline void write_message(FrameWriter& writer, std::uint32_t id, const command::MacRefuse& value) {
  writer.map(5);
  writer.text("t", command::MacRefuse::kType, command::MacRefuse::kType.size());
  writer.value("id", id);
  writer.value("port", value.port);
  writer.value("mac", value.mac);
  writer.value("ms", value.ms);
}

inline void write_message(FrameWriter& writer, std::uint32_t id, const command::OwnSet& value) {
  writer.map(6);
  writer.text("t", command::OwnSet::kType, command::OwnSet::kType.size());
  writer.value("id", id);
  writer.value("port", value.port);
  writer.value("reset", value.reset);
  writer.value("more", value.more);
  writer.list("macs", value.macs, 8192, [](FrameWriter& out, std::string_view name, const auto& item) { out.item(name, item); });
}

inline void write_message(FrameWriter& writer, std::uint32_t id, const command::OwnRemove& value) {
  writer.map(4);
  writer.text("t", command::OwnRemove::kType, command::OwnRemove::kType.size());
  writer.value("id", id);
  writer.value("port", value.port);
  writer.list("macs", value.macs, 8192, [](FrameWriter& out, std::string_view name, const auto& item) { out.item(name, item); });
}

inline void write_message(FrameWriter& writer, std::uint32_t id, const command::BehindSet& value) {
  writer.map(5);
  writer.text("t", command::BehindSet::kType, command::BehindSet::kType.size());
  writer.value("id", id);
  writer.value("port", value.port);
  writer.text("peer", value.peer, 127);
  writer.list("entries", value.entries, 4096, [](FrameWriter& out, std::string_view name, const auto& item) { static_cast<void>(name); write_item(out, item); });
}

inline void write_message(FrameWriter& writer, std::uint32_t id, const command::BehindForget& value) {
  writer.map(4);
  writer.text("t", command::BehindForget::kType, command::BehindForget::kType.size());
  writer.value("id", id);
  writer.value("port", value.port);
  writer.list("entries", value.entries, 4096, [](FrameWriter& out, std::string_view name, const auto& item) { static_cast<void>(name); write_item(out, item); });
}

inline void write_message(FrameWriter& writer, std::uint32_t id, const command::BindSet& value) {
  writer.map(6);
  writer.text("t", command::BindSet::kType, command::BindSet::kType.size());
  writer.value("id", id);
  writer.value("port", value.port);
  writer.value("reset", value.reset);
  writer.value("more", value.more);
  writer.list("entries", value.entries, 4096, [](FrameWriter& out, std::string_view name, const auto& item) { static_cast<void>(name); write_item(out, item); });
}

inline void write_message(FrameWriter& writer, std::uint32_t id, const command::BindRemove& value) {
  writer.map(4);
  writer.text("t", command::BindRemove::kType, command::BindRemove::kType.size());
  writer.value("id", id);
  writer.value("port", value.port);
  writer.list("ips", value.ips, 4096, [](FrameWriter& out, std::string_view name, const auto& item) { out.item(name, item); });
}

inline void write_message(FrameWriter& writer, std::uint32_t id, const command::ProbeKey& value) {
  writer.map(5);
  writer.text("t", command::ProbeKey::kType, command::ProbeKey::kType.size());
  writer.value("id", id);
  writer.value("port", value.port);
  writer.value("key", value.key);
  writer.value("pwId", value.pw_id);
}

inline void write_message(FrameWriter& writer, std::uint32_t id, const command::RelaySet& value) {
  writer.map(7);
  writer.text("t", command::RelaySet::kType, command::RelaySet::kType.size());
  writer.value("id", id);
  writer.value("port", value.port);
  writer.list("addresses", value.addresses, 4, [](FrameWriter& out, std::string_view name, const auto& item) { static_cast<void>(name); write_item(out, item); });
  writer.value("index", value.index);
  writer.value("notAfterMs", value.not_after_ms);
  writer.value("ticket", value.ticket);
}

inline void write_message(FrameWriter& writer, std::uint32_t id, [[maybe_unused]] const command::Stats& value) {
  writer.map(2);
  writer.text("t", command::Stats::kType, command::Stats::kType.size());
  writer.value("id", id);
}

inline void write_message(FrameWriter& writer, std::uint32_t id, [[maybe_unused]] const command::Wipe& value) {
  writer.map(2);
  writer.text("t", command::Wipe::kType, command::Wipe::kType.size());
  writer.value("id", id);
}

inline void write_message(FrameWriter& writer, std::uint32_t id, [[maybe_unused]] const answer::Done& value) {
  writer.map(2);
  writer.text("t", answer::Done::kType, answer::Done::kType.size());
  writer.value("id", id);
}

inline void write_message(FrameWriter& writer, std::uint32_t id, const answer::Attached& value) {
  writer.map(6);
  writer.text("t", answer::Attached::kType, answer::Attached::kType.size());
  writer.value("id", id);
  writer.value("instance", value.instance);
  writer.value("version", value.version);
  writer.list("backends", value.backends, 4, [](FrameWriter& out, std::string_view name, const auto& item) { out.text_item(name, item, 20); });
  writer.list("ports", value.ports, 16, [](FrameWriter& out, std::string_view name, const auto& item) { static_cast<void>(name); write_item(out, item); });
}

inline void write_message(FrameWriter& writer, std::uint32_t id, const answer::BootMade& value) {
  writer.map(4);
  writer.text("t", answer::BootMade::kType, answer::BootMade::kType.size());
  writer.value("id", id);
  writer.value("boot", value.boot);
  writer.value("public", value.public_);
}

inline void write_message(FrameWriter& writer, std::uint32_t id, const answer::KeyInstalled& value) {
  writer.map(5);
  writer.text("t", answer::KeyInstalled::kType, answer::KeyInstalled::kType.size());
  writer.value("id", id);
  writer.value("kidSend", value.kid_send);
  writer.value("kidReceive", value.kid_receive);
  writer.value("fresh", value.fresh);
}

inline void write_message(FrameWriter& writer, std::uint32_t id, const answer::Stats& value) {
  writer.map(5);
  writer.text("t", answer::Stats::kType, answer::Stats::kType.size());
  writer.value("id", id);
  writer.value("uptimeMs", value.uptime_ms);
  writer.list("ports", value.ports, 16, [](FrameWriter& out, std::string_view name, const auto& item) { static_cast<void>(name); write_item(out, item); });
  writer.value("eventsLost", value.events_lost);
}

inline void write_message(FrameWriter& writer, std::uint32_t id, const answer::Failed& value) {
  writer.map(3);
  writer.text("t", answer::Failed::kType, answer::Failed::kType.size());
  writer.value("id", id);
  writer.text("why", value.why, 200);
}

inline void write_message(FrameWriter& writer, const event::MissMac& value) {
  writer.map(4);
  writer.text("t", event::MissMac::kType, event::MissMac::kType.size());
  writer.value("port", value.port);
  writer.value("mac", value.mac);
  writer.value("vlan", value.vlan);
}

inline void write_message(FrameWriter& writer, const event::MissGroup& value) {
  writer.map(2);
  writer.text("t", event::MissGroup::kType, event::MissGroup::kType.size());
  writer.value("port", value.port);
}

inline void write_message(FrameWriter& writer, const event::MissIndex& value) {
  writer.map(6);
  writer.text("t", event::MissIndex::kType, event::MissIndex::kType.size());
  writer.value("port", value.port);
  writer.value("index", value.index);
  writer.value("kid", value.kid);
  writer.value("group", value.group);
  writer.key("from");
  write_item(writer, value.from);
}

inline void write_message(FrameWriter& writer, const event::EndpointMoved& value) {
  writer.map(4);
  writer.text("t", event::EndpointMoved::kType, event::EndpointMoved::kType.size());
  writer.value("port", value.port);
  writer.text("peer", value.peer, 127);
  writer.key("endpoint");
  write_item(writer, value.endpoint);
}

inline void write_message(FrameWriter& writer, const event::RelaySeen& value) {
  writer.map(3);
  writer.text("t", event::RelaySeen::kType, event::RelaySeen::kType.size());
  writer.value("port", value.port);
  writer.value("receipt", value.receipt);
}

inline void write_message(FrameWriter& writer, const event::PeerSilent& value) {
  writer.map(3);
  writer.text("t", event::PeerSilent::kType, event::PeerSilent::kType.size());
  writer.value("port", value.port);
  writer.text("peer", value.peer, 127);
}

inline void write_message(FrameWriter& writer, const event::KeyWorn& value) {
  writer.map(4);
  writer.text("t", event::KeyWorn::kType, event::KeyWorn::kType.size());
  writer.value("port", value.port);
  writer.text("peer", value.peer, 127);
  writer.value("pwId", value.pw_id);
}

inline void write_message(FrameWriter& writer, const event::KeyCommitted& value) {
  writer.map(4);
  writer.text("t", event::KeyCommitted::kType, event::KeyCommitted::kType.size());
  writer.value("port", value.port);
  writer.text("peer", value.peer, 127);
  writer.value("pwId", value.pw_id);
}

inline void write_message(FrameWriter& writer, const event::KeyLagging& value) {
  writer.map(4);
  writer.text("t", event::KeyLagging::kType, event::KeyLagging::kType.size());
  writer.value("port", value.port);
  writer.text("peer", value.peer, 127);
  writer.value("pwId", value.pw_id);
}

inline void write_message(FrameWriter& writer, const event::Learned& value) {
  writer.map(3);
  writer.text("t", event::Learned::kType, event::Learned::kType.size());
  writer.value("port", value.port);
  writer.list("entries", value.entries, 256, [](FrameWriter& out, std::string_view name, const auto& item) { static_cast<void>(name); write_item(out, item); });
}

inline void write_message(FrameWriter& writer, const event::Unlearned& value) {
  writer.map(3);
  writer.text("t", event::Unlearned::kType, event::Unlearned::kType.size());
  writer.value("port", value.port);
  writer.list("entries", value.entries, 256, [](FrameWriter& out, std::string_view name, const auto& item) { static_cast<void>(name); write_item(out, item); });
}

inline void write_message(FrameWriter& writer, const event::LoopState& value) {
  writer.map(4);
  writer.text("t", event::LoopState::kType, event::LoopState::kType.size());
  writer.value("port", value.port);
  writer.text("state", value.state, 10);
  writer.text("other", value.other, 63);
}

inline void write_message(FrameWriter& writer, const event::Spoof& value) {
  writer.map(5);
  writer.text("t", event::Spoof::kType, event::Spoof::kType.size());
  writer.value("port", value.port);
  writer.value("mac", value.mac);
  writer.value("vlan", value.vlan);
  writer.text("kind", value.kind, 24);
}

inline void write_message(FrameWriter& writer, const event::Claim& value) {
  writer.map(4);
  writer.text("t", event::Claim::kType, event::Claim::kType.size());
  writer.value("port", value.port);
  writer.value("ip", value.ip);
  writer.value("mac", value.mac);
}

inline void write_message(FrameWriter& writer, const event::Guarded& value) {
  writer.map(6);
  writer.text("t", event::Guarded::kType, event::Guarded::kType.size());
  writer.value("port", value.port);
  writer.text("kind", value.kind, 10);
  writer.text("peer", value.peer, 127);
  writer.value("mac", value.mac);
  writer.value("ip", value.ip);
}

inline void write_message(FrameWriter& writer, const event::KeysWiped& value) {
  writer.map(2);
  writer.text("t", event::KeysWiped::kType, event::KeysWiped::kType.size());
  writer.text("why", value.why, 40);
}

inline void write_message(FrameWriter& writer, const event::Log& value) {
  writer.map(3);
  writer.text("t", event::Log::kType, event::Log::kType.size());
  writer.value("level", value.level);
  writer.text("text", value.text, 500);
}

inline DecodeResult decode_command(std::span<const std::uint8_t> message) {
  // No list, text or map of a command is longer; depth: map, list, struct.
  const msgpack::unpack_limit limit(8192, 32, 127, 32, 0, 4);
  std::size_t offset = 0;
  bool referenced = false;
  const auto* data = reinterpret_cast<const char*>(message.data());
  const msgpack::object_handle handle = msgpack::unpack(data, message.size(), offset, referenced, refer_to_input, nullptr, limit);
  if (offset != message.size()) return DecodeError{DecodeErrorCode::not_msgpack, {}, {}, {}};
  const msgpack::object& root = handle.get();
  if (root.type != msgpack::type::MAP) return DecodeError{DecodeErrorCode::not_a_map, {}, {}, {}};

  // The envelope first, so that a refusal can be answered under its id.
  Problem problem;
  std::uint32_t id = 0;
  MapReader envelope(root, {}, problem);
  envelope.value("id", id);
  if (problem.failed()) return DecodeError{DecodeErrorCode::bad_id, {}, {}, {}};
  std::string_view type;
  envelope.text("t", type, 127);
  if (problem.failed()) return DecodeError{DecodeErrorCode::unknown_type, {}, {}, id};
  if (type == command::Attach::kType) return read_command<command::Attach>(root, id);
  if (type == command::Observe::kType) return read_command<command::Observe>(root, id);
  if (type == command::PortSet::kType) return read_command<command::PortSet>(root, id);
  if (type == command::PortRemove::kType) return read_command<command::PortRemove>(root, id);
  if (type == command::BootMake::kType) return read_command<command::BootMake>(root, id);
  if (type == command::BootIndex::kType) return read_command<command::BootIndex>(root, id);
  if (type == command::BootDrop::kType) return read_command<command::BootDrop>(root, id);
  if (type == command::Clock::kType) return read_command<command::Clock>(root, id);
  if (type == command::Lease::kType) return read_command<command::Lease>(root, id);
  if (type == command::PeerSet::kType) return read_command<command::PeerSet>(root, id);
  if (type == command::LinkSet::kType) return read_command<command::LinkSet>(root, id);
  if (type == command::RoutesSet::kType) return read_command<command::RoutesSet>(root, id);
  if (type == command::PeerRemove::kType) return read_command<command::PeerRemove>(root, id);
  if (type == command::KeyPair::kType) return read_command<command::KeyPair>(root, id);
  if (type == command::KeyGroup::kType) return read_command<command::KeyGroup>(root, id);
  if (type == command::KeyUse::kType) return read_command<command::KeyUse>(root, id);
  if (type == command::KeyDrop::kType) return read_command<command::KeyDrop>(root, id);
  if (type == command::MacRefuse::kType) return read_command<command::MacRefuse>(root, id);
  if (type == command::OwnSet::kType) return read_command<command::OwnSet>(root, id);
  if (type == command::OwnRemove::kType) return read_command<command::OwnRemove>(root, id);
  if (type == command::BehindSet::kType) return read_command<command::BehindSet>(root, id);
  if (type == command::BehindForget::kType) return read_command<command::BehindForget>(root, id);
  if (type == command::BindSet::kType) return read_command<command::BindSet>(root, id);
  if (type == command::BindRemove::kType) return read_command<command::BindRemove>(root, id);
  if (type == command::ProbeKey::kType) return read_command<command::ProbeKey>(root, id);
  if (type == command::RelaySet::kType) return read_command<command::RelaySet>(root, id);
  if (type == command::Stats::kType) return read_command<command::Stats>(root, id);
  if (type == command::Wipe::kType) return read_command<command::Wipe>(root, id);
  return DecodeError{DecodeErrorCode::unknown_type, {}, {}, id};
}

}  // namespace detail

/// Decodes one message (without its length). The result refers to `message`.
inline DecodeResult decode_command(std::span<const std::uint8_t> message) noexcept {
  if (message.empty() || message.size() > kMaxMessage) {
    return DecodeError{DecodeErrorCode::not_msgpack, {}, {}, {}};
  }
  try {
    return detail::decode_command(message);
  } catch (const std::bad_alloc&) {
    return DecodeError{DecodeErrorCode::out_of_memory, {}, {}, {}};
  } catch (...) {
    // msgpack-cxx throws for what is cut short, malformed or over a limit.
    return DecodeError{DecodeErrorCode::not_msgpack, {}, {}, {}};
  }
}

/// Appends one frame (length and message) to `out`; on an error `out` is as it was.
inline std::optional<EncodeError> encode_answer(std::uint32_t id, const Answer& answer, std::vector<std::uint8_t>& out) noexcept {
  return detail::encode_frame(out, kMaxMessage, [&](detail::FrameWriter& writer) {
    std::visit([&](const auto& value) { detail::write_message(writer, id, value); }, answer);
  });
}

/// Appends one frame (length and message) to `out`; on an error `out` is as it was.
inline std::optional<EncodeError> encode_event(const Event& event, std::vector<std::uint8_t>& out) noexcept {
  return detail::encode_frame(out, kMaxMessage, [&](detail::FrameWriter& writer) {
    std::visit([&](const auto& value) { detail::write_message(writer, value); }, event);
  });
}

/// The other direction, for tests and benchmarks. `out` then holds keys: its owner wipes it.
inline std::optional<EncodeError> encode_command(std::uint32_t id, const Command& command, std::vector<std::uint8_t>& out) noexcept {
  return detail::encode_frame(out, kMaxMessage, [&](detail::FrameWriter& writer) {
    std::visit([&](const auto& value) { detail::write_message(writer, id, value); }, command);
  });
}

}  // namespace pairwire::messages
