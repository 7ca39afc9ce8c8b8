// The answer to a packet that is too long, byte by byte, and what is never answered.
#include <doctest/doctest.h>

#include "l2/checksum.hpp"
#include "l2/headers.hpp"
#include "l2/too-big.hpp"
#include "test/lab.hpp"

using namespace pairwire;
using namespace pairwire::test;

namespace {

Frame long_frame(int version, std::size_t payload = 1'350) {
  FrameSpec spec;
  spec.ip_version = version;
  spec.payload = Frame(payload, 7);
  Frame frame = make_frame(spec);
  if (version == 4) {
    frame[20] |= 0x40;  // DF
    write_ip_checksum(frame, 14, 20);
  }
  return frame;
}

Frame answer_to(const Frame& frame, std::size_t mtu) {
  Frame out(kMaxTooBig);
  out.resize(write_too_big(frame, frame.size() - 14, mtu, out));
  return out;
}

Frame piece(const Frame& frame, std::size_t at, std::size_t size) {
  const auto begin = frame.begin() + static_cast<std::ptrdiff_t>(at);
  return {begin, begin + static_cast<std::ptrdiff_t>(size)};
}

}  // namespace

TEST_CASE("too big: IPv4") {
  const Frame frame = long_frame(4);
  const Frame answer = answer_to(frame, 1'198);
  REQUIRE(answer.size() == 14 + 576);
  CHECK(piece(answer, 0, 6) == piece(frame, 6, 6));
  CHECK(piece(answer, 6, 6) == piece(frame, 0, 6));
  const auto ip = parse_ipv4(ConstBytes(answer).subspan(14));
  REQUIRE(ip);
  CHECK(ip->total_length == 576);
  CHECK(ip->protocol == 1);
  CHECK(checksum_holds(ConstBytes(answer).subspan(14, 20)));
  CHECK(piece(answer, 14 + 12, 4) == piece(frame, 14 + 16, 4));
  CHECK(piece(answer, 14 + 16, 4) == piece(frame, 14 + 12, 4));
  const ConstBytes icmp = ConstBytes(answer).subspan(34);
  CHECK(checksum_holds(icmp));
  CHECK(to_hex(icmp.first(2)) == "0304");
  CHECK(load_be<std::uint16_t>(icmp.subspan<6, 2>()) == 1'198);
  CHECK(piece(answer, 42, 548) == piece(frame, 14, 548));
}

TEST_CASE("too big: IPv6, never below 1,280") {
  const Frame frame = long_frame(6);
  const Frame answer = answer_to(frame, 1'198);
  REQUIRE(answer.size() == 14 + 1'280);
  const auto ip = parse_ipv6(ConstBytes(answer).subspan(14));
  REQUIRE(ip);
  CHECK(ip->protocol == 58);
  const ConstBytes icmp = ConstBytes(answer).subspan(54);
  ChecksumSum sum = pseudo_header_sum(ConstBytes(answer).subspan(22, 32), 58,
                                      static_cast<std::uint32_t>(icmp.size()));
  sum.add(icmp);
  CHECK(sum.checksum() == 0);
  CHECK(to_hex(icmp.first(2)) == "0200");
  CHECK(load_be<std::uint32_t>(icmp.subspan<4, 4>()) == 1'280);
  CHECK(piece(answer, 62, 1'232) == piece(frame, 14, 1'232));
  CHECK(answer_to(long_frame(6, 1'280 - 60), 1'198).empty());
}

TEST_CASE("too big: what is not answered") {
  CHECK_FALSE(answer_to(long_frame(4), 1'198).empty());
  SUBCASE("what fits") {
    CHECK(answer_to(long_frame(4, 1'000), 1'198).empty());
  }
  SUBCASE("IPv4 that may be fragmented") {
    Frame frame = long_frame(4);
    frame[20] = 0;
    CHECK(answer_to(frame, 1'198).empty());
  }
  SUBCASE("no IP") {
    Frame frame = long_frame(4);
    put16(frame, 12, 0x88b6);
    CHECK(answer_to(frame, 1'198).empty());
  }
  SUBCASE("ICMP errors") {
    Frame frame = long_frame(4);
    frame[23] = 1;
    for (const int type : {3, 4, 5, 11, 12}) {
      frame[34] = static_cast<std::uint8_t>(type);
      CHECK(answer_to(frame, 1'198).empty());
    }
    frame[34] = 8;  // Echo
    CHECK_FALSE(answer_to(frame, 1'198).empty());
    frame = long_frame(6);
    frame[20] = 58;
    for (const int type : {1, 2, 3, 4, 127, 137}) {
      frame[54] = static_cast<std::uint8_t>(type);
      CHECK(answer_to(frame, 1'198).empty());
    }
    frame[54] = 128;
    CHECK_FALSE(answer_to(frame, 1'198).empty());
  }
  SUBCASE("fragments but the first") {
    Frame frame = long_frame(4);
    frame[21] = 9;
    CHECK(answer_to(frame, 1'198).empty());
  }
  SUBCASE("from nobody, or to a group") {
    Frame frame = long_frame(4);
    put16(frame, 26, 0);
    put16(frame, 28, 0);
    CHECK(answer_to(frame, 1'198).empty());
    frame = long_frame(4);
    frame[30] = 239;
    CHECK(answer_to(frame, 1'198).empty());
    frame = long_frame(6);
    frame[38] = 0xff;
    CHECK(answer_to(frame, 1'198).empty());
    frame = long_frame(4);
    frame[0] |= 1;
    CHECK(answer_to(frame, 1'198).empty());
  }
}

TEST_CASE(
    "too big: the host is told, at most ten times a second, and the packet crosses in parts") {
  Pair pair;
  pair.install_pair();
  pair.alice.tables.peer("bob")->max_frame = kSafeFrame;
  const Frame frame = long_frame(4);
  for (int i = 0; i < 30; ++i) pair.send(frame);
  const auto told = pair.alice.to_host();
  REQUIRE(told.has_value());
  CHECK(told->frame == answer_to(frame, kSafeFrame - kFrameOverhead - 14));
  std::size_t answers = 1;
  while (pair.alice.to_host()) ++answers;
  CHECK(answers >= 10);
  CHECK(answers < 30);
  CHECK(pair.alice.out.counters.told_too_big == answers);
  CHECK(pair.intercept().size() == 60);
}

TEST_CASE("too big: while a direct path is looked for, a relay alone is no reason to tell") {
  Pair pair;
  pair.install_pair();
  pair.alice.tables.set_relay(
      std::make_unique<const RelayUse>(RelayUse{loopback(pair.bob.udp_port), 7}));
  Endpoint by_relay = loopback(pair.bob.udp_port);
  by_relay.relayed = pair.bob.index;
  Peer& bob = *pair.alice.tables.peer("bob");
  pair.alice.tables.set_endpoint(bob, by_relay);
  const Frame frame = long_frame(4, 1'390);
  pair.send(frame);
  CHECK(pair.intercept().size() == 2);
  CHECK_FALSE(pair.alice.to_host());
  SUBCASE("what can't cross even in parts is told") {
    const Frame longer = long_frame(4, 4'300);
    pair.send(longer);
    CHECK(pair.intercept().empty());
    const auto told = pair.alice.to_host();
    REQUIRE(told.has_value());
    CHECK(told->frame == answer_to(longer, kMaxRelayedFrame - kFrameOverhead - 14));
  }
  SUBCASE("when it is over, all is") {
    bob.relay_settled = true;
    pair.send(frame);
    CHECK(pair.intercept().size() == 2);
    const auto told = pair.alice.to_host();
    REQUIRE(told.has_value());
    CHECK(told->frame == answer_to(frame, kMaxRelayedFrame - kFrameOverhead - 14));
  }
}
