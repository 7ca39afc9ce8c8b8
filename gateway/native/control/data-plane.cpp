// See data-plane.hpp. Every message has passed the generated decoder; here is checked what a schema
// can't say, and each refusal leaves everything as it was.
#include "control/data-plane.hpp"

#include <openssl/rand.h>

#include <algorithm>
#include <span>
#include <system_error>

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

messages::Endpoint to_message(const Endpoint& endpoint) {
  messages::Endpoint message;
  static_cast<void>(message.ip.assign(endpoint.short_ip()));  // At most 16 bytes, always.
  message.port = endpoint.port;
  return message;
}

std::vector<MacAddress> to_macs(const std::vector<std::array<std::uint8_t, 6>>& bytes) {
  std::vector<MacAddress> macs;
  macs.reserve(bytes.size());
  for (const auto& mac : bytes) macs.emplace_back(mac);
  return macs;
}

answer::Failed failed(std::string_view why) {
  return {std::string(why.substr(0, 200))};
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
    if (kind == Device::Kind::kTap ? entry.tap == name : entry.udp_port == port) {
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
  const Device* const udp = devices_.udp(entry.udp_port);
  if (tap == nullptr || udp == nullptr) throw CommandError("device is not here");
  entry.port->start(
      {{tap->fd.get()}, {UdpSocket::of(udp->fd.get())}, {.ecn = false, .udp = options_.merge_udp}});
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

Answer DataPlane::on(const command::PortSet& command) {
  const auto suite = parse_suite(command.suite);
  if (!suite) throw CommandError("unknown suite");
  if (command.subnet.empty() || command.member.empty()) throw CommandError("subnet or member");
  if (command.tag != 0) throw CommandError("a tag on the transport udp");
  if (devices_.tap(command.tap) == nullptr) throw CommandError("the TAP is not here");
  if (devices_.udp(command.udp_port) == nullptr) throw CommandError("the UDP port is not here");
  for (const auto& [number, entry] : ports_) {
    if (number != command.port &&
        (entry.tap == command.tap || entry.udp_port == command.udp_port)) {
      throw CommandError("the device is another port's");
    }
  }
  auto settings = std::make_unique<PortSettings>();
  settings->subnet = command.subnet;
  settings->member = command.member;
  settings->macs = to_macs(command.macs);
  settings->suite = *suite;
  settings->backend = choose_backend(command.backend);
  settings->udp_port = command.udp_port;
  settings->freshness_ms = command.freshness_ms;
  settings->hold_frames = command.hold_frames;
  settings->hold_ms = command.hold_ms;
  settings->hold_bytes = command.hold_bytes;
  settings->storm_frames = command.storm_frames;
  for (const MacAddress& mac : settings->macs) {
    if (mac.is_group() || mac.is_zero()) throw CommandError("not a unicast address");
  }
  for (const auto& address : command.broadcasts) {
    if (address.size() != 4) continue;  // IPv6 has no broadcast.
    // Any prefix whose last two bits are the host's has this directed broadcast.
    settings->broadcasts.push_back({load_be<std::uint32_t>(address.bytes().first<4>()), 30});
  }

  auto found = ports_.find(command.port);
  if (found == ports_.end()) {
    if (free_wakes_.empty() || ports_.size() >= kMaxPorts) throw CommandError("too many ports");
    PortEntry entry;
    entry.wakes = std::move(free_wakes_.back());
    free_wakes_.pop_back();
    entry.port = std::make_unique<Port>(clock_, entry.wakes, options_.control_wake,
                                        listener_for(command.port));
    found = ports_.emplace(command.port, std::move(entry)).first;
  }
  PortEntry& entry = found->second;
  const bool other_hold = entry.port->tables().settings().hold_bytes != settings->hold_bytes;
  entry.port->tables().set_settings(std::move(settings));
  if (!entry.port->running() || other_hold || entry.tap != command.tap ||
      entry.udp_port != command.udp_port) {
    entry.tap = command.tap;
    entry.udp_port = command.udp_port;
    start_workers(entry);
  }
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
  tables.set_boot_index(command.boot, command.index);
  return answer::Done{};
}

Answer DataPlane::on(const command::BootDrop& command) {
  require_port(command.port).tables().drop_boot(command.boot);
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
  std::vector<Endpoint> endpoints;
  for (const messages::Endpoint& candidate : command.endpoints) {
    const auto endpoint = Endpoint::from(candidate.ip.bytes(), candidate.port);
    if (!endpoint) throw CommandError("not an address that a member can have");
    endpoints.push_back(*endpoint);
  }
  const std::uint64_t now = boot_ms();
  Peer& peer = port.tables().set_peer({command.peer, command.index, command.boot,
                                       to_macs(command.macs), std::move(endpoints), command.online},
                                      now);
  port.paths().candidates_set(peer, now);
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
  require_port(command.port)
      .tables()
      .drop_key(command.peer, command.pw_id, command.grace_ms, boot_ms());
  return answer::Done{};
}

Answer DataPlane::on(const command::MacRefuse& command) {
  require_port(command.port).tables().refuse_mac(MacAddress(command.mac), command.ms, boot_ms());
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
      port.boots.push_back({boot.boot, boot.public_key, boot.index});
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
    };
    add("outbound", port.outbound_counters());
    add("inbound", port.inbound_counters());
    const LockedMemoryUse memory = locked_memory_use();
    out.counters.push_back({"key_memory_bytes", memory.used});
    out.counters.push_back({"key_memory_locked", memory.locked ? 1U : 0U});
    stats.events_lost += port.events_lost();

    std::vector<const Peer*> peers;
    for (const auto& [id, peer] : port.tables().peers()) peers.push_back(peer.get());
    const auto used = [](const Peer* peer) {
      return std::max(peer->rx_ms.load(std::memory_order_relaxed),
                      peer->tx_ms.load(std::memory_order_relaxed));
    };
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
      one.alive = peer->path.alive;
      one.rtt_us = peer->path.rtt_us;
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
  for (auto& [number, entry] : ports_) {
    Port& port = *entry.port;
    const std::uint16_t name = number;
    port.take_events([&](const WorkerEvent& one) { pass_on(name, port, one); });
    port.wake_holders();
  }
}

void DataPlane::pass_on(std::uint16_t number, Port& port, const WorkerEvent& one) {
  using What = WorkerEvent::Kind;
  const std::uint64_t now = boot_ms();
  switch (one.kind) {
    case What::kMissMac: {
      std::array<std::uint8_t, 6> mac{};
      std::ranges::copy(one.mac.bytes(), mac.begin());
      return options_.tell(event::MissMac{number, mac});
    }
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
    case What::kHeardElsewhere:
      return port.paths().heard_elsewhere(one.peer, one.from, now);
    case What::kPathAnswer:
      return port.paths().answered(one.peer, one.number, one.time_us, now);
  }
}

std::optional<std::uint64_t> DataPlane::run_timers(std::uint64_t now_ms) {
  std::optional<std::uint64_t> next;
  for (auto& [number, entry] : ports_) {
    for (const auto due :
         {entry.port->tables().run_timers(now_ms), entry.port->paths().run(now_ms)}) {
      if (due && (!next || *due < *next)) next = due;
    }
    entry.port->wake_holders();
  }
  return next;
}

}  // namespace pairwire
