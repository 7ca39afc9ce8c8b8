// The address guard on the way of a frame: at the TAP it enters by and where it is received, at
// members and at plain ports; questions that are answered here; what the control plane is told.
#include "core/address-guard.hpp"

#include <doctest/doctest.h>

#include "test/allocations.hpp"
#include "test/lab.hpp"
#include "test/neighbour-frames.hpp"

using namespace pairwire;
using namespace pairwire::test;

namespace {

constexpr MacAddress kAlice{std::array<std::uint8_t, 6>{0x02, 0, 0, 0, 0, 2}};
constexpr MacAddress kGate{std::array<std::uint8_t, 6>{0x02, 0, 0, 0, 0, 3}};
constexpr MacAddress kBob{std::array<std::uint8_t, 6>{0x02, 0, 0, 0, 0, 4}};
constexpr MacAddress kSpare{std::array<std::uint8_t, 6>{0x02, 0, 0, 0, 0, 5}};  ///< Alice's other
constexpr MacAddress kPrinter{std::array<std::uint8_t, 6>{0x52, 0, 0, 0, 0, 1}};
constexpr MacAddress kRogue{std::array<std::uint8_t, 6>{0x52, 0, 0, 0, 0, 66}};
constexpr MacAddress kNodes{std::array<std::uint8_t, 6>{0x33, 0x33, 0, 0, 0, 1}};

constexpr std::uint32_t kAlicesIp = 0x0a00000a;
constexpr std::uint32_t kBobsIp = 0x0a00000b;
constexpr std::uint32_t kFreeIp = 0x0a0000ff;

Frame arp_request(const MacAddress& from, std::uint32_t from_ip, std::uint32_t asked,
                  const MacAddress& to = MacAddress::broadcast()) {
  return ethernet_frame(to, from, 0x0806, arp_packet(1, from, from_ip, {}, asked));
}
Frame arp_reply(const MacAddress& from, std::uint32_t ip, const MacAddress& to, std::uint32_t to_ip,
                const MacAddress& sender) {
  return ethernet_frame(to, from, 0x0806, arp_packet(2, sender, ip, to, to_ip));
}
Frame nd(const MacAddress& to, const MacAddress& from, const Frame& message,
         const Frame& from_ip = ipv6_of(0x99)) {
  Frame to_ip = ipv6_of(1);
  if (to.is_group()) std::ranges::copy(std::array{0xff, 2}, to_ip.begin());
  return ethernet_frame(to, from, 0x86dd, ipv6_packet(from_ip, to_ip, 58, 255, {}, message));
}
Frame dhcp(const MacAddress& to, const MacAddress& from) {
  FrameSpec spec;
  spec.udp = true;
  spec.source_port = 67;
  spec.destination_port = 68;
  spec.payload = Frame(240, 2);
  Frame frame = make_frame(spec);
  std::ranges::copy(to.bytes(), frame.begin());
  std::ranges::copy(from.bytes(), frame.begin() + 6);
  if (to.is_group()) {
    std::fill_n(frame.begin() + 30, 4, 0xff);
    write_ip_checksum(frame, 14, 20);
    write_checksum(frame, false);
  }
  return frame;
}
IpAddress ipv6(unsigned number) {
  return *IpAddress::from(ipv6_of(number));
}

/// Alice, a member; Gate, with a plain port that the printer is behind. Alice's and Bob's addresses
/// are bound at both; Bob is away.
struct Bench {
  Node alice{"alice", kAlice, 1001};
  Node gate;
  Random random{11};
  std::array<std::uint8_t, 32> key = random.array<32>();

