// The parts of plain ports by themselves: addresses with VLANs, what is a member's own, what is
// behind whom, what was learned, loop probes and who forwards, which group frames are essential.
#include <doctest/doctest.h>

#include <map>
#include <set>

#include "core/learned-table.hpp"
#include "core/loop-state.hpp"
#include "core/tables.hpp"
#include "l2/essential-group.hpp"
#include "l2/loop-probe.hpp"
#include "test/l2-frames.hpp"
#include "test/support.hpp"

using namespace pairwire;
using namespace pairwire::test;

namespace {

MacAddress mac_of(std::uint64_t number) {
  return VlanMac::from_integer(0x0200'0000'0000 | number).mac;
}
VlanMac at(std::uint16_t vlan, std::uint64_t number) {
  return {vlan, mac_of(number)};
}

/// Tables of the member "me", with peers whose keys nobody needs here.
struct Bench {
  Bench() {
    auto settings = std::make_unique<PortSettings>();
    settings->subnet = "lab";
    settings->member = "me";
    settings->macs = {mac_of(1)};
    tables.set_settings(std::move(settings));
  }
  Peer& know(const std::string& id, std::uint32_t number, bool plain) {
    const std::array<std::uint8_t, kX25519Size> boot{9};
    return tables.set_peer({id, number, boot, {mac_of(number)}, {}, true, false, plain}, kNow);
  }
  void behind(const std::string& member, const VlanMac& address, std::uint32_t ms = 0,
              bool pinned = false) {
    tables.set_behind(member, std::array{PortTables::BehindSetting{address, ms, pinned}}, kNow);
  }
  void own(std::vector<MacAddress> macs, bool reset, bool more = false) {
    tables.set_own(macs, reset, more);
  }
  static constexpr std::uint64_t kNow = 1'000'000;
  PortTables tables;
};

std::vector<std::uint8_t> probe_bytes(std::string_view id, std::size_t padding = 0) {
  std::array<std::uint8_t, kLoopProbeSize> frame{};
  const auto written = write_loop_probe({1, 1'800'000'000'123, 42, id}, mac_of(7), frame);
  REQUIRE(written);
  std::ranges::fill(written->mac, 0xaa);
  std::vector<std::uint8_t> bytes(frame.begin(),
                                  frame.begin() + static_cast<std::ptrdiff_t>(written->size));
  append(bytes, Frame(padding, 0));
  return bytes;
}

}  // namespace

