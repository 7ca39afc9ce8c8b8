// Frames through a plain port: a member (Alice), a plain gateway (Gate) with its bridge side, and
// what must never cross between them.
#include <doctest/doctest.h>

#include <set>

#include "core/plain-side.hpp"
#include "crypto/hmac.hpp"
#include "test/allocations.hpp"
#include "test/lab.hpp"

using namespace pairwire;
using namespace pairwire::test;

namespace {

constexpr MacAddress kAlice{std::array<std::uint8_t, 6>{0x02, 0, 0, 0, 0, 2}};
constexpr MacAddress kGate{std::array<std::uint8_t, 6>{0x02, 0, 0, 0, 0, 3}};
constexpr MacAddress kGone{std::array<std::uint8_t, 6>{0x02, 0, 0, 0, 0, 4}};  ///< a tombstone
constexpr MacAddress kPrinter{std::array<std::uint8_t, 6>{0x52, 0, 0, 0, 0, 1}};
constexpr MacAddress kRouter{std::array<std::uint8_t, 6>{0x52, 0, 0, 0, 0, 2}};

Frame frame_of(const MacAddress& to, const MacAddress& from, std::size_t payload = 40,
               std::uint16_t vlan = 0) {
  FrameSpec spec;
  spec.udp = true;
  spec.payload = Random(3).bytes(payload);
  if (vlan != 0) spec.tags = {0x8100'0000U | vlan};
  if (to.is_group()) spec.destination_port = 5353;
  Frame frame = make_frame(spec);
  std::ranges::copy(to.bytes(), frame.begin());
  std::ranges::copy(from.bytes(), frame.begin() + 6);
  if (to.is_group()) {
    std::fill_n(frame.begin() + (vlan == 0 ? 14 : 18) + 16, 4, 0xff);
    write_ip_checksum(frame, vlan == 0 ? 14 : 18, 20);
    write_checksum(frame, false);
  }
  return frame;
}

Node::Options node(PortKind kind, UniqueFd lan = {}) {
  Node::Options options;
  options.kind = kind;
  options.lan = std::move(lan);
  return options;
}

/// Alice inside, Gate with a plain side, all keys there, Gate forwards.
struct Bench {
  Node alice;
  Node gate;
  Random random{11};
  std::array<std::uint8_t, 32> key = random.array<32>();

  explicit Bench(UniqueFd one = {}, UniqueFd other = {})
      : alice("alice", kAlice, 1001, node(PortKind::kHost, std::move(one))),
        gate("gate", kGate, 1003, node(PortKind::kPlain, std::move(other))) {
    alice.know(gate);
    gate.know(alice);
    gate.tables.install_pair_key("alice", gate.boot, key, 1, true);
    alice.tables.install_pair_key("gate", alice.boot, key, 1, true);
    alice.tables.install_group_key(key, 1, true, boot_ms());
    gate.tables.install_group_key(key, 1, true, boot_ms());
    gate.tables.set_own(std::array{kAlice, kGate, kGone}, true, false);
    gate.tables.set_forwarding(true);
    behind(alice, "gate", kPrinter);
  }

  static void behind(Node& at, const std::string& member, const MacAddress& mac,
                     std::uint16_t vlan = 0, bool pinned = false) {
    at.tables.set_behind(member, std::array{PortTables::BehindSetting{{vlan, mac}, 0, pinned}},
                         boot_ms());
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
  void configure(std::function<void(PortSettings&)> change) {
    auto settings = gate.settings();
    change(*settings);
    gate.tables.set_settings(std::move(settings));
  }
  std::vector<LearnedReport> reports() {
    std::vector<LearnedReport> list;
    LearnedReport report;
    while (gate.out.plain->learned.take(report)) list.push_back(report);
    return list;
  }
  void look() {
    gate.out.plain->look = true;
    gate.pump_out();
  }
};

void check_dropped(Node& at, DropReason reason) {
  CHECK_MESSAGE(at.drops(reason) == 1, drop_reason_name(reason));
  CHECK(at.all_drops() == 1);
  CHECK_FALSE(at.to_host().has_value());
}

struct Lan {
  UniqueFd one;
  UniqueFd other;
  Lan() {
    int pair[2];
    REQUIRE(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) == 0);
    one = UniqueFd(pair[0]);
    other = UniqueFd(pair[1]);
  }
};

}  // namespace

TEST_CASE("plain path: a member and a machine outside talk, tagged or not, whole or in parts") {
  Bench bench;
  for (const std::size_t payload : {10U, 1400U, 3000U}) {
    for (const std::uint16_t vlan : {std::uint16_t{0}, std::uint16_t{7}}) {
      Bench::behind(bench.alice, "gate", kPrinter, vlan);
      const Frame out = frame_of(kPrinter, kAlice, payload, vlan);
      bench.from_alice(out);
      const auto printed = bench.gate.to_host();
      REQUIRE(printed);
      CHECK(printed->frame == out);
      const Frame in = frame_of(kAlice, kPrinter, payload, vlan);
      bench.from_bridge(in);
      const auto seen = bench.alice.to_host();
      REQUIRE(seen);
      CHECK(seen->frame == in);
    }
  }
  CHECK(bench.alice.all_drops() == 0);
  CHECK(bench.gate.all_drops() == 0);
}

TEST_CASE("plain path: a SYN from outside offers no more than crosses in one piece") {
  Bench bench;
  const auto syn = [](std::uint16_t offer) {
    FrameSpec spec;
    spec.flags = tcp_flag::kSyn;
    spec.tcp_options = {2, 4, static_cast<std::uint8_t>(offer >> 8),
                        static_cast<std::uint8_t>(offer)};
    Frame frame = make_frame(spec);
    std::ranges::copy(kAlice.bytes(), frame.begin());
    std::ranges::copy(kPrinter.bytes(), frame.begin() + 6);
    return frame;
  };
  bench.gate.tables.peer("alice")->max_frame = 1'452;
  const auto arrives = [&](const Frame& sent) {
    bench.from_bridge(sent);
    const auto seen = bench.alice.to_host();
    REQUIRE(seen);
    return seen->frame;
  };
  constexpr std::uint16_t kFits = 1'452 - kFrameOverhead - 54;
  CHECK(arrives(syn(1'460)) == syn(kFits));
  CHECK(arrives(syn(kFits)) == syn(kFits));
  CHECK(bench.gate.out.counters.mss_clamped == 1);
  // By a member itself the kernel sees to it, by the MTU of its TAP.
  Frame own = syn(1'460);
  std::ranges::copy(kPrinter.bytes(), own.begin());
  std::ranges::copy(kAlice.bytes(), own.begin() + 6);
  bench.alice.tables.peer("gate")->max_frame = 1'452;
  bench.from_alice(own);
  const auto printed = bench.gate.to_host();
  REQUIRE(printed);
  CHECK(printed->frame == own);
}

TEST_CASE("plain path: on an Ethernet outer addresses are those of the two members") {
  Lan lan;
  const int alices = lan.one.get();
  Bench bench(std::move(lan.one), std::move(lan.other));
  const Frame out = frame_of(kPrinter, kAlice, 200);
  bench.alice.from_host({}, out);
  bench.alice.pump_out();
  Frame wire(2000);
  const ssize_t got = recv(bench.gate.lan.get(), wire.data(), wire.size(), MSG_PEEK);
  REQUIRE(got > 60);
  CHECK(std::ranges::equal(std::span(wire).first<6>(), kGate.bytes()));
  CHECK(std::ranges::equal(std::span(wire).subspan<6, 6>(), kAlice.bytes()));
  bench.gate.pump_in();
  const auto printed = bench.gate.to_host();
  REQUIRE(printed);
  CHECK(printed->frame == out);

  const Frame in = frame_of(kAlice, kPrinter, 200);
  bench.gate.from_host({}, in);
  bench.gate.from_host({}, frame_of(MacAddress::broadcast(), kPrinter, 200));
  bench.gate.pump_out();
  for (const MacAddress& to : {kAlice, MacAddress::broadcast()}) {
    REQUIRE(recv(alices, wire.data(), 12, MSG_PEEK) == 12);
    CHECK(std::ranges::equal(std::span(wire).first<6>(), to.bytes()));
    CHECK(std::ranges::equal(std::span(wire).subspan<6, 6>(), kGate.bytes()));
    // Takes the first away.
    if (to == kAlice) {
      Frame whole(2000);
      const ssize_t size = recv(alices, whole.data(), whole.size(), 0);
      REQUIRE(size > 0);
      REQUIRE(::send(bench.gate.lan.get(), whole.data(), static_cast<std::size_t>(size), 0) ==
              size);
    }
  }
  bench.alice.pump_in();
  std::vector<std::string> seen;
  while (const auto packet = bench.alice.to_host()) seen.push_back(to_hex(packet->frame));
  CHECK(seen.size() == 2);
  CHECK(std::ranges::count(seen, to_hex(in)) == 1);
  CHECK(bench.alice.all_drops() == 0);
}

TEST_CASE("plain path: no unicast for a member's own address leaves a plain port (M9)") {
  Bench bench;
  // Alice thinks so, whoever told her: a hostile directory, or an address that changed hands.
  for (const MacAddress& mac : {kGone, kAlice, kGate}) {
    Bench fresh;
    if (mac == kAlice) continue;
    Bench::behind(fresh.alice, "gate", mac);
    fresh.from_alice(frame_of(mac, kAlice));
    check_dropped(fresh.gate, DropReason::plain_own_destination);
  }
  SUBCASE("nor anything before the list of these addresses is whole") {
    Node late("late", kGate, 1003, node(PortKind::kPlain));
    late.tables.set_forwarding(true);
    CHECK_FALSE(late.tables.plain_side_open());
  }
}

TEST_CASE("plain path: a host never sends to a plain port what is for a member, known or not") {
  Bench bench;
  bench.alice.tables.set_own(std::array{kGone}, false, false);
  Bench::behind(bench.alice, "gate", kGone);
  bench.from_alice(frame_of(kGone, kAlice));
  CHECK_FALSE(bench.gate.to_host().has_value());
  const auto events = bench.alice.events();
  REQUIRE(events.size() == 1);
  CHECK(events[0].kind == WorkerEvent::Kind::kMissMac);
  CHECK(bench.gate.in.counters.frames.load() == 0);
}

TEST_CASE("plain path: a member's own source from outside gets nothing through and is told of") {
  for (const MacAddress& mac : {kAlice, kGate, kGone}) {
    Bench bench;
    bench.from_bridge(frame_of(MacAddress::broadcast(), mac));
    check_dropped(bench.gate, DropReason::plain_spoof);
    const auto events = bench.gate.events();
    REQUIRE(events.size() == 1);
    CHECK(events[0].kind == WorkerEvent::Kind::kSpoof);
    CHECK(events[0].mac == mac);
    CHECK_FALSE(bench.alice.to_host().has_value());
    CHECK(bench.reports().empty());
    for (int i = 0; i < 50; ++i) bench.from_bridge(frame_of(kAlice, mac));
    CHECK(bench.gate.events().empty());  // One a second.
    CHECK(bench.gate.drops(DropReason::plain_spoof) == 51);
  }
}

TEST_CASE("plain path: a plain gateway that lets a member's source through is not believed") {
  Bench bench;
  bench.gate.tables.set_own({}, true, false);
  bench.gate.tables.remove_peer("alice");
  bench.gate.tables.set_peer(
      {"alice", 1001, bench.alice.boot_public, {kRouter}, {loopback(bench.alice.udp_port)}, true},
      boot_ms());
  bench.gate.tables.install_pair_key("alice", bench.gate.boot, bench.key, 1, true);
  bench.alice.tables.set_own(std::array{kGone}, false, false);
  for (const MacAddress& mac : {kAlice, kGone}) {
    bench.from_bridge(frame_of(MacAddress::broadcast(), mac));
    CHECK_FALSE(bench.alice.to_host().has_value());
  }
  CHECK(bench.alice.drops(DropReason::wrong_source_mac) == 2);
}

TEST_CASE("plain path: a member without the right to it can't speak for others") {
  Bench bench;
  bench.alice.tables.set_peer({"gate",
                               1003,
                               bench.gate.boot_public,
                               {kGate},
                               {loopback(bench.gate.udp_port)},
                               true,
                               false,
                               false},
                              boot_ms());
  bench.from_bridge(frame_of(kAlice, kPrinter));
  check_dropped(bench.alice, DropReason::wrong_source_mac);
}

TEST_CASE("plain path: what is for nobody in the subnet is not taken, and asked about seldom") {
  Bench bench;
  for (int i = 0; i < 30; ++i) bench.from_bridge(frame_of(kRouter, kPrinter, 40, 5));
  CHECK(bench.gate.drops(DropReason::plain_not_for_members) == 30);
  auto events = bench.gate.events();
  REQUIRE(events.size() == 1);
  CHECK(events[0].kind == WorkerEvent::Kind::kMissMac);
  CHECK(events[0].mac == kRouter);
  CHECK(events[0].vlan == 5);

  // A scan asks 20 times in a second, no more.
  for (unsigned i = 0; i < 200; ++i) {
    bench.from_bridge(frame_of(VlanMac::from_integer(0x5200'0000'1000 + i).mac, kPrinter));
  }
  const std::size_t asked = bench.gate.events().size();
  CHECK(asked < 25);
  CHECK(bench.gate.out.counters.unasked.load() == 200 - asked);
  SUBCASE("not at all, where it is known to be here") {
    Bench fresh;
    fresh.from_bridge(frame_of(MacAddress::broadcast(), kRouter));
    fresh.from_bridge(frame_of(kRouter, kPrinter));
    Bench::behind(fresh.gate, "gate", kGone);
    CHECK(fresh.gate.events().empty());
  }
  SUBCASE("nor is what is for the gateway itself") {
    Bench fresh;
    fresh.from_bridge(frame_of(kGate, kPrinter));
    check_dropped(fresh.gate, DropReason::plain_not_for_members);
    CHECK(fresh.gate.events().empty());
  }
}

TEST_CASE("plain path: a member's frame waits for its key, a stranger's does not") {
  Bench bench;
  bench.gate.tables.drop_key("alice", 1, 0, boot_ms());
  bench.from_bridge(frame_of(kAlice, kPrinter));
  CHECK(bench.gate.out.counters.held.load() == 1);
  CHECK(bench.gate.events().size() == 1);
  bench.gate.tables.install_pair_key("alice", bench.gate.boot, bench.key, 2, true);
  bench.alice.tables.install_pair_key("gate", bench.alice.boot, bench.key, 2, true);
  bench.gate.pump_out();
  bench.alice.pump_in();
  CHECK(bench.alice.to_host().has_value());
}

TEST_CASE("plain path: two bridges talk, and the same address in two VLANs is two machines") {
  Bench bench;
  Node north("north", kRouter, 1009, node(PortKind::kPlain));
  north.know(bench.gate);
  bench.gate.know(north);
  north.tables.install_pair_key("gate", north.boot, bench.key, 1, true);
  bench.gate.tables.install_pair_key("north", bench.gate.boot, bench.key, 1, true);
  north.tables.set_own(std::array{kAlice, kGate, kRouter}, true, false);
  north.tables.set_forwarding(true);
  const MacAddress far = VlanMac::from_integer(0x5200'0000'0099).mac;
  Bench::behind(bench.gate, "north", far, 10);
  bench.gate.from_host({}, frame_of(far, kPrinter, 40, 10));
  bench.gate.pump_out();
  north.pump_in();
  CHECK(north.to_host().has_value());
  bench.gate.from_host({}, frame_of(far, kPrinter, 40, 11));
  bench.gate.pump_out();
  north.pump_in();
  CHECK_FALSE(north.to_host().has_value());
  CHECK(bench.gate.drops(DropReason::plain_not_for_members) == 1);
}

TEST_CASE("plain path: which group frames of members leave is as configured") {
  Bench bench;
  const Frame broadcast = frame_of(MacAddress::broadcast(), kAlice);
  Frame arp(6, 0xff);
  append(arp, kAlice.bytes());
  append(arp, {0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1});
  append(arp, kAlice.bytes());
  arp.resize(60);
  Frame stp{0x01, 0x80, 0xc2, 0, 0, 0};
  append(stp, kAlice.bytes());
  append(stp, {0, 38});
  append(stp, Frame(44, 0x42));
  const auto leaves = [&](const Frame& frame) {
    bench.from_alice(frame);
    const auto packet = bench.gate.to_host();
    return packet.has_value();
  };
  CHECK(leaves(broadcast));
  CHECK(leaves(arp));
  CHECK_FALSE(leaves(stp));
  bench.configure([](PortSettings& one) {
    one.broadcast = BroadcastPolicy::kEssential;
    one.pass_stp = true;
  });
  CHECK_FALSE(leaves(broadcast));
  CHECK(leaves(arp));
  CHECK_FALSE(leaves(stp));
  bench.configure([](PortSettings& one) { one.broadcast = BroadcastPolicy::kNone; });
  CHECK_FALSE(leaves(arp));
  CHECK(bench.gate.drops(DropReason::plain_broadcast) == 3);
  bench.configure([](PortSettings& one) { one.pass_stp = true; });
  CHECK(leaves(stp));
}

TEST_CASE("plain path: a port that does not forward neither takes, emits nor knows anything") {
  Bench bench;
  bench.from_bridge(frame_of(MacAddress::broadcast(), kPrinter));
  REQUIRE(bench.alice.to_host().has_value());
  REQUIRE(bench.reports().size() == 1);
  bench.gate.tables.set_forwarding(false);
  bench.look();
  const auto gone = bench.reports();
  REQUIRE(gone.size() == 1);
  CHECK(gone[0].gone);
  CHECK(VlanMac::from_integer(gone[0].address) == VlanMac{0, kPrinter});
  for (const MacAddress& to : {MacAddress::broadcast(), kAlice}) {
    bench.from_bridge(frame_of(to, kPrinter));
    CHECK_FALSE(bench.alice.to_host().has_value());
  }
  for (const MacAddress& to : {MacAddress::broadcast(), kPrinter}) {
    bench.from_alice(frame_of(to, kAlice));
    CHECK_FALSE(bench.gate.to_host().has_value());
  }
  CHECK(bench.gate.drops(DropReason::plain_standby) == 4);
  CHECK(bench.reports().empty());
}

TEST_CASE("plain path: learned addresses are told once, again in time, and when they are gone") {
  Bench bench;
  bench.configure([](PortSettings& one) { one.learn_ms = 60; });
  for (int i = 0; i < 5; ++i) bench.from_bridge(frame_of(kAlice, kPrinter, 40, 3));
  auto reports = bench.reports();
  REQUIRE(reports.size() == 1);
  CHECK(VlanMac::from_integer(reports[0].address) == VlanMac{3, kPrinter});
  bench.look();
  CHECK(bench.reports().empty());
  bench.gate.out.plain->retell = true;
  bench.look();
  CHECK(bench.reports().size() == 1);
  std::this_thread::sleep_for(std::chrono::milliseconds(70));
  bench.look();
  reports = bench.reports();
  REQUIRE(reports.size() == 1);
  CHECK(reports[0].gone);
}

TEST_CASE("limits: a report of learned addresses has so many, and the next one the rest") {
  Bench bench;
  std::vector<std::size_t> reports;
  std::set<std::uint64_t> told;
  PlainSide side(
      bench.gate.tables, bench.gate.clock,
      {.learned =
           [&](std::span<const PlainSide::Learned> list) {
             reports.push_back(list.size());
             for (const auto& one : list) told.insert(one.address.to_integer());
           },
       .unlearned = [&](std::span<const VlanMac> list) { reports.push_back(list.size()); },
       .loop = [](LoopPhase, std::string_view) {}});
  const auto learn = [&](std::uint64_t first, std::uint64_t count, bool gone) {
    for (std::uint64_t i = first; i < first + count; ++i) {
      REQUIRE(bench.gate.out.plain->learned.put({0x5200'0000'1000 + i, 1, gone}));
    }
  };
  // Long after the last one, so that nothing waits for more.
  std::uint64_t now = boot_ms() + 60'000;
  learn(0, PlainSide::kMaxReported, false);
  side.take(*bench.gate.out.plain, now);
  CHECK(reports == std::vector<std::size_t>{PlainSide::kMaxReported});
  now += 60'000;
  learn(1'000, PlainSide::kMaxReported + 1, false);
  side.take(*bench.gate.out.plain, now);
  now += 60'000;
  side.take(*bench.gate.out.plain, now);
  CHECK(reports == std::vector<std::size_t>{256, 256, 1});
  CHECK(told.size() == 513);
  learn(1'000, PlainSide::kMaxReported + 1, true);
  side.take(*bench.gate.out.plain, now);
  now += 60'000;
  side.take(*bench.gate.out.plain, now);
  CHECK(reports == std::vector<std::size_t>{256, 256, 1, 256, 1});
}

TEST_CASE("plain path: a machine that has moved here is told of although it was known") {
  Bench bench;
  bench.from_bridge(frame_of(kAlice, kPrinter));
  CHECK(bench.reports().size() == 1);
  Bench::behind(bench.gate, "alice", kPrinter);
  std::this_thread::sleep_for(std::chrono::milliseconds(510));
  bench.from_bridge(frame_of(kAlice, kPrinter));
  CHECK(bench.reports().size() == 1);
}

TEST_CASE("limits: a flood of made-up sources costs nothing and harms nobody who is known") {
  Bench bench;
  bench.from_bridge(frame_of(kAlice, kPrinter));
  REQUIRE(bench.alice.to_host().has_value());
  Frame frame = frame_of(kRouter, kPrinter);
  const std::uint64_t before = cpp_allocations.load();
  for (std::uint32_t i = 0; i < 100'000; ++i) {
    store_be<std::uint32_t>(std::span(frame).subspan<8, 4>(), i);
    Frame& packet = frame;
    std::array<std::uint8_t, 200> bytes{};
    std::ranges::copy(packet, bytes.begin() + kVnetHeaderSize);
    REQUIRE(write(bench.gate.tap_far.get(), bytes.data(), kVnetHeaderSize + packet.size()) > 0);
    if (i % 50 == 0) bench.gate.pump_out();
  }
  bench.gate.pump_out();
  CHECK(cpp_allocations.load() == before);
  CHECK(bench.gate.out.plain->learned_now.load() <= LearnedTable::kMaxLearned);
  CHECK(bench.gate.out.plain->learn_full.load() > 90'000);
  // What could not be told at once is told later: nothing is lost.
  std::set<std::uint64_t> told;
  for (int i = 0; i < 5; ++i) {
    for (const LearnedReport& report : bench.reports()) told.insert(report.address);
    bench.look();
  }
  CHECK(told.size() == LearnedTable::kMaxLearned);
  CHECK(told.contains(VlanMac{0, kPrinter}.to_integer()));
  bench.from_bridge(frame_of(kAlice, kPrinter));
  CHECK(bench.alice.to_host().has_value());
}

// --- Probes -------------------------------------------------------------------------------------

namespace {

/// The control thread's part of a plain port on a wire.
struct Wired {
  explicit Wired(const std::string& id, std::uint32_t number)
      : port(id, VlanMac::from_integer(0x0200'0000'0000 + number).mac, number,
             node(PortKind::kPlain)),
        side(port.tables, port.clock,
             {.learned = [](auto) {},
              .unlearned = [](auto) {},
              .loop =
                  [this](LoopPhase phase, std::string_view other) {
                    told = std::string(loop_phase_name(phase)) + " " + std::string(other);
                  }}) {
    side.set_tap(port.tap.get());
    port.tables.set_own({}, true, false);
  }
  /// What it has written to its TAP.
  std::vector<Frame> sent() {
    std::vector<Frame> frames;
    while (const auto packet = port.to_host()) frames.push_back(packet->frame);
    return frames;
  }
  void hear(const Frame& frame, std::uint64_t now) {
    port.from_host({}, frame);
    port.pump_out();
    side.take(*port.out.plain, now);
  }
  Node port;
  PlainSide side;
  std::string told;
};

constexpr std::array<std::uint8_t, 32> kProbeKey{1, 2, 3};

}  // namespace

TEST_CASE("loop probes: the lowest id of a wire forwards, another wire's ports don't care") {
  Wired a("a", 11);
  Wired b("b", 12);
  std::uint64_t now = boot_ms();
  a.side.run(now);
  CHECK(a.sent().empty());  // Without a key there is nothing to be found.
  CHECK(a.told == "standby ");
  a.side.set_key(kProbeKey, 1);
  b.side.set_key(kProbeKey, 1);
  for (int second = 0; second < 4; ++second, now += 1000) {
    a.side.run(now);
    b.side.run(now);
    for (const Frame& frame : a.sent()) b.hear(frame, now);
    for (const Frame& frame : b.sent()) a.hear(frame, now);
  }
  CHECK(a.told == "forward ");
  CHECK(b.told == "standby a");
  CHECK(a.port.tables.plain_side_open());
  CHECK_FALSE(b.port.tables.plain_side_open());
  // The first dies.
  for (int i = 0; i < 4; ++i, now += 1000) b.side.run(now);
  CHECK(b.told == "forward ");
}

TEST_CASE("loop probes: who hears itself is blocked; a probe of another key or time is nothing") {
  Wired a("a", 11);
  Wired b("b", 12);
  std::uint64_t now = boot_ms();
  a.side.set_key(kProbeKey, 1);
  a.side.run(now);
  const auto probes = a.sent();
  REQUIRE(probes.size() == 1);
  SUBCASE("another subnet's") {
    b.side.set_key(std::array<std::uint8_t, 32>{9}, 1);
    b.side.run(now);
    b.hear(probes[0], now);
    CHECK(b.side.counters().probes_refused == 1);
    CHECK(b.side.counters().probes_heard == 0);
  }
  SUBCASE("forged") {
    b.side.set_key(kProbeKey, 1);
    for (std::size_t byte = 14; byte < 14 + 26 + 16; ++byte) {
      Frame forged = probes[0];
      forged[byte] ^= 1;
      b.hear(forged, now);
    }
    CHECK(b.side.counters().probes_heard == 0);
  }
  SUBCASE("old") {
    b.side.set_key(kProbeKey, 1);
    b.port.set_clock(31'000);
    b.hear(probes[0], now);
    CHECK(b.side.counters().probes_heard == 0);
  }
  SUBCASE("under the key before") {
    b.side.set_key(kProbeKey, 1);
    b.side.set_key(std::array<std::uint8_t, 32>{9}, 2);
    b.hear(probes[0], now);
    CHECK(b.side.counters().probes_heard == 1);
  }
  SUBCASE("its own") {
    now += 3000;
    a.side.run(now);
    CHECK(a.told == "forward ");
    a.hear(probes[0], now);
    CHECK(a.told == "blocked ");
    CHECK_FALSE(a.port.tables.plain_side_open());
  }
  SUBCASE("its own, with the tag of a bridge on the way") {
    now += 3000;
    a.side.run(now);
    Frame tagged = probes[0];
    tagged.insert(tagged.begin() + 12, {0x81, 0x00, 0x00, 0x05});
    a.hear(tagged, now);
    CHECK(a.told == "blocked ");
  }
  SUBCASE("under a key that somebody who was revoked knows") {
    b.side.set_key(kProbeKey, 1);
    b.side.set_key(std::array<std::uint8_t, 32>{9}, 2);
    b.side.forget_keys_up_to(1);
    b.hear(probes[0], now);
    CHECK(b.side.counters().probes_heard == 0);
  }
  SUBCASE("none leaves for a plain side that a member made") {
    Bench bench;
    bench.from_alice(frame_of(kLoopProbeDestination, kAlice));
    REQUIRE(bench.gate.to_host().has_value());
    Frame made = probes[0];
    std::ranges::copy(kAlice.bytes(), made.begin() + 6);
    bench.from_alice(made);
    check_dropped(bench.gate, DropReason::plain_reserved);
  }
  SUBCASE("none is ever sealed or learned") {
    Bench bench;
    bench.from_bridge(probes[0]);
    CHECK_FALSE(bench.alice.to_host().has_value());
    CHECK(bench.reports().empty());
    CHECK(bench.gate.all_drops() == 0);
  }
}

TEST_CASE("plain side: who begins to forward shows by which port members are reached") {
  Wired a("a", 11);
  std::vector<MacAddress> own;
  for (std::uint64_t i = 0; i < Announcer::kBurst + 10; ++i) {
    own.push_back(VlanMac::from_integer(0x0200'0000'1000 + i).mac);
  }
  a.port.tables.set_own(own, true, false);
  a.side.set_key(kProbeKey, 1);
  const auto announced = [&](std::uint64_t now) {
    a.side.run(now);
    std::set<std::uint64_t> sources;
    for (const Frame& frame : a.sent()) {
      if (load_be<std::uint16_t>(std::span(frame).subspan<12, 2>()) != 0x8035) continue;
      CHECK(frame.size() == 60);
      CHECK(to_hex(ConstBytes(frame).first(6)) == "ffffffffffff");
      const ConstBytes source = ConstBytes(frame).subspan(6, 6);
      CHECK(std::ranges::equal(source, ConstBytes(frame).subspan(22, 6)));
      sources.insert(MacAddress(source.first<6>()).to_integer());
    }
    return sources;
  };
  const std::uint64_t now = boot_ms();
  CHECK(announced(now).empty());
  auto all = announced(now + 3000);
  CHECK(all.size() == Announcer::kBurst);
  CHECK(announced(now + 3000 + 1).empty());  // Not all at once.
  all.merge(announced(now + 3000 + Announcer::kPauseMs));
  std::set<std::uint64_t> wanted;
  for (const MacAddress& mac : own) wanted.insert(mac.to_integer());
  CHECK(all == wanted);
  CHECK(announced(now + 3100).empty());
  CHECK(a.side.announced() == own.size());
}

TEST_CASE("limits: a flood of probes is not looked at") {
  Bench bench;
  Frame probe(kLoopProbeSize, 0x11);
  std::ranges::copy(kLoopProbeDestination.bytes(), probe.begin());
  store_be<std::uint16_t>(std::span(probe).subspan<12, 2>(), kLoopProbeEtherType);
  for (int i = 0; i < 500; ++i) {
    bench.gate.from_host({}, probe);
    if (i % 50 == 0) bench.gate.pump_out();
  }
  bench.gate.pump_out();
  CHECK(bench.gate.out.plain->probes_over.load() > 200);
}