  Bench() : gate("gate", kGate, 1003, plain()) {
    alice.know(gate);
    gate.know(alice);
    gate.tables.install_pair_key("alice", gate.boot, key, 1, true);
    alice.tables.install_pair_key("gate", alice.boot, key, 1, true);
    alice.tables.install_group_key(key, 1, true, boot_ms());
    gate.tables.install_group_key(key, 1, true, boot_ms());
    gate.tables.set_own(std::array{kAlice, kGate, kBob}, true, false);
    gate.tables.set_forwarding(true);
    alice.tables.set_behind("gate", std::array{PortTables::BehindSetting{{0, kPrinter}, 0, false}},
                            boot_ms());
    for (Node* const node : {&alice, &gate}) {
      bind(*node, IpAddress::of_ipv4(kAlicesIp), kAlice);
      bind(*node, IpAddress::of_ipv4(kBobsIp), kBob);
      bind(*node, ipv6(0xa), kAlice);
      bind(*node, ipv6(0xb), kBob);
      node->change([](PortSettings& one) { one.answer = true; });
    }
  }

  static Node::Options plain() {
    Node::Options options;
    options.kind = PortKind::kPlain;
    return options;
  }
  static void bind(Node& at, const IpAddress& ip, const MacAddress& mac) {
    at.tables.set_bindings(std::array{Bindings::Setting{ip, mac}}, false, false, boot_ms());
  }
  void from_alice(const Frame& frame) {
    alice.from_host({}, frame);
    alice.pump_out();
    gate.pump_in();
  }
  void from_bridge(const Frame& frame) {
    gate.from_host({}, frame);
    gate.pump_out();
    alice.pump_in();
  }
  /// Alice's own guard is off, as that of a member would be whose programs are not ours.
  void believe_alice() {
    alice.change([](PortSettings& one) { one.rights = 3; });
    alice.tables.remove_bindings(std::array{IpAddress::of_ipv4(kBobsIp), ipv6(0xb)});
  }
};

void check_refused(Node& at, DropReason reason) {
  CHECK_MESSAGE(at.drops(reason) == 1, drop_reason_name(reason));
  CHECK(at.all_drops() == 1);
  CHECK_FALSE(at.to_host().has_value());
}
std::optional<WorkerEvent> event_of(Node& node, WorkerEvent::Kind kind) {
  for (const WorkerEvent& event : node.events()) {
    if (event.kind == kind) return event;
  }
  return std::nullopt;
}

}  // namespace

// --- Bindings -----------------------------------------------------------------------------------

TEST_CASE(
    "bindings: a list replaces the one before when it has ended, and removes nothing sooner") {
  PortTables tables;
  const auto ip = [](std::uint32_t number) { return IpAddress::of_ipv4(number); };
  const auto set = [&](std::vector<Bindings::Setting> entries, bool reset, bool more) {
    tables.set_bindings(entries, reset, more, 1);
  };
  set({{ip(1), kAlice}, {ip(2), kBob}, {ipv6(3), kBob}}, false, false);
  CHECK(tables.binding(ip(1))->mac == kAlice);
  CHECK(tables.binding(ipv6(3))->mac == kBob);
  CHECK(tables.binding(ipv6(4)) == nullptr);
  set({{ip(1), kBob}}, false, false);  // Replaced.
  CHECK(tables.binding(ip(1))->mac == kBob);
  CHECK(tables.binding_count() == 3);

  const Binding* const kept = tables.binding(ip(2));
  set({{ip(9), kAlice}}, true, true);
  CHECK(tables.binding(ip(1)) != nullptr);
  set({{ip(2), kBob}}, false, false);
  CHECK(tables.binding(ip(1)) == nullptr);
  CHECK(tables.binding(ipv6(3)) == nullptr);
  CHECK(tables.binding(ip(2)) == kept);  // As it was, with what it remembers.
  CHECK(tables.binding_count() == 2);
  tables.remove_bindings(std::array{ip(2), ip(77)});
  CHECK(tables.binding(ip(2)) == nullptr);

  CHECK_THROWS_AS(set({{ip(0), kAlice}}, false, false), CommandError);
  CHECK_THROWS_AS(set({{ip(0xe0000001), kAlice}}, false, false), CommandError);
  CHECK_THROWS_AS(set({{ip(5), kNodes}}, false, false), CommandError);
  CHECK(tables.binding_count() == 1);
}

