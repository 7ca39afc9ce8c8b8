// Unicast IP in group frames ("Hole 196") is seen, whatever it hides behind.
#include <doctest/doctest.h>

#include "l2/group-guard.hpp"
#include "test/l2-frames.hpp"

namespace pairwire::test {
namespace {

bool refused(const Frame& frame) {
  const std::vector<Ipv4Prefix> prefixes{{0x0a010200, 24}, {0x0a020000, 31}, {0, 0}};
  return group_frame_has_unicast_ip(frame, prefixes);
}

Frame ipv4_to(std::uint32_t address, FrameSpec spec = {}) {
  spec.destination = Frame(6, 0xff);
  spec.udp = true;
  Frame frame = make_frame(spec);
  const std::size_t at = 14 + 4 * spec.tags.size() + 16;
  put16(frame, at, address >> 16);
  put16(frame, at + 2, address & 0xffff);
  return frame;
}

TEST_CASE("group_frame_has_unicast_ip: IPv4") {
  CHECK(refused(ipv4_to(0x0a010204)));
  CHECK(refused(ipv4_to(0x00000000)));
  CHECK(refused(ipv4_to(0xf0000001)));
  CHECK(refused(ipv4_to(0x0a0102fe)));
  CHECK(refused(ipv4_to(0x0a020001)));  // A /31 has no broadcast.
  CHECK(refused(ipv4_to(0x0a0103ff)));  // Broadcast of a prefix that is not ours.
  CHECK(!refused(ipv4_to(0x0a0102ff)));
  CHECK(!refused(ipv4_to(0xffffffff)));
  CHECK(!refused(ipv4_to(0xe0000001)));
  CHECK(!refused(ipv4_to(0xefffffff)));
}

TEST_CASE("group_frame_has_unicast_ip: behind tags, in fragments, in SNAP") {
  FrameSpec spec;
  spec.tags = {0x81000005};
  CHECK(refused(ipv4_to(0x0a010204, spec)));
  CHECK(!refused(ipv4_to(0xe0000001, spec)));
  spec.tags = {0x88a80005, 0x81000006};
  CHECK(refused(ipv4_to(0x0a010204, spec)));
  CHECK(!refused(ipv4_to(0xe0000001, spec)));
  spec.tags.push_back(0x81000007);
  CHECK(refused(ipv4_to(0xe0000001, spec)));
  spec.tags.clear();
  spec.fragment = 0x2001;
  CHECK(refused(ipv4_to(0x0a010204, spec)));

  Frame snap(6, 0xff);
  append(snap, {2, 0, 0, 0, 0, 1, 0, 40, 0xaa, 0xaa, 3, 0, 0, 0, 8, 0, 0x45, 0, 0, 20});
  CHECK(refused(snap));
  snap[21] = 6;  // ARP in SNAP.
  CHECK(!refused(snap));
  snap.resize(17);
  CHECK(!refused(snap));
}

TEST_CASE("group_frame_has_unicast_ip: IPv6, ARP, foreign types, short frames") {
  FrameSpec spec;
  spec.ip_version = 6;
  spec.destination = Frame{0x33, 0x33, 0, 0, 0, 1};
  Frame frame = make_frame(spec);
  CHECK(refused(frame));
  frame[14 + 24] = 0xff;
  CHECK(!refused(frame));
  CHECK(refused(Frame(frame.begin(), frame.begin() + 50)));
  put16(frame, 12, 0x0800);  // Says IPv4 and is not.
  CHECK(refused(frame));
  put16(frame, 12, 0x0806);
  CHECK(!refused(frame));
  put16(frame, 12, 0x88cc);
  CHECK(!refused(frame));
  frame.resize(13);
  CHECK(refused(frame));

  spec.destination = Frame{2, 0, 0, 0, 0, 1};
  CHECK(!refused(make_frame(spec)));

  const Frame whole = ipv4_to(0xe0000001);
  for (std::size_t length = 0; length < whole.size(); ++length) {
    CHECK(refused(Frame(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(length))));
  }
}

}  // namespace
}  // namespace pairwire::test
