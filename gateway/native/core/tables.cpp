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

std::uint64_t random_seed() {
  std::uint64_t seed = 0;
  require_crypto(RAND_bytes(reinterpret_cast<unsigned char*>(&seed), sizeof(seed)) == 1,
                 "RAND_bytes");
  return seed;
}

/// Shows `key` in the first free place. There is one: the caller has made room.
void show_key(std::array<std::atomic<ReceiveKey*>, kMaxKeysPerSender>& keys, ReceiveKey& key) {
  for (auto& place : keys) {
    if (place.load(std::memory_order_relaxed) != nullptr) continue;
    place.store(&key, std::memory_order_release);
    return;
  }
}

void hide_key(Incarnation& sender, std::array<std::atomic<ReceiveKey*>, kMaxKeysPerSender>& keys,
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
      owned_settings_(std::make_unique<PortSettings>()),
      owned_online_(std::make_unique<OnlineArray>(16)) {
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
                old.suite != settings->suite)) {
    throw CommandError("subnet, member and suite of a port with keys can't change");
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

void PortTables::set_boot_index(std::uint32_t number, std::uint32_t index) {
  BootKey& boot = require_boot(number);
  if (boot.index() == index && index != 0) return;
  if (boot.index() != 0) throw CommandError("the boot key has another index already");
  if (index == 0 || senders_.find(index) != nullptr) throw CommandError("index is in use");
  boot.self = std::make_unique<Incarnation>();
  boot.self->index = index;
  boot.self->boot = boot.keys.public_key;
  senders_.set(index, boot.self.get());
  // Keys that waited for the index can be sent with now.
  for (const auto& [id, peer] : peers_) {
    for (const auto& record : peer->records) {
      if (record->boot == number) record->send->index = index;  // Not shown to anybody yet.
    }
    refresh_send(*peer);
  }
  refresh_group_send();
  changed();
}

void PortTables::drop_boot(std::uint32_t number) {
  const auto found = std::find_if(boots_.begin(), boots_.end(),
                                  [&](const auto& boot) { return boot->number == number; });
  if (found == boots_.end()) return;
  std::unique_ptr<BootKey> boot = std::move(*found);
  boots_.erase(found);
  if (boot->self) senders_.erase(boot->index());
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

  Peer* known = peer(setting.peer);
  if (known == nullptr) {
    auto made = std::make_unique<Peer>(std::string(setting.peer), next_peer_++);
    known = made.get();
    by_number_.emplace(known->number, known);
    peers_.emplace(known->id, std::move(made));
  }
  set_macs(*known, std::move(setting.macs));
  known->candidates = std::move(setting.endpoints);
  if (known->owned_endpoint == nullptr && !known->candidates.empty()) {
    set_endpoint(*known, known->candidates.front());
  }
  if (holder == nullptr) {
    add_incarnation(*known, setting, now_ms);
  } else {
    make_current(*known, setting.index, now_ms);
  }
  set_online(*known, setting.online);
  changed();
  return *known;
}

Incarnation& PortTables::add_incarnation(Peer& peer, const PeerSetting& setting,
                                         std::uint64_t now_ms) {
  if (peer.incarnations.size() >= kMaxIncarnations) {
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
  while (!found->incarnations.empty()) {
    retire_incarnation(*found, found->incarnations.back()->index);
  }
  by_number_.erase(found->number);
  const auto entry = peers_.find(found->id);
  rcu_.retire(std::move(entry->second));
  peers_.erase(entry);
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
    if (const auto refused = refused_macs_.find(mac.to_integer()); refused != refused_macs_.end()) {
      refused_.erase(mac.to_integer());
      rcu_.retire(std::move(refused->second));
      refused_macs_.erase(refused);
    }
  }
  auto list = std::make_unique<const MacList>(std::move(macs));
  peer.macs.store(list.get(), std::memory_order_release);
  rcu_.retire(std::exchange(peer.owned_macs, std::move(list)));
}

void PortTables::set_endpoint(Peer& peer, const Endpoint& endpoint) {
  auto made = std::make_unique<const Endpoint>(endpoint);
  peer.endpoint.store(made.get(), std::memory_order_release);
  rcu_.retire(std::exchange(peer.owned_endpoint, std::move(made)));
  changed();
}

void PortTables::set_online(Peer& peer, bool online) {
  peer.online = online;
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
  BootKey& boot = require_boot(boot_number);
  Incarnation& incarnation = *peer.incarnations.back();
  const KeyDigest digest = digest_of(key);
  for (const auto& record : peer.records) {
    if (record->boot == boot_number && record->peer_index == incarnation.index &&
        record->pw_id == pw_id && record->key == digest) {
      if (send) {
        record->chosen = next_choice_++;
        refresh_send(peer);
        changed();
      }
      return {record->kid_send, record->kid_receive, false};
    }
  }

  const auto shared = x25519(boot.keys.private_key, incarnation.boot);
  if (!shared) throw CommandError("the peer's boot key is a point of small order");
  const Secret<kKeySize> pair_key(key);
  const PortSettings& settings = *owned_settings_;
  const TrafficKey out = derive_pair_key(
      pair_key, *shared,
      {settings.subnet, settings.member, peer.id, boot.keys.public_key, incarnation.boot, pw_id});
  const TrafficKey in = derive_pair_key(
      pair_key, *shared,
      {settings.subnet, peer.id, settings.member, incarnation.boot, boot.keys.public_key, pw_id});

  auto record = std::make_unique<PairKeyRecord>();
  record->boot = boot_number;
  record->peer_index = incarnation.index;
  record->pw_id = pw_id;
  record->key = digest;
  record->kid_send = out.kid;
  record->kid_receive = in.kid;
  record->chosen = send ? next_choice_++ : 0;
  record->send = std::make_unique<SendKey>();
  record->send->aead = make_aead_key(settings.backend, settings.suite, out.key.bytes());
  record->send->counter = &boot.states.counter(digest_of(out.key.bytes()));
  record->send->pw_id = pw_id;
  record->send->index = boot.index();
  record->send->kid = out.kid;
  record->receive = std::make_unique<ReceiveKey>();
  record->receive->aead = make_aead_key(settings.backend, settings.suite, in.key.bytes());
  record->receive->window = &boot.states.window(digest_of(in.key.bytes()));
  record->receive->pw_id = pw_id;
  record->receive->kid = in.kid;

  // At most 4 for each sender index; the oldest goes, but not the one we send with.
  std::size_t held = 0;
  PairKeyRecord* oldest = nullptr;
  for (const auto& other : peer.records) {
    if (other->peer_index != incarnation.index) continue;
    ++held;
    if (oldest == nullptr && peer.send.load(std::memory_order_relaxed) != other->send.get()) {
      oldest = other.get();
    }
  }
  if (held >= kMaxKeysPerSender && oldest != nullptr) retire_record(peer, *oldest);

  const Installed installed{out.kid, in.kid, true};
  // Owned first, then shown: should memory run out between, no worker has seen it.
  peer.records.push_back(std::move(record));
  show_key(incarnation.pair_keys, *peer.records.back()->receive);
  refresh_send(peer);
  changed();
  return installed;
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

/// The latest choice among the keys that can be sent with; among equal ones the peer's newest
/// start, then our newest boot key.
void PortTables::refresh_send(Peer& peer) {
  PairKeyRecord* best = nullptr;
  const auto rank = [&](const PairKeyRecord& record) {
    std::size_t newest = 0;
    while (newest < peer.incarnations.size() &&
           peer.incarnations[newest]->index != record.peer_index) {
      ++newest;
    }
    return std::tuple(record.chosen, newest, record.boot);
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

void PortTables::drop_pair_keys(Peer& peer, std::uint64_t pw_id) {
  for (std::size_t i = peer.records.size(); i-- > 0;) {
    if (peer.records[i]->pw_id <= pw_id) retire_record(peer, *peer.records[i]);
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
  for (const auto& [id, peer] : peers_) {
    for (const auto& incarnation : peer->incarnations) {
      add_group_receive(generation, *incarnation, id, now_ms);
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
  BootKey* const boot = newest_boot();
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
      if (refused_macs_.size() >= kMaxRefusedMacs) return;
    }
    found = refused_macs_.emplace(number, std::make_unique<std::atomic<std::uint64_t>>(0)).first;
    refused_.set(number, found->second.get());
  }
  found->second->store(now_ms + ms, std::memory_order_relaxed);
  changed();
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
    }
  }
  std::optional<std::uint64_t> next;
  if (!timers_.empty()) next = timers_.begin()->first;
  // A worker may be in the middle of a batch; look again soon.
  if (rcu_.reclaim() != 0) next = std::min(next.value_or(~std::uint64_t{0}), now_ms + 10);
  return next;
}

std::vector<PortTables::BootState> PortTables::boots() const {
  std::vector<BootState> states;
  for (const auto& boot : boots_) {
    states.push_back({boot->number, boot->keys.public_key, boot->index()});
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