TEST_CASE("bindings: the table is full, and what is there stays") {
  PortTables tables;
  std::vector<Bindings::Setting> many;
  for (std::uint32_t i = 1; i <= Bindings::kMaxBindings; ++i) {
    many.push_back({IpAddress::of_ipv4(i), kAlice});
  }
  tables.set_bindings(many, true, false, 1);
  CHECK_THROWS_AS(
      tables.set_bindings(std::array{Bindings::Setting{ipv6(1), kAlice}}, false, false, 1),
      CommandError);
  // Known ones may still change.
  tables.set_bindings(std::array{Bindings::Setting{IpAddress::of_ipv4(7), kBob}}, false, false, 1);
  CHECK(tables.binding(IpAddress::of_ipv4(7))->mac == kBob);
  CHECK(tables.binding_count() == Bindings::kMaxBindings);
}

// --- Where a frame enters -----------------------------------------------------------------------

TEST_CASE("guard: a machine outside does not get in with a member's address") {
  Bench bench;
  DropReason reason = DropReason::arp_spoof;
  Frame frame;
  IpAddress claimed;
  SUBCASE("announced to all") {
    frame = arp_request(kRogue, kBobsIp, kBobsIp);
    claimed = IpAddress::of_ipv4(kBobsIp);
  }
  SUBCASE("replied to one") {
    frame = arp_reply(kRogue, kBobsIp, kAlice, kAlicesIp, kRogue);
    claimed = IpAddress::of_ipv4(kBobsIp);
  }
  SUBCASE("in a question") {
    frame = arp_request(kRogue, kBobsIp, kAlicesIp, kAlice);
    claimed = IpAddress::of_ipv4(kBobsIp);
  }
  SUBCASE("with a priority tag") {
    frame = arp_request(kRogue, kBobsIp, kBobsIp);
    const Frame tag{0x81, 0, 0xe0, 0};
    frame.insert(frame.begin() + 12, tag.begin(), tag.end());
    claimed = IpAddress::of_ipv4(kBobsIp);
  }
  SUBCASE("with the member's link-layer address inside") {
    frame = arp_reply(kRogue, kFreeIp, kAlice, kAlicesIp, kBob);
  }
  SUBCASE("cut short") {
    frame = arp_request(kRogue, kBobsIp, kBobsIp);
    frame.resize(30);
  }
  SUBCASE("by neighbour advertisement") {
    frame = nd(kAlice, kRogue, neighbour(136, ipv6_of(0xb), link_option(2, kRogue)));
    claimed = ipv6(0xb);
    reason = DropReason::nd_spoof;
  }
  SUBCASE("by neighbour advertisement without link-layer address") {
    frame = nd(kNodes, kRogue, neighbour(136, ipv6_of(0xb), {}));
    claimed = ipv6(0xb);
    reason = DropReason::nd_spoof;
  }
  SUBCASE("by neighbour solicitation") {
    frame = nd(kNodes, kRogue, neighbour(135, ipv6_of(0xc), link_option(1, kRogue)), ipv6_of(0xb));
    claimed = ipv6(0xb);
    reason = DropReason::nd_spoof;
  }
  SUBCASE("by router solicitation") {
    frame = nd(kNodes, kRogue, router_solicitation(link_option(1, kRogue)), ipv6_of(0xb));
    claimed = ipv6(0xb);
    reason = DropReason::nd_spoof;
  }
  bench.from_bridge(frame);
  check_refused(bench.gate, reason);
  CHECK_FALSE(bench.alice.to_host());
  const auto told = event_of(bench.gate, WorkerEvent::Kind::kGuarded);
  REQUIRE(told);
  CHECK(told->reason == reason);
  CHECK(told->peer == 0);
  CHECK(told->mac == kRogue);
  CHECK(told->ip == claimed);
}