TEST_CASE("plain: an address in a VLAN is a number and back") {
  for (const VlanMac& one : {at(0, 5), at(1, 5), at(4094, 0xffffff)}) {
    CHECK(VlanMac::from_integer(one.to_integer()) == one);
  }
  CHECK(at(0, 5).to_integer() == mac_of(5).to_integer());
  FrameSpec spec;
  CHECK(outer_vlan(make_frame(spec)) == 0);
  spec.tags = {0x8100'0000 | 0xe00a};  // Priority 7, VLAN 10.
  CHECK(outer_vlan(make_frame(spec)) == 10);
  spec.tags = {0x88a8'0014, 0x8100'000a};
  CHECK(outer_vlan(make_frame(spec)) == 20);
}

// --- Own addresses ------------------------------------------------------------------------------

TEST_CASE("plain: a list of own addresses replaces the one before only when it has ended") {
  Bench bench;
  const auto complete = [&] {
    bench.tables.set_forwarding(true);
    return bench.tables.plain_side_open();
  };
  CHECK_FALSE(complete());
  bench.own({mac_of(10)}, false);
  CHECK_FALSE(complete());  // An address more is no list.
  bench.own({mac_of(11)}, true, true);
  CHECK_FALSE(complete());
  bench.own({mac_of(12)}, false, false);
  CHECK(complete());
  CHECK_FALSE(bench.tables.is_own(mac_of(10)));
  CHECK(bench.tables.is_own(mac_of(11)));
  CHECK(bench.tables.is_own(mac_of(12)));

  bench.own({mac_of(13)}, true, true);
  CHECK(bench.tables.is_own(mac_of(11)));  // Never nobody's in between.
  CHECK(complete());
  bench.own({mac_of(12)}, false, false);
  CHECK_FALSE(bench.tables.is_own(mac_of(11)));
  CHECK(bench.tables.is_own(mac_of(12)));
  CHECK(bench.tables.is_own(mac_of(13)));
  bench.tables.remove_own(std::array{mac_of(13)});
  CHECK_FALSE(bench.tables.is_own(mac_of(13)));
}

TEST_CASE("limits: more own addresses than fit close a plain port until there is a whole list") {
  Bench bench;
  std::vector<MacAddress> many;
  for (std::size_t i = 0; i < OwnAddresses::kMaxOwn; ++i) many.push_back(mac_of(100 + i));
  bench.tables.set_own(many, true, false);
  bench.tables.set_forwarding(true);
  CHECK(bench.tables.plain_side_open());
  CHECK_THROWS_AS(bench.own({mac_of(1'000'000)}, false), CommandError);
  CHECK_FALSE(bench.tables.plain_side_open());
  bench.own({mac_of(100)}, true, false);
  CHECK(bench.tables.plain_side_open());
  CHECK(bench.tables.own_count() == 1);
}

// --- Behind -------------------------------------------------------------------------------------

TEST_CASE("plain: an address behind a member is routed to it, but a member's own goes before") {
  Bench bench;
  bench.behind("gate", at(0, 50));
  CHECK(bench.tables.route(at(0, 50), Bench::kNow) == nullptr);  // Nobody knows it yet.
  Peer& gate = bench.know("gate", 20, true);
  CHECK(bench.tables.route(at(0, 50), Bench::kNow) == &gate);
  CHECK(bench.tables.route(at(7, 50), Bench::kNow) == nullptr);  // Another VLAN.
  bench.own({mac_of(50)}, false);
  CHECK(bench.tables.route(at(0, 50), Bench::kNow) == nullptr);  // A tombstone.
  Peer& host = bench.know("host", 50, false);
  CHECK(bench.tables.route(at(0, 50), Bench::kNow) == &host);
  bench.tables.remove_peer("gate");
  bench.behind("gate", at(0, 51));
  CHECK(bench.tables.route(at(0, 51), Bench::kNow) == nullptr);
}

TEST_CASE("plain: who has no right to it has nobody behind it") {
  Bench bench;
  bench.know("host", 20, false);
  bench.behind("host", at(0, 50));
  CHECK(bench.tables.route(at(0, 50), Bench::kNow) == nullptr);
}

TEST_CASE("plain: an address goes where it was set last, and ends in time") {
  Bench bench;
  Peer& one = bench.know("one", 20, true);
  Peer& two = bench.know("two", 21, true);
  bench.behind("one", at(0, 50), 500);
  CHECK(bench.tables.route(at(0, 50), Bench::kNow + 499) == &one);
  CHECK(bench.tables.route(at(0, 50), Bench::kNow + 500) == nullptr);
  bench.behind("two", at(0, 50));
  CHECK(bench.tables.route(at(0, 50), Bench::kNow + 500) == &two);
  CHECK(bench.tables.behind_count() == 1);
  bench.tables.forget_behind(std::array{at(0, 50)});
  CHECK(bench.tables.route(at(0, 50), Bench::kNow) == nullptr);
  bench.behind("two", at(0, 50), 500);
  bench.tables.run_timers(Bench::kNow + 20'000);
  CHECK(bench.tables.behind_count() == 0);
}

TEST_CASE("limits: of more addresses behind others than fit the oldest goes, a pinned one last") {
  Bench bench;
  Peer& gate = bench.know("gate", 20, true);
  bench.behind("gate", at(0, 100), 0, true);
  for (std::uint64_t i = 1; i < BehindTable::kMaxBehind; ++i) bench.behind("gate", at(0, 100 + i));
  CHECK(bench.tables.behind_evicted() == 0);
  bench.behind("gate", at(9, 100));
  CHECK(bench.tables.behind_count() == BehindTable::kMaxBehind);
  CHECK(bench.tables.behind_evicted() == 1);
  CHECK(bench.tables.route(at(0, 100), Bench::kNow) == &gate);
  CHECK(bench.tables.route(at(0, 101), Bench::kNow) == nullptr);
  CHECK(bench.tables.route(at(0, 102), Bench::kNow) == &gate);
  CHECK(bench.tables.route(at(9, 100), Bench::kNow) == &gate);
}

TEST_CASE("plain: who may send from a source that is not its own") {
  Bench bench;
  Peer& host = bench.know("host", 20, false);
  Peer& one = bench.know("one", 21, true);
  Peer& two = bench.know("two", 22, true);
  bench.own({mac_of(60)}, false);
  bench.behind("one", at(0, 50), 0, true);
  const auto refusal = [&](const Peer& peer, const VlanMac& source) {
    return refuse_foreign_source(bench.tables, peer, source, Bench::kNow);
  };
  CHECK(refusal(host, at(0, 51)) == DropReason::wrong_source_mac);
  CHECK_FALSE(refusal(one, at(0, 51)));
  CHECK(refusal(one, at(0, 60)) == DropReason::wrong_source_mac);  // A tombstone.
  CHECK(refusal(one, at(0, 20)) == DropReason::wrong_source_mac);  // Another member's.
  CHECK(refusal(one, at(5, 20)) == DropReason::wrong_source_mac);  // In whatever VLAN.
  CHECK(refusal(one, at(0, 1)) == DropReason::wrong_source_mac);   // Ours.
  CHECK_FALSE(refusal(one, at(0, 50)));
  CHECK(refusal(two, at(0, 50)) == DropReason::pinned_elsewhere);
  CHECK_FALSE(refusal(two, at(1, 50)));
  CHECK(refusal(two, {0, MacAddress::broadcast()}) == DropReason::wrong_source_mac);
}

// --- Learned ------------------------------------------------------------------------------------

TEST_CASE("limits: a table of learned addresses that is full keeps what it has") {
  LearnedTable table(7);
  for (std::uint64_t i = 0; i < LearnedTable::kMaxLearned; ++i) {
    REQUIRE(table.see(at(0, i), 1) != nullptr);
  }
  for (std::uint64_t i = 0; i < 100'000; ++i) REQUIRE(table.see(at(3, i), 2) == nullptr);
  CHECK(table.size() == LearnedTable::kMaxLearned);
  for (std::uint64_t i = 0; i < LearnedTable::kMaxLearned; ++i) {
    REQUIRE(table.contains(at(0, i)));
  }
}

TEST_CASE("plain: what was learned is what a map says, whatever comes and goes") {
  LearnedTable table(99);
  std::map<std::uint64_t, std::uint64_t> model;
  Random random(5);
  for (std::uint64_t now = 1; now < 40; ++now) {
    for (int i = 0; i < 400; ++i) {
      const auto bytes = random.array<4>();
      const VlanMac address =
          at(bytes[0] % 3, load_be<std::uint32_t>(std::span<const std::uint8_t, 4>(bytes)) % 6000);
      REQUIRE(table.see(address, now) != nullptr);
      model[address.to_integer()] = now;
    }
    // What the sweep misses over the edge, the next one finds.
    for (int i = 0; i < 3; ++i) {
      table.sweep([&](const VlanMac&, const LearnedTable::Entry& entry) {
        return now - entry.seen_ms < 5;
      });
    }
    std::erase_if(model, [&](const auto& one) { return now - one.second >= 5; });
    REQUIRE(table.size() == model.size());
    for (const auto& [address, seen] : model) {
      REQUIRE(table.contains(VlanMac::from_integer(address)));
    }
  }
}

// --- Loop probes --------------------------------------------------------------------------------

TEST_CASE("loop probe: is read as it was written, padded or not") {
  for (const std::string_view id : {std::string_view("a"), std::string_view("gateway-north")}) {
    for (const std::size_t padding : {0U, 20U}) {
      const auto bytes = probe_bytes(id, padding);
      const auto received = parse_loop_probe(bytes);
      REQUIRE(received);
      CHECK(received->probe.id == id);
      CHECK(received->probe.state == 1);
      CHECK(received->probe.time_ms == 1'800'000'000'123);
      CHECK(received->probe.nonce == 42);
      CHECK(received->authenticated.size() == kLoopProbeHeadSize + id.size());
      CHECK(received->mac[15] == 0xaa);
    }
  }
  CHECK(to_hex(ConstBytes(probe_bytes("a")).first(39)) ==
        "035057000001"
        "020000000007"
        "88b6"
        "50574c50"
        "01"
        "01"
        "0000"
        "000001a3185c507b"
        "000000000000002a"
        "01");
}

TEST_CASE("loop probe: what is cut short or not as specified is none") {
  const auto good = probe_bytes("gate");
  for (std::size_t size = 0; size < good.size(); ++size) {
    CHECK_FALSE(parse_loop_probe(ConstBytes(good).first(size)));
  }
  // Address, EtherType, magic, version, both zeros, length.
  for (const std::size_t byte : {0U, 5U, 12U, 13U, 14U, 17U, 18U, 20U, 21U}) {
    auto bad = good;
    bad[byte] ^= 0x40;
    CHECK_FALSE(parse_loop_probe(bad));
  }
  auto empty = good;
  empty[38] = 0;
  CHECK_FALSE(parse_loop_probe(empty));
  std::array<std::uint8_t, kLoopProbeSize> out{};
  CHECK_FALSE(write_loop_probe({1, 1, 1, ""}, mac_of(1), out));
  CHECK_FALSE(write_loop_probe({1, 1, 1, std::string(64, 'x')}, mac_of(1), out));
  const auto longest = write_loop_probe({1, 1, 1, std::string(63, 'x')}, mac_of(1), out);
  REQUIRE(longest);
  CHECK(longest->size == kLoopProbeSize);
}

TEST_CASE("loop state: listens first, gives way to a lower id, takes over when that is silent") {
  LoopState state("m");
  CHECK(state.phase(0) == LoopPhase::kStandby);
  state.set_able(true, 1000);
  CHECK(state.phase(3199) == LoopPhase::kStandby);
  CHECK(state.other(3199).empty());
  CHECK(state.phase(3200) == LoopPhase::kForward);
  state.heard("z", 1, 3300);
  CHECK(state.phase(3300) == LoopPhase::kForward);
  state.heard("c", 2, 4000);
  state.heard("k", 3, 4500);
  CHECK(state.phase(4500) == LoopPhase::kStandby);
  CHECK(state.other(4500) == "c");
  state.heard("k", 4, 7400);  // The lowest is gone, another is there.
  CHECK(state.phase(7600) == LoopPhase::kStandby);
  CHECK(state.other(7600) == "c");
  state.heard("k", 5, 8400);
  CHECK(state.other(8400) == "k");
  CHECK(state.phase(8400 + 3499) == LoopPhase::kStandby);
  CHECK(state.phase(8400 + 3500) == LoopPhase::kForward);
}

TEST_CASE("loop state: who hears itself is blocked for 30 s from the last time") {
  LoopState state("m");
  state.set_able(true, 0);
  state.sent(77);
  state.heard("m", 78, 5000);  // None of ours: of a former start.
  CHECK(state.phase(5000) == LoopPhase::kForward);
  state.heard("m", 77, 5000);
  CHECK(state.phase(5000) == LoopPhase::kBlocked);
  state.heard("m", 77, 6000);
  CHECK(state.phase(35'999) == LoopPhase::kBlocked);
  CHECK(state.phase(36'000) == LoopPhase::kForward);
}

TEST_CASE("loop state: without a way to find loops it forwards nothing, and listens anew later") {
  LoopState state("m");
  state.set_able(true, 0);
  CHECK(state.phase(5000) == LoopPhase::kForward);
  state.set_able(false, 6000);
  CHECK(state.phase(6000) == LoopPhase::kStandby);
  state.set_able(true, 7000);
  CHECK(state.phase(7000) == LoopPhase::kStandby);
  CHECK(state.phase(9200) == LoopPhase::kForward);
}

// --- Essential group frames ---------------------------------------------------------------------

TEST_CASE("plain: essential are ARP, neighbour discovery and DHCP of both families, no more") {
  Frame arp(6, 0xff);
  append(arp, {2, 0, 0, 0, 0, 2, 0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1});
  append(arp, Frame(38, 0));
  CHECK(is_essential_group(arp));
  Frame tagged = arp;
  const Frame tag{0x81, 0, 0, 9};
  tagged.insert(tagged.begin() + 12, tag.begin(), tag.end());
  CHECK(is_essential_group(tagged));
  arp.erase(arp.begin() + 30, arp.end());
  CHECK_FALSE(is_essential_group(arp));

  const auto udp = [](int version, unsigned source, unsigned destination) {
    FrameSpec spec;
    spec.destination = Frame(6, 0xff);
    spec.ip_version = version;
    spec.udp = true;
    spec.source_port = source;
    spec.destination_port = destination;
    spec.payload = Frame(20, 1);
    return make_frame(spec);
  };
  CHECK(is_essential_group(udp(4, 68, 67)));
  CHECK(is_essential_group(udp(4, 67, 68)));
  CHECK(is_essential_group(udp(6, 546, 547)));
  CHECK_FALSE(is_essential_group(udp(4, 5353, 5353)));
  CHECK_FALSE(is_essential_group(udp(4, 68, 5353)));
  CHECK_FALSE(is_essential_group(udp(6, 67, 68)));

  const auto icmp6 = [](unsigned type, unsigned hop_limit) {
    Frame frame{0x33, 0x33, 0, 0, 0, 1};
    append(frame, {2, 0, 0, 0, 0, 2, 0x86, 0xdd, 0x60, 0, 0, 0, 0, 24, 58, hop_limit});
    append(frame, Frame(32, 0xfe));
    append(frame, {type, 0, 0, 0});
    append(frame, Frame(20, 0));
    return frame;
  };
  for (const unsigned type : {133U, 134U, 135U, 136U, 137U}) {
    CHECK(is_essential_group(icmp6(type, 255)));
    CHECK_FALSE(is_essential_group(icmp6(type, 64)));  // Came from elsewhere: RFC 4861, 7.1.
  }
  CHECK_FALSE(is_essential_group(icmp6(128, 255)));
  CHECK_FALSE(is_essential_group(icmp6(143, 255)));
}

TEST_CASE("plain: of the addresses that bridges keep, spanning tree alone may pass") {
  const auto reserved = [](std::uint64_t last) {
    return VlanMac::from_integer(0x0180'c200'0000 + last).mac;
  };
  CHECK(is_kept_by_bridges(reserved(0), false));
  CHECK_FALSE(is_kept_by_bridges(reserved(0), true));
  for (std::uint64_t i = 1; i <= 0x0f; ++i) CHECK(is_kept_by_bridges(reserved(i), true));
  CHECK_FALSE(is_kept_by_bridges(reserved(0x10), false));
  CHECK_FALSE(is_kept_by_bridges(MacAddress::broadcast(), false));
}
