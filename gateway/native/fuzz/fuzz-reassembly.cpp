// Opened parts of hostile members, in any order: every frame that comes out is what the parts of
// its set say, one behind the other, and no part is lost without being counted.
//
// Input: operations of 6 bytes: bits (part number 0x03, last 0x04, partial 0x08, sender 0x30,
// other key 0x40, front 0x80), counter (2), size (2), time that goes by in 4 ms (1).
#include <algorithm>
#include <array>
#include <cstdlib>
#include <map>
#include <set>
#include <tuple>
#include <vector>

#include "core/reassembly.hpp"

namespace {

void require(bool ok) {
  if (!ok) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace pairwire;
  using Set = std::tuple<std::uint32_t, const void*, std::uint64_t>;
  static constexpr std::array<int, 2> kKeys{};
  DropCounters drops;
  Reassembler reassembler(drops);
  // The last part that was given for each place, front included. One that replaced another, because
  // the first was evicted, is the one that must come out.
  std::map<Set, std::array<std::vector<std::uint8_t>, 4>> given;
  std::uint64_t now = 1;
  std::uint64_t parts = 0;
  std::uint64_t used = 0;
  for (std::size_t at = 0; at + 6 <= size; at += 6) {
    const std::uint8_t bits = data[at];
    const std::size_t length = std::min<std::size_t>(data[at + 3] * 256U + data[at + 4], 65'000);
    now += data[at + 5] * std::uint64_t{4'000};
    reassembler.expire(now);
    Reassembler::Part part;
    part.sender = (bits >> 4) & 3;
    part.key = &kKeys[(bits >> 6) & 1];
    part.counter = data[at + 1] * 256U + data[at + 2];
    part.number = bits & 3;
    part.last = (bits & 4) != 0;
    part.partial_checksum = (bits & 8) != 0;
    const std::vector<std::uint8_t> front((bits & 0x80) != 0 ? 12 : 0, 0xaa);
    const std::vector<std::uint8_t> payload(length, static_cast<std::uint8_t>(at / 6));
    part.front = front;
    part.payload = payload;
    auto& places = given[{part.sender, part.key, part.counter - part.number}];
    places[part.number] = part.number == 0 ? front : std::vector<std::uint8_t>{};
    places[part.number].insert(places[part.number].end(), payload.begin(), payload.end());
    ++parts;
    const auto whole = reassembler.add(part, now);
    if (!whole) continue;
    require(whole->partial_checksum == part.partial_checksum);
    std::vector<std::uint8_t> expected;
    std::uint64_t count = 0;
    while (count < kMaxParts && expected.size() < whole->frame.size()) {
      expected.insert(expected.end(), places[count].begin(), places[count].end());
      ++count;
    }
    require(count >= 2 && std::ranges::equal(whole->frame, expected));
    used += count;
  }
  reassembler.clear();
  require(reassembler.empty());
  require(used + drops.get(DropReason::malformed) + drops.get(DropReason::fragment_evicted) +
              drops.get(DropReason::fragment_expired) ==
          parts);
  return 0;
}