TEST_CASE("guard: routes and leases come from nobody without the right") {
  Bench bench;
  const Frame ra = nd(kNodes, kRogue, router_advertisement(link_option(1, kRogue)));
  const Frame redirected = nd(kAlice, kRogue, redirect({}));
  const Frame lease = dhcp(MacAddress::broadcast(), kRogue);
  const auto rights = [&](std::uint8_t value) {
    bench.gate.change([&](PortSettings& one) { one.rights = value; });
    bench.alice.tables.peer("gate")->rights = value;
  };
  SUBCASE("advertisement") {
    bench.from_bridge(ra);
    check_refused(bench.gate, DropReason::ra_guard);
    rights(kRightRouter);
    bench.from_bridge(ra);
    CHECK(bench.alice.to_host()->frame == ra);
  }
  SUBCASE("redirect") {
    bench.from_bridge(redirected);
    check_refused(bench.gate, DropReason::redirect_guard);
    rights(kRightRouter);
    bench.from_bridge(redirected);
    CHECK(bench.alice.to_host()->frame == redirected);
  }
  SUBCASE("lease") {
    bench.from_bridge(lease);
    check_refused(bench.gate, DropReason::dhcp_guard);
    rights(kRightDhcp);
    bench.from_bridge(lease);
    CHECK(bench.alice.to_host()->frame == lease);
  }
  SUBCASE("one right is not the other") {
    rights(kRightDhcp);
    bench.from_bridge(ra);
    check_refused(bench.gate, DropReason::ra_guard);
  }
  SUBCASE("a router is no exception from the form") {
    rights(kRightRouter);
    bench.from_bridge(nd(kNodes, kRogue, router_advertisement(link_option(1, kBob))));
    check_refused(bench.gate, DropReason::nd_spoof);
  }
}

TEST_CASE("guard: at a member the same holds for its own host") {
  Bench bench;
  bench.from_alice(arp_request(kAlice, kBobsIp, kFreeIp));
  check_refused(bench.alice, DropReason::arp_spoof);
  const auto told = event_of(bench.alice, WorkerEvent::Kind::kGuarded);
  REQUIRE(told);
  CHECK(told->mac == kAlice);
  bench.from_alice(nd(kNodes, kAlice, router_advertisement({})));
  CHECK(bench.alice.drops(DropReason::ra_guard) == 1);
}

TEST_CASE("guard: an address of somebody else is asked for, and not used before it is given") {
  Bench bench;
  bench.from_alice(arp_request(kAlice, kBobsIp, kBobsIp));
  check_refused(bench.alice, DropReason::arp_spoof);
  const auto told = event_of(bench.alice, WorkerEvent::Kind::kClaim);
  REQUIRE(told);
  CHECK(told->ip == IpAddress::of_ipv4(kBobsIp));
  CHECK(told->mac == kAlice);
}

TEST_CASE("guard: honest machines are not in the way, nor is a VLAN with addresses of its own") {
  Bench bench;
  const std::vector<Frame> inwards{
      arp_request(kPrinter, kFreeIp, kAlicesIp, kAlice),
      arp_reply(kPrinter, kFreeIp, kAlice, kAlicesIp, kPrinter),
      nd(kAlice, kPrinter, neighbour(136, ipv6_of(0xff), link_option(2, kPrinter))),
      nd(kNodes, kPrinter, router_solicitation(link_option(1, kPrinter)))};
  for (const Frame& frame : inwards) {
    bench.from_bridge(frame);
    const auto seen = bench.alice.to_host();
    REQUIRE(seen);
    CHECK(seen->frame == frame);
  }
  Frame tagged = arp_request(kPrinter, kBobsIp, kBobsIp);
  const Frame tag{0x81, 0, 0, 7};
  tagged.insert(tagged.begin() + 12, tag.begin(), tag.end());
  bench.from_bridge(tagged);
  CHECK(bench.alice.to_host()->frame == tagged);
  const Frame own = arp_request(kAlice, kAlicesIp, kAlicesIp);
  bench.from_alice(own);
  CHECK(bench.gate.to_host()->frame == own);
  CHECK(bench.alice.all_drops() == 0);
  CHECK(bench.gate.all_drops() == 0);
}

// --- Where it is received -----------------------------------------------------------------------

