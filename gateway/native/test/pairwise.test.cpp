// `group.mode: pairwise`: a copy of a group frame for each member, under the key that it shares
// with the sender alone; and members that a policy keeps out of group traffic
// (docs/protocol.md 3.9).
#include <doctest/doctest.h>

#include "test/lab.hpp"

namespace pairwire::test {
namespace {

Frame broadcast(std::size_t payload = 32) {
  FrameSpec spec;
  spec.udp = true;
  spec.destination = Frame(6, 0xff);
  spec.payload = Random(5).bytes(payload);
  Frame frame = make_frame(spec);
  std::ranges::fill(std::span(frame).subspan(14 + 16, 4), std::uint8_t{0xff});
  write_ip_checksum(frame, 14, 20);
  write_checksum(frame, false);
  return frame;
}

void make_pairwise(Node& node) {
  node.change([](PortSettings& settings) { settings.pairwise = true; });
}

/// Two members with a pair key and no group key.
void prepare(Pair& pair) {
  pair.install_pair();
  make_pairwise(pair.alice);
  make_pairwise(pair.bob);
}

}  // namespace

TEST_CASE("pairwise: a group frame crosses without a group key, under the pair's") {
  Pair pair;
  prepare(pair);
  const Frame frame = broadcast();
  pair.send(frame);
  const auto sealed = pair.intercept();
  REQUIRE(sealed.size() == 1);
  const auto shim = parse_shim(sealed[0], Transport::kUdp);
  REQUIRE(shim.has_value());
  CHECK(shim->kind == Kind::kPair);
  CHECK(shim->group_destination());
  pair.inject(sealed[0]);
  const auto got = pair.bob.to_host();
  REQUIRE(got.has_value());
  CHECK(got->frame == frame);
  CHECK(pair.alice.all_drops() + pair.bob.all_drops() == 0);

  // A second time it is a replay.
  pair.inject(sealed[0]);
  CHECK(pair.bob.drops(DropReason::replayed) == 1);
}

TEST_CASE("pairwise: as on an Ethernet, where the group's address is sealed, too") {
  int lan[2];
  REQUIRE(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, lan) == 0);
  Pair pair{UniqueFd(lan[0]), UniqueFd(lan[1])};
  prepare(pair);
  const Frame frame = broadcast();
  pair.send(frame);
  pair.bob.pump_in();
  const auto got = pair.bob.to_host();
  REQUIRE(got.has_value());
  CHECK(got->frame == frame);
}

TEST_CASE("pairwise: a super-frame for a group comes as it was cut, and long frames in parts") {
  Pair pair;
  prepare(pair);
  SUBCASE("super-frame") {
    const Frame super = broadcast(3 * 500);
    pair.send(super, gso_header(super, 500));
    const auto sealed = pair.intercept();
    CHECK(sealed.size() == 3);
    std::size_t payload = 0;
    for (const Frame& one : sealed) pair.inject(one);
    while (const auto got = pair.bob.to_host()) payload += got->frame.size() - 42;
    CHECK(payload == 1'500);
  }
  SUBCASE("parts") {
    pair.alice.tables.peer("bob")->max_frame = 600;
    const Frame frame = broadcast(1'000);
    pair.send(frame);
    const auto sealed = pair.intercept();
    CHECK(sealed.size() == 2);
    for (const Frame& one : sealed) pair.inject(one);
    const auto got = pair.bob.to_host();
    REQUIRE(got.has_value());
    CHECK(got->frame == frame);
  }
  CHECK(pair.alice.all_drops() + pair.bob.all_drops() == 0);
}

TEST_CASE("pairwise: whoever has no key with us is asked for, and the others get theirs") {
  Pair pair;
  prepare(pair);
  const Node carol("carol", MacAddress{std::array<std::uint8_t, 6>{0x02, 0, 0, 0, 0, 3}}, 1003);
  pair.alice.know(carol);
  for (int i = 0; i < 3; ++i) pair.send(broadcast());
  pair.bob.pump_in();
  std::size_t got = 0;
  while (pair.bob.to_host()) ++got;
  CHECK(got == 3);
  CHECK(pair.alice.drops(DropReason::no_key) == 3);
  const auto events = pair.alice.events();
  REQUIRE(std::ranges::count(events, WorkerEvent::Kind::kMissMac, &WorkerEvent::kind) == 1);
  CHECK(std::ranges::find(events, carol.mac, &WorkerEvent::mac) != events.end());
}

TEST_CASE("pairwise: nothing is sent after the lease") {
  Pair pair;
  prepare(pair);
  pair.alice.tables.set_lease(Node::kServerMs - 1'000);
  pair.send(broadcast());
  CHECK(pair.intercept().empty());
  CHECK(pair.alice.drops(DropReason::lease_over) == 1);
}

TEST_CASE("policy: who is kept out of group traffic sends none, is sent none, and is not heard") {
  Pair pair;
  prepare(pair);
  const auto silent = [](Node& node) {
    node.change([](PortSettings& settings) { settings.rights |= kNoGroup; });
  };
  SUBCASE("it does not send") {
    silent(pair.alice);
    pair.send(broadcast());
    CHECK(pair.intercept().empty());
    CHECK(pair.alice.drops(DropReason::not_in_group) == 1);
  }
  SUBCASE("it is not sent to") {
    pair.alice.tables.peer("bob")->rights = kNoGroup;
    pair.send(broadcast());
    CHECK(pair.intercept().empty());
    CHECK(pair.alice.all_drops() == 0);
  }
  SUBCASE("it does not hear, whatever a sender does") {
    silent(pair.bob);
    pair.send(broadcast());
    pair.bob.pump_in();
    CHECK_FALSE(pair.bob.to_host());
    CHECK(pair.bob.drops(DropReason::not_in_group) == 1);
  }
  SUBCASE("it is not heard, whatever it does") {
    pair.bob.tables.peer("alice")->rights = kNoGroup;
    pair.send(broadcast());
    pair.bob.pump_in();
    CHECK_FALSE(pair.bob.to_host());
    CHECK(pair.bob.drops(DropReason::not_in_group) == 1);
  }
  // What is for one of the two alone crosses as ever.
  const Frame frame = make_frame(FrameSpec{});
  pair.send(frame);
  pair.bob.pump_in();
  const auto got = pair.bob.to_host();
  REQUIRE(got.has_value());
  CHECK(got->frame == frame);
}

}  // namespace pairwire::test
