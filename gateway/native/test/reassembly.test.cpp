// Frames in parts: what any network does to the parts, what hostile members send, and the limits.
#include "core/reassembly.hpp"

#include <doctest/doctest.h>

#include <map>
#include <set>

#include "crypto/aead.hpp"
#include "test/support.hpp"

using namespace pairwire;
using namespace pairwire::test;

namespace {

constexpr int kKeys[4] = {};

/// One part of a frame, with what belongs to it.
struct Sent {
  Reassembler::Part part;
  std::vector<std::uint8_t> payload;
  std::vector<std::uint8_t> front;
  std::size_t frame = 0;
};

Reassembler::Part part_of(const Sent& sent) {
  Reassembler::Part part = sent.part;
  part.payload = sent.payload;
  part.front = sent.front;
  return part;
}

Reassembler::Part small_part(ConstBytes payload, std::uint64_t counter, std::uint8_t number,
                             bool last, std::uint32_t sender = 1) {
  return {.sender = sender,
          .key = kKeys,
          .counter = counter,
          .number = number,
          .last = last,
          .partial_checksum = false,
          .journey = {},
          .front = {},
          .payload = payload};
}

std::uint64_t all_of(const DropCounters& drops) {
  return drops.get(DropReason::malformed) + drops.get(DropReason::fragment_evicted) +
         drops.get(DropReason::fragment_expired);
}

}  // namespace

