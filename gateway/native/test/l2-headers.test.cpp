// Parsers of headers and the MAC address: every length, every lie about a length.
#include <doctest/doctest.h>

#include <unordered_set>

#include "l2/headers.hpp"
#include "test/l2-frames.hpp"

namespace pairwire::test {
namespace {

/// An extension header of `eights` + 1 units of 8 bytes.
Frame extension(unsigned eights) {
  Frame header(8 + std::size_t{8} * eights);
  header[1] = static_cast<std::uint8_t>(eights);
  return header;
}

TEST_CASE("MacAddress: bits, order, hash") {
  const MacAddress mac(std::array<std::uint8_t, 6>{0x02, 0, 0, 0, 0, 1});
  const MacAddress other(std::array<std::uint8_t, 6>{0x01, 0, 0x5e, 0, 0, 1});
  CHECK(!mac.is_group());
  CHECK(mac.is_local());
  CHECK(other.is_group());
  CHECK(!other.is_broadcast());
  CHECK(MacAddress::broadcast().is_broadcast());
  CHECK(MacAddress::broadcast().is_group());
  CHECK(MacAddress().is_zero());
  CHECK(mac.to_integer() == 0x020000000001U);
  CHECK(mac != other);
  CHECK(other < mac);
  CHECK(std::unordered_set<MacAddress>{mac, other, mac}.size() == 2);
}

TEST_CASE("parse_frame: finds the parts of each kind of frame") {
  FrameSpec spec;
  spec.payload = Frame(100, 0x55);
  spec.tcp_options = Frame(12, 1);
  SUBCASE("IPv4, TCP") {
    const ParsedFrame parsed = parse_frame(make_frame(spec));
    CHECK(parsed.kind == FrameKind::kTransport);
    CHECK(parsed.is_tcp());
    CHECK(parsed.ip_version == 4);
    CHECK(parsed.l3_offset == 14);
    CHECK(parsed.l4_offset == 34);
    CHECK(parsed.payload_offset == 66);
    CHECK(parsed.payload_length == 100);
    CHECK(parsed.ip_length == 152);
    CHECK(parsed.padding == 0);
    CHECK(!parsed.has_ip_options);
  }
  SUBCASE("IPv4 with options behind two tags, UDP, padding") {
    spec.tags = {0x88a80001, 0x81000002};
    spec.ip_options = Frame(8, 1);
    spec.udp = true;
    Frame frame = make_frame(spec);
    frame.resize(frame.size() + 7);
    const ParsedFrame parsed = parse_frame(frame);
    CHECK(parsed.is_udp());
    CHECK(parsed.vlan_count == 2);
    CHECK(parsed.ethertype == ethertype::kIpv4);
    CHECK(parsed.l3_offset == 22);
    CHECK(parsed.l4_offset == 50);
    CHECK(parsed.payload_offset == 58);
    CHECK(parsed.payload_length == 100);
    CHECK(parsed.padding == 7);
    CHECK(parsed.has_ip_options);
    const auto ethernet = parse_ethernet(frame);
    REQUIRE(ethernet);
    CHECK(ethernet->vlan_tags[0] == 1);
    CHECK(ethernet->vlan_tags[1] == 2);
  }
  SUBCASE("a third tag is not looked behind") {
    spec.tags = {0x88a80001, 0x81000002, 0x81000003};
    const ParsedFrame parsed = parse_frame(make_frame(spec));
    CHECK(parsed.kind == FrameKind::kOpaque);
    CHECK(parsed.ethertype == ethertype::kVlan);
  }
  SUBCASE("IPv6 with extension headers") {
    spec.ip_version = 6;
    spec.extension_types = {0, 60, 43};
    spec.extensions = {extension(0), extension(2), extension(1)};
    const ParsedFrame parsed = parse_frame(make_frame(spec));
    CHECK(parsed.is_tcp());
    CHECK(parsed.ip_version == 6);
    CHECK(parsed.l4_offset == 14 + 40 + 8 + 24 + 16);
    CHECK(parsed.payload_length == 100);
    CHECK(parsed.has_ip_options);
  }
  SUBCASE("UDP shorter than its IP packet") {
    spec.udp = true;
    Frame frame = make_frame(spec);
    put16(frame, 38, 8 + 90);
    const ParsedFrame parsed = parse_frame(frame);
    CHECK(parsed.is_udp());
    CHECK(parsed.payload_length == 90);
    CHECK(parsed.l4_trailer == 10);
    CHECK(parsed.padding == 0);
  }
  SUBCASE("ARP") {
    Frame frame = spec.destination;
    append(frame, {2, 0, 0, 0, 0, 2, 0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 2});
    append(frame, {2, 0, 0, 0, 0, 9, 10, 0, 0, 1, 2, 0, 0, 0, 0, 8, 10, 0, 0, 2});
    CHECK(parse_frame(frame).kind == FrameKind::kArp);
    const auto arp = parse_arp(std::span(frame).subspan(14));
    REQUIRE(arp);
    CHECK(arp->operation == 2);
    CHECK(arp->sender_ip == 0x0a000001);
    CHECK(arp->target_ip == 0x0a000002);
    CHECK(arp->sender_mac.bytes()[5] == 9);
    CHECK(arp->target_mac.bytes()[5] == 8);
    for (std::size_t length = 14; length < frame.size(); ++length) {
      CHECK(parse_frame(std::span(frame).first(length)).kind == FrameKind::kMalformed);
    }
    frame[18] = 8;  // Another length of hardware addresses.
    CHECK(parse_frame(frame).kind == FrameKind::kMalformed);
  }
}

TEST_CASE("parse_frame: fragments and foreign protocols have no transport header") {
  FrameSpec spec;
  spec.payload = Frame(64, 1);
  for (const unsigned fragment : {0x2000U, 0x0001U, 0x3fffU}) {
    spec.fragment = fragment;
    const ParsedFrame parsed = parse_frame(make_frame(spec));
    CHECK(parsed.kind == FrameKind::kNetwork);
    CHECK(parsed.is_fragment);
  }
  spec.fragment = 0;
  Frame frame = make_frame(spec);
  frame[23] = 47;
  CHECK(parse_frame(frame).kind == FrameKind::kNetwork);

  spec.ip_version = 6;
  spec.extension_types = {60, 44};
  spec.extensions = {extension(0), extension(0)};
  const ParsedFrame parsed = parse_frame(make_frame(spec));
  CHECK(parsed.kind == FrameKind::kNetwork);
  CHECK(parsed.is_fragment);  // Offset 0 and no more: an atomic fragment is one too.

  // Hop-by-hop options anywhere but first end the walk, and so do too many headers.
  spec.extension_types = {60, 0};
  CHECK(parse_frame(make_frame(spec)).kind == FrameKind::kNetwork);
  spec.extension_types = std::vector<unsigned>(kMaxExtensionHeaders, 60U);
  spec.extensions = std::vector<Frame>(kMaxExtensionHeaders, extension(0));
  CHECK(parse_frame(make_frame(spec)).is_tcp());
  spec.extension_types.push_back(60U);
  spec.extensions.push_back(extension(0));
  CHECK(parse_frame(make_frame(spec)).kind == FrameKind::kMalformed);
}

TEST_CASE("parse_frame: every truncation is noticed") {
  Random random(1);
  for (int round = 0; round < 50; ++round) {
    FrameSpec spec = random_spec(random, 40);
    spec.udp = chance(random, 2);
    if (spec.ip_version == 4) {
      spec.ip_options = Frame(4 * random.below(11), 1);
    } else {
      spec.extension_types = {0, 43};
      spec.extensions = {extension(1), extension(0)};
    }
    const Frame whole = make_frame(spec);
    const std::size_t l3 = 14 + 4 * spec.tags.size();
    REQUIRE(parse_frame(whole).kind == FrameKind::kTransport);
    for (std::size_t length = 0; length < whole.size(); ++length) {
      // An allocation of its own, so that ASan sees a read behind it.
      const Frame frame(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(length));
      const FrameKind kind = parse_frame(frame).kind;
      CHECK(kind == (length < l3 ? FrameKind::kTruncated : FrameKind::kMalformed));
      // The length fields corrected: now the header that is cut short must be found out.
      if (length < l3 + 40) continue;
      Frame shorter = frame;
      put16(shorter, l3 + (spec.ip_version == 4 ? 2U : 4U),
            length - l3 - (spec.ip_version == 4 ? 0U : 40U));
      const ParsedFrame parsed = parse_frame(shorter);
      const judge::Anatomy anatomy = judge::dissect(shorter);
      CHECK((parsed.kind == FrameKind::kTransport) == anatomy.complete);
      if (anatomy.complete) CHECK(parsed.payload_offset == anatomy.payload);
    }
  }
}

TEST_CASE("parse_frame: agrees with the judge on every damaged frame") {
  Random random(2);
  for (int round = 0; round < 20000; ++round) {
    FrameSpec spec = random_spec(random, random.below(50));
    spec.udp = chance(random, 2);
    Frame frame = make_frame(spec);
    for (std::size_t i = random.below(4); i > 0; --i) {
      frame[12 + random.below(frame.size() - 12)] = static_cast<std::uint8_t>(random.below(256));
    }
    frame.resize(frame.size() + random.below(3));
    const ParsedFrame parsed = parse_frame(frame);
    const judge::Anatomy anatomy = judge::dissect(frame);
    REQUIRE((parsed.kind == FrameKind::kTransport) == anatomy.complete);
    if (!anatomy.complete) continue;
    CHECK(parsed.l3_offset == anatomy.ip);
    CHECK(parsed.l4_offset == anatomy.l4);
    CHECK(parsed.payload_offset == anatomy.payload);
    CHECK(parsed.is_tcp() == anatomy.tcp);
    CHECK((parsed.padding == 0 && parsed.l4_trailer == 0) == anatomy.exact);
  }
}

}  // namespace
}  // namespace pairwire::test
