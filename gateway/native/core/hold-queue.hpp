// Frames that wait for a key.
//
//   key (MAC address or sender index) -> first frame -> next frame ...      at most per_key
//   frame -> block -> block ...                                             2 KiB each, one pool
//
// All memory is taken in the constructor; what is never used is never touched, so it costs address
// space only.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "core/bytes.hpp"

namespace pairwire {

/// Threads: one, the worker that owns it.
class HoldQueue {
 public:
  struct Capacity {
    std::size_t keys;    ///< different keys
    std::size_t frames;  ///< in all
    std::size_t bytes;   ///< in all; rounded up to blocks, each frame too
    /// When full: false refuses the new frame (an honest sender comes first), true drops a random
    /// old one (strangers can fill the queue, and must not be able to keep it full).
    bool evict;
  };
  /// What the caller wants to have back with a frame.
  using Note = std::array<std::uint8_t, 24>;

  /// `dropped(note)` is called for each frame that goes without being released: evicted, expired or
  /// dropped. It must not call back into the queue.
  using Dropped = std::function<void(const Note&)>;

  HoldQueue(const Capacity& capacity, std::uint64_t seed, Dropped dropped = {});

  enum class Result : std::uint8_t {
    kFirst,  ///< held; nothing else waited under this key
    kHeld,
    kFull,
  };
  /// Copies the frame. `evicted` is increased for each frame that had to go.
  Result hold(std::uint64_t key, ConstBytes frame, const Note& note, std::size_t per_key,
              std::uint64_t deadline_us, std::uint64_t& evicted);

  [[nodiscard]] bool empty() const { return frames_used_ == 0; }
  [[nodiscard]] std::size_t size() const { return frames_used_; }
  [[nodiscard]] std::size_t bytes() const { return blocks_used_ * kBlock; }
  [[nodiscard]] bool has(std::uint64_t key) const { return find(key) != kNone; }

  /// Takes the frames of a key out, in order; calls `use(frame, note)` for each. `scratch` holds
  /// one frame. `use` must not call back into the queue.
  template <typename Use>
  void release(std::uint64_t key, Bytes scratch, Use use) {
    const std::uint32_t at = find(key);
    if (at == kNone) return;
    while (keys_[at].first != kNone) {
      const std::uint32_t frame = keys_[at].first;
      const std::size_t size = load(frame, scratch);
      const Note note = frames_[frame].note;
      pop(at);
      use(scratch.first(size), note);
    }
    forget(at);
  }

  /// Calls `wanted(key)` for each key that waits and collects those it is true for into `out`.
  template <typename Wanted>
  void collect(std::vector<std::uint64_t>& out, Wanted wanted) const {
    for (std::uint32_t at = 0; at < keys_.size(); ++at) {
      if (keys_[at].first != kNone && wanted(keys_[at].key)) out.push_back(keys_[at].key);
    }
  }

  /// Drops what has waited too long; returns how many frames.
  std::size_t expire(std::uint64_t now_us);
  /// Drops all frames of a key, or all of them; returns how many.
  std::size_t drop(std::uint64_t key);
  std::size_t clear();

 private:
  static constexpr std::uint32_t kNone = ~std::uint32_t{0};
  static constexpr std::size_t kBlock = 2048;

  struct Key {
    std::uint64_t key = 0;
    std::uint32_t first = kNone;
    std::uint32_t last = kNone;
    std::uint32_t count = 0;
    std::uint32_t next = kNone;  ///< in its bucket, or in the free list
  };
  struct Frame {
    std::uint64_t deadline_us = 0;
    std::uint32_t size = 0;
    std::uint32_t block = kNone;
    std::uint32_t next = kNone;  ///< of the same key, or in the free list
    Note note{};
  };

  [[nodiscard]] std::uint32_t find(std::uint64_t key) const;
  [[nodiscard]] std::size_t bucket(std::uint64_t key) const;
  [[nodiscard]] std::size_t load(std::uint32_t frame, Bytes out) const;
  void pop(std::uint32_t at);
  void drop_first(std::uint32_t at);
  void forget(std::uint32_t at);
  bool evict_one();
  std::uint64_t random();

  Capacity capacity_;
  std::uint64_t random_;
  std::uint64_t seed_;
  Dropped dropped_;
  std::vector<Key> keys_;
  std::vector<std::uint32_t> buckets_;
  std::vector<Frame> frames_;
  std::vector<std::uint32_t> next_block_;
  std::unique_ptr<std::uint8_t[]> blocks_;
  std::uint32_t free_key_ = kNone;
  std::uint32_t free_frame_ = kNone;
  std::uint32_t free_block_ = kNone;
  std::uint32_t fresh_block_ = 0;  ///< from here on never used, so not in the free list either
  std::size_t frames_used_ = 0;
  std::size_t blocks_used_ = 0;
};

}  // namespace pairwire
