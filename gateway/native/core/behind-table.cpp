// See behind-table.hpp.
#include "core/behind-table.hpp"

#include <utility>
#include <vector>

namespace pairwire {

BehindMember& BehindTable::member_of(const Setting& setting) {
  std::unique_ptr<BehindMember>& member = members_[std::string(setting.member)];
  if (member == nullptr) {
    member = std::make_unique<BehindMember>();
    member->id = setting.member;
    member->self = setting.self;
    member->peer.store(setting.peer, std::memory_order_release);
  }
  return *member;
}

void BehindTable::set(const Setting& setting, std::uint64_t now_ms) {
  const std::uint64_t number = setting.address.to_integer();
  BehindMember& member = member_of(setting);
  ++member.entries;  // First, so that the member outlives the entry that goes.
  take_out(number);
  if (entries_.size() >= kMaxBehind) {
    ++evicted_;
    take_out((ages_.empty() ? pinned_ages_ : ages_).begin()->second);
  }
  auto entry = std::make_unique<Behind>();
  entry->member = &member;
  entry->until_ms = setting.ms == 0 ? 0 : now_ms + setting.ms;
  entry->pinned = setting.pinned;
  entry->age = next_age_++;
  ages_of(*entry).emplace(entry->age, number);
  // Owned first, then shown: should memory run out between, no worker has seen it.
  const Behind* const made = entries_.emplace(number, std::move(entry)).first->second.get();
  shown_.set(number, made);
}

void BehindTable::forget(const VlanMac& address) {
  take_out(address.to_integer());
}

void BehindTable::take_out(std::uint64_t number) {
  const auto found = entries_.find(number);
  if (found == entries_.end()) return;
  const Behind& entry = *found->second;
  shown_.erase(number);
  ages_of(entry).erase(entry.age);
  const auto member = members_.find(entry.member->id);
  domain_.retire(std::move(found->second));
  entries_.erase(found);
  if (--member->second->entries != 0) return;
  domain_.retire(std::move(member->second));
  members_.erase(member);
}

void BehindTable::member_known(std::string_view id, Peer* peer) {
  if (members_.empty()) return;
  const auto found = members_.find(std::string(id));
  if (found != members_.end()) found->second->peer.store(peer, std::memory_order_release);
}

void BehindTable::purge(std::uint64_t now_ms) {
  std::vector<std::uint64_t> over;
  for (const auto& [number, entry] : entries_) {
    if (!entry->counts(now_ms)) over.push_back(number);
  }
  for (const std::uint64_t number : over) take_out(number);
}

}  // namespace pairwire
