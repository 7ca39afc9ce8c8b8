// See reassembly.hpp.
#include "core/reassembly.hpp"

#include <algorithm>

namespace pairwire {
namespace {

constexpr std::size_t blocks_for(std::size_t bytes) {
  return (bytes + Reassembler::kBlock - 1) / Reassembler::kBlock;
}

/// First of `count` free blocks in a row; nothing if there are none.
template <std::size_t N>
std::optional<std::size_t> find_room(const std::bitset<N>& taken, std::size_t count) {
  std::size_t free = 0;
  for (std::size_t i = 0; i < N; ++i) {
    free = taken[i] ? 0 : free + 1;
    if (free == count) return i + 1 - count;
  }
  return std::nullopt;
}

}  // namespace

Reassembler::Reassembler(DropCounters& drops)
    : drops_(drops),
      senders_(new Sender[kSenders]),
      memory_(new std::uint8_t[kSenders * kBytes]),
      whole_(new std::uint8_t[kMaxFrame]) {}

std::optional<Reassembler::Whole> Reassembler::add(const Part& part, std::uint64_t now_us) {
  // A frame in one part is no fragment, and of three parts the third is the last.
  const bool last_by_number = part.number + 1 == kMaxParts;
  if (part.number >= kMaxParts || part.counter < part.number || part.payload.empty() ||
      (part.last ? part.number == 0 : last_by_number)) {
    drops_.count(DropReason::malformed);
    return std::nullopt;
  }
  Sender& sender = sender_of(part.sender);
  sender.used_us = now_us;
  Set& set = set_of(sender, part.key, part.counter - part.number, now_us);
  if (contradicts(set, part)) {
    drop(sender, set, DropReason::malformed);
    drops_.count(DropReason::malformed);
    return std::nullopt;
  }
  if (!store(sender, set, part)) {
    drop(sender, set, DropReason::fragment_evicted);
    drops_.count(DropReason::fragment_evicted);
    return std::nullopt;
  }
  if (set.count == 0 || set.here != set.count) return std::nullopt;
  std::size_t total = 0;
  for (const std::uint32_t size : set.size) total += size;
  if (total > kMaxFrame) {
    drop(sender, set, DropReason::malformed);
    return std::nullopt;
  }
  return join(sender, set);
}

/// The sender's room; that of the one who was quiet for longest if it has none.
Reassembler::Sender& Reassembler::sender_of(std::uint32_t number) {
  Sender* best = nullptr;
  for (std::size_t i = 0; i < kSenders; ++i) {
    Sender& sender = senders_[i];
    if (sender.sets_in_use != 0 && sender.number == number) return sender;
    const bool better =
        best == nullptr ||
        (best->sets_in_use != 0 && (sender.sets_in_use == 0 || sender.used_us < best->used_us));
    if (better) best = &sender;
  }
  for (Set& set : best->sets) {
    if (set.here != 0) drop(*best, set, DropReason::fragment_evicted);
  }
  best->number = number;
  return *best;
}

Reassembler::Set& Reassembler::set_of(Sender& sender, const void* key, std::uint64_t first,
                                      std::uint64_t now_us) {
  Set* free_one = nullptr;
  for (Set& set : sender.sets) {
    if (set.here == 0) {
      if (free_one == nullptr) free_one = &set;
    } else if (set.first == first && set.key == key) {
      return set;
    }
  }
  if (free_one == nullptr) {
    free_one = oldest(sender, nullptr);
    drop(sender, *free_one, DropReason::fragment_evicted);
  }
  *free_one = {};
  free_one->key = key;
  free_one->first = first;
  free_one->born_us = now_us;
  return *free_one;
}

bool Reassembler::contradicts(const Set& set, const Part& part) {
  if (set.here == 0) return false;
  if (set.partial_checksum != part.partial_checksum || set.size[part.number] != 0) return true;
  if (set.count != 0 && (part.last || part.number >= set.count)) return true;
  if (!part.last) return false;
  for (std::size_t i = part.number + 1U; i < kMaxParts; ++i) {
    if (set.size[i] != 0) return true;
  }
  return false;
}

/// False if there is no room, though every other set of the sender gave way.
bool Reassembler::store(Sender& sender, Set& set, const Part& part) {
  const ConstBytes front = part.number == 0 ? part.front : ConstBytes();
  const std::size_t size = front.size() + part.payload.size();
  const std::size_t blocks = blocks_for(size);
  auto room = find_room(sender.taken, blocks);
  while (!room) {
    Set* const other = oldest(sender, &set);
    if (other == nullptr) return false;
    drop(sender, *other, DropReason::fragment_evicted);
    room = find_room(sender.taken, blocks);
  }
  for (std::size_t i = 0; i < blocks; ++i) sender.taken.set(*room + i);
  std::uint8_t* const at = memory(sender, *room);
  std::ranges::copy(part.payload, std::ranges::copy(front, at).out);
  if (set.here == 0) {
    ++sender.sets_in_use;
    ++sets_in_use_;
  }
  ++set.here;
  set.size[part.number] = static_cast<std::uint32_t>(size);
  set.block[part.number] = static_cast<std::uint8_t>(*room);
  set.partial_checksum = part.partial_checksum;
  set.journey.least_ttl = std::min(set.journey.least_ttl, part.journey.least_ttl);
  set.journey.congested = set.journey.congested || part.journey.congested;
  if (part.last) set.count = static_cast<std::uint8_t>(part.number + 1);
  return true;
}

Reassembler::Whole Reassembler::join(Sender& sender, Set& set) {
  std::uint8_t* end = whole_.get();
  for (std::size_t i = 0; i < set.count; ++i) {
    end = std::copy_n(memory(sender, set.block[i]), set.size[i], end);
  }
  const Whole whole{{whole_.get(), end}, set.partial_checksum, set.journey};
  free(sender, set);
  return whole;
}

void Reassembler::drop(Sender& sender, Set& set, DropReason reason) {
  if (set.here == 0) return;
  drops_.count(reason, set.here);
  free(sender, set);
}

void Reassembler::free(Sender& sender, Set& set) {
  for (std::size_t i = 0; i < kMaxParts; ++i) {
    for (std::size_t block = 0; block < blocks_for(set.size[i]); ++block) {
      sender.taken.reset(set.block[i] + block);
    }
  }
  set = {};
  --sender.sets_in_use;
  --sets_in_use_;
}

Reassembler::Set* Reassembler::oldest(Sender& sender, const Set* but) {
  Set* found = nullptr;
  for (Set& set : sender.sets) {
    if (set.here == 0 || &set == but) continue;
    if (found == nullptr || set.born_us < found->born_us) found = &set;
  }
  return found;
}

void Reassembler::expire(std::uint64_t now_us) {
  for (std::size_t i = 0; i < kSenders && sets_in_use_ != 0; ++i) {
    Sender& sender = senders_[i];
    if (sender.sets_in_use == 0) continue;
    for (Set& set : sender.sets) {
      if (set.here != 0 && now_us - set.born_us >= kLifeUs) {
        drop(sender, set, DropReason::fragment_expired);
      }
    }
  }
}

void Reassembler::clear() {
  for (std::size_t i = 0; i < kSenders; ++i) {
    for (Set& set : senders_[i].sets) drop(senders_[i], set, DropReason::fragment_expired);
  }
}

std::uint8_t* Reassembler::memory(const Sender& sender, std::size_t block) {
  const auto place = static_cast<std::size_t>(&sender - senders_.get());
  return memory_.get() + place * kBytes + block * kBlock;
}

}  // namespace pairwire
