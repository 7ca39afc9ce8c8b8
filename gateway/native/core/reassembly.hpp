// Puts frames together that were too long for their path: docs/protocol.md section 2.5.
//
//   set   = (key, counter of part 0)       a part names it by its own counter less its number
//   frame = part 0 | part 1 | part 2       in this order, so nothing can overlap
//
// Only parts that opened come here, each counter of a key once: there are neither forged parts nor
// doubled ones. What is left to a hostile member is to begin sets and never to end them; so each
// sender has room of its own, and its oldest sets give way to its newest.
#pragma once

#include <array>
#include <bitset>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>

#include "core/bytes.hpp"
#include "core/drop-reasons.hpp"
#include "core/frame.hpp"

namespace pairwire {

/// Threads: one, the inbound worker that owns it. Takes all its memory in the constructor; what is
/// never used costs address space only.
class Reassembler {
 public:
  // Specification constants.
  static constexpr std::size_t kSets = 64;  ///< of one sender
  static constexpr std::size_t kBytes = std::size_t{256} << 10;
  static constexpr std::uint64_t kLifeUs = 500'000;  ///< from the first part on

  // Implementation constants.
  static constexpr std::size_t kSenders = 64;  ///< with unfinished sets at a time
  static constexpr std::size_t kBlock = 2048;  ///< kBytes is counted in these
  /// The longest frame that comes out.
  static constexpr std::size_t kMaxFrame = 65'536;

  /// What happened on the way to the packets that parts came in.
  struct Journey {
    std::uint8_t least_ttl = 255;
    bool congested = false;  ///< of any
  };
  struct Part {
    std::uint32_t sender = 0;   ///< the member's number
    const void* key = nullptr;  ///< what is one and the same for all frames under one key
    std::uint64_t counter = 0;
    std::uint8_t number = 0;
    bool last = false;
    bool partial_checksum = false;
    Journey journey;
    ConstBytes front;  ///< stands before the payload of part 0
    ConstBytes payload;
  };
  struct Whole {
    ConstBytes frame;  ///< good until the next call
    bool partial_checksum = false;
    Journey journey;  ///< of all parts
  };

  /// `drops` counts parts that go: `malformed`, `fragment_evicted`, `fragment_expired`.
  explicit Reassembler(DropCounters& drops);

  /// Takes a part, by copy. Gives the frame if it was the last one that was missing.
  [[nodiscard]] std::optional<Whole> add(const Part& part, std::uint64_t now_us);

  /// Drops sets that are older than kLifeUs.
  void expire(std::uint64_t now_us);
  /// Drops everything.
  void clear();
  [[nodiscard]] bool empty() const { return sets_in_use_ == 0; }

 private:
  static constexpr std::size_t kBlocks = kBytes / kBlock;

  struct Set {
    const void* key = nullptr;
    std::uint64_t first = 0;  ///< counter of part 0
    std::uint64_t born_us = 0;
    std::array<std::uint32_t, kMaxParts> size{};  ///< of each part; 0: not here
    std::array<std::uint8_t, kMaxParts> block{};  ///< where each begins
    std::uint8_t here = 0;                        ///< parts that are; 0: the set is free
    std::uint8_t count = 0;                       ///< parts that there are; 0: not known yet
    bool partial_checksum = false;
    Journey journey;
  };
  struct Sender {
    std::uint32_t number = 0;
    std::uint32_t sets_in_use = 0;
    std::uint64_t used_us = 0;
    std::array<Set, kSets> sets;
    std::bitset<kBlocks> taken;
  };

  Sender& sender_of(std::uint32_t number);
  Set& set_of(Sender& sender, const void* key, std::uint64_t first, std::uint64_t now_us);
  static bool contradicts(const Set& set, const Part& part);
  bool store(Sender& sender, Set& set, const Part& part);
  Whole join(Sender& sender, Set& set);
  void drop(Sender& sender, Set& set, DropReason reason);
  void free(Sender& sender, Set& set);
  static Set* oldest(Sender& sender, const Set* but);
  std::uint8_t* memory(const Sender& sender, std::size_t block);

  DropCounters& drops_;
  std::unique_ptr<Sender[]> senders_;
  std::unique_ptr<std::uint8_t[]> memory_;
  std::unique_ptr<std::uint8_t[]> whole_;
  std::size_t sets_in_use_ = 0;
};

}  // namespace pairwire
