// Cutting of super-frames against slow_segments(), and checksums of single frames.
#include <doctest/doctest.h>

#include <array>
#include <bit>

#include "l2/segment.hpp"
#include "test/l2-frames.hpp"

namespace pairwire::test {
namespace {

TEST_CASE("VnetHeader: layout of virtio 1.2, section 5.1.6") {
  static_assert(std::endian::native == std::endian::little, "the bytes below are of such a host");
  // NEEDS_CSUM, TCPV6 with ECN, then hdr_len, gso_size, csum_start, csum_offset.
  const Frame bytes = from_hex("01 84 4a00 a805 3600 1000 ffff");
  const auto header = read_vnet_header(bytes);
  REQUIRE(header);
  CHECK(header->needs_checksum());
  CHECK(header->gso_kind() == vnet::kGsoTcpV6);
  CHECK(header->has_ecn());
  CHECK(header->hdr_len == 74);
  CHECK(header->gso_size == 1448);
  CHECK(header->csum_start == 54);
  CHECK(header->csum_offset == 16);
  std::array<std::uint8_t, kVnetHeaderSize> copy{};
  write_vnet_header(copy, *header);
  CHECK(std::ranges::equal(copy, std::span(bytes).first(kVnetHeaderSize)));
  CHECK(!read_vnet_header(std::span(bytes).first(9)));
}

Frame join(const Segment& segment, const std::array<std::uint8_t, Segmenter::kMaxHead>& head) {
  Frame frame(head.begin(), head.begin() + static_cast<std::ptrdiff_t>(segment.head_length));
  append(frame, segment.payload);
  return frame;
}

/// Cuts in each of the three ways, which must agree; partial checksums are completed.
std::vector<Frame> cut_all(const VnetHeader& header, Frame frame, SegmentPolicy policy) {
  Segmenter segmenter(policy);
  REQUIRE(segmenter.begin(header, frame) == SegmentStatus::kOk);
  std::vector<Frame> segments;
  for (std::size_t i = 0; i < segmenter.count(); ++i) {
    std::array<std::uint8_t, Segmenter::kMaxHead> head{};
    const Segment segment = segmenter.cut(i, head);
    segments.push_back(join(segment, head));
    CHECK(segment.size() <= segmenter.largest());
    CHECK(segment.claim == segmenter.claim());
    Frame copy(segmenter.largest());
    CHECK(segmenter.write(i, std::span(copy).first(segment.size() - 1)) == 0);
    copy.resize(segmenter.write(i, copy));
    CHECK(copy == segments.back());
  }
  for (std::size_t i = 0; i < segmenter.count(); ++i) {
    CHECK(std::ranges::equal(segmenter.cut_in_place(i), segments[i]));
  }
  if (segmenter.claim() == ChecksumClaim::kPartial) {
    for (Frame& segment : segments) {
      const Frame before = segment;
      write_checksum(segment, true);
      CHECK(segment == before);
      write_checksum(segment, false);
    }
  }
  return segments;
}

TEST_CASE("Segmenter: same segments as the slow way") {
  Random random(7);
  for (int round = 0; round < 1500; ++round) {
    const bool udp = chance(random, 3);
    FrameSpec spec = random_spec(random, between(random, 1, chance(random, 8) ? 60000 : 4000));
    spec.udp = udp;
    if (spec.ip_version == 4) spec.ip_options = Frame(4 * random.below(5), 1);
    const std::size_t gso_size = between(random, spec.payload.size() / 50 + 1, 1500);
    const Frame frame = make_frame(spec, true);
    const VnetHeader header = gso_header(frame, gso_size, !udp && (spec.flags & 0x80) != 0);
    const SegmentPolicy policy{chance(random, 2), chance(random, 2)};
    const std::vector<Frame> segments = cut_all(header, frame, policy);
    const std::vector<Frame> expected = slow_segments(frame, gso_size);
    REQUIRE(segments.size() == expected.size());
    for (std::size_t i = 0; i < segments.size(); ++i) {
      REQUIRE(to_hex(segments[i]) == to_hex(expected[i]));
    }
  }
}

TEST_CASE("Segmenter: padding behind a super-frame does not leave") {
  FrameSpec spec;
  spec.payload = Frame(1000, 7);
  Frame frame = make_frame(spec, true);
  const VnetHeader header = gso_header(frame, 400);
  const std::vector<Frame> expected = slow_segments(frame, 400);
  frame.resize(frame.size() + 5, 0xee);
  CHECK(cut_all(header, frame, {}) == expected);
}

TEST_CASE("Segmenter: single frames") {
  Segmenter segmenter;
  FrameSpec spec;
  spec.payload = Frame(100, 3);
  VnetHeader header;
  header.flags = vnet::kNeedsChecksum;
  header.csum_start = 34;
  header.csum_offset = 16;

  SUBCASE("nothing to do") {
    Frame frame = make_frame(spec);
    const Frame before = frame;
    CHECK(segmenter.begin({}, frame) == SegmentStatus::kOk);
    CHECK(segmenter.count() == 1);
    CHECK(segmenter.claim() == ChecksumClaim::kComplete);
    CHECK(std::ranges::equal(segmenter.cut_in_place(0), before));
  }
  SUBCASE("TCP stays partial") {
    Frame frame = make_frame(spec, true);
    const Frame before = frame;
    CHECK(segmenter.begin(header, frame) == SegmentStatus::kOk);
    CHECK(segmenter.claim() == ChecksumClaim::kPartial);
    CHECK(std::ranges::equal(segmenter.cut_in_place(0), before));
  }
  SUBCASE("TCP is completed where padding would spoil the sum") {
    Frame frame = make_frame(spec, true);
    Frame expected = make_frame(spec);
    for (Frame* f : {&frame, &expected}) append(*f, {0xee, 0xee, 0xee});
    CHECK(segmenter.begin(header, frame) == SegmentStatus::kOk);
    CHECK(segmenter.claim() == ChecksumClaim::kComplete);
    CHECK(std::ranges::equal(segmenter.cut_in_place(0), expected));
  }
  SUBCASE("TCP is completed if the policy wants it") {
    Segmenter strict({false, false});
    Frame frame = make_frame(spec, true);
    CHECK(strict.begin(header, frame) == SegmentStatus::kOk);
    CHECK(strict.claim() == ChecksumClaim::kComplete);
    CHECK(frame == make_frame(spec));
  }
  SUBCASE("UDP always leaves complete") {
    spec.udp = true;
    header.csum_offset = 6;
    Frame frame = make_frame(spec, true);
    CHECK(segmenter.begin(header, frame) == SegmentStatus::kOk);
    CHECK(segmenter.claim() == ChecksumClaim::kComplete);
    CHECK(frame == make_frame(spec));
  }
  SUBCASE("what we cannot parse is completed where the kernel says") {
    Frame frame = make_frame(spec);
    frame[23] = 47;  // GRE, say, with a checksum inside.
    put16(frame, 60, 0x1234);
    const unsigned sum = judge::slow_sum(std::span(frame).subspan(50));
    header.csum_start = 50;
    header.csum_offset = 10;
    CHECK(segmenter.begin(header, frame) == SegmentStatus::kOk);
    CHECK(segmenter.claim() == ChecksumClaim::kComplete);
    CHECK(get16(frame, 60) == (~sum & 0xffff));
  }
  SUBCASE("out of bounds") {
    Frame frame = make_frame(spec, true);
    const Frame before = frame;
    for (const auto& [start, offset] : std::initializer_list<std::pair<unsigned, unsigned>>{
             {34, 119}, {154, 0}, {153, 0}, {65535, 65535}, {0, 2}, {13, 2}}) {
      header.csum_start = static_cast<std::uint16_t>(start);
      header.csum_offset = static_cast<std::uint16_t>(offset);
      CHECK(segmenter.begin(header, frame) == SegmentStatus::kMalformed);
      CHECK(segmenter.count() == 0);
      CHECK(frame == before);
    }
    CHECK(segmenter.begin({}, std::span(frame).first(13)) == SegmentStatus::kMalformed);
  }
}

TEST_CASE("Segmenter: refuses super-frames that contradict their header") {
  Segmenter segmenter;
  FrameSpec spec;
  spec.payload = Frame(5000, 3);
  Frame frame = make_frame(spec, true);
  const VnetHeader good = gso_header(frame, 1000);
  const auto status = [&](auto change) {
    VnetHeader header = good;
    change(header);
    return segmenter.begin(header, frame);
  };
  CHECK(status([](VnetHeader&) {}) == SegmentStatus::kOk);
  CHECK(status([](VnetHeader& h) { h.gso_size = 0; }) == SegmentStatus::kMalformed);
  CHECK(status([](VnetHeader& h) { h.flags = 0; }) == SegmentStatus::kMalformed);
  CHECK(status([](VnetHeader& h) { h.csum_start++; }) == SegmentStatus::kMalformed);
  CHECK(status([](VnetHeader& h) { h.csum_offset--; }) == SegmentStatus::kMalformed);
  CHECK(status([](VnetHeader& h) { h.gso_type = vnet::kGsoTcpV6; }) == SegmentStatus::kMalformed);
  CHECK(status([](VnetHeader& h) { h.gso_type = vnet::kGsoUdpL4; }) == SegmentStatus::kMalformed);
  CHECK(status([](VnetHeader& h) { h.gso_type = vnet::kGsoEcn; }) == SegmentStatus::kMalformed);
  CHECK(status([](VnetHeader& h) { h.gso_type = 3; }) == SegmentStatus::kUnsupported);
  CHECK(segmenter.count() == 0);
  frame.resize(4000);
  CHECK(status([](VnetHeader&) {}) == SegmentStatus::kMalformed);
  spec.fragment = 0x2000;
  frame = make_frame(spec, true);
  CHECK(status([](VnetHeader&) {}) == SegmentStatus::kMalformed);
}

}  // namespace
}  // namespace pairwire::test
