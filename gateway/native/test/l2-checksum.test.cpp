// The Internet checksum against RFC 1071's example and against word by word sums.
#include <doctest/doctest.h>

#include "l2/checksum.hpp"
#include "test/l2-frames.hpp"

namespace pairwire::test {
namespace {

TEST_CASE("internet_checksum: the example of RFC 1071, section 3") {
  const Frame bytes = from_hex("0001 f203 f4f5 f6f7");
  ChecksumSum sum;
  sum.add(bytes);
  CHECK(sum.fold() == 0xddf2);
  CHECK(internet_checksum(bytes) == 0x220d);
}

TEST_CASE("internet_checksum: every length and alignment, against the slow sum") {
  Random random(3);
  Frame bytes = random.bytes(600);
  for (const bool all_ones : {false, true}) {
    // All ones carry as often as possible.
    if (all_ones) bytes.assign(bytes.size(), 0xff);
    for (std::size_t length = 0; length <= 520; ++length) {
      const auto part = std::span(bytes).subspan(random.below(64), length);
      CHECK(internet_checksum(part) == (~judge::slow_sum(part) & 0xffff));
    }
  }
  const Frame large(65535, 0xff);
  CHECK(internet_checksum(large) == (~judge::slow_sum(large) & 0xffff));
}

TEST_CASE("ChecksumSum: pieces add up to the whole") {
  Random random(4);
  for (int round = 0; round < 200; ++round) {
    const Frame bytes = random.bytes(3000);
    const std::size_t cut = 2 * random.below(1500);
    ChecksumSum sum;
    sum.add(std::span(bytes).first(cut));
    ChecksumSum rest;
    rest.add(std::span(bytes).subspan(cut));
    sum.add(rest);
    CHECK(sum.checksum() == internet_checksum(bytes));
  }
}

TEST_CASE("update_checksum: same as summing up again (RFC 1624)") {
  // Section 4 of the RFC: the case that equation 2 of RFC 1141 gets wrong.
  CHECK(update_checksum(0xdd2f, 0x5555, 0x3285) == 0x0000);
  Random random(5);
  for (int round = 0; round < 2000; ++round) {
    Frame bytes = random.bytes(40);
    const std::uint16_t before = internet_checksum(bytes);
    const Frame change = random.bytes(4);
    const auto old = std::uint32_t{get16(bytes, 8)} << 16 | get16(bytes, 10);
    const auto now = std::uint32_t{get16(change, 0)} << 16 | get16(change, 2);
    std::ranges::copy(change, bytes.begin() + 8);
    CHECK(update_checksum32(before, old, now) == internet_checksum(bytes));
  }
}

TEST_CASE("TCP and UDP: partial and complete checksums, IPv4 and IPv6") {
  Random random(6);
  for (int round = 0; round < 500; ++round) {
    FrameSpec spec = random_spec(random, random.below(300));
    spec.udp = chance(random, 2);
    const Frame complete = make_frame(spec);
    const Frame partial = make_frame(spec, true);
    const ParsedFrame parsed = parse_frame(complete);
    CHECK(l4_checksum_holds(complete, parsed));
    Frame frame = complete;
    write_partial_checksum(frame, parsed);
    CHECK(to_hex(frame) == to_hex(partial));
    write_complete_checksum(frame, parsed);
    CHECK(to_hex(frame) == to_hex(complete));
    frame[parsed.l4_offset + random.below(parsed.l4_length())] ^= 0x40;
    CHECK(!l4_checksum_holds(frame, parsed));
  }
}

TEST_CASE("UDP: a checksum of zero is sent as ffff, and absent ones don't hold") {
  FrameSpec spec;
  spec.udp = true;
  spec.payload = {0, 0};
  Frame frame = make_frame(spec);
  const ParsedFrame parsed = parse_frame(frame);
  // A payload that brings the sum to ffff.
  const unsigned sum = get16(frame, l4_checksum_offset(parsed));
  put16(frame, parsed.payload_offset, sum);
  write_complete_checksum(frame, parsed);
  CHECK(get16(frame, l4_checksum_offset(parsed)) == 0xffff);
  CHECK(l4_checksum_holds(frame, parsed));
  put16(frame, l4_checksum_offset(parsed), 0);
  CHECK(!l4_checksum_holds(frame, parsed));
}

}  // namespace
}  // namespace pairwire::test
