// See data-plane.hpp. Every message has passed the generated decoder; here is checked what a schema
// can't say, and each refusal leaves everything as it was.
#include "control/data-plane.hpp"

#include <openssl/rand.h>

#include <algorithm>
#include <span>
#include <system_error>

#include "core/address-guard.hpp"
#include "crypto/openssl.hpp"

namespace pairwire {
namespace {

using messages::Answer;
namespace answer = messages::answer;
namespace command = messages::command;
namespace event = messages::event;

constexpr std::uint16_t kVersion = 1;

/// What fits a message of 1 MiB with room to spare, ids of 63 characters and all: who wants the
/// counters of more members than these gets those used last.
constexpr std::size_t kMaxPeersInStats = 3'500;
constexpr std::size_t kMaxKeysInState = 5'000;

constexpr std::uint8_t kAutoHelpers = 255;
/// So long our host's announcements wait before the control plane is told of them: what comes with
/// one may be a frame for somebody whose key it has to ask for, and that is what a sender waits
/// for.
constexpr std::uint64_t kClaimsHeldMs = 20;
constexpr std::size_t kMaxClaimsHeld = 64;

constexpr std::uint32_t kLeastLearnMs = 1'000;

messages::Endpoint to_message(const Endpoint& endpoint) {
  messages::Endpoint message;
  static_cast<void>(message.ip.assign(endpoint.short_ip()));  // At most 16 bytes, always.
  message.port = endpoint.port;
  return message;
}

messages::BoundedBytes<16> to_message(const IpAddress& ip) {
  messages::BoundedBytes<16> bytes;
  static_cast<void>(bytes.assign(ip.bytes()));  // At most 16 bytes, always.
  return bytes;
}

std::array<std::uint8_t, 6> bytes_of(const MacAddress& mac) {
  std::array<std::uint8_t, 6> bytes{};
  std::ranges::copy(mac.bytes(), bytes.begin());
  return bytes;
}

std::vector<MacAddress> to_macs(const std::vector<std::array<std::uint8_t, 6>>& bytes) {
  std::vector<MacAddress> macs;
  macs.reserve(bytes.size());
  for (const auto& mac : bytes) macs.emplace_back(mac);
  return macs;
}

/// `who` of those that may not have such an address.
std::vector<Endpoint> to_endpoints(const std::vector<messages::Endpoint>& candidates,
                                   const char* who) {
  std::vector<Endpoint> endpoints;
  endpoints.reserve(candidates.size());
  for (const messages::Endpoint& candidate : candidates) {
    const auto endpoint = Endpoint::from(candidate.ip.bytes(), candidate.port);
    if (!endpoint) throw CommandError(std::string("not an address that a ") + who + " can have");
    endpoints.push_back(*endpoint);
  }
  return endpoints;
}

std::vector<IpPrefix> to_prefixes(const std::vector<messages::Prefix>& list) {
  std::vector<IpPrefix> prefixes;
  prefixes.reserve(list.size());
  for (const messages::Prefix& one : list) {
    const auto prefix = IpPrefix::from(one.ip.bytes(), one.bits);
    if (!prefix) throw CommandError("not a prefix");
    prefixes.push_back(*prefix);
  }
  return prefixes;
}

IpAddress to_ip(ConstBytes bytes) {
  const auto ip = IpAddress::from(bytes);
  if (!ip) throw CommandError("not an IP address");
  return *ip;
}

Transport parse_transport(std::string_view name) {
  if (name == "udp") return Transport::kUdp;
  if (name == "ethernet") return Transport::kEthernet;
  if (name == "ip") return Transport::kIp;
  throw CommandError("unknown transport");
}

answer::Failed failed(std::string_view why) {
  return {std::string(why.substr(0, 200))};
}

/// One for each core beyond the two that the directions of a busy port take and one for the
/// applications: on fewer cores helpers would only take turns with those they help.
std::uint32_t helpers_for(std::size_t cores) {
  constexpr std::size_t kMost = 3;
  return static_cast<std::uint32_t>(std::clamp<std::size_t>(cores, 3, 3 + kMost) - 3);
}

Underlay underlay_on(Transport transport, int fd) {
  switch (transport) {
    case Transport::kEthernet:
      return Underlay::of_ethernet(fd);
    case Transport::kIp:
      return Underlay::of_wire(fd);
    case Transport::kUdp:
      break;
  }
  return UdpSocket::of(fd);
}

Backend choose_backend(std::string_view name) {
  // A benchmark's build has one backend only, whatever the configuration says.
  if (kNullAead || name.empty() || name == "auto") return best_backend();
  const auto backend = parse_backend(name);
  if (!backend || !backend_available(*backend)) throw CommandError("backend is not available");
  return *backend;
}

}  // namespace

DataPlane::DataPlane(Options options) : options_(std::move(options)), started_ms_(boot_ms()) {
  require_crypto(RAND_bytes(instance_.data(), static_cast<int>(instance_.size())) == 1,
                 "RAND_bytes");
  for (std::size_t i = 0; i + Port::kWakeFds <= options_.wakes.size(); i += Port::kWakeFds) {
    const auto first = options_.wakes.begin() + static_cast<std::ptrdiff_t>(i);
    free_wakes_.emplace_back(first, first + Port::kWakeFds);
  }
}

DataPlane::~DataPlane() {
  wipe();
}

void DataPlane::wipe() {
  while (!ports_.empty()) remove_port(ports_.begin());
}

void DataPlane::remove_port(std::map<std::uint16_t, PortEntry>::iterator entry) {
  entry->second.port->stop();
  free_wakes_.push_back(std::move(entry->second.wakes));
  ports_.erase(entry);  // Destroys tables and keys; keys wipe themselves.
}

Answer DataPlane::run(const messages::Command& command) {
  Answer result;
  try {
    result = std::visit([this](const auto& one) { return on(one); }, command);
  } catch (const CommandError& error) {
    result = failed(error.what());
  } catch (const CryptoError&) {
    result = failed("cryptographic library failed");
  } catch (const std::bad_alloc&) {
    result = failed("out of memory");
  } catch (const std::system_error&) {
    result = failed("a thread could not be started");
  }
  for (const auto& [number, entry] : ports_) entry.port->wake_holders();
  return result;
}

Port& DataPlane::require_port(std::uint16_t number) {
  const auto found = ports_.find(number);
  if (found == ports_.end()) throw CommandError("unknown port");
  return *found->second.port;
}

// --- Devices and ports --------------------------------------------------------------------------

void DataPlane::add_device(Device device) {
  const Device::Kind kind = device.kind;
  const std::string name = device.name;
  const std::uint16_t port = device.port;
  std::vector<PortEntry*> users;
  for (auto& [number, entry] : ports_) {
    const bool uses = kind == Device::Kind::kTap ? entry.tap == name
                      : kind == Device::Kind::kUdp
                          ? entry.transport == Transport::kUdp && entry.udp_port == port
                          : entry.device == name;
    if (uses) {
      entry.port->stop();
      users.push_back(&entry);
    }
  }
  // The old descriptor is closed here, when no worker has it any more.
  static_cast<void>(devices_.add(std::move(device)));
  for (PortEntry* const entry : users) start_workers(*entry);
}

void DataPlane::start_workers(PortEntry& entry) {
  const Device* const tap = devices_.tap(entry.tap);
  const Device* const device = underlay_of(entry);
  if (tap == nullptr || device == nullptr) throw CommandError("device is not here");
  const Underlay underlay = underlay_on(entry.transport, device->fd.get());
  entry.port->start(
      {{tap->fd.get()}, {underlay}, {.ecn = false, .udp = options_.merge_udp}, entry.lane});
}

LaneOptions DataPlane::lane_options(const command::PortSet& command) const {
  if (command.helpers != kAutoHelpers && command.helpers > Crew::kMaxHelpers) {
    throw CommandError("too many helpers");
  }
  // With one core, waiting awake would only keep others from working.
  const bool alone = options_.cores < 2;
  return {
      .spin_us = alone ? 0U : command.spin_us,
      .helpers = command.helpers == kAutoHelpers ? helpers_for(options_.cores) : command.helpers,
      .second_thread = !alone,
      .spare_cores = options_.spare_cores};
}

const Device* DataPlane::underlay_of(const PortEntry& entry) const {
  return devices_.underlay(entry.transport, entry.udp_port, entry.device);
}

PathManager::Listener DataPlane::listener_for(std::uint16_t number) {
  return {
      .moved =
          [this, number](const Peer& peer) {
            options_.tell(event::EndpointMoved{number, peer.id, to_message(*peer.owned_endpoint)});
          },
      .silent = [this,
                 number](const Peer& peer) { options_.tell(event::PeerSilent{number, peer.id}); }};
}

PlainSide::Listener DataPlane::plain_listener_for(std::uint16_t number) {
  return {.learned =
              [this, number](std::span<const PlainSide::Learned> learned) {
                event::Learned told{number, {}};
                for (const auto& [address, age_ms] : learned) {
                  told.entries.push_back({address.vlan, bytes_of(address.mac), age_ms});
                }
                options_.tell(std::move(told));
              },
          .unlearned =
              [this, number](std::span<const VlanMac> gone) {
                event::Unlearned told{number, {}};
                for (const VlanMac& address : gone) {
                  told.entries.push_back({address.vlan, bytes_of(address.mac)});
                }
                options_.tell(std::move(told));
              },
          .loop =
              [this, number](LoopPhase phase, std::string_view other) {
                options_.tell(event::LoopState{number, std::string(loop_phase_name(phase)),
                                               std::string(other)});
              }};
}

Answer DataPlane::on(const command::PortSet& command) {
  const auto suite = parse_suite(command.suite);
  if (!suite) throw CommandError("unknown suite");
  if (command.subnet.empty() || command.member.empty()) throw CommandError("subnet or member");
  const Transport transport = parse_transport(command.transport);
  const bool udp = transport == Transport::kUdp;
  if (command.tag > (transport == Transport::kEthernet ? kFlagSubnetTag : 0)) {
    throw CommandError("not a tag");
  }
  if (udp ? !command.device.empty() : command.udp_port != 0) {
    throw CommandError("a device of another transport");
  }
  if (devices_.tap(command.tap) == nullptr) throw CommandError("the TAP is not here");
  const Device* const underlay = devices_.underlay(transport, command.udp_port, command.device);
  if (underlay == nullptr) {
    throw CommandError(udp ? "the UDP port is not here" : "the interface is not here");
  }
  for (const auto& [number, entry] : ports_) {
    const bool same_port = entry.transport == Transport::kUdp && entry.udp_port == command.udp_port;
    if (number != command.port && (entry.tap == command.tap || (udp && same_port) ||
                                   (!udp && entry.device == command.device))) {
      throw CommandError("the device is another port's");
    }
  }
  const auto kind = parse_port_kind(command.kind);
  if (!kind) throw CommandError("unknown kind of port");
  if ((*kind == PortKind::kLink) == command.net.empty()) throw CommandError("net of a link port");
  const bool link = *kind == PortKind::kLink;
  if (link ? transport == Transport::kEthernet : transport == Transport::kIp) {
    throw CommandError("a link port is on udp or ip, and nothing else is on ip");
  }
  for (const std::uint8_t protocol : command.pass.bytes()) {
    // Those may come as super-frames or with checksums that are not there yet.
    if (protocol == ip_protocol::kTcp || protocol == ip_protocol::kUdp) {
      throw CommandError("TCP and UDP don't pass in clear");
    }
  }
  const auto broadcast = parse_broadcast_policy(command.broadcast);
  if (!broadcast) throw CommandError("unknown policy for broadcast");
  if (command.stp != "pass" && command.stp != "drop") throw CommandError("stp: pass or drop");
  const LaneOptions lane = lane_options(command);
  auto settings = std::make_unique<PortSettings>();
  settings->subnet = command.subnet;
  settings->member = command.member;
  settings->net = command.net;
  settings->macs = to_macs(command.macs);
  settings->suite = *suite;
  settings->backend = choose_backend(command.backend);
  settings->transport = transport;
  settings->subnet_tag = command.tag;
  settings->udp_port = command.udp_port;
  settings->underlay_mtu = udp ? command.underlay_mtu : underlay->mtu;
  settings->elsewhere = to_prefixes(command.elsewhere);
  settings->pass.assign(command.pass.bytes().begin(), command.pass.bytes().end());
  settings->freshness_ms = command.freshness_ms;
  settings->hold_frames = command.hold_frames;
  settings->hold_ms = command.hold_ms;
  settings->hold_bytes = command.hold_bytes;
  settings->storm_frames = command.storm_frames;
  settings->rights = command.rights;
  settings->answer = command.answer;
  settings->pairwise = command.pairwise;
  settings->kind = *kind;
  settings->broadcast = *broadcast;
  settings->pass_stp = command.stp == "pass";
  settings->learn_ms = std::max(command.learn_seconds * 1'000U, kLeastLearnMs);
  for (const MacAddress& mac : settings->macs) {
    if (mac.is_group() || mac.is_zero()) throw CommandError("not a unicast address");
  }
  for (const auto& address : command.broadcasts) {
    if (address.size() != 4) continue;  // IPv6 has no broadcast.
    // Any prefix whose last two bits are the host's has this directed broadcast.
    settings->broadcasts.push_back({load_be<std::uint32_t>(address.bytes().first<4>()), 30});
  }

  auto found = ports_.find(command.port);
  if (found != ports_.end() && found->second.port->tables().settings().kind != *kind) {
    throw CommandError("the kind of a port can't change");
  }
  if (found == ports_.end()) {
    if (free_wakes_.empty() || ports_.size() >= kMaxPorts) throw CommandError("too many ports");
    PortEntry entry;
    entry.wakes = std::move(free_wakes_.back());
    free_wakes_.pop_back();
    entry.port = std::make_unique<Port>(
        clock_, entry.wakes, options_.control_wake, listener_for(command.port),
        [this, number = command.port](ConstBytes receipt) {
          event::RelaySeen seen{number, {}};
          std::ranges::copy(receipt, seen.receipt.begin());
          options_.tell(seen);
        },
        plain_listener_for(command.port));
    found = ports_.emplace(command.port, std::move(entry)).first;
  }
  PortEntry& entry = found->second;
  if (transport == Transport::kIp) entry.port->tables().sent().make_room();
  const bool other_hold = entry.port->tables().settings().hold_bytes != settings->hold_bytes;
  entry.port->tables().set_settings(std::move(settings));
  if (!entry.port->running() || other_hold || entry.tap != command.tap ||
      entry.transport != transport || entry.udp_port != command.udp_port ||
      entry.device != command.device || entry.lane != lane) {
    entry.lane = lane;
    entry.tap = command.tap;
    entry.transport = transport;
    entry.udp_port = command.udp_port;
    entry.device = command.device;
    start_workers(entry);
  }
  entry.port->plain().retell();
  return answer::Done{};
}

Answer DataPlane::on(const command::PortRemove& command) {
  const auto found = ports_.find(command.port);
  if (found != ports_.end()) remove_port(found);
  return answer::Done{};
}

// --- Boot keys, clock, lease --------------------------------------------------------------------

Answer DataPlane::on(const command::BootMake& command) {
  const auto made = require_port(command.port).tables().make_boot();
  return answer::BootMade{made.boot, made.public_key};
}

Answer DataPlane::on(const command::BootIndex& command) {
  PortTables& tables = require_port(command.port).tables();
  tables.set_boot_index(command.boot, command.index, command.after_ms, boot_ms());
  return answer::Done{};
}

Answer DataPlane::on(const command::BootDrop& command) {
  require_port(command.port).tables().drop_boot(command.boot, command.grace_ms, boot_ms());
  return answer::Done{};
}

Answer DataPlane::on(const command::Clock& command) {
  if (!clock_.set(command.offset_ms, command.sampled_boot_ms) && !ports_.empty()) {
    wipe();
    snapshot_suspected_ = true;
  }
  return answer::Done{};
}

Answer DataPlane::on(const command::Lease& command) {
  require_port(command.port).tables().set_lease(command.not_after_ms);
  return answer::Done{};
}

// --- Members and keys ---------------------------------------------------------------------------

Answer DataPlane::on(const command::PeerSet& command) {
  Port& port = require_port(command.port);
  std::vector<Endpoint> endpoints = to_endpoints(command.endpoints, "member");
  const PortSettings& settings = port.tables().settings();
  if (settings.transport == Transport::kEthernet) {
    // A member is where its addresses are: nothing is told, and nothing found out.
    endpoints.clear();
    if (!command.macs.empty() && !settings.macs.empty()) {
      endpoints.push_back(
          Endpoint::of_ethernet(MacAddress(command.macs.front()), settings.macs.front()));
    }
  }
  const std::uint64_t now = boot_ms();
  Peer& peer = port.tables().set_peer(
      {command.peer, command.index, command.boot, to_macs(command.macs), std::move(endpoints),
       command.online, command.relay_first, command.plain, command.rights},
      now);
  port.paths().candidates_set(peer, now);
  return answer::Done{};
}

Answer DataPlane::on(const command::LinkSet& command) {
  if (command.net.empty()) throw CommandError("a link port without net");
  Port& port = require_port(command.port);
  const std::uint64_t now = boot_ms();
  Peer& peer = port.tables().set_peer({.peer = command.peer,
                                       .index = command.index,
                                       .boot = command.boot,
                                       .macs = {},
                                       .endpoints = to_endpoints(command.endpoints, "link port"),
                                       .online = command.online,
                                       .net = command.net},
                                      now);
  port.paths().candidates_set(peer, now);
  return answer::Done{};
}

Answer DataPlane::on(const command::RoutesSet& command) {
  require_port(command.port).tables().set_routes(command.net, to_prefixes(command.prefixes));
  return answer::Done{};
}

Answer DataPlane::on(const command::PeerRemove& command) {
  require_port(command.port).tables().remove_peer(command.peer);
  return answer::Done{};
}

Answer DataPlane::on(const command::KeyPair& command) {
  Port& port = require_port(command.port);
  const auto installed = port.tables().install_pair_key(command.peer, command.boot, command.key,
                                                        command.pw_id, command.send);
  port.wake_holders();  // Before probes: frames wait.
  if (Peer* const peer = port.tables().peer(command.peer)) {
    port.paths().key_installed(*peer, boot_ms());
  }
  return answer::KeyInstalled{installed.kid_send, installed.kid_receive, installed.fresh};
}

Answer DataPlane::on(const command::KeyGroup& command) {
  require_port(command.port)
      .tables()
      .install_group_key(command.key, command.pw_id, command.send, boot_ms());
  return answer::Done{};
}

Answer DataPlane::on(const command::KeyUse& command) {
  Port& port = require_port(command.port);
  port.tables().use_key(command.peer, command.pw_id);
  if (Peer* const peer = port.tables().peer(command.peer)) {
    port.paths().key_installed(*peer, boot_ms());
  }
  return answer::Done{};
}

Answer DataPlane::on(const command::KeyDrop& command) {
  Port& port = require_port(command.port);
  port.tables().drop_key(command.peer, command.pw_id, command.grace_ms, boot_ms());
  // Without grace: somebody was revoked who could make loop probes, too.
  if (command.peer.empty() && command.grace_ms == 0) port.plain().forget_keys_up_to(command.pw_id);
  return answer::Done{};
}

Answer DataPlane::on(const command::MacRefuse& command) {
  require_port(command.port).tables().refuse_mac(MacAddress(command.mac), command.ms, boot_ms());
  return answer::Done{};
}

Answer DataPlane::on(const command::OwnSet& command) {
  require_port(command.port).tables().set_own(to_macs(command.macs), command.reset, command.more);
  return answer::Done{};
}

Answer DataPlane::on(const command::OwnRemove& command) {
  require_port(command.port).tables().remove_own(to_macs(command.macs));
  return answer::Done{};
}

Answer DataPlane::on(const command::BehindSet& command) {
  std::vector<PortTables::BehindSetting> settings;
  settings.reserve(command.entries.size());
  for (const messages::BehindEntry& entry : command.entries) {
    settings.push_back({{entry.vlan, MacAddress(entry.mac)}, entry.ms, entry.pinned});
  }
  require_port(command.port).tables().set_behind(command.peer, settings, boot_ms());
  return answer::Done{};
}

Answer DataPlane::on(const command::BehindForget& command) {
  std::vector<VlanMac> addresses;
  addresses.reserve(command.entries.size());
  for (const messages::BehindKey& entry : command.entries) {
    addresses.push_back({entry.vlan, MacAddress(entry.mac)});
  }
  require_port(command.port).tables().forget_behind(addresses);
  return answer::Done{};
}

Answer DataPlane::on(const command::BindSet& command) {
  std::vector<Bindings::Setting> settings;
  settings.reserve(command.entries.size());
  for (const messages::Binding& entry : command.entries) {
    settings.push_back({to_ip(entry.ip.bytes()), MacAddress(entry.mac)});
  }
  require_port(command.port)
      .tables()
      .set_bindings(settings, command.reset, command.more, boot_ms());
  return answer::Done{};
}

Answer DataPlane::on(const command::BindRemove& command) {
  std::vector<IpAddress> ips;
  ips.reserve(command.ips.size());
  for (const auto& ip : command.ips) ips.push_back(to_ip(ip.bytes()));
  require_port(command.port).tables().remove_bindings(ips);
  return answer::Done{};
}

Answer DataPlane::on(const command::ProbeKey& command) {
  require_port(command.port).plain().set_key(command.key, command.pw_id);
  return answer::Done{};
}

Answer DataPlane::on(const command::RelaySet& command) {
  Port& port = require_port(command.port);
  if (port.tables().settings().transport != Transport::kUdp) throw CommandError("not on udp");
  std::vector<Endpoint> addresses = to_endpoints(command.addresses, "relay");
  if (command.index == 0 && !addresses.empty()) throw CommandError("index 0");
  RelayTicket ticket{command.index, command.not_after_ms, {}};
  std::ranges::copy(command.ticket, ticket.key.begin());
  port.relay().set(std::move(addresses), ticket, boot_ms());
  return answer::Done{};
}

Answer DataPlane::on(const command::Stats&) {
  return stats(0);
}

Answer DataPlane::on(const command::Wipe&) {
  wipe();
  return answer::Done{};
}

Answer DataPlane::on(const command::Attach&) {
  throw CommandError("not here");
}

Answer DataPlane::on(const command::Observe&) {
  throw CommandError("not here");
}

// --- What there is ------------------------------------------------------------------------------

answer::Attached DataPlane::attached() const {
  answer::Attached state;
  state.instance = instance_;
  state.version = kVersion;
  for (const Backend backend : {Backend::kIpsecMb, Backend::kLibcrypto, Backend::kNull}) {
    if (backend_available(backend)) state.backends.emplace_back(backend_name(backend));
  }
  std::size_t keys = 0;
  for (const auto& [number, entry] : ports_) {
    const PortTables& tables = entry.port->tables();
    messages::PortState port;
    port.port = number;
    port.subnet = tables.settings().subnet;
    port.member = tables.settings().member;
    for (const auto& boot : tables.boots()) {
      port.boots.push_back({boot.boot, boot.public_key, boot.index, boot.send});
    }
    for (const auto& [id, peer] : tables.peers()) {
      for (const auto& record : peer->records) {
        // The controller installs those again that are not told of, which changes nothing.
        if (keys++ >= kMaxKeysInState) break;
        port.pair_keys.push_back(
            {id, record->boot, record->peer_index, record->pw_id, record->kid_send,
             record->kid_receive,
             peer->send.load(std::memory_order_relaxed) == record->send.get()});
      }
    }
    for (const auto& group : tables.group_keys())
      port.group_keys.push_back({group.pw_id, group.send});
    port.nets = tables.routed_nets();
    state.ports.push_back(std::move(port));
  }
  return state;
}

answer::Stats DataPlane::stats(std::uint64_t events_lost) const {
  const std::uint64_t now = boot_ms();
  answer::Stats stats;
  stats.uptime_ms = now - started_ms_;
  stats.events_lost = events_lost;
  const std::size_t share = kMaxPeersInStats / std::max<std::size_t>(ports_.size(), 1);
  for (const auto& [number, entry] : ports_) {
    Port& port = *entry.port;
    const PortSettings& settings = port.tables().settings();
    messages::PortStats out;
    out.port = number;
    out.backend = backend_name(settings.backend);
    out.suite = suite_name(settings.suite);
    out.tap = entry.tap;
    const Device* const tap = devices_.tap(entry.tap);
    out.mtu = tap == nullptr ? std::uint16_t{0} : tap->mtu;
    out.offload = tap != nullptr && tap->offload;
    for (std::size_t i = 0; i < kDropReasonCount; ++i) {
      const auto reason = static_cast<DropReason>(i);
      out.drops.push_back({std::string(drop_reason_name(reason)), port.drops(reason)});
    }
    const auto add = [&](const char* direction, const Port::Counters& counters) {
      const std::string prefix(direction);
      out.counters.push_back({prefix + "_frames", counters.frames});
      out.counters.push_back({prefix + "_bytes", counters.bytes});
      out.counters.push_back({prefix + "_packets", counters.packets});
      out.counters.push_back({prefix + "_batches", counters.batches});
      out.counters.push_back({prefix + "_held", counters.held});
      out.counters.push_back({prefix + "_unasked", counters.unasked});
      out.counters.push_back({prefix + "_fragments", counters.parts});
    };
    add("outbound", port.outbound_counters());
    add("inbound", port.inbound_counters());
    out.counters.push_back({"frames_cut", port.outbound_counters().cut});
    out.counters.push_back({"too_big_answers", port.outbound_counters().told_too_big});
    out.counters.push_back({"mss_clamped", port.outbound_counters().mss_clamped});
    out.counters.push_back({"answered_arp", port.outbound_counters().answered_arp});
    out.counters.push_back({"answered_nd", port.outbound_counters().answered_nd});
    out.counters.push_back({"frames_reassembled", port.inbound_counters().cut});
    out.counters.push_back({"path_answers_over", port.inbound_counters().answers_over});
    out.counters.push_back({"relay_messages_over", port.inbound_counters().relay_over});
    out.counters.push_back({"claims_over", port.outbound_counters().claims_over});
    out.counters.push_back({"probes_forgotten", port.paths().probes_forgotten()});
    const PortTables::Limits& limits = port.tables().limits();
    out.counters.push_back({"refused_macs_lost", limits.refusals_lost});
    out.counters.push_back({"starts_pushed_out", limits.starts_pushed_out});
    out.counters.push_back({"outbound_relayed", port.outbound_counters().relayed});
    out.counters.push_back({"inbound_relayed", port.inbound_counters().relayed});
    out.kind = port_kind_name(settings.kind);
    out.behind = static_cast<std::uint32_t>(port.tables().behind_count());
    out.counters.push_back({"behind_evicted", port.tables().behind_evicted()});
    out.counters.push_back({"own_addresses", port.tables().own_count()});
    out.counters.push_back({"bindings", port.tables().binding_count()});
    if (settings.kind == PortKind::kPlain) {
      const Port::PlainCounters plain = port.plain_counters();
      const PlainSide::Counters& probes = port.plain().counters();
      out.loop = loop_phase_name(port.plain().phase());
      out.loop_other = port.plain().other();
      out.learned = static_cast<std::uint32_t>(plain.learned);
      out.counters.push_back({"learn_full", plain.learn_full});
      out.counters.push_back({"loop_probes_over", plain.probes_over});
      out.counters.push_back({"loop_probes_sent", probes.probes_sent});
      out.counters.push_back({"loop_probes_heard", probes.probes_heard});
      out.counters.push_back({"loop_probes_refused", probes.probes_refused});
      out.counters.push_back({"announced", port.plain().announced()});
    }
    out.counters.push_back({"lanes", port.lanes()});
    out.counters.push_back({"second_thread_turns", port.gifts()});
    out.counters.push_back({"helped_pieces", port.helped()});
    const LockedMemoryUse memory = locked_memory_use();
    out.counters.push_back({"key_memory_bytes", memory.used});
    out.counters.push_back({"key_memory_locked", memory.locked ? 1U : 0U});
    if (const RelayUse* const relay = port.tables().relay()) {
      out.relay = to_message(relay->address);
      out.relay_registered = port.relay().registered();
      out.relay_rtt_us = port.relay().rtt_us();
      if (port.relay().seen().valid()) out.seen = to_message(port.relay().seen());
    }
    stats.events_lost += port.events_lost();

    std::vector<const Peer*> peers;
    for (const auto& [id, peer] : port.tables().peers()) peers.push_back(peer.get());
    const auto used = [](const Peer* peer) {
      return std::max(peer->rx_ms.load(std::memory_order_relaxed),
                      peer->tx_ms.load(std::memory_order_relaxed));
    };
    out.counters.push_back({"peers_not_shown", peers.size() - std::min(peers.size(), share)});
    if (peers.size() > share) {
      // Times that move on while we sort must not confuse the sorting.
      std::vector<std::pair<std::uint64_t, const Peer*>> ordered;
      for (const Peer* const peer : peers) ordered.emplace_back(used(peer), peer);
      std::ranges::sort(ordered, std::greater<>());
      for (std::size_t i = 0; i < share; ++i) peers[i] = ordered[i].second;
      peers.resize(share);
    }
    for (const Peer* const peer : peers) {
      messages::PeerStats one;
      one.peer = peer->id;
      one.index = peer->incarnations.empty() ? 0 : peer->incarnations.back()->index;
      if (peer->owned_endpoint != nullptr) one.endpoint = to_message(*peer->owned_endpoint);
      one.relayed = peer->owned_endpoint != nullptr && peer->owned_endpoint->relayed != 0;
      one.confirmed = peer->path.confirmed;
      one.alive = peer->path.alive;
      one.rtt_us = peer->path.rtt_us;
      one.path_mtu = peer->path.mtu.current();
      one.path_mtu_proved = peer->path.mtu.proved() == one.path_mtu;
      const std::uint64_t heard = peer->rx_ms.load(std::memory_order_relaxed);
      one.heard_ms_ago = heard == 0 ? messages::kMaxSafeInteger : now - std::min(heard, now);
      one.tx_frames = peer->tx_frames.load(std::memory_order_relaxed);
      one.tx_bytes = peer->tx_bytes.load(std::memory_order_relaxed);
      one.rx_frames = peer->rx_frames.load(std::memory_order_relaxed);
      one.rx_bytes = peer->rx_bytes.load(std::memory_order_relaxed);
      const SendKey* const key = peer->send.load(std::memory_order_relaxed);
      one.has_key = key != nullptr;
      one.pw_id = key == nullptr ? 0 : key->pw_id;
      out.peers.push_back(std::move(one));
    }
    stats.ports.push_back(std::move(out));
  }
  return stats;
}

// --- Events and timers --------------------------------------------------------------------------

void DataPlane::take_worker_events() {
  for (auto& [number, slot] : ports_) {
    PortEntry& entry = slot;
    Port& port = *entry.port;
    const std::uint16_t name = number;
    port.take_events([&](const WorkerEvent& one) { pass_on(name, entry, one); });
    port.take_plain(boot_ms());
    port.wake_holders();
  }
}

void DataPlane::tell_claims(PortEntry& entry) {
  for (const event::Claim& claim : entry.claims) options_.tell(claim);
  entry.claims.clear();
}

void DataPlane::pass_on(std::uint16_t number, PortEntry& entry, const WorkerEvent& one) {
  using What = WorkerEvent::Kind;
  Port& port = *entry.port;
  const std::uint64_t now = boot_ms();
  switch (one.kind) {
    case What::kMissMac:
      return options_.tell(event::MissMac{number, bytes_of(one.mac), one.vlan});
    case What::kMissGroup:
      return options_.tell(event::MissGroup{number});
    case What::kMissIndex:
      return options_.tell(
          event::MissIndex{number, one.index, one.kid, one.group, to_message(one.from)});
    case What::kKeyWorn: {
      const Peer* const peer = one.peer == 0 ? nullptr : port.tables().peer_by_number(one.peer);
      if (one.peer != 0 && peer == nullptr) return;
      return options_.tell(
          event::KeyWorn{number, peer == nullptr ? std::string() : peer->id, one.number});
    }
    case What::kOtherKey: {
      const Peer* const peer = port.tables().peer_by_number(one.peer);
      if (peer == nullptr) return;
      if (one.group) {
        if (!port.tables().heard_newer_group_key(one.number)) return;
        return options_.tell(event::KeyCommitted{number, std::string(), one.number});
      }
      port.tables().heard_boot(one.peer, one.index);
      switch (port.tables().heard_other_key(one.peer, one.number, now)) {
        case PortTables::OtherKey::kNothing:
          return;
        case PortTables::OtherKey::kCommitted:
          return options_.tell(event::KeyCommitted{number, peer->id, one.number});
        case PortTables::OtherKey::kLagging:
          return options_.tell(event::KeyLagging{number, peer->id, one.number});
      }
      return;
    }
    case What::kHeardElsewhere:
      return port.paths().heard_elsewhere(one.peer, one.from, now);
    case What::kRelay: {
      const auto header = parse_relay_header(ConstBytes(one.relay).first<kRelayHeaderSize>());
      const std::size_t size = header ? kRelayHeaderSize : kRelayControlSize;
      return port.relay().received(ConstBytes(one.relay).first(size), one.time_us, now);
    }
    case What::kPathAnswer:
      return port.paths().answered(one.peer, one.number, one.time_us, now);
    case What::kSpoof:
      return options_.tell(event::Spoof{number, bytes_of(one.mac), one.vlan, "source_mac"});
    case What::kClaim:
      if (entry.claims.empty()) entry.claims_due_ms = now + kClaimsHeldMs;
      entry.claims.push_back({number, to_message(one.ip), bytes_of(one.mac)});
      if (entry.claims.size() >= kMaxClaimsHeld) tell_claims(entry);
      return;
    case What::kGuarded: {
      const Peer* const peer = one.peer == 0 ? nullptr : port.tables().peer_by_number(one.peer);
      if (one.peer != 0 && peer == nullptr) return;  // Gone meanwhile; it is counted.
      return options_.tell(event::Guarded{number, std::string(guard_word(one.reason)),
                                          peer == nullptr ? std::string() : peer->id,
                                          bytes_of(one.mac), to_message(one.ip)});
    }
    case What::kTooLong:
      return port.paths().too_long(one.from, now);
  }
}

std::optional<std::uint64_t> DataPlane::run_timers(std::uint64_t now_ms) {
  std::optional<std::uint64_t> next;
  for (auto& [number, entry] : ports_) {
    for (const auto due : {entry.port->tables().run_timers(now_ms), entry.port->relay().run(now_ms),
                           entry.port->paths().run(now_ms), entry.port->run_plain(now_ms)}) {
      if (due && (!next || *due < *next)) next = due;
    }
    if (!entry.claims.empty()) {
      const std::uint64_t due = entry.claims_due_ms;
      if (due <= now_ms) {
        tell_claims(entry);
      } else if (!next || due < *next) {
        next = due;
      }
    }
    entry.port->wake_holders();
  }
  return next;
}

}  // namespace pairwire
