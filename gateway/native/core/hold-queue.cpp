// See hold-queue.hpp.
#include "core/hold-queue.hpp"

#include <algorithm>
#include <bit>

namespace pairwire {

HoldQueue::HoldQueue(const Capacity& capacity, std::uint64_t seed, Dropped dropped)
    : capacity_(capacity),
      random_(seed | 1),
      seed_(seed),
      dropped_(std::move(dropped)),
      keys_(capacity.keys),
      buckets_(std::bit_ceil(capacity.keys * 2), kNone),
      frames_(capacity.frames),
      next_block_((capacity.bytes + kBlock - 1) / kBlock, kNone),
      // Not value-initialised: the pages stay untouched.
      blocks_(new std::uint8_t[next_block_.size() * kBlock]) {
  for (std::uint32_t i = 0; i < keys_.size(); ++i) {
    keys_[i].next = std::exchange(free_key_, i);
  }
  for (std::uint32_t i = 0; i < frames_.size(); ++i) {
    frames_[i].next = std::exchange(free_frame_, i);
  }
}

HoldQueue::Result HoldQueue::hold(std::uint64_t key, ConstBytes frame, const Note& note,
                                  std::size_t per_key, std::uint64_t deadline_us,
                                  std::uint64_t& evicted) {
  const std::size_t needed = (frame.size() + kBlock - 1) / kBlock;
  if (needed == 0 || needed > next_block_.size() || per_key == 0) return Result::kFull;
  std::uint32_t at = find(key);
  if (at != kNone && keys_[at].count >= per_key) return Result::kFull;
  const auto lacks = [&] {
    return free_frame_ == kNone || blocks_used_ + needed > next_block_.size() ||
           (at == kNone && free_key_ == kNone);
  };
  while (lacks()) {
    if (!capacity_.evict || !evict_one()) return Result::kFull;
    ++evicted;
    at = find(key);  // It may have been this key's only frame.
  }

  const bool first = at == kNone;
  if (first) {
    at = free_key_;
    free_key_ = keys_[at].next;
    std::uint32_t& head = buckets_[bucket(key)];
    keys_[at] = {key, kNone, kNone, 0, head};
    head = at;
  }
  const std::uint32_t index = free_frame_;
  Frame& made = frames_[index];
  free_frame_ = made.next;
  made = {deadline_us, static_cast<std::uint32_t>(frame.size()), kNone, kNone, note};
  std::uint32_t* link = &made.block;
  for (std::size_t done = 0; done < frame.size(); done += kBlock) {
    std::uint32_t block = free_block_;
    if (block != kNone) {
      free_block_ = next_block_[block];
    } else {
      block = fresh_block_++;
    }
    const std::size_t part = std::min(kBlock, frame.size() - done);
    std::memcpy(blocks_.get() + std::size_t{block} * kBlock, frame.data() + done, part);
    *link = block;
    link = &next_block_[block];
    *link = kNone;
  }
  blocks_used_ += needed;
  ++frames_used_;
  Key& entry = keys_[at];
  (entry.last == kNone ? entry.first : frames_[entry.last].next) = index;
  entry.last = index;
  ++entry.count;
  return first ? Result::kFirst : Result::kHeld;
}

std::size_t HoldQueue::expire(std::uint64_t now_us) {
  std::size_t dropped = 0;
  if (empty()) return 0;
  for (std::uint32_t at = 0; at < keys_.size(); ++at) {
    if (keys_[at].first == kNone) continue;
    while (keys_[at].first != kNone && frames_[keys_[at].first].deadline_us <= now_us) {
      drop_first(at);
      ++dropped;
    }
    if (keys_[at].first == kNone) forget(at);
  }
  return dropped;
}

std::size_t HoldQueue::drop(std::uint64_t key) {
  const std::uint32_t at = find(key);
  if (at == kNone) return 0;
  const std::size_t dropped = keys_[at].count;
  while (keys_[at].first != kNone) drop_first(at);
  forget(at);
  return dropped;
}

std::size_t HoldQueue::clear() {
  return expire(~std::uint64_t{0});
}

std::uint32_t HoldQueue::find(std::uint64_t key) const {
  std::uint32_t at = buckets_[bucket(key)];
  while (at != kNone && keys_[at].key != key) at = keys_[at].next;
  return at;
}

std::size_t HoldQueue::bucket(std::uint64_t key) const {
  std::uint64_t x = (key ^ seed_) * 0xbf58476d1ce4e5b9U;
  x = (x ^ (x >> 29)) * 0x94d049bb133111ebU;
  return static_cast<std::size_t>(x ^ (x >> 32)) & (buckets_.size() - 1);
}

std::size_t HoldQueue::load(std::uint32_t index, Bytes out) const {
  const Frame& frame = frames_[index];
  const std::size_t size = std::min<std::size_t>(frame.size, out.size());
  std::uint32_t block = frame.block;
  for (std::size_t done = 0; done < size; done += kBlock, block = next_block_[block]) {
    std::memcpy(out.data() + done, blocks_.get() + std::size_t{block} * kBlock,
                std::min(kBlock, size - done));
  }
  return size;
}

/// Frees the first frame of a key.
void HoldQueue::pop(std::uint32_t at) {
  Key& entry = keys_[at];
  const std::uint32_t index = entry.first;
  Frame& frame = frames_[index];
  for (std::uint32_t block = frame.block; block != kNone;) {
    const std::uint32_t next = next_block_[block];
    next_block_[block] = std::exchange(free_block_, block);
    --blocks_used_;
    block = next;
  }
  entry.first = frame.next;
  if (entry.first == kNone) entry.last = kNone;
  --entry.count;
  frame.next = std::exchange(free_frame_, index);
  --frames_used_;
}

/// As `pop`, for a frame that nobody gets any more.
void HoldQueue::drop_first(std::uint32_t at) {
  if (dropped_) dropped_(frames_[keys_[at].first].note);
  pop(at);
}

/// Frees a key that has no frames.
void HoldQueue::forget(std::uint32_t at) {
  std::uint32_t* link = &buckets_[bucket(keys_[at].key)];
  while (*link != at) link = &keys_[*link].next;
  *link = keys_[at].next;
  keys_[at] = Key{};
  keys_[at].next = std::exchange(free_key_, at);
}

/// Drops the oldest frame of a random key.
bool HoldQueue::evict_one() {
  if (empty()) return false;
  std::size_t at = random() % keys_.size();
  while (keys_[at].first == kNone) at = (at + 1) % keys_.size();
  drop_first(static_cast<std::uint32_t>(at));
  if (keys_[at].first == kNone) forget(static_cast<std::uint32_t>(at));
  return true;
}

/// xorshift64*: who is thrown out need not be secret, only not chosen by a stranger.
std::uint64_t HoldQueue::random() {
  random_ ^= random_ >> 12;
  random_ ^= random_ << 25;
  random_ ^= random_ >> 27;
  return random_ * 0x2545f4914f6cdd1dU;
}

}  // namespace pairwire