TEST_CASE("reassembly: whatever is lost, reordered and mixed, a frame comes whole or not at all") {
  Random random(20);
  for (int round = 0; round < 60; ++round) {
    DropCounters drops;
    Reassembler reassembler(drops);
    std::vector<std::vector<std::uint8_t>> frames;
    std::vector<Sent> wire;
    std::map<const void*, std::uint64_t> counters;
    for (std::size_t i = 0; i < 200; ++i) {
      const auto sender = static_cast<std::uint32_t>(random.below(4));
      const std::size_t parts = 2 + random.below(2);
      const bool partial = random.below(2) == 0;
      const auto front = random.bytes(random.below(2) * 12);
      std::vector<std::uint8_t> frame = front;
      for (std::size_t number = 0; number < parts; ++number) {
        Sent sent;
        sent.part = {.sender = sender,
                     .key = &kKeys[sender],
                     .counter = counters[&kKeys[sender]]++,
                     .number = static_cast<std::uint8_t>(number),
                     .last = number + 1 == parts,
                     .partial_checksum = partial,
                     .journey = {},
                     .front = {},
                     .payload = {}};
        sent.payload = random.bytes(1 + random.below(random.below(20) == 0 ? 9'000 : 1'400));
        sent.front = front;
        sent.frame = i;
        frame.insert(frame.end(), sent.payload.begin(), sent.payload.end());
        wire.push_back(std::move(sent));
      }
      frames.push_back(std::move(frame));
    }
    // Places move by up to `spread`, and some parts go. Doubles are for the replay window.
    const std::uint64_t spread = 1 + random.below(40);
    std::vector<std::pair<std::uint64_t, std::size_t>> order;
    std::set<std::size_t> damaged;
    for (std::size_t i = 0; i < wire.size(); ++i) {
      if (random.below(100) < 5) {
        damaged.insert(wire[i].frame);
      } else {
        order.emplace_back(i + random.below(spread), i);
      }
    }
    std::ranges::sort(order);
    std::set<std::size_t> whole;
    std::uint64_t given = 0;
    for (const auto& [place, i] : order) {
      ++given;
      const auto got = reassembler.add(part_of(wire[i]), 1'000 + place);
      if (!got) continue;
      const std::size_t frame = wire[i].frame;
      CHECK(std::ranges::equal(got->frame, frames[frame]));
      CHECK(got->partial_checksum == wire[i].part.partial_checksum);
      CHECK(whole.insert(frame).second);
      CHECK_FALSE(damaged.contains(frame));
    }
    std::uint64_t used = 0;
    for (const Sent& sent : wire) used += whole.contains(sent.frame) ? 1 : 0;
    CHECK(whole.size() + damaged.size() == frames.size());
    CHECK(drops.get(DropReason::malformed) == 0);
    // What was lost leaves nothing behind, and every part is accounted for.
    reassembler.expire(1'000 + wire.size() + spread + Reassembler::kLifeUs);
    CHECK(reassembler.empty());
    CHECK(used + all_of(drops) == given);
  }
}

TEST_CASE("reassembly: parts that can't be") {
  DropCounters drops;
  Reassembler reassembler(drops);
  const std::vector<std::uint8_t> bytes(100, 7);
  const auto refused = [&](const Reassembler::Part& part, std::uint64_t parts = 1) {
    const std::uint64_t before = drops.get(DropReason::malformed);
    CHECK_FALSE(reassembler.add(part, 1).has_value());
    CHECK(drops.get(DropReason::malformed) == before + parts);
    CHECK(reassembler.empty());
  };
  refused(small_part(bytes, 5, 0, true));   // The only one.
  refused(small_part(bytes, 5, 2, false));  // The third, and not the last.
  refused(small_part(bytes, 5, 3, true));
  refused(small_part(bytes, 0, 1, true));  // Part 0 would have had the number -1.
  refused(small_part({}, 5, 1, true));     // Empty.
  SUBCASE("behind the last one") {
    CHECK_FALSE(reassembler.add(small_part(bytes, 11, 1, true), 1).has_value());
    refused(small_part(bytes, 12, 2, true), 2);
  }
  SUBCASE("the last one in front of another") {
    CHECK_FALSE(reassembler.add(small_part(bytes, 12, 2, true), 1).has_value());
    refused(small_part(bytes, 11, 1, true), 2);
  }
  SUBCASE("one claims a partial checksum, the other does not") {
    CHECK_FALSE(reassembler.add(small_part(bytes, 10, 0, false), 1).has_value());
    Reassembler::Part other = small_part(bytes, 11, 1, true);
    other.partial_checksum = true;
    refused(other, 2);
  }
  SUBCASE("the same counter again, should a window ever let it through") {
    CHECK_FALSE(reassembler.add(small_part(bytes, 10, 0, false), 1).has_value());
    refused(small_part(bytes, 10, 0, false), 2);
  }
  SUBCASE("longer than any frame") {
    const std::vector<std::uint8_t> huge(40'000, 1);
    CHECK_FALSE(reassembler.add(small_part(huge, 10, 0, false), 1).has_value());
    refused(small_part(huge, 11, 1, true), 2);
  }
}

TEST_CASE("reassembly: parts of other keys and other senders never meet") {
  DropCounters drops;
  Reassembler reassembler(drops);
  const std::vector<std::uint8_t> bytes(100, 7);
  CHECK_FALSE(reassembler.add(small_part(bytes, 10, 0, false), 1).has_value());
  Reassembler::Part other_key = small_part(bytes, 11, 1, true);
  other_key.key = &kKeys[1];
  CHECK_FALSE(reassembler.add(other_key, 1).has_value());
  CHECK_FALSE(reassembler.add(small_part(bytes, 11, 1, true, 2), 1).has_value());
  CHECK(reassembler.add(small_part(bytes, 11, 1, true), 1).has_value());
}

TEST_CASE("reassembly: the limits of a sender; its oldest sets go, and nobody else's") {
  DropCounters drops;
  Reassembler reassembler(drops);
  const std::vector<std::uint8_t> bytes(100, 7);
  CHECK_FALSE(reassembler.add(small_part(bytes, 0, 0, false, 2), 1).has_value());
  SUBCASE("64 sets") {
    for (std::uint64_t i = 0; i < 65; ++i) {
      CHECK_FALSE(reassembler.add(small_part(bytes, 10 * i, 0, false), 10 + i).has_value());
    }
    CHECK(drops.get(DropReason::fragment_evicted) == 1);
    CHECK(reassembler.add(small_part(bytes, 11, 1, true), 100).has_value());
  }
  SUBCASE("256 KiB") {
    const std::vector<std::uint8_t> large(30'000, 3);  // 15 blocks of 2 KiB.
    for (std::uint64_t i = 0; i < 8; ++i) {
      CHECK_FALSE(reassembler.add(small_part(large, 10 * i, 0, false), 10 + i).has_value());
    }
    CHECK(drops.get(DropReason::fragment_evicted) == 0);
    CHECK_FALSE(reassembler.add(small_part(large, 80, 0, false), 20).has_value());
    CHECK(drops.get(DropReason::fragment_evicted) == 1);
    CHECK(reassembler.add(small_part(large, 81, 1, true), 21).has_value());
  }
  SUBCASE("500 ms") {
    reassembler.expire(1 + Reassembler::kLifeUs - 1);
    CHECK_FALSE(reassembler.empty());
    reassembler.expire(1 + Reassembler::kLifeUs);
    CHECK(drops.get(DropReason::fragment_expired) == 1);
    CHECK(reassembler.empty());
    return;
  }
  CHECK(reassembler.add(small_part(bytes, 1, 1, true, 2), 200).has_value());
}

TEST_CASE("reassembly: more senders than there is room for; the one who was quiet longest goes") {
  DropCounters drops;
  Reassembler reassembler(drops);
  const std::vector<std::uint8_t> bytes(100, 7);
  for (std::uint32_t sender = 0; sender <= Reassembler::kSenders; ++sender) {
    CHECK_FALSE(reassembler.add(small_part(bytes, 0, 0, false, sender), 1 + sender).has_value());
  }
  CHECK(drops.get(DropReason::fragment_evicted) == 1);
  CHECK(reassembler.add(small_part(bytes, 1, 1, true, 1), 100).has_value());
  CHECK_FALSE(reassembler.add(small_part(bytes, 1, 1, true, 0), 100).has_value());
}

TEST_CASE("reassembly: test/vectors/fragment.json") {
  const auto file = load_vectors("fragment.json");
  REQUIRE(!file.empty());
  for (const auto& entry : file) {
    const auto suite = parse_suite(entry.at("suite").get<std::string>());
    REQUIRE(suite);
    const auto key = make_aead_key(best_backend(), *suite,
                                   array_from_hex<32>(entry.at("key").get<std::string>()));
    const auto tail = from_hex(entry.at("aadTail").get<std::string>());
    DropCounters drops;
    Reassembler reassembler(drops);
    std::optional<Reassembler::Whole> whole;
    for (const auto& one : entry.at("parts")) {
      CHECK_FALSE(whole.has_value());
      const auto sealed = from_hex(one.get<std::string>());
      const auto shim = parse_shim(sealed, tail.empty() ? Transport::kUdp : Transport::kEthernet);
      REQUIRE(shim);
      CHECK(shim->fragment());
      std::vector<std::uint8_t> aad(sealed.begin(), sealed.begin() + kShimSize);
      aad.insert(aad.end(), tail.begin(), tail.end());
      const auto cipher =
          ConstBytes(sealed).subspan(kShimSize, sealed.size() - kShimSize - kFrameTagSize);
      std::array<std::uint8_t, kInnerHeaderSize> head{};
      std::vector<std::uint8_t> payload(cipher.size() - kInnerHeaderSize);
      REQUIRE(key->open_parts(shim->counter, aad, cipher, ConstBytes(sealed).last<kFrameTagSize>(),
                              head, payload));
      const auto inner = parse_inner_header(head);
      REQUIRE(inner);
      whole = reassembler.add({.sender = 1,
                               .key = kKeys,
                               .counter = shim->counter,
                               .number = inner->description.part,
                               .last = inner->description.last_part,
                               .partial_checksum = inner->description.partial_checksum,
                               .journey = {},
                               .front = tail,
                               .payload = payload},
                              1);
    }
    REQUIRE(whole.has_value());
    CHECK(to_hex(whole->frame) == entry.at("frame").get<std::string>());
    CHECK(whole->partial_checksum == entry.at("partialChecksum").get<bool>());
  }
}