TEST_CASE("guard: a member that does not guard itself is not believed, by group or pair key") {
  Bench bench;
  bench.believe_alice();
  DropReason reason = DropReason::arp_spoof;
  Frame frame;
  SUBCASE("to all") {
    frame = arp_request(kAlice, kBobsIp, kBobsIp);
  }
  SUBCASE("to one") {
    frame = arp_reply(kAlice, kBobsIp, kPrinter, kFreeIp, kAlice);
  }
  SUBCASE("advertised") {
    frame = nd(kNodes, kAlice, neighbour(136, ipv6_of(0xb), link_option(2, kAlice)));
    reason = DropReason::nd_spoof;
  }
  SUBCASE("router") {
    frame = nd(kNodes, kAlice, router_advertisement(link_option(1, kAlice)));
    reason = DropReason::ra_guard;
  }
  SUBCASE("redirect to one") {
    frame = nd(kPrinter, kAlice, redirect({}));
    reason = DropReason::redirect_guard;
  }
  SUBCASE("lease") {
    frame = dhcp(MacAddress::broadcast(), kAlice);
    reason = DropReason::dhcp_guard;
  }
  bench.from_alice(frame);
  CHECK(bench.alice.all_drops() == 0);
  check_refused(bench.gate, reason);
  const auto told = event_of(bench.gate, WorkerEvent::Kind::kGuarded);
  REQUIRE(told);
  CHECK(told->peer == bench.gate.tables.peer("alice")->number);
  CHECK(told->reason == reason);
}

TEST_CASE("guard: a member may move an address between its own MAC addresses") {
  Bench bench;
  bench.alice.change([](PortSettings& one) { one.macs.push_back(kSpare); });
  bench.gate.tables.set_peer({"alice",
                              1001,
                              bench.alice.boot_public,
                              {kAlice, kSpare},
                              {loopback(bench.alice.udp_port)},
                              true},
                             boot_ms());
  const Frame moved = arp_request(kSpare, kAlicesIp, kAlicesIp);
  bench.from_alice(moved);
  const auto seen = bench.gate.to_host();
  REQUIRE(seen);
  CHECK(seen->frame == moved);
  const auto told = event_of(bench.alice, WorkerEvent::Kind::kClaim);
  REQUIRE(told);
  CHECK(told->mac == kSpare);
}

// --- Claims and reports -------------------------------------------------------------------------

TEST_CASE(
    "guard: what a host says of its addresses is told once, until it is bound and long after") {
  Bench bench;
  const auto claim = [&] { return event_of(bench.alice, WorkerEvent::Kind::kClaim); };
  bench.from_alice(arp_request(kAlice, kFreeIp, kFreeIp));
  const auto told = claim();
  REQUIRE(told);
  CHECK(told->ip == IpAddress::of_ipv4(kFreeIp));
  CHECK(told->mac == kAlice);
  bench.from_alice(arp_request(kAlice, kFreeIp, kFreeIp));
  CHECK_FALSE(claim());  // Within 2 s.
  bench.from_alice(arp_request(kAlice, kAlicesIp, kAlicesIp));
  CHECK_FALSE(claim());  // Bound, and told of when that was said.
  const IpAddress bound = IpAddress::of_ipv4(kAlicesIp);
  bench.alice.tables.binding(bound)->told_ms = boot_ms() - 300'001;
  bench.from_alice(arp_request(kAlice, kAlicesIp, kAlicesIp));
  REQUIRE(claim());
  bench.alice.tables.binding(bound)->told_ms = boot_ms() - 299'000;
  bench.from_alice(arp_request(kAlice, kAlicesIp, kAlicesIp));
  CHECK_FALSE(claim());

  bench.from_alice(
      nd(kNodes, kAlice, neighbour(135, ipv6_of(1), link_option(1, kAlice)), ipv6_of(0x77)));
  REQUIRE(claim());
  bench.from_alice(nd(kNodes, kAlice, neighbour(136, ipv6_of(0x78), link_option(2, kAlice))));
  REQUIRE(claim());
  // Neither a probe, nor a question from no address, nor a VLAN, nor a machine outside.
  bench.from_alice(arp_request(kAlice, 0, kFreeIp + 1));
  bench.from_alice(nd(kNodes, kAlice, neighbour(135, ipv6_of(0x79), {}), Frame(16)));
  Frame tagged = arp_request(kAlice, kFreeIp + 2, kFreeIp + 2);
  const Frame tag{0x81, 0, 0, 7};
  tagged.insert(tagged.begin() + 12, tag.begin(), tag.end());
  bench.from_alice(tagged);
  CHECK_FALSE(claim());
  bench.from_bridge(arp_request(kPrinter, kFreeIp, kFreeIp));
  CHECK_FALSE(event_of(bench.gate, WorkerEvent::Kind::kClaim));
}

