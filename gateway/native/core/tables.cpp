// See tables.hpp.
//
// Order of every change: make the new object, show it, take the old one out of sight, retire it. So
// a worker finds either; and what it has found lives until it looks away.
#include "core/tables.hpp"

#include <openssl/rand.h>

#include <algorithm>
#include <utility>

#include "crypto/openssl.hpp"

namespace pairwire {
namespace {

/// A peer that sends with the generation before ours for so long has not been told
/// (docs/protocol.md 3.5).
constexpr std::uint64_t kLaggingMs = 1000;
/// Addresses behind plain ports whose time is over are taken out so often.
constexpr std::uint64_t kPurgeMs = 10'000;

std::uint64_t random_seed() {
  std::uint64_t seed = 0;
  require_crypto(RAND_bytes(reinterpret_cast<unsigned char*>(&seed), sizeof(seed)) == 1,
                 "RAND_bytes");
  return seed;
}

/// Shows `key` in the first free place. There is one: the caller has made room.
void show_key(std::array<std::atomic<ReceiveKey*>, kKeyPlaces>& keys, ReceiveKey& key) {
  for (auto& place : keys) {
    if (place.load(std::memory_order_relaxed) != nullptr) continue;
    place.store(&key, std::memory_order_release);
    return;
  }
}

void hide_key(Incarnation& sender, std::array<std::atomic<ReceiveKey*>, kKeyPlaces>& keys,
              const ReceiveKey& key) {
  // Stale first: a worker between the two stores may find both, and that is no harm.
  sender.stale_kids[sender.next_stale].store(std::uint32_t{key.kid} + 1, std::memory_order_relaxed);
  sender.next_stale = (sender.next_stale + 1) % kStaleKids;
  for (auto& place : keys) {
    if (place.load(std::memory_order_relaxed) == &key) {
      place.store(nullptr, std::memory_order_release);
    }
  }
}

Incarnation* incarnation_of(const Peer& peer, std::uint32_t index) {
  for (const auto& incarnation : peer.incarnations) {
    if (incarnation->index == index) return incarnation.get();
  }
  return nullptr;
}

}  // namespace

PortTables::PortTables()
    : seed_(random_seed()),
      senders_(rcu_, seed_),
      destinations_(rcu_, seed_),
      refused_(rcu_, seed_),
      own_(rcu_, seed_),
      behind_(rcu_, seed_),
      bindings_(rcu_, seed_),
      owned_settings_(std::make_unique<PortSettings>()),
      owned_routes_(std::make_unique<NetRoutes>()),
      owned_online_(std::make_unique<OnlineArray>(16)) {
  routes_.store(owned_routes_.get(), std::memory_order_release);
  settings_.store(owned_settings_.get(), std::memory_order_release);
  online_.store(owned_online_.get(), std::memory_order_release);
}

PortTables::~PortTables() = default;

// --- Settings -----------------------------------------------------------------------------------

void PortTables::set_settings(std::unique_ptr<const PortSettings> settings) {
  const PortSettings& old = *owned_settings_;
  const bool keyed = !boots_.empty() || !peers_.empty() || !groups_.empty();
  // Traffic keys were derived from these names and expanded for this cipher.
  if (keyed && (old.subnet != settings->subnet || old.member != settings->member ||
                old.net != settings->net || old.suite != settings->suite)) {
    throw CommandError("subnet, member, net and suite of a port with keys can't change");
  }
  if (keyed && old.kind != settings->kind) {
    throw CommandError("the kind of a port with keys can't change");
  }
  settings_.store(settings.get(), std::memory_order_release);
  rcu_.retire(std::exchange(owned_settings_, std::move(settings)));
  changed();
}

void PortTables::set_lease(std::uint64_t not_after_ms) {
  lease_.store(not_after_ms, std::memory_order_relaxed);
  changed();
}

// --- Boot keys ----------------------------------------------------------------------------------

PortTables::BootMade PortTables::make_boot() {
  if (boots_.size() >= kMaxBoots) throw CommandError("too many boot keys; drop old ones first");
  auto boot = std::make_unique<BootKey>();
  boot->number = next_boot_++;
  boot->keys = generate_x25519();
  // libcrypto looks the method of an agreement up now, not while a first frame waits for its key.
  (void)x25519(boot->keys.private_key, boot->keys.public_key);
  boots_.push_back(std::move(boot));
  return {boots_.back()->number, boots_.back()->keys.public_key};
}

PortTables::BootKey* PortTables::boot_by_number(std::uint32_t boot) const {
  for (const auto& key : boots_) {
    if (key->number == boot) return key.get();
  }
  return nullptr;
}

PortTables::BootKey& PortTables::require_boot(std::uint32_t boot) const {
  if (BootKey* const key = boot_by_number(boot)) return *key;
  throw CommandError("unknown boot key");
}

PortTables::BootKey* PortTables::newest_boot() const {
  for (auto boot = boots_.rbegin(); boot != boots_.rend(); ++boot) {
    if ((*boot)->index() != 0) return boot->get();
  }
  return nullptr;
}

void PortTables::set_boot_index(std::uint32_t number, std::uint32_t index, std::uint32_t after_ms,
                                std::uint64_t now_ms) {
  BootKey& boot = require_boot(number);
  if (boot.index() != index || index == 0) {
    if (boot.index() != 0) throw CommandError("the boot key has another index already");
    if (index == 0 || senders_.find(index) != nullptr) throw CommandError("index is in use");
    boot.self = std::make_unique<Incarnation>();
    boot.self->index = index;
    boot.self->boot = boot.keys.public_key;
    senders_.set(index, boot.self.get());
    for (const auto& [id, peer] : peers_) {
      for (const auto& record : peer->records) {
        if (record->boot == number) record->send->index = index;  // Not shown to anybody yet.
      }
    }
  }
  if (number <= send_boot_) return;
  if (send_boot_ == 0 || after_ms == 0) return use_boot(boot);
  if (boot.use_ms != 0 && boot.use_ms <= now_ms + after_ms) return;
  boot.use_ms = now_ms + after_ms;
  timers_.emplace(boot.use_ms, Timer{Due::kBootUse, 0, number, 0});
}

/// Keys that waited for the index, or for their time, are sent with from now on.
void PortTables::use_boot(BootKey& boot) {
  send_boot_ = boot.number;
  for (const auto& [id, peer] : peers_) refresh_send(*peer);
  refresh_group_send();
  changed();
}

void PortTables::drop_boot(std::uint32_t number, std::uint32_t grace_ms, std::uint64_t now_ms) {
  if (grace_ms == 0) return forget_boot(number);
  BootKey* const boot = boot_by_number(number);
  if (boot == nullptr || (boot->drop_ms != 0 && boot->drop_ms <= now_ms + grace_ms)) return;
  boot->drop_ms = now_ms + grace_ms;
  timers_.emplace(boot->drop_ms, Timer{Due::kBootDrop, 0, number, 0});
}

void PortTables::forget_boot(std::uint32_t number) {
  const auto found = std::find_if(boots_.begin(), boots_.end(),
                                  [&](const auto& boot) { return boot->number == number; });
  if (found == boots_.end()) return;
  std::unique_ptr<BootKey> boot = std::move(*found);
  boots_.erase(found);
  if (boot->self) senders_.erase(boot->index());
  if (send_boot_ == number) {
    const BootKey* const left = newest_boot();
    send_boot_ = left == nullptr ? 0 : left->number;
  }
  for (const auto& [id, peer] : peers_) {
    for (std::size_t i = peer->records.size(); i-- > 0;) {
      if (peer->records[i]->boot == number) retire_record(*peer, *peer->records[i]);
    }
  }
  for (const auto& generation : groups_) {
    if (generation->send == nullptr || generation->send_boot != number) continue;
    if (group_send_.load(std::memory_order_relaxed) == generation->send.get()) {
      group_send_.store(nullptr, std::memory_order_release);
    }
    rcu_.retire(std::move(generation->send));
  }
  for (const auto& [id, peer] : peers_) refresh_send(*peer);
  refresh_group_send();
  // Last: the retired keys refer to its counters and windows.
  rcu_.retire(std::move(boot));
  changed();
}

// --- Members ------------------------------------------------------------------------------------

Peer* PortTables::peer(std::string_view id) const {
  const auto found = peers_.find(std::string(id));
  return found == peers_.end() ? nullptr : found->second.get();
}

Peer* PortTables::peer_by_number(std::uint32_t number) const {
  const auto found = by_number_.find(number);
  return found == by_number_.end() ? nullptr : found->second;
}

Peer& PortTables::require_peer(std::string_view id) const {
  if (Peer* const found = peer(id)) return *found;
  throw CommandError("unknown peer");
}

Peer& PortTables::set_peer(PeerSetting setting, std::uint64_t now_ms) {
  if (setting.peer.empty()) throw CommandError("a peer without id");
  if (setting.peer == owned_settings_->member) throw CommandError("a peer with our own id");
  if (setting.index == 0) throw CommandError("index 0");
  const Incarnation* const holder = senders_.find(setting.index);
  if (holder != nullptr && (holder->peer == nullptr || holder->peer->id != setting.peer ||
                            !std::ranges::equal(holder->boot, setting.boot))) {
    throw CommandError("index is in use");
  }
  for (const MacAddress& mac : setting.macs) {
    if (mac.is_group() || mac.is_zero()) throw CommandError("not a unicast address");
  }

  const bool link = !setting.net.empty();
  if (link != (owned_settings_->kind == PortKind::kLink)) {
    throw CommandError("a link port has link ports as peers, and no other has");
  }

  Peer* known = peer(setting.peer);
  if (known == nullptr) {
    Net* const net = link ? &net_named(setting.net) : nullptr;
    auto made = std::make_unique<Peer>(std::string(setting.peer), next_peer_++, net);
    known = made.get();
    by_number_.emplace(known->number, known);
    peers_.emplace(known->id, std::move(made));
  } else if (link && known->net->id != setting.net) {
    throw CommandError("the peer is a link port of another net");
  }
  set_macs(*known, std::move(setting.macs));
  known->candidates = std::move(setting.endpoints);
  known->relay_first = setting.relay_first;
  known->plain.store(setting.plain, std::memory_order_relaxed);
  known->rights.store(setting.rights, std::memory_order_relaxed);
  behind_.member_known(known->id, known);
  // What another subnet's server names is not sent to before it has answered.
  if (!link && known->owned_endpoint == nullptr && !known->candidates.empty()) {
    set_endpoint(*known, known->candidates.front());
  }
  if (holder == nullptr) {
    add_incarnation(*known, setting, now_ms);
  } else {
    make_current(*known, setting.index, now_ms);
  }
  set_online(*known, setting.online);
  if (known->net != nullptr) choose_port(*known->net);
  changed();
  return *known;
}

Incarnation& PortTables::add_incarnation(Peer& peer, const PeerSetting& setting,
                                         std::uint64_t now_ms) {
  if (peer.incarnations.size() >= kMaxIncarnations) {
    ++limits_.starts_pushed_out;
    retire_incarnation(peer, peer.incarnations.front()->index);
  }
  for (const auto& old : peer.incarnations) start_retiring(peer, *old, now_ms);
  auto made = std::make_unique<Incarnation>();
  made->index = setting.index;
  made->peer = &peer;
  std::ranges::copy(setting.boot, made->boot.begin());
  Incarnation& incarnation = *made;
  peer.incarnations.push_back(std::move(made));
  for (const auto& generation : groups_) {
    add_group_receive(*generation, incarnation, peer.id, now_ms);
  }
  senders_.set(incarnation.index, &incarnation);
  return incarnation;
}

void PortTables::start_retiring(Peer& peer, Incarnation& old, std::uint64_t now_ms) {
  if (old.retire_ms != 0) return;
  old.retire_ms = now_ms + kIncarnationGraceMs;
  timers_.emplace(old.retire_ms, Timer{Due::kIncarnation, peer.number, old.index, 0});
}

/// A start of the member that we know already is (again) its current one: it is not retired any
/// more, the others are.
void PortTables::make_current(Peer& peer, std::uint32_t index, std::uint64_t now_ms) {
  if (peer.incarnations.back()->index == index) return;
  const auto found =
      std::ranges::find_if(peer.incarnations, [&](const auto& one) { return one->index == index; });
  std::rotate(found, found + 1, peer.incarnations.end());
  peer.incarnations.back()->retire_ms = 0;
  for (std::size_t i = 0; i + 1 < peer.incarnations.size(); ++i) {
    start_retiring(peer, *peer.incarnations[i], now_ms);
  }
  refresh_send(peer);
}

void PortTables::retire_incarnation(Peer& peer, std::uint32_t index) {
  const auto found = std::find_if(peer.incarnations.begin(), peer.incarnations.end(),
                                  [&](const auto& one) { return one->index == index; });
  if (found == peer.incarnations.end()) return;
  std::unique_ptr<Incarnation> incarnation = std::move(*found);
  peer.incarnations.erase(found);
  senders_.erase(index);
  for (std::size_t i = peer.records.size(); i-- > 0;) {
    if (peer.records[i]->peer_index != index) continue;
    PairKeyRecord& record = *peer.records[i];
    if (peer.send.load(std::memory_order_relaxed) == record.send.get()) {
      peer.send.store(nullptr, std::memory_order_release);
    }
    rcu_.retire(std::move(peer.records[i]));
    peer.records.erase(peer.records.begin() + static_cast<std::ptrdiff_t>(i));
  }
  for (const auto& generation : groups_) {
    const auto key = generation->receive.find(index);
    if (key == generation->receive.end()) continue;
    rcu_.retire(std::move(key->second));
    generation->receive.erase(key);
  }
  rcu_.retire(std::move(incarnation));
  refresh_send(peer);
}

void PortTables::remove_peer(std::string_view id) {
  Peer* const found = peer(id);
  if (found == nullptr) return;
  set_online(*found, false);
  set_macs(*found, {});
  behind_.member_known(found->id, nullptr);
  while (!found->incarnations.empty()) {
    retire_incarnation(*found, found->incarnations.back()->index);
  }
  by_number_.erase(found->number);
  const auto entry = peers_.find(found->id);
  std::unique_ptr<Peer> gone = std::move(entry->second);
  peers_.erase(entry);
  if (gone->net != nullptr) choose_port(*gone->net);
  rcu_.retire(std::move(gone));
  forget_unused_nets();
  changed();
}

void PortTables::set_macs(Peer& peer, std::vector<MacAddress> macs) {
  if (peer.owned_macs != nullptr) {
    for (const MacAddress& old : *peer.owned_macs) {
      // Somebody else may have it meanwhile; the last one told of wins.
      if (std::ranges::find(macs, old) == macs.end() && destination(old) == &peer) {
        destinations_.erase(old.to_integer());
      }
    }
  }
  for (const MacAddress& mac : macs) {
    destinations_.set(mac.to_integer(), &peer);
    // A negative answer ends with the first positive one.
    forget_refusal(mac);
  }
  auto list = std::make_unique<const MacList>(std::move(macs));
  peer.macs.store(list.get(), std::memory_order_release);
  rcu_.retire(std::exchange(peer.owned_macs, std::move(list)));
}

void PortTables::forget_refusal(const MacAddress& mac) {
  const auto refused = refused_macs_.find(mac.to_integer());
  if (refused == refused_macs_.end()) return;
  refused_.erase(mac.to_integer());
  rcu_.retire(std::move(refused->second));
  refused_macs_.erase(refused);
}

void PortTables::set_relay(std::unique_ptr<const RelayUse> relay) {
  relay_.store(relay.get(), std::memory_order_release);
  if (owned_relay_ != nullptr) rcu_.retire(std::move(owned_relay_));
  owned_relay_ = std::move(relay);
  changed();
}

void PortTables::set_endpoint(Peer& peer, const Endpoint& endpoint) {
  auto made = std::make_unique<const Endpoint>(endpoint);
  peer.endpoint.store(made.get(), std::memory_order_release);
  rcu_.retire(std::exchange(peer.owned_endpoint, std::move(made)));
  changed();
}

void PortTables::set_online(Peer& peer, bool online) {
  peer.online = online;
  if (peer.net != nullptr) return;  // No group frames go to other subnets.
  if (online == (peer.slot != Peer::kNoSlot)) return;
  if (!online) {
    // A hole, which a later member fills: moving another into it could hide that one from
    // a worker which is half-way through.
    owned_online_->peers[peer.slot].store(nullptr, std::memory_order_release);
    online_holes_.push_back(std::exchange(peer.slot, Peer::kNoSlot));
    return;
  }
  if (!online_holes_.empty()) {
    peer.slot = online_holes_.back();
    online_holes_.pop_back();
    owned_online_->peers[peer.slot].store(&peer, std::memory_order_release);
    return;
  }
  const std::size_t used = owned_online_->used.load(std::memory_order_relaxed);
  if (used == owned_online_->capacity) {
    auto bigger = std::make_unique<OnlineArray>(used * 2);
    for (std::size_t i = 0; i < used; ++i) {
      bigger->peers[i].store(owned_online_->peers[i].load(std::memory_order_relaxed),
                             std::memory_order_relaxed);
    }
    bigger->used.store(used, std::memory_order_relaxed);
    online_.store(bigger.get(), std::memory_order_release);
    rcu_.retire(std::exchange(owned_online_, std::move(bigger)));
  }
  peer.slot = used;
  owned_online_->peers[used].store(&peer, std::memory_order_release);
  owned_online_->used.store(used + 1, std::memory_order_release);
}

// --- Pair keys ----------------------------------------------------------------------------------

PortTables::Installed PortTables::install_pair_key(std::string_view id, std::uint32_t boot_number,
                                                   std::span<const std::uint8_t, kKeySize> key,
                                                   std::uint64_t pw_id, bool send) {
  Peer& peer = require_peer(id);
  BootKey& named = require_boot(boot_number);
  // Who has had no key with us until now is told of our newest boot key before it gets one.
  const BootKey* const told = newest_boot();
  if (told != nullptr && peer.records.empty()) peer.knows_boot = told->number;
  const std::uint64_t choice = send ? next_choice_++ : 0;
  const auto installed =
      install_pair_record(peer, named, *peer.incarnations.back(), key, pw_id, choice);
  if (!installed) throw CommandError("the peer's boot key is a point of small order");
  for (const auto& boot : boots_) {
    if (boot->number > boot_number) continue;
    for (const auto& incarnation : peer.incarnations) {
      install_pair_record(peer, *boot, *incarnation, key, pw_id, choice);
    }
  }
  refresh_send(peer);
  changed();
  return *installed;
}

/// Nothing if there is no key, because the peer's boot key is a point of small order.
std::optional<PortTables::Installed> PortTables::install_pair_record(
    Peer& peer, BootKey& boot, Incarnation& incarnation,
    std::span<const std::uint8_t, kKeySize> key, std::uint64_t pw_id, std::uint64_t choice) {
  const KeyDigest digest = digest_of(key);
  for (const auto& record : peer.records) {
    if (record->boot == boot.number && record->peer_index == incarnation.index &&
        record->pw_id == pw_id && record->key == digest) {
      record->chosen = std::max(record->chosen, choice);
      return Installed{record->kid_send, record->kid_receive, false};
    }
  }

  const auto shared = x25519(boot.keys.private_key, incarnation.boot);
  if (!shared) return std::nullopt;
  const Secret<kKeySize> secret(key);
  const PortSettings& settings = *owned_settings_;
  const auto derive = [&](std::string_view sender, std::string_view receiver, PublicKey sender_boot,
                          PublicKey receiver_boot) {
    if (peer.net != nullptr) {
      return derive_net_key(secret, *shared, {sender, receiver, sender_boot, receiver_boot, pw_id});
    }
    return derive_pair_key(secret, *shared,
                           {settings.subnet, sender, receiver, sender_boot, receiver_boot, pw_id});
  };
  const std::string self = own_name();
  const TrafficKey out = derive(self, peer.id, boot.keys.public_key, incarnation.boot);
  const TrafficKey in = derive(peer.id, self, incarnation.boot, boot.keys.public_key);

  auto record = std::make_unique<PairKeyRecord>();
  record->boot = boot.number;
  record->peer_index = incarnation.index;
  record->pw_id = pw_id;
  record->key = digest;
  record->kid_send = out.kid;
  record->kid_receive = in.kid;
  record->chosen = choice;
  record->send = std::make_unique<SendKey>();
  record->send->aead = make_aead_key(settings.backend, settings.suite, out.key.bytes());
  record->send->counter = &boot.states.counter(digest_of(out.key.bytes()));
  record->send->pw_id = pw_id;
  record->send->boot = boot.number;
  record->send->index = boot.index();
  record->send->kid = out.kid;
  record->receive = std::make_unique<ReceiveKey>();
  record->receive->aead = make_aead_key(settings.backend, settings.suite, in.key.bytes());
  record->receive->window = &boot.states.window(digest_of(in.key.bytes()));
  record->receive->pw_id = pw_id;
  record->receive->boot = boot.number;
  record->receive->kid = in.kid;

  make_room(peer, incarnation.index, boot.number);

  const Installed installed{out.kid, in.kid, true};
  // Owned first, then shown: should memory run out between, no worker has seen it.
  peer.records.push_back(std::move(record));
  show_key(incarnation.pair_keys, *peer.records.back()->receive);
  return installed;
}

/// At most 4 for each sender index and own boot key, and as many as there are places; the oldest
/// goes, but not the one we send with.
void PortTables::make_room(Peer& peer, std::uint32_t index, std::uint32_t boot) {
  const SendKey* const used = peer.send.load(std::memory_order_relaxed);
  std::size_t held = 0;
  std::size_t held_of_boot = 0;
  PairKeyRecord* oldest = nullptr;
  PairKeyRecord* oldest_of_boot = nullptr;
  for (const auto& other : peer.records) {
    if (other->peer_index != index) continue;
    ++held;
    held_of_boot += other->boot == boot ? 1 : 0;
    if (used == other->send.get()) continue;
    if (oldest == nullptr) oldest = other.get();
    if (oldest_of_boot == nullptr && other->boot == boot) oldest_of_boot = other.get();
  }
  if (held_of_boot >= kMaxKeysPerSender) {
    oldest = oldest_of_boot;
  } else if (held < kKeyPlaces) {
    return;
  }
  if (oldest != nullptr) retire_record(peer, *oldest);
}

void PortTables::retire_record(Peer& peer, PairKeyRecord& record) {
  const auto found = std::find_if(peer.records.begin(), peer.records.end(),
                                  [&](const auto& one) { return one.get() == &record; });
  if (peer.send.load(std::memory_order_relaxed) == record.send.get()) {
    peer.send.store(nullptr, std::memory_order_release);
  }
  if (Incarnation* const sender = incarnation_of(peer, record.peer_index)) {
    hide_key(*sender, sender->pair_keys, *record.receive);
  }
  rcu_.retire(std::move(*found));
  peer.records.erase(found);
  refresh_send(peer);
}

/// Of the keys that can be sent with, those of the boot key that is sent with or, if the peer knows
/// a newer one, of that; the latest choice among them; among equal ones the peer's newest start. If
/// there is none, any other is better.
void PortTables::refresh_send(Peer& peer) {
  PairKeyRecord* best = nullptr;
  const std::uint32_t boot = std::max(send_boot_, peer.knows_boot);
  const auto rank = [&](const PairKeyRecord& record) {
    std::size_t newest = 0;
    while (newest < peer.incarnations.size() &&
           peer.incarnations[newest]->index != record.peer_index) {
      ++newest;
    }
    return std::tuple(record.boot == boot, record.chosen, newest, record.boot);
  };
  for (const auto& record : peer.records) {
    if (record->chosen == 0 || record->send->index == 0) continue;
    if (best == nullptr || rank(*record) > rank(*best)) best = record.get();
  }
  SendKey* const key = best == nullptr ? nullptr : best->send.get();
  if (peer.send.load(std::memory_order_relaxed) != key) {
    peer.send.store(key, std::memory_order_release);
  }
}

/// Our name in traffic keys: a link port's is NET/ID, as its peers' are.
std::string PortTables::own_name() const {
  const PortSettings& settings = *owned_settings_;
  return settings.kind == PortKind::kLink ? settings.net + "/" + settings.member : settings.member;
}

void PortTables::drop_pair_keys(Peer& peer, std::uint64_t pw_id) {
  for (std::size_t i = peer.records.size(); i-- > 0;) {
    if (peer.records[i]->pw_id <= pw_id) retire_record(peer, *peer.records[i]);
  }
}

// --- Other subnets ------------------------------------------------------------------------------

void PortTables::set_routes(std::string_view id, std::vector<IpPrefix> prefixes) {
  std::size_t all = prefixes.size();
  for (const auto& [net, others] : prefixes_) all += net == id ? 0 : others.size();
  if (all > NetRoutes::kMaxRoutes) throw CommandError("too many prefixes");
  if (!id.empty()) static_cast<void>(net_named(id));
  if (prefixes.empty()) {
    if (const auto known = prefixes_.find(id); known != prefixes_.end()) prefixes_.erase(known);
  } else {
    prefixes_.insert_or_assign(std::string(id), std::move(prefixes));
  }
  std::vector<NetRoutes::Route> routes;
  routes.reserve(all);
  for (const auto& [net, list] : prefixes_) {
    for (const IpPrefix& prefix : list) {
      routes.push_back({prefix, net.empty() ? nullptr : &net_named(net)});
    }
  }
  auto made = std::make_unique<const NetRoutes>(std::move(routes));
  routes_.store(made.get(), std::memory_order_release);
  rcu_.retire(std::exchange(owned_routes_, std::move(made)));
  forget_unused_nets();
  changed();
}

std::vector<std::string> PortTables::routed_nets() const {
  std::vector<std::string> nets;
  for (const auto& [net, list] : prefixes_) nets.push_back(net);
  return nets;
}

Net& PortTables::net_named(std::string_view id) {
  const auto known = nets_.find(id);
  if (known != nets_.end()) return *known->second;
  if (nets_.size() >= kMaxNets) throw CommandError("too many nets");
  auto made = std::make_unique<Net>(std::string(id));
  return *nets_.emplace(made->id, std::move(made)).first->second;
}

/// The link port in use stays while its key server sees it; else the first one that is there.
void PortTables::choose_port(Net& net) {
  Peer* const used = net.port.load(std::memory_order_relaxed);
  Peer* best = nullptr;
  for (const auto& [id, peer] : peers_) {
    if (peer->net != &net) continue;
    const auto rank = [&](const Peer& one) { return std::pair(one.online, &one == used); };
    if (best == nullptr || rank(*peer) > rank(*best) ||
        (rank(*peer) == rank(*best) && peer->id < best->id)) {
      best = peer.get();
    }
  }
  net.port.store(best, std::memory_order_release);
}

/// Behind a change of routes or peers: what neither names is in nobody's sight any more.
void PortTables::forget_unused_nets() {
  for (auto entry = nets_.begin(); entry != nets_.end();) {
    const Net* const net = entry->second.get();
    const bool used =
        owned_routes_->names(*net) ||
        std::ranges::any_of(peers_, [&](const auto& one) { return one.second->net == net; });
    if (used) {
      ++entry;
      continue;
    }
    rcu_.retire(std::move(entry->second));
    entry = nets_.erase(entry);
  }
}

// --- Group keys ---------------------------------------------------------------------------------

void PortTables::install_group_key(std::span<const std::uint8_t, kKeySize> key, std::uint64_t pw_id,
                                   bool send, std::uint64_t now_ms) {
  for (const auto& held : groups_) {
    if (held->pw_id != pw_id || !(held->key == Secret<kKeySize>(key))) continue;
    if (send) held->chosen = next_choice_++;
    refresh_group_send();
    changed();
    return;
  }
  if (groups_.size() >= kMaxKeysPerSender) retire_group(groups_.front()->pw_id);
  auto made = std::make_unique<GroupGeneration>();
  made->pw_id = pw_id;
  made->key = Secret<kKeySize>(key);
  const auto before = std::ranges::find_if(retired_groups_, [&](const auto& one) {
    return one->pw_id == pw_id && one->key == digest_of(key);
  });
  if (before != retired_groups_.end()) {
    // Windows go on where they were: what was accepted before the drop is no news after it.
    made->states = std::move((*before)->states);
    retired_groups_.erase(before);
  }
  made->chosen = send ? next_choice_++ : 0;
  GroupGeneration& generation = *made;
  groups_.push_back(std::move(made));
  // A key that is prepared has sealed nothing yet, so there is nothing old to keep out; and whose
  // clock is a little behind must not be refused when all change at once.
  const std::uint64_t since_ms = send ? now_ms : 0;
  for (const auto& [id, peer] : peers_) {
    for (const auto& incarnation : peer->incarnations) {
      add_group_receive(generation, *incarnation, id, since_ms);
    }
  }
  refresh_group_send();
  changed();
}

void PortTables::add_group_receive(GroupGeneration& generation, Incarnation& sender,
                                   std::string_view id, std::uint64_t now_ms) {
  const PortSettings& settings = *owned_settings_;
  const TrafficKey key =
      derive_group_key(generation.key, {settings.subnet, id, sender.boot, generation.pw_id});
  auto receive = std::make_unique<ReceiveKey>();
  receive->aead = make_aead_key(settings.backend, settings.suite, key.key.bytes());
  receive->window = &generation.states.window(digest_of(key.key.bytes()));
  receive->pw_id = generation.pw_id;
  receive->kid = key.kid;
  receive->group = true;
  receive->installed_ms = now_ms;
  // Owned first, then shown: should memory run out between, no worker has seen it.
  ReceiveKey& made = *receive;
  generation.receive[sender.index] = std::move(receive);
  show_key(sender.group_keys, made);
}

void PortTables::refresh_group_send() {
  GroupGeneration* best = nullptr;
  for (const auto& generation : groups_) {
    if (generation->chosen != 0 && (best == nullptr || generation->chosen > best->chosen)) {
      best = generation.get();
    }
  }
  BootKey* const boot = boot_by_number(send_boot_);
  SendKey* shown = nullptr;
  std::unique_ptr<SendKey> old;
  if (best != nullptr && boot != nullptr) {
    if (best->send == nullptr || best->send_boot != boot->number) {
      const PortSettings& settings = *owned_settings_;
      const TrafficKey key = derive_group_key(
          best->key, {settings.subnet, settings.member, boot->keys.public_key, best->pw_id});
      auto made = std::make_unique<SendKey>();
      made->aead = make_aead_key(settings.backend, settings.suite, key.key.bytes());
      // The boot key's, not the generation's: the same KEY_M may be dropped and come again.
      made->counter = &boot->states.counter(digest_of(key.key.bytes()));
      made->pw_id = best->pw_id;
      made->boot = boot->number;
      made->index = boot->index();
      made->kid = key.kid;
      best->send_boot = boot->number;
      old = std::exchange(best->send, std::move(made));
    }
    shown = best->send.get();
  }
  group_send_.store(shown, std::memory_order_release);
  rcu_.retire(std::move(old));
}

void PortTables::retire_group(std::uint64_t pw_id) {
  for (std::size_t i = groups_.size(); i-- > 0;) {
    if (groups_[i]->pw_id > pw_id) continue;
    std::unique_ptr<GroupGeneration> generation = std::move(groups_[i]);
    groups_.erase(groups_.begin() + static_cast<std::ptrdiff_t>(i));
    for (const auto& [index, key] : generation->receive) {
      // Only members have group receive keys, and theirs are in the table.
      if (Incarnation* const sender = senders_.find(index)) {
        hide_key(*sender, sender->group_keys, *key);
      }
    }
    if (generation->send && group_send_.load(std::memory_order_relaxed) == generation->send.get()) {
      group_send_.store(nullptr, std::memory_order_release);
    }
    // The server may push the same KEY_M once more (threats.md C1). Moving the store leaves the
    // windows, which workers may still use, where they are.
    auto kept = std::make_unique<RetiredGroup>();
    kept->pw_id = generation->pw_id;
    kept->key = digest_of(generation->key.bytes());
    kept->states = std::move(generation->states);
    generation->key.wipe();  // Now; the rest after the grace period.
    rcu_.retire(std::move(generation));
    retired_groups_.push_back(std::move(kept));
    if (retired_groups_.size() > kKeptGroups) {
      rcu_.retire(std::move(retired_groups_.front()));
      retired_groups_.pop_front();
    }
  }
  refresh_group_send();
}

// --- Both kinds of key --------------------------------------------------------------------------

void PortTables::use_key(std::string_view id, std::uint64_t pw_id) {
  bool found = false;
  const std::uint64_t choice = next_choice_++;
  if (id.empty()) {
    for (const auto& generation : groups_) {
      if (generation->pw_id != pw_id) continue;
      generation->chosen = choice;
      found = true;
    }
    refresh_group_send();
  } else {
    Peer& peer = require_peer(id);
    for (const auto& record : peer.records) {
      if (record->pw_id != pw_id) continue;
      record->chosen = choice;
      found = true;
    }
    refresh_send(peer);
  }
  if (!found) throw CommandError("unknown key");
  changed();
}

PortTables::OtherKey PortTables::heard_other_key(std::uint32_t number, std::uint64_t pw_id,
                                                 std::uint64_t now_ms) {
  Peer* const peer = peer_by_number(number);
  const SendKey* const ours =
      peer == nullptr ? nullptr : peer->send.load(std::memory_order_relaxed);
  if (ours == nullptr || pw_id == ours->pw_id) return OtherKey::kNothing;
  if (pw_id > ours->pw_id) {
    const std::uint64_t choice = next_choice_++;
    for (const auto& record : peer->records) {
      if (record->pw_id == pw_id) record->chosen = choice;
    }
    refresh_send(*peer);
    changed();
    const SendKey* const now = peer->send.load(std::memory_order_relaxed);
    return now->pw_id == pw_id ? OtherKey::kCommitted : OtherKey::kNothing;
  }
  if (peer->ahead_pw_id != ours->pw_id) {
    peer->ahead_pw_id = ours->pw_id;
    peer->ahead_since_ms = now_ms;
  }
  // Frames that were under way when we changed are none of it.
  if (now_ms - peer->ahead_since_ms < kLaggingMs) return OtherKey::kNothing;
  if (now_ms - peer->ahead_told_ms < kLaggingMs) return OtherKey::kNothing;
  peer->ahead_told_ms = now_ms;
  return OtherKey::kLagging;
}

void PortTables::heard_boot(std::uint32_t number, std::uint32_t boot) {
  Peer* const peer = peer_by_number(number);
  if (peer == nullptr || boot <= std::max(send_boot_, peer->knows_boot)) return;
  // Dropped meanwhile, or its index is not known yet although the peer was told of it already.
  const BootKey* const heard = boot_by_number(boot);
  if (heard == nullptr || heard->index() == 0) return;
  peer->knows_boot = boot;
  refresh_send(*peer);
  changed();
}

bool PortTables::heard_newer_group_key(std::uint64_t pw_id) {
  const SendKey* const ours = group_send_.load(std::memory_order_relaxed);
  if (ours == nullptr || pw_id <= ours->pw_id) return false;
  // Dropped meanwhile: then there is nothing to send with.
  const bool held =
      std::ranges::any_of(groups_, [&](const auto& one) { return one->pw_id == pw_id; });
  if (held) use_key("", pw_id);
  return held;
}

void PortTables::drop_key(std::string_view id, std::uint64_t pw_id, std::uint32_t grace_ms,
                          std::uint64_t now_ms) {
  if (id.empty()) {
    if (grace_ms == 0) return retire_group(pw_id);
    timers_.emplace(now_ms + grace_ms, Timer{Due::kGroupKey, 0, 0, pw_id});
    return;
  }
  Peer& peer = require_peer(id);
  if (grace_ms == 0) return drop_pair_keys(peer, pw_id);
  timers_.emplace(now_ms + grace_ms, Timer{Due::kPairKey, peer.number, 0, pw_id});
}

void PortTables::refuse_mac(const MacAddress& mac, std::uint32_t ms, std::uint64_t now_ms) {
  const std::uint64_t number = mac.to_integer();
  auto found = refused_macs_.find(number);
  if (found == refused_macs_.end()) {
    if (refused_macs_.size() >= kMaxRefusedMacs) {
      for (auto entry = refused_macs_.begin(); entry != refused_macs_.end();) {
        if (now_ms < entry->second->load(std::memory_order_relaxed)) {
          ++entry;
          continue;
        }
        refused_.erase(entry->first);
        rcu_.retire(std::move(entry->second));
        entry = refused_macs_.erase(entry);
      }
      // Still full: who asks for so many addresses that nobody has asks again instead.
      if (refused_macs_.size() >= kMaxRefusedMacs) {
        ++limits_.refusals_lost;
        return;
      }
    }
    found = refused_macs_.emplace(number, std::make_unique<std::atomic<std::uint64_t>>(0)).first;
    refused_.set(number, found->second.get());
  }
  found->second->store(now_ms + ms, std::memory_order_relaxed);
  changed();
}

// --- Addresses that are nobody's or outside -----------------------------------------------------

void PortTables::set_own(std::span<const MacAddress> macs, bool reset, bool more) {
  for (const MacAddress& mac : macs) {
    if (mac.is_group() || mac.is_zero()) throw CommandError("not a unicast address");
  }
  const bool room = own_.set(macs, reset, more);
  changed();
  if (!room) throw CommandError("too many own addresses");
}

void PortTables::remove_own(std::span<const MacAddress> macs) {
  own_.remove(macs);
  changed();
}

void PortTables::set_behind(std::string_view member, std::span<const BehindSetting> settings,
                            std::uint64_t now_ms) {
  if (member.empty()) throw CommandError("a peer without id");
  for (const BehindSetting& setting : settings) {
    const MacAddress& mac = setting.address.mac;
    if (mac.is_group() || mac.is_zero()) throw CommandError("not a unicast address");
    if (setting.address.vlan > kLastVlanId) throw CommandError("not a VLAN id");
  }
  const bool self = member == owned_settings_->member;
  for (const BehindSetting& setting : settings) {
    behind_.set({member, self, peer(member), setting.address, setting.ms, setting.pinned}, now_ms);
    // A negative answer ends with the first positive one.
    forget_refusal(setting.address.mac);
  }
  changed();
}

void PortTables::forget_behind(std::span<const VlanMac> addresses) {
  for (const VlanMac& address : addresses) behind_.forget(address);
  changed();
}

// --- Bound addresses ----------------------------------------------------------------------------

void PortTables::set_bindings(std::span<const Bindings::Setting> settings, bool reset, bool more,
                              std::uint64_t now_ms) {
  for (const auto& [ip, mac] : settings) {
    if (mac.is_group() || mac.is_zero()) throw CommandError("not a unicast address");
    if (ip.is_none() || ip.is_unspecified() || ip.is_group()) {
      throw CommandError("not an address of a machine");
    }
  }
  if (!bindings_.set(settings, reset, more, now_ms)) throw CommandError("too many bindings");
}

void PortTables::remove_bindings(std::span<const IpAddress> ips) {
  bindings_.remove(ips);
}

// --- Timers and state ---------------------------------------------------------------------------

std::optional<std::uint64_t> PortTables::run_timers(std::uint64_t now_ms) {
  while (!timers_.empty() && timers_.begin()->first <= now_ms) {
    const Timer timer = timers_.begin()->second;
    timers_.erase(timers_.begin());
    Peer* const peer = timer.peer == 0 ? nullptr : peer_by_number(timer.peer);
    switch (timer.due) {
      case Due::kIncarnation:
        if (peer != nullptr) {
          const Incarnation* const old = incarnation_of(*peer, timer.index);
          // It may have become the current one again meanwhile.
          if (old != nullptr && old->retire_ms != 0 && old->retire_ms <= now_ms) {
            retire_incarnation(*peer, timer.index);
          }
        }
        break;
      case Due::kPairKey:
        if (peer != nullptr) drop_pair_keys(*peer, timer.pw_id);
        break;
      case Due::kGroupKey:
        retire_group(timer.pw_id);
        break;
      case Due::kBootUse:
        if (BootKey* const boot = boot_by_number(timer.index);
            boot != nullptr && boot->number > send_boot_) {
          use_boot(*boot);
        }
        break;
      case Due::kBootDrop:
        forget_boot(timer.index);
        break;
    }
  }
  if (now_ms >= next_purge_ms_) {
    behind_.purge(now_ms);
    next_purge_ms_ = now_ms + kPurgeMs;
  }
  std::optional<std::uint64_t> next;
  if (!timers_.empty()) next = timers_.begin()->first;
  if (behind_.size() != 0) next = std::min(next.value_or(next_purge_ms_), next_purge_ms_);
  // A worker may be in the middle of a batch; look again soon.
  if (rcu_.reclaim() != 0) next = std::min(next.value_or(~std::uint64_t{0}), now_ms + 10);
  return next;
}

std::vector<PortTables::BootState> PortTables::boots() const {
  std::vector<BootState> states;
  for (const auto& boot : boots_) {
    states.push_back(
        {boot->number, boot->keys.public_key, boot->index(), boot->number == send_boot_});
  }
  return states;
}

std::vector<PortTables::GroupState> PortTables::group_keys() const {
  std::vector<GroupState> states;
  for (const auto& generation : groups_) {
    states.push_back({generation->pw_id, generation->chosen != 0});
  }
  return states;
}

}  // namespace pairwire