TEST_CASE("guard: floods of claims and of refusals are counted, and a few are told") {
  Bench bench;
  for (std::uint32_t i = 0; i < 200; ++i) {
    bench.alice.from_host({}, arp_request(kAlice, kFreeIp + i, kFreeIp + i));
    bench.alice.from_host({}, arp_request(kAlice, kBobsIp, kFreeIp));
    bench.alice.pump_out();
  }
  std::size_t claims = 0;
  std::size_t guarded = 0;
  for (const WorkerEvent& event : bench.alice.events()) {
    claims += event.kind == WorkerEvent::Kind::kClaim ? 1 : 0;
    guarded += event.kind == WorkerEvent::Kind::kGuarded ? 1 : 0;
  }
  CHECK(claims >= 15);
  CHECK(claims <= 60);
  CHECK(bench.alice.out.counters.claims_over.load() >= 200 - claims);
  CHECK(guarded >= 4);
  CHECK(guarded <= 15);
  CHECK(bench.alice.drops(DropReason::arp_spoof) == 200);
}

// --- Answers ------------------------------------------------------------------------------------

TEST_CASE("guard: a question for a bound address is answered here and goes no further") {
  Bench bench;
  SUBCASE("at a member") {
    bench.from_alice(arp_request(kAlice, kAlicesIp, kBobsIp));
    const auto reply = bench.alice.to_host();
    REQUIRE(reply);
    CHECK(reply->frame == arp_reply(kBob, kBobsIp, kAlice, kAlicesIp, kBob));
    CHECK_FALSE(bench.gate.to_host());
    CHECK(bench.alice.out.counters.answered_arp == 1);
  }
  SUBCASE("at a plain port") {
    bench.from_bridge(arp_request(kPrinter, kFreeIp, kAlicesIp));
    const auto reply = bench.gate.to_host();
    REQUIRE(reply);
    CHECK(reply->frame == arp_reply(kAlice, kAlicesIp, kPrinter, kFreeIp, kAlice));
    CHECK_FALSE(bench.alice.to_host());
    CHECK(bench.gate.out.counters.answered_arp == 1);
  }
  SUBCASE("neighbour solicitation") {
    bench.from_alice(
        nd(kNodes, kAlice, neighbour(135, ipv6_of(0xb), link_option(1, kAlice)), ipv6_of(0xa)));
    const auto reply = bench.alice.to_host();
    REQUIRE(reply);
    Frame message = neighbour(136, ipv6_of(0xb), link_option(2, kBob));
    message[4] = 0x60;
    CHECK(reply->frame ==
          ethernet_frame(kAlice, kBob, 0x86dd,
                         ipv6_packet(ipv6_of(0xb), ipv6_of(0xa), 58, 255, {}, message)));
    CHECK_FALSE(bench.gate.to_host());
    CHECK(bench.alice.out.counters.answered_nd == 1);
  }
  SUBCASE("whether an address is still free") {
    bench.from_alice(arp_request(kAlice, 0, kBobsIp));
    CHECK(bench.alice.to_host()->frame == arp_reply(kBob, kBobsIp, kAlice, 0, kBob));
    bench.from_alice(nd(kNodes, kAlice, neighbour(135, ipv6_of(0xb), {}), Frame(16)));
    CHECK(bench.alice.to_host().has_value());
    CHECK_FALSE(bench.gate.to_host());
  }
  CHECK(bench.alice.all_drops() == 0);
  CHECK(bench.gate.all_drops() == 0);
}

TEST_CASE("guard: who is kept out of group traffic is answered here all the same") {
  Bench bench;
  bench.alice.change([](PortSettings& one) { one.rights |= kNoGroup; });
  bench.from_alice(arp_request(kAlice, kAlicesIp, kBobsIp));
  const auto reply = bench.alice.to_host();
  REQUIRE(reply);
  CHECK(reply->frame == arp_reply(kBob, kBobsIp, kAlice, kAlicesIp, kBob));
  CHECK(bench.alice.all_drops() == 0);
  // Others are not asked.
  bench.from_alice(arp_request(kAlice, kAlicesIp, kFreeIp));
  CHECK_FALSE(bench.gate.to_host());
  CHECK(bench.alice.drops(DropReason::not_in_group) == 1);
}

TEST_CASE("guard: questions that others have to answer") {
  Bench bench;
  const auto crosses = [&](const Frame& frame) {
    bench.from_alice(frame);
    const auto seen = bench.gate.to_host();
    return seen && seen->frame == frame && !bench.alice.to_host();
  };
  CHECK(crosses(arp_request(kAlice, kAlicesIp, kFreeIp)));    // Not bound.
  CHECK(crosses(arp_request(kAlice, kAlicesIp, kAlicesIp)));  // An announcement.
  Bench::bind(bench.alice, IpAddress::of_ipv4(kFreeIp), kPrinter);
  CHECK(crosses(arp_request(kAlice, kAlicesIp, kFreeIp, kPrinter)));  // Are you still there?
  bench.from_alice(arp_request(kAlice, kAlicesIp, kFreeIp));
  CHECK(bench.alice.to_host().has_value());
  bench.alice.change([](PortSettings& one) { one.answer = false; });
  CHECK(crosses(arp_request(kAlice, kAlicesIp, kBobsIp)));

  // At a plain port, about a machine there: the bridge must not learn it at the wrong port.
  Bench::bind(bench.gate, IpAddress::of_ipv4(kFreeIp), kPrinter);
  bench.gate.tables.set_behind(
      "gate", std::array{PortTables::BehindSetting{{0, kPrinter}, 0, true}}, boot_ms());
  bench.from_bridge(arp_request(kRogue, kFreeIp + 1, kFreeIp));
  CHECK_FALSE(bench.gate.to_host());
  // One that does not forward says nothing at all.
  bench.gate.tables.set_forwarding(false);
  bench.from_bridge(arp_request(kPrinter, kFreeIp, kAlicesIp));
  CHECK_FALSE(bench.gate.to_host());
  CHECK(bench.gate.drops(DropReason::plain_standby) == 1);
}

TEST_CASE("guard: answers say whether a neighbour is a router, and storm control comes first") {
  Bench bench;
  bench.gate.tables.peer("alice")->rights = kRightRouter;
  bench.from_bridge(nd(kNodes, kPrinter, neighbour(135, ipv6_of(0xa), link_option(1, kPrinter))));
  const auto reply = bench.gate.to_host();
  REQUIRE(reply);
  CHECK(reply->frame[14 + 40 + 4] == 0xe0);
  bench.gate.change([](PortSettings& one) { one.storm_frames = 2; });
  std::size_t answers = 0;
  for (int i = 0; i < 50; ++i) {
    bench.from_bridge(arp_request(kPrinter, kFreeIp, kAlicesIp));
    answers += bench.gate.to_host().has_value() ? 1 : 0;
  }
  CHECK(answers < 10);
  CHECK(bench.gate.drops(DropReason::storm) > 40);
}

TEST_CASE("guard: nothing is allocated for a frame") {
  Bench bench;
  const Frame spoof = arp_request(kRogue, kBobsIp, kBobsIp);
  const Frame honest = arp_request(kPrinter, kFreeIp, kAlicesIp);
  bench.from_bridge(honest);
  const std::uint64_t before = cpp_allocations;
  for (int i = 0; i < 20; ++i) {
    const Announcement what = read_announcement(i % 2 == 0 ? spoof : honest);
    static_cast<void>(refuse_announcement(bench.gate.tables, what, kRogue, nullptr));
    static_cast<void>(answer_from_here(bench.gate.tables, what, kRogue, 1));
  }
  CHECK(cpp_allocations == before);
}
