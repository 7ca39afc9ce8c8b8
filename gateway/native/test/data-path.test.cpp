// Frames from TAP to TAP through two data planes (test/lab.hpp), and every refusal of
// docs/protocol.md section 4 under its own counter.
#include <doctest/doctest.h>

#include <atomic>
#include <set>
#include <thread>
#include <tuple>

#include "l2/offload.hpp"
#include "test/allocations.hpp"
#include "test/lab.hpp"

using namespace pairwire;
using namespace pairwire::test;

namespace {

Frame tcp_frame(std::size_t payload, std::uint64_t seed = 1) {
  FrameSpec spec;
  spec.payload = Random(seed).bytes(payload);
  return make_frame(spec);
}

Frame group_frame(const Frame& ip_destination = {}) {
  FrameSpec spec;
  spec.udp = true;
  spec.destination = Frame(6, 0xff);
  spec.payload = Frame(32, 1);
  Frame frame = make_frame(spec);
  const Frame to = ip_destination.empty() ? Frame(4, 0xff) : ip_destination;
  std::copy(to.begin(), to.end(), frame.begin() + 14 + 16);
  write_ip_checksum(frame, 14, 20);
  write_checksum(frame, false);
  return frame;
}

/// One drop under `reason`, no other, and nothing reached the host.
void check_refused(Pair& pair, DropReason reason) {
  CHECK_MESSAGE(pair.bob.in.drops.get(reason) == 1, drop_reason_name(reason));
  CHECK(pair.bob.all_drops() == 1);
  CHECK_FALSE(pair.bob.to_host().has_value());
}

/// Frames without a key wait so long at `node`; 0: they don't.
void hold_for(Node& node, std::uint16_t ms) {
  auto settings = node.settings();
  settings->hold_ms = ms;
  if (ms == 0) settings->hold_frames = 0;
  node.tables.set_settings(std::move(settings));
}

/// Short, but longer than a busy machine takes for one frame.
constexpr std::uint16_t kShortHoldMs = 50;

/// Until what waits at `node` has waited too long.
void wait_in_vain(Node& node) {
  CHECK(node.all_drops() == 0);  // Not before.
  std::this_thread::sleep_for(std::chrono::milliseconds(kShortHoldMs + 10));
  node.pump_in();
}

}  // namespace

TEST_CASE("data path: a frame crosses") {
  Pair pair;
  pair.install_pair();
  const Frame frame = tcp_frame(100);
  pair.send(frame);
  pair.bob.pump_in();
  const auto got = pair.bob.to_host();
  REQUIRE(got.has_value());
  CHECK(got->frame == frame);
  CHECK(got->header == VnetHeader{});
  CHECK(pair.alice.all_drops() == 0);
  CHECK(pair.bob.all_drops() == 0);
  const Peer& peer = *pair.bob.tables.peer("alice");
  CHECK(peer.rx_frames == 1);
  CHECK(peer.rx_bytes == frame.size());
}

TEST_CASE("data path: the sealed frame is what docs/protocol.md says, byte by byte") {
  Pair pair;
  // Bob's place is taken by a key pair whose private half the test has.
  const X25519KeyPair bob = generate_x25519();
  pair.alice.tables.set_peer(
      {"bob", 4711, bob.public_key, {pair.bob.mac}, {loopback(pair.bob.udp_port)}, true},
      boot_ms());
  pair.alice.tables.install_pair_key("bob", pair.alice.boot, pair.key, 9, true);
  const Frame frame = tcp_frame(64);
  pair.send(frame);
  pair.send(frame);
  const auto sealed = pair.intercept();
  REQUIRE(sealed.size() == 2);

  const auto shared = x25519(bob.private_key, pair.alice.boot_public);
  const TrafficKey key =
      derive_pair_key(Secret<32>(pair.key), shared.value(),
                      {"lab", "alice", "bob", pair.alice.boot_public, bob.public_key, 9});
  const auto aead =
      make_aead_key(backend_available(Backend::kLibcrypto) ? Backend::kLibcrypto : Backend::kNull,
                    Suite::kAes256Gcm, key.key.bytes());
  for (std::uint64_t counter = 0; counter < 2; ++counter) {
    Frame expected;
    append16(expected, 0x1100);
    append16(expected, key.kid);
    append32(expected, 1001);
    append32(expected, 0);
    append32(expected, static_cast<std::uint32_t>(counter));
    Frame plain(sealed[counter].begin() + 16, sealed[counter].end() - 16);
    Frame tag(sealed[counter].end() - 16, sealed[counter].end());
    const Frame aad = expected;
    Frame opened(plain.size());
    REQUIRE(
        aead->open(counter, aad, plain, std::span<const std::uint8_t>(tag).first<16>(), opened));
    CHECK(is_fresh(load_be<std::uint32_t>(std::span(opened).first<4>()), pair.time_now(), 256));
    CHECK(to_hex(std::span(opened).subspan(4, 4)) == "00000000");
    CHECK(Frame(opened.begin() + 8, opened.end()) == frame);
    CHECK(Frame(sealed[counter].begin(), sealed[counter].begin() + 16) == expected);
    CHECK(sealed[counter].size() == frame.size() + 40);
  }
}

TEST_CASE("data path: super-frames are cut, sealed one by one, and joined again") {
  Pair pair;
  pair.install_pair();
  for (const int version : {4, 6}) {
    for (const bool udp : {false, true}) {
      CAPTURE(version);
      CAPTURE(udp);
      FrameSpec spec;
      spec.ip_version = version;
      spec.udp = udp;
      spec.payload = Random(3).bytes(40'000);
      const Frame super = make_frame(spec, true);
      const std::size_t size = 1'300;
      const auto header = gso_header(super, size);
      // On the wire: as many as a network card would make, of equal size.
      pair.send(super, header);
      const auto sealed = pair.intercept();
      CHECK(sealed.size() == slow_segments(super, size).size());
      for (std::size_t i = 0; i + 1 < sealed.size(); ++i) {
        CHECK(sealed[i].size() == sealed[0].size());
      }
      // At the far TAP: one super-frame.
      pair.send(super, header);
      pair.bob.pump_in();
      const auto got = pair.bob.to_host();
      REQUIRE(got.has_value());
      CHECK(got->frame == super);
      CHECK(got->header.gso_size == size);
      CHECK(got->header.gso_type == header.gso_type);
      const char* const objection =
          judge::validate_vnet_header(got->header, got->frame, {.ecn = false, .udp = true});
      CHECK_MESSAGE(objection == nullptr, objection);
      CHECK_FALSE(pair.bob.to_host().has_value());
      CHECK(pair.bob.all_drops() == 0);
    }
  }
}

TEST_CASE(
    "data path: what is too long for the path crosses in parts, and comes out as it went in") {
  Pair pair;
  pair.install_pair();
  pair.install_group();
  Peer& bob = *pair.alice.tables.peer("bob");
  bob.max_frame = kSafeFrame;
  bob.proved_frame = kSafeFrame;
  const auto crosses = [&](const Frame& frame, const VnetHeader& header, std::size_t parts) {
    pair.send(frame, header);
    const auto sealed = pair.intercept();
    CHECK(sealed.size() == parts);
    for (const Frame& one : sealed) {
      CHECK(one.size() <= kSafeFrame);
      CHECK((one[1] & kFlagFragment) != 0);
    }
    for (const Frame& one : sealed) pair.inject(one);
    const auto got = pair.bob.to_host();
    REQUIRE(got.has_value());
    CHECK(got->frame == frame);
    const char* const objection =
        judge::validate_vnet_header(got->header, got->frame, {.ecn = false, .udp = true});
    CHECK_MESSAGE(objection == nullptr, objection);
    // Again, every part is a replay.
    const std::uint64_t replayed = pair.bob.drops(DropReason::replayed);
    for (const Frame& one : sealed) pair.inject(one);
    CHECK(pair.bob.drops(DropReason::replayed) == replayed + parts);
    CHECK_FALSE(pair.bob.to_host().has_value());
  };
  SUBCASE("a TCP segment") {
    crosses(tcp_frame(1'300), {}, 2);
  }
  SUBCASE("one whose checksum is partial") {
    Frame frame = tcp_frame(1'300);
    write_checksum(frame, true);
    pair.send(frame, partial_checksum_header(parse_frame(frame)));
    pair.bob.pump_in();
    const auto got = pair.bob.to_host();
    REQUIRE(got.has_value());
    CHECK(got->header.needs_checksum());
    CHECK(got->frame == frame);
  }
  SUBCASE("a jumbo frame that is no IP") {
    Frame frame = tcp_frame(3'400);
    put16(frame, 12, 0x88b6);
    crosses(frame, {}, 3);
  }
  SUBCASE("a group frame") {
    Frame frame = group_frame();
    frame.resize(1'400, 5);
    put16(frame, 12, 0x88b6);
    crosses(frame, {}, 2);
  }
  SUBCASE("a super-frame: each segment in two, and the last, which fits, whole") {
    FrameSpec spec;
    spec.payload = Random(3).bytes(20 * 1'300 + 5);
    const Frame super = make_frame(spec, true);
    pair.send(super, gso_header(super, 1'300));
    const auto sealed = pair.intercept();
    CHECK(sealed.size() == 41);
    for (const Frame& one : sealed) pair.inject(one);
    Frame payload;
    while (const auto got = pair.bob.to_host()) {
      const judge::Anatomy anatomy = judge::dissect(got->frame);
      payload.insert(payload.end(),
                     got->frame.begin() + static_cast<std::ptrdiff_t>(anatomy.payload),
                     got->frame.end());
    }
    CHECK(payload == spec.payload);
    CHECK(pair.alice.out.counters.cut == 20);
    CHECK(pair.bob.in.counters.cut == 20);
  }
  SUBCASE("not even in 3 parts") {
    Frame frame = tcp_frame(3'700);
    pair.send(frame);
    CHECK(pair.intercept().empty());
    CHECK(pair.alice.drops(DropReason::oversize) == 1);
  }
  SUBCASE("what fits is not touched") {
    pair.send(tcp_frame(kSafeFrame - kFrameOverhead - 54));
    const auto sealed = pair.intercept();
    REQUIRE(sealed.size() == 1);
    CHECK(sealed[0].size() == kSafeFrame);
    CHECK((sealed[0][1] & kFlagFragment) == 0);
  }
}

TEST_CASE("data path: a frame in parts passes every check of a whole one") {
  Pair pair;
  pair.install_pair();
  const auto send_in_two = [&](const Frame& frame) {
    const std::size_t half = frame.size() / 2;
    InnerHeader header;
    pair.inject(pair.seal_as_alice({frame.begin(), frame.begin() + static_cast<long>(half)}, 0,
                                   pair.time_now(), Kind::kPair, kFlagFragment, header));
    header.description.part = 1;
    header.description.last_part = true;
    pair.inject(pair.seal_as_alice({frame.begin() + static_cast<long>(half), frame.end()}, 1,
                                   pair.time_now(), Kind::kPair, kFlagFragment, header));
  };
  Frame frame = tcp_frame(1'000);
  SUBCASE("it is right") {
    send_in_two(frame);
    CHECK(pair.bob.to_host().has_value());
    CHECK(pair.bob.all_drops() == 0);
  }
  SUBCASE("source address") {
    frame[11] = 9;
    send_in_two(frame);
    check_refused(pair, DropReason::wrong_source_mac);
  }
  SUBCASE("destination address") {
    frame[5] = 9;
    send_in_two(frame);
    check_refused(pair, DropReason::wrong_destination);
  }
  SUBCASE("a second part that never comes") {
    pair.inject(pair.seal_as_alice(frame, 0, pair.time_now(), Kind::kPair, kFlagFragment));
    CHECK(pair.bob.all_drops() == 0);
    CHECK(pair.bob.in.holding);
    std::this_thread::sleep_for(std::chrono::milliseconds(501));
    pair.bob.pump_in();
    check_refused(pair, DropReason::fragment_expired);
    CHECK_FALSE(pair.bob.in.holding);
  }
}

TEST_CASE("data path: small datagrams of one flow reach the TAP in one write") {
  Pair pair;
  pair.install_pair();
  FrameSpec spec;
  spec.udp = true;
  std::vector<Frame> sent;
  for (std::uint8_t i = 0; i < 50; ++i) {
    spec.payload = Frame(22, i);
    spec.id = i;
    sent.push_back(make_frame(spec));
    pair.alice.from_host({}, sent.back());
  }
  pair.alice.pump_out();
  pair.bob.pump_in();
  const auto got = pair.bob.to_host();
  REQUIRE(got.has_value());
  CHECK(got->header.gso_type == vnet::kGsoUdpL4);
  CHECK(got->header.gso_size == 22);
  CHECK(judge::validate_vnet_header(got->header, got->frame, {.ecn = false, .udp = true}) ==
        nullptr);
  Frame payload(got->frame.begin() + 42, got->frame.end());
  Frame expected;
  for (const Frame& one : sent) expected.insert(expected.end(), one.begin() + 42, one.end());
  CHECK(payload == expected);
  CHECK_FALSE(pair.bob.to_host().has_value());
  CHECK(pair.bob.all_drops() == 0);
}

TEST_CASE("data path: with helpers, the same frames arrive in the same order") {
  Pair alone;
  Pair helped(2);
  for (Pair* const pair : {&alone, &helped}) pair->install_pair();
  std::vector<std::vector<Frame>> arrived(2);
  for (int round = 0; round < 40; ++round) {
    for (Pair* const pair : {&alone, &helped}) {
      Random random(static_cast<std::uint64_t>(round) + 1);
      // Super-frames of several flows and sizes, with small frames and a broken one in between.
      for (int i = 0; i < 6; ++i) {
        FrameSpec spec;
        spec.source_port = 1000 + static_cast<unsigned>(random.below(3));
        spec.udp = random.below(3) == 0;
        spec.payload = random.bytes(1 + random.below(30'000));
        const bool super = spec.payload.size() > 1'400;
        const Frame frame = make_frame(spec, super);
        pair->alice.from_host(super ? gso_header(frame, 1'300) : VnetHeader{}, frame);
      }
      pair->alice.pump_out();
      // One after the other into the socket, so that there are several trains in a batch; each
      // ninth frame is spoilt, each seventh comes twice.
      std::size_t number = 0;
      for (Frame frame : pair->intercept()) {
        if (++number % 9 == 0) frame.back() ^= 1;
        for (int copy = 0; copy < (number % 7 == 0 ? 2 : 1); ++copy) {
          send_datagram(UdpSocket::of(pair->alice.udp.get()), loopback(pair->bob.udp_port), frame);
        }
      }
      pair->bob.pump_in();
      auto& list = arrived[pair == &helped ? 1 : 0];
      while (auto got = pair->bob.to_host()) list.push_back(std::move(got->frame));
    }
  }
  CHECK(arrived[0].size() > 100);
  CHECK(arrived[0] == arrived[1]);
  for (const DropReason reason : {DropReason::not_authentic, DropReason::replayed}) {
    CHECK(alone.bob.in.drops.get(reason) > 0);
    CHECK(helped.bob.in.drops.get(reason) == alone.bob.in.drops.get(reason));
  }
  CHECK(helped.alice.crew.helped() + helped.bob.crew.helped() > 0);
}

TEST_CASE("data path: more than fits one train") {
  Pair pair;
  pair.install_pair();
  FrameSpec spec;
  spec.payload = Random(3).bytes(60'000);
  const Frame super = make_frame(spec, true);
  pair.send(super, gso_header(super, 300));  // 200 segments: 4 trains.
  const auto sealed = pair.intercept();
  CHECK(sealed.size() == 200);
  for (const Frame& frame : sealed) pair.inject(frame);
  CHECK(pair.bob.all_drops() == 0);
  std::size_t payload = 0;
  while (const auto got = pair.bob.to_host()) payload += got->frame.size() - 54;
  CHECK(payload == 60'000);
}

TEST_CASE("data path: super-frames that wait together fill each other's trains up") {
  Pair pair;
  pair.install_pair();
  FrameSpec spec;
  spec.payload = Random(3).bytes(std::size_t{46} * 1'392);
  const Frame super = make_frame(spec, true);
  for (int i = 0; i < 4; ++i) pair.alice.from_host(gso_header(super, 1'392), super);
  pair.alice.pump_out();
  // A train takes 44 of their 46 segments: one by one they would be 8.
  CHECK(pair.intercept_trains().size() == 5);
}

TEST_CASE(
    "data path: a packet leaves at once where packets come alone, and with others in a crowd") {
  Pair pair;
  pair.install_pair();
  const Frame frame = tcp_frame(100);
  const auto sizes = [&](int frames) {
    for (int i = 0; i < frames; ++i) pair.alice.from_host({}, frame);
    pair.alice.pump_out();
    std::vector<std::size_t> all;
    for (const auto& train : pair.intercept_trains()) all.push_back(train.size());
    return all;
  };
  using Sizes = std::vector<std::size_t>;
  CHECK(sizes(3) == Sizes{3});
  CHECK(sizes(1) == Sizes{1});
  CHECK(sizes(3) == Sizes{1, 2});  // One was expected.
  CHECK(sizes(3) == Sizes{3});
}

TEST_CASE("data path: refused at step 1 to 8") {
  Pair pair;
  pair.install_pair();
  pair.send(tcp_frame(100));
  Frame sealed = pair.intercept().at(0);

  SUBCASE("too short") {
    sealed.resize(39);
    pair.inject(sealed);
    check_refused(pair, DropReason::malformed);
  }
  SUBCASE("version") {
    sealed[0] ^= 0x30;
    pair.inject(sealed);
    check_refused(pair, DropReason::malformed);
  }
  SUBCASE("subnet tag on udp") {
    sealed[1] |= 1;
    pair.inject(sealed);
    check_refused(pair, DropReason::malformed);
  }
  // What waits for a key is dropped when it has waited in vain; without holding at once.
  SUBCASE("index") {
    hold_for(pair.bob, kShortHoldMs);
    sealed[7] ^= 0x40;
    pair.inject(sealed);
    wait_in_vain(pair.bob);
    check_refused(pair, DropReason::unknown_index);
  }
  SUBCASE("index, holding is off") {
    hold_for(pair.bob, 0);
    sealed[7] ^= 0x40;
    pair.inject(sealed);
    check_refused(pair, DropReason::unknown_index);
  }
  SUBCASE("reflected") {
    put16(sealed, 6, 1002);
    pair.inject(sealed);
    check_refused(pair, DropReason::reflected);
  }
  SUBCASE("kid") {
    hold_for(pair.bob, kShortHoldMs);
    sealed[2] ^= 1;
    pair.inject(sealed);
    wait_in_vain(pair.bob);
    check_refused(pair, DropReason::unknown_kid);
  }
  SUBCASE("kid, holding is off") {
    hold_for(pair.bob, 0);
    sealed[2] ^= 1;
    pair.inject(sealed);
    check_refused(pair, DropReason::unknown_kid);
  }
  SUBCASE("kid of a retired key") {
    pair.bob.tables.drop_key("alice", 1, 0, boot_ms());
    pair.inject(sealed);
    check_refused(pair, DropReason::stale_kid);
    CHECK(pair.bob.events().empty());  // Nothing is asked for it.
  }
  SUBCASE("lease over") {
    pair.bob.tables.set_lease(Node::kServerMs - 1);
    pair.inject(sealed);
    check_refused(pair, DropReason::lease_over);
  }
  SUBCASE("replayed") {
    pair.inject(sealed);
    CHECK(pair.bob.to_host().has_value());
    pair.inject(sealed);
    check_refused(pair, DropReason::replayed);
  }
  SUBCASE("any single bit of counter, ciphertext or tag") {
    std::uint64_t flips = 0;
    for (std::size_t bit = 8 * 8; bit < 8 * sealed.size(); bit += 7, ++flips) {
      Frame flipped = sealed;
      flipped[bit / 8] ^= static_cast<std::uint8_t>(1U << (bit % 8));
      pair.inject(flipped);
    }
    CHECK(pair.bob.in.drops.get(DropReason::not_authentic) == flips);
    CHECK(pair.bob.all_drops() == flips);
    CHECK_FALSE(pair.bob.to_host().has_value());
    // None of them changed anything.
    pair.inject(sealed);
    CHECK(pair.bob.to_host().has_value());
  }
  SUBCASE("kind is part of what is authenticated") {
    pair.install_group();
    sealed[0] = 0x14;  // A path frame under the same key.
    pair.inject(sealed);
    check_refused(pair, DropReason::not_authentic);
  }
  SUBCASE("net and relay frames have no keys here") {
    sealed[0] = 0x13;
    pair.inject(sealed);
    check_refused(pair, DropReason::unknown_kid);
    CHECK(pair.bob.events().empty());
  }
}

TEST_CASE("data path: refused at step 9 to 12") {
  Pair pair;
  pair.install_pair();
  pair.install_group();
  const FrameTime now = pair.time_now();
  const Frame frame = tcp_frame(100);

  SUBCASE("reserved bits") {
    Frame sealed = pair.seal_as_alice(frame, 0, now);
    // The flags of the description can't be written by our own code, so seal by hand.
    SendKey* const key = pair.alice.tables.peer("bob")->send.load();
    std::array<std::uint8_t, 8> head{};
    store_be<std::uint32_t>(std::span(head).first<4>(), now);
    head[4] = 0x10;
    const std::span all(sealed);
    key->aead->seal_parts(0, all.first<16>(), head, frame, all.subspan(16, frame.size() + 8),
                          all.last<16>());
    pair.inject(sealed);
    check_refused(pair, DropReason::malformed);
  }
  SUBCASE("shorter than an Ethernet header") {
    pair.inject(pair.seal_as_alice(Frame(13), 0, now));
    check_refused(pair, DropReason::malformed);
  }
  SUBCASE("padding longer than the payload") {
    InnerHeader header;
    header.description.padding = 200;
    pair.inject(pair.seal_as_alice(frame, 0, now, Kind::kPair, 0, header));
    check_refused(pair, DropReason::malformed);
  }
  SUBCASE("fragment") {
    // One part, and it says that it is the only one.
    InnerHeader header;
    header.description.last_part = true;
    pair.inject(pair.seal_as_alice(frame, 0, now, Kind::kPair, kFlagFragment, header));
    check_refused(pair, DropReason::malformed);
  }
  SUBCASE("too old") {
    pair.inject(pair.seal_as_alice(frame, 0, now - 31 * 256));
    check_refused(pair, DropReason::not_fresh);
  }
  SUBCASE("from the future") {
    pair.inject(pair.seal_as_alice(frame, 0, now + 31 * 256));
    check_refused(pair, DropReason::not_fresh);
  }
  SUBCASE("a group frame from before its key") {
    pair.inject(pair.seal_as_alice(group_frame(), 0, now - 256, Kind::kGroup));
    check_refused(pair, DropReason::before_group_key);
  }
  SUBCASE("source address") {
    Frame spoofed = frame;
    spoofed[11] = 9;
    pair.inject(pair.seal_as_alice(spoofed, 0, now));
    check_refused(pair, DropReason::wrong_source_mac);
  }
  SUBCASE("destination address") {
    Frame stray = frame;
    stray[5] = 9;
    pair.inject(pair.seal_as_alice(stray, 0, now));
    check_refused(pair, DropReason::wrong_destination);
  }
  SUBCASE("group address in a pair frame without the flag") {
    pair.inject(pair.seal_as_alice(group_frame(), 0, now));
    check_refused(pair, DropReason::wrong_destination);
  }
  SUBCASE("unicast address in a group frame") {
    pair.inject(pair.seal_as_alice(frame, 0, now, Kind::kGroup));
    check_refused(pair, DropReason::group_unicast_mac);
  }
  SUBCASE("unicast IP in a group frame (Hole 196)") {
    pair.inject(pair.seal_as_alice(group_frame({10, 1, 2, 4}), 0, now, Kind::kGroup));
    check_refused(pair, DropReason::group_unicast_ip);
  }
  SUBCASE("our own EtherType inside") {
    Frame inner = frame;
    put16(inner, 12, kEtherType);
    pair.inject(pair.seal_as_alice(inner, 0, now));
    check_refused(pair, DropReason::inner_ethertype_own);
  }
  SUBCASE("partial where nothing is to be completed") {
    Frame inner = frame;
    put16(inner, 12, 0x88cc);
    InnerHeader header;
    header.description.partial_checksum = true;
    pair.inject(pair.seal_as_alice(inner, 0, now, Kind::kPair, 0, header));
    check_refused(pair, DropReason::malformed);
  }
  SUBCASE("these pass") {
    pair.inject(pair.seal_as_alice(frame, 0, now - 29 * 256));
    CHECK(pair.bob.to_host().has_value());
    pair.inject(pair.seal_as_alice(group_frame(), 1, now, Kind::kPair, kFlagGroupDestination));
    CHECK(pair.bob.to_host().has_value());
    pair.inject(pair.seal_as_alice(group_frame(), 2, now, Kind::kGroup));
    CHECK(pair.bob.to_host().has_value());
    pair.inject(pair.seal_as_alice(group_frame({10, 1, 2, 255}), 3, now, Kind::kGroup));
    CHECK(pair.bob.to_host().has_value());
    InnerHeader header;
    header.description.padding = 20;
    Frame padded = frame;
    padded.resize(frame.size() + 20);
    pair.inject(pair.seal_as_alice(padded, 4, now, Kind::kPair, 0, header));
    const auto got = pair.bob.to_host();
    REQUIRE(got.has_value());
    CHECK(got->frame == frame);
    CHECK(pair.bob.all_drops() == 0);
  }
  SUBCASE("freshness can be turned off") {
    auto settings = pair.bob.settings();
    settings->freshness_ms = 0;
    pair.bob.tables.set_settings(std::move(settings));
    pair.inject(pair.seal_as_alice(frame, 0, now - 3600 * 256));
    CHECK(pair.bob.to_host().has_value());
  }
}

TEST_CASE("data path: refused at the TAP") {
  Pair pair;
  pair.install_pair();
  Frame frame = tcp_frame(100);
  DropReason expected = DropReason::tap_source_mac;
  SUBCASE("source address that is not ours") {
    frame[11] = 9;
  }
  SUBCASE("our own EtherType") {
    put16(frame, 12, kEtherType);
    expected = DropReason::loop;
  }
  SUBCASE("our own sealed datagram") {
    pair.send(tcp_frame(64));
    FrameSpec spec;
    spec.udp = true;
    spec.source_port = pair.alice.udp_port;
    spec.destination_port = 7000;
    spec.payload = pair.intercept().at(0);
    frame = make_frame(spec);
    expected = DropReason::loop;
  }
  SUBCASE("too short") {
    frame.resize(10);
    expected = DropReason::malformed;
  }
  SUBCASE("lease over") {
    pair.alice.tables.set_lease(Node::kServerMs - 1);
    expected = DropReason::lease_over;
  }
  SUBCASE("member without endpoint") {
    const X25519KeyPair boot = generate_x25519();
    pair.alice.tables.remove_peer("bob");
    pair.alice.tables.set_peer({"bob", 55, boot.public_key, {pair.bob.mac}, {}, true}, boot_ms());
    pair.alice.tables.install_pair_key("bob", pair.alice.boot, pair.key, 1, true);
    expected = DropReason::no_endpoint;
  }
  SUBCASE("key used up") {
    SendKey* const key = pair.alice.tables.peer("bob")->send.load();
    key->counter->advance_for_testing_only(kFrameLimit);
    expected = DropReason::counter_limit;
  }
  pair.send(frame);
  CHECK(pair.alice.out.drops.get(expected) == 1);
  CHECK(pair.alice.all_drops() == 1);
  CHECK(pair.intercept().empty());
}

TEST_CASE("data path: storm control counts group frames, and only those") {
  Pair pair;
  pair.install_pair();
  pair.install_group();
  auto settings = pair.alice.settings();
  settings->storm_frames = 5;
  pair.alice.tables.set_settings(std::move(settings));
  for (int i = 0; i < 50; ++i) pair.alice.from_host({}, group_frame());
  for (int i = 0; i < 50; ++i) pair.alice.from_host({}, tcp_frame(10));
  pair.alice.pump_out();
  CHECK(pair.alice.out.drops.get(DropReason::storm) >= 44);
  CHECK(pair.intercept().size() <= 56);
}

TEST_CASE("data path: a key that is missing at the sender") {
  Pair pair;
  const Frame frame = tcp_frame(100);
  pair.send(frame);
  pair.send(tcp_frame(200));
  auto events = pair.alice.events();
  REQUIRE(events.size() == 1);  // Asked once for both.
  CHECK(events[0].kind == WorkerEvent::Kind::kMissMac);
  CHECK(events[0].mac == pair.bob.mac);
  CHECK(pair.alice.all_drops() == 0);

  SUBCASE("comes: what waited is sent, in order") {
    pair.install_pair();
    pair.alice.pump_out();
    pair.bob.pump_in();
    CHECK(pair.bob.to_host()->frame == frame);
    CHECK(pair.bob.to_host()->frame.size() == frame.size() + 100);
  }
  SUBCASE("comes together with the next frame: the order stays") {
    pair.install_pair();
    pair.send(tcp_frame(300));
    pair.bob.pump_in();
    for (const std::size_t size : {100U, 200U, 300U}) {
      CHECK(pair.bob.to_host()->frame.size() == size + 54);
    }
  }
  SUBCASE("limit for one destination") {
    for (int i = 0; i < 20; ++i) pair.send(frame);
    CHECK(pair.alice.out.drops.get(DropReason::hold_full) == 14);
  }
  SUBCASE("nobody has the address") {
    pair.alice.tables.refuse_mac(pair.bob.mac, 2000, boot_ms());
    pair.alice.pump_out();
    CHECK(pair.alice.out.drops.get(DropReason::no_such_member) == 2);
    pair.send(frame);
    CHECK(pair.alice.out.drops.get(DropReason::no_such_member) == 3);
  }
  SUBCASE("takes too long") {
    auto settings = pair.alice.settings();
    settings->hold_ms = 1;
    pair.alice.tables.set_settings(std::move(settings));
    Frame other = frame;
    other[5] = 77;
    pair.send(other);
    std::this_thread::sleep_for(std::chrono::milliseconds(40));
    pair.alice.pump_out();
    CHECK(pair.alice.out.drops.get(DropReason::hold_expired) == 1);
  }
  SUBCASE("holding is off") {
    auto settings = pair.alice.settings();
    settings->hold_frames = 0;
    pair.alice.tables.set_settings(std::move(settings));
    pair.send(frame);
    CHECK(pair.alice.out.drops.get(DropReason::hold_off) == 1);
  }
  SUBCASE("group frames wait apart") {
    for (int i = 0; i < 20; ++i) pair.send(group_frame());
    CHECK(pair.alice.out.drops.get(DropReason::hold_full) == 12);
    pair.send(frame);  // Not affected.
    CHECK(pair.alice.out.drops.get(DropReason::hold_full) == 12);
    events = pair.alice.events();
    REQUIRE(events.size() == 1);
    CHECK(events[0].kind == WorkerEvent::Kind::kMissGroup);
    pair.install_group();
    pair.alice.pump_out();
    CHECK(pair.intercept().size() == 8);
  }
}

TEST_CASE("data path: a key that is missing at the receiver") {
  Pair pair;
  pair.alice.tables.install_pair_key("bob", pair.alice.boot, pair.key, 1, true);
  auto settings = pair.bob.settings();
  settings->hold_frames = 64;
  pair.bob.tables.set_settings(std::move(settings));
  // As many as Alice may have held for Bob until her key came wait for his; they are no drops. The
  // others are, at once.
  for (std::size_t i = 0; i < 66; ++i) {
    pair.send(tcp_frame(100 + i));
    pair.bob.pump_in();
  }
  CHECK(pair.bob.in.drops.get(DropReason::unknown_kid) == 2);
  CHECK(pair.bob.all_drops() == 2);
  const auto events = pair.bob.events();
  REQUIRE(events.size() == 1);
  CHECK(events[0].kind == WorkerEvent::Kind::kMissIndex);
  CHECK(events[0].index == 1001);
  CHECK(events[0].from == loopback(pair.alice.udp_port));
  pair.bob.tables.install_pair_key("alice", pair.bob.boot, pair.key, 1, true);
  pair.bob.pump_in();
  std::size_t frames = 0;
  while (const auto got = pair.bob.to_host()) {
    CHECK(got->frame.size() == 154 + frames);
    ++frames;
  }
  CHECK(frames == 64);
  CHECK(pair.bob.all_drops() == 2);  // What came through in the end was never one.
}

TEST_CASE("data path: frames that still wait at the end are counted") {
  Pair pair;
  pair.alice.tables.install_pair_key("bob", pair.alice.boot, pair.key, 1, true);
  pair.send(tcp_frame(100));
  pair.bob.pump_in();
  CHECK(pair.bob.all_drops() == 0);
  pair.bob.inbound->end();
  CHECK(pair.bob.in.drops.get(DropReason::unknown_kid) == 1);
}

TEST_CASE("data path: a stranger can't keep an honest sender's question from being asked") {
  Pair pair;
  pair.alice.tables.install_pair_key("bob", pair.alice.boot, pair.key, 1, true);
  pair.send(tcp_frame(100));
  const Frame honest = pair.intercept().at(0);
  // A socket for both families: the stranger comes from 127.0.0.1, Alice from ::1.
  const auto open_both = [](std::uint16_t& port) {
    UniqueFd fd = must(socket(AF_INET6, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    const int off = 0;
    setsockopt(fd.get(), IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off));
    sockaddr_in6 any{};
    any.sin6_family = AF_INET6;
    socklen_t size = sizeof(any);
    REQUIRE(bind(fd.get(), reinterpret_cast<sockaddr*>(&any), sizeof(any)) == 0);
    REQUIRE(getsockname(fd.get(), reinterpret_cast<sockaddr*>(&any), &size) == 0);
    port = ntohs(any.sin6_port);
    return fd;
  };
  std::uint16_t port = 0;
  const UniqueFd stranger = open_both(port);
  const UniqueFd underlay = open_both(port);
  const Endpoint v4 = Endpoint::from(std::array<std::uint8_t, 4>{127, 0, 0, 1}, port).value();
  std::size_t asked = 0;
  // One time in 256 the two share a budget by chance.
  for (int attempt = 0; attempt < 3 && asked == 0; ++attempt) {
    Crew nobody(0, 0);
    Inbound inbound(pair.bob.in, pair.bob.tap.get(), UdpSocket::of(underlay.get()), {}, nobody);
    const auto give = [&](int from, const Endpoint& to, const Frame& frame) {
      REQUIRE(send_datagram(UdpSocket::of(from), to, frame));
      pair.bob.in.reader->online();
      while (inbound.batch()) pair.bob.in.reader->quiescent();
      pair.bob.in.reader->offline();
    };
    // His budget is used up by nonsense; then he names Alice's index and kid.
    Frame nonsense = honest;
    for (std::uint16_t i = 1; i < 60; ++i) {
      put16(nonsense, 4, i);
      give(stranger.get(), v4, nonsense);
    }
    pair.bob.events();
    give(stranger.get(), v4, honest);
    CHECK(pair.bob.events().empty());  // Else this shows nothing.
    give(pair.alice.udp.get(), loopback(port), honest);
    asked = pair.bob.events().size();
  }
  CHECK(asked == 1);
}

TEST_CASE("data path: a member can't fill the ring of events with answers to nothing") {
  Pair pair;
  pair.install_pair();
  SendKey& key = *pair.alice.tables.peer("bob")->send.load();
  const std::uint64_t start = boot_us();
  for (std::uint64_t token = 1; token < 3 * WorkerEvents::kSize; ++token) {
    const auto answer = seal_path(key, {}, {PathType::kAnswer, token}, pair.time_now(), 0);
    REQUIRE(answer.has_value());
    pair.inject(Frame(answer->begin(), answer->end()));
  }
  CHECK(pair.bob.in.events.lost() == 0);
  const std::size_t events = pair.bob.events().size();
  CHECK(events >= 32);  // Enough for every probe that may be out.
  // What one second gives, and what comes back meanwhile.
  CHECK(events <= 64 + 64 * (boot_us() - start + 999'999) / 1'000'000);
  // Each is told of or counted.
  CHECK(pair.bob.in.counters.answers_over == 3 * WorkerEvents::kSize - 1 - events);
}

TEST_CASE("data path: a dropped group key that comes again opens nothing twice") {
  Pair pair;
  pair.install_group();
  // A sender whose clock is a second ahead, as clocks are.
  const Frame sealed = pair.seal_as_alice(group_frame(), 0, pair.time_now() + 256, Kind::kGroup);
  pair.inject(sealed);
  CHECK(pair.bob.to_host().has_value());
  pair.bob.tables.drop_key("", 1, 0, boot_ms());
  pair.bob.tables.run_timers(boot_ms());
  pair.bob.tables.install_group_key(pair.key, 1, true, boot_ms());
  pair.inject(sealed);
  check_refused(pair, DropReason::replayed);
}

TEST_CASE("data path: the group's next key opens before it is sent with; a revoked one no more") {
  Pair pair;
  pair.install_group();
  std::array<std::uint8_t, 32> next{};
  next.fill(0x42);
  pair.bob.tables.install_group_key(next, 2, false, boot_ms());
  pair.send(group_frame());
  pair.bob.pump_in();
  CHECK(pair.bob.to_host().has_value());
  CHECK(pair.bob.events().empty());  // The generation that Bob sends with himself.
  const Frame old = pair.seal_as_alice(group_frame(), 7, pair.time_now(), Kind::kGroup);

  pair.alice.tables.install_group_key(next, 2, true, boot_ms());
  pair.send(group_frame());
  pair.bob.pump_in();
  CHECK(pair.bob.to_host().has_value());
  const auto events = pair.bob.events();
  REQUIRE(events.size() == 1);
  CHECK(events[0].kind == WorkerEvent::Kind::kOtherKey);
  CHECK(events[0].group);
  CHECK(events[0].number == 2);
  CHECK(pair.bob.tables.heard_newer_group_key(events[0].number));
  // Nothing was sealed with it before it was prepared: a sender whose clock is behind is heard,
  // too.
  pair.inject(pair.seal_as_alice(group_frame(), 9, pair.time_now() - 2 * 256, Kind::kGroup));
  CHECK(pair.bob.to_host().has_value());

  pair.bob.tables.drop_key("", 1, 0, boot_ms());
  pair.inject(old);
  check_refused(pair, DropReason::stale_kid);
}

TEST_CASE("data path: a group key that came before the first time sample") {
  Pair pair;
  pair.alice.tables.install_group_key(pair.key, 1, true, boot_ms());
  std::construct_at(&pair.bob.clock);  // As at start: no time yet.
  pair.bob.tables.install_group_key(pair.key, 1, true, boot_ms());
  pair.bob.set_clock(0);
  SUBCASE("does not open what is older") {
    pair.inject(pair.seal_as_alice(group_frame(), 0, pair.time_now() - 2 * 256, Kind::kGroup));
    check_refused(pair, DropReason::before_group_key);
  }
  SUBCASE("opens what is not") {
    pair.inject(pair.seal_as_alice(group_frame(), 0, pair.time_now(), Kind::kGroup));
    CHECK(pair.bob.to_host().has_value());
  }
}

TEST_CASE("data path: spoofed indices neither fill the queue for good nor ask without end") {
  Pair pair;
  pair.alice.tables.install_pair_key("bob", pair.alice.boot, pair.key, 1, true);
  Frame spoofed(60);
  spoofed[0] = 0x11;
  const std::uint64_t start = boot_us();
  for (std::uint32_t i = 1; i < 5000; ++i) {
    put16(spoofed, 4, 7);
    put16(spoofed, 6, i & 0xffff);
    pair.inject(spoofed);
  }
  // All but those that wait: 256 in all.
  CHECK(pair.bob.in.drops.get(DropReason::unknown_index) >= 4999 - 256);
  CHECK(pair.bob.in.drops.get(DropReason::unknown_index) <= 4999);
  const std::size_t asked = pair.bob.events().size();
  // One source: 20 and what comes back meanwhile.
  CHECK(asked <= 20 + 20 * (boot_us() - start + 999'999) / 1'000'000);
  CHECK(pair.bob.in.counters.unasked == 4999 - asked);
  pair.send(tcp_frame(100));
  pair.bob.pump_in();
  pair.bob.tables.install_pair_key("alice", pair.bob.boot, pair.key, 1, true);
  pair.bob.pump_in();
  CHECK(pair.bob.to_host().has_value());
}

TEST_CASE("data path: a host that scans addresses asks no more than its budget") {
  Pair pair;
  auto settings = pair.alice.settings();
  settings->hold_ms = 60'000;  // Nothing makes room meanwhile, however slow this machine is.
  pair.alice.tables.set_settings(std::move(settings));
  Frame frame = tcp_frame(100);
  constexpr std::uint64_t kScanned = 3000;
  const std::uint64_t start = boot_us();
  for (std::uint64_t i = 0; i < kScanned; ++i) {
    put16(frame, 2, 0x1000 + i);
    pair.send(frame);
    static_cast<void>(pair.alice.events().size());
  }
  const std::uint64_t unasked = pair.alice.out.counters.unasked;
  const std::uint64_t asked = kScanned - unasked;
  CHECK(asked >= 200);  // A burst passes, and what comes back meanwhile.
  CHECK(asked <= 200 + 500 * (boot_us() - start + 999'999) / 1'000'000);
  // Held up to what there is room for, then refused, each one counted.
  CHECK(pair.alice.out.counters.held + pair.alice.drops(DropReason::hold_full) == kScanned);
  CHECK(pair.alice.drops(DropReason::hold_full) > 0);
}

TEST_CASE("data path: group frames reach every member online, sealed once") {
  Pair pair;
  pair.install_group();
  std::vector<std::unique_ptr<Node>> others;
  for (std::uint32_t i = 0; i < 5; ++i) {
    std::array<std::uint8_t, 6> mac{0x02, 0, 0, 0, 1, static_cast<std::uint8_t>(i)};
    others.push_back(std::make_unique<Node>(std::string(1, static_cast<char>('m' + i)),
                                            MacAddress(mac), 2000 + i));
    pair.alice.know(*others.back(), i != 4);
    others.back()->know(pair.alice);
    others.back()->tables.install_group_key(pair.key, 1, true, boot_ms());
  }
  pair.send(group_frame());
  pair.bob.pump_in();
  CHECK(pair.bob.to_host()->frame == group_frame());
  for (const auto& node : others) {
    node->pump_in();
    CHECK(node->to_host().has_value() == (node->id != "q"));
    CHECK(node->all_drops() == 0);
  }
  CHECK(pair.alice.tables.group_send()->counter->frames() == 1);
}

TEST_CASE("data path: rekeying loses nothing") {
  Pair pair;
  pair.install_pair(1);
  std::size_t sent = 0;
  std::size_t got = 0;
  for (std::uint64_t pw_id = 2; pw_id < 30; ++pw_id) {
    pair.key = pair.random.array<32>();
    pair.bob.tables.install_pair_key("alice", pair.bob.boot, pair.key, pw_id, false);
    pair.send(tcp_frame(200));
    pair.alice.tables.install_pair_key("bob", pair.alice.boot, pair.key, pw_id, true);
    pair.send(tcp_frame(200));
    sent += 2;
    pair.bob.pump();
    pair.bob.tables.drop_key("alice", pw_id - 1, 0, boot_ms());
    pair.alice.tables.drop_key("bob", pw_id - 1, 0, boot_ms());
    pair.alice.pump();
    while (pair.bob.to_host()) ++got;
  }
  CHECK(got == sent);
  CHECK(pair.bob.all_drops() == 0);
}

TEST_CASE(
    "data path: a new boot key loses nothing, repeats no nonce, and leaves nothing of the old") {
  constexpr std::uint32_t kAfter = 3'000;
  constexpr std::uint32_t kGrace = 13'000;
  Pair pair;
  Node& alice = pair.alice;
  Node& bob = pair.bob;
  pair.install_pair();
  pair.install_group();
  std::size_t sent = 0;
  std::vector<Frame> wire;
  /// A frame to Bob and one to all, as they were on the way; the sender index of both.
  const auto traffic = [&] {
    pair.send(tcp_frame(200, sent));
    pair.send(group_frame());
    sent += 2;
    const std::vector<Frame> sealed = pair.intercept();
    REQUIRE(sealed.size() == 2);
    for (const Frame& one : sealed) {
      wire.push_back(one);
      pair.inject(one);
      CHECK(bob.to_host().has_value());
    }
    const auto index = [](const Frame& one) { return parse_shim(one, Transport::kUdp)->index; };
    CHECK(index(sealed[0]) == index(sealed[1]));
    return index(sealed[0]);
  };

  for (std::uint32_t round = 1; round <= 4; ++round) {
    const std::uint32_t old_index = round == 1 ? alice.index : 3000 + round - 1;
    const std::uint32_t new_index = 3000 + round;
    CHECK(traffic() == old_index);
    const std::uint64_t now = boot_ms();
    const auto made = alice.tables.make_boot();
    alice.tables.install_pair_key("bob", made.boot, pair.key, 1, true);
    CHECK(traffic() == old_index);  // No index yet.
    alice.tables.set_boot_index(made.boot, new_index, kAfter, now);
    alice.tables.drop_boot(alice.boot, kGrace, now);
    CHECK(traffic() == old_index);  // Bob has not heard of it.
    bob.tables.set_peer({"alice", new_index, made.public_key, {alice.mac}, {}, true}, now);
    bob.tables.install_pair_key("alice", bob.boot, pair.key, 1, true);
    CHECK(traffic() == old_index);  // He has, and Alice does not know.
    if (round % 2 == 0) {
      // He sends: Alice opens that, and answers him with the new one.
      alice.tables.peer("bob")->other_key_ms = 0;  // No other news of late.
      Frame back = tcp_frame(100);
      std::swap_ranges(back.begin(), back.begin() + 6, back.begin() + 6);
      bob.from_host({}, back);
      bob.pump_out();
      alice.pump_in();
      CHECK(alice.to_host().has_value());
      const auto events = alice.events();
      REQUIRE(events.size() == 1);
      CHECK(events[0].kind == WorkerEvent::Kind::kOtherKey);
      CHECK(events[0].index == made.boot);
      alice.tables.heard_boot(events[0].peer, events[0].index);
      CHECK(alice.tables.peer("bob")->send.load()->index == new_index);
      CHECK(alice.tables.group_send()->index == old_index);
    }
    const Frame late = pair.seal_as_alice(group_frame(), 1'000'000, pair.time_now(), Kind::kGroup);
    alice.tables.run_timers(now + kAfter);
    CHECK(traffic() == new_index);
    pair.inject(late);  // Was under way.
    CHECK(bob.to_host().has_value());
    ++sent;
    alice.tables.run_timers(now + kGrace);
    bob.tables.run_timers(now + kAfter + kGrace);
    CHECK(traffic() == new_index);
    CHECK(alice.tables.boots().size() == 1);
    alice.boot = made.boot;
  }
  CHECK(bob.in.counters.frames == sent);
  CHECK(bob.all_drops() == 0);

  std::set<std::tuple<std::uint32_t, std::uint16_t, std::uint64_t>> nonces;
  for (const Frame& one : wire) {
    const auto shim = parse_shim(one, Transport::kUdp).value();
    CHECK(nonces.emplace(shim.index, shim.kid, shim.counter).second);
  }
  // Recordings: under an index that is gone, or seen before.
  for (const Frame& one : wire) {
    pair.inject(one);
    CHECK_FALSE(bob.to_host().has_value());
  }
  CHECK(bob.in.counters.frames == sent);
}

TEST_CASE(
    "data path: what was sent to an old boot key opens until it is dropped, and then no more") {
  Pair pair;
  pair.install_pair();
  const std::uint64_t now = boot_ms();
  const auto made = pair.bob.tables.make_boot();
  pair.bob.tables.install_pair_key("alice", made.boot, pair.key, 1, true);
  pair.bob.tables.set_boot_index(made.boot, 2002, 3'000, now);
  pair.bob.tables.drop_boot(pair.bob.boot, 13'000, now);
  const std::uint64_t grace_ends = now + 13'000;
  pair.bob.tables.run_timers(grace_ends - 1);
  pair.inject(pair.seal_as_alice(tcp_frame(100), 1, pair.time_now()));
  CHECK(pair.bob.to_host().has_value());
  pair.bob.tables.run_timers(grace_ends);
  pair.inject(pair.seal_as_alice(tcp_frame(100), 2, pair.time_now()));
  check_refused(pair, DropReason::stale_kid);
}

TEST_CASE("data path: after the first frames nothing is allocated") {
  Pair pair;
  pair.install_pair();
  pair.install_group();
  FrameSpec spec;
  spec.payload = Random(3).bytes(30'000);
  const Frame super = make_frame(spec, true);
  const VnetHeader header = gso_header(super, 1'300);
  const Frame small = tcp_frame(100);
  const Frame group = group_frame();
  // Written by hand: the harness's own helpers allocate.
  Frame packet(kVnetHeaderSize);
  write_vnet_header(std::span(packet).first<kVnetHeaderSize>(), header);
  append(packet, super);
  const auto plain = [](const Frame& frame) {
    Frame made(kVnetHeaderSize);
    append(made, frame);
    return made;
  };
  const std::vector<Frame> packets{packet, plain(small), plain(group)};
  std::array<std::uint8_t, 70'000> buffer;
  std::size_t delivered = 0;
  const auto round = [&] {
    for (const Frame& one : packets) {
      static_cast<void>(!write(pair.alice.tap_far.get(), one.data(), one.size()));
    }
    pair.alice.pump_out();
    pair.bob.pump_in();
    while (read(pair.bob.tap_far.get(), buffer.data(), buffer.size()) > 0) ++delivered;
  };
  for (int i = 0; i < 10; ++i) round();
  const std::uint64_t before = cpp_allocations.load();
  delivered = 0;
  for (int i = 0; i < 100; ++i) round();
  CHECK(cpp_allocations.load() == before);
  CHECK(delivered == 300);
}

TEST_CASE("data path: threads, with tables that change all the time") {
  Pair pair;
  pair.install_pair();
  pair.install_group();
  std::atomic<bool> stop{false};
  // One that shares its work between two threads, one that does all in one and never spins.
  const auto alice = start_lane(pair.alice, {.spin_us = 20, .helpers = 2, .second_thread = true});
  const auto bob = start_lane(pair.bob, {.spin_us = 0, .second_thread = false});
  std::uint64_t got = 0;
  std::thread host([&] {
    Frame buffer(70'000);
    while (!stop) {
      if (read(pair.bob.tap_far.get(), buffer.data(), buffer.size()) > 0) {
        ++got;
      } else {
        std::this_thread::yield();
      }
    }
  });
  std::uint64_t pw_id = 2;
  const Frame frame = tcp_frame(500);
  const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(800);
  while (std::chrono::steady_clock::now() < end) {
    pair.key = pair.random.array<32>();
    pair.bob.tables.install_pair_key("alice", pair.bob.boot, pair.key, pw_id, true);
    for (int i = 0; i < 4; ++i) pair.alice.from_host({}, frame);
    pair.alice.tables.install_pair_key("bob", pair.alice.boot, pair.key, pw_id, true);
    pair.alice.from_host({}, group_frame());
    pair.alice.know(pair.bob, pw_id % 3 != 0);
    if (pw_id > 3) {
      pair.alice.tables.drop_key("bob", pw_id - 2, 0, boot_ms());
      pair.bob.tables.drop_key("alice", pw_id - 3, 0, boot_ms());
    }
    pair.alice.tables.refuse_mac(pair.bob.mac, 1, boot_ms());
    pair.alice.tables.run_timers(boot_ms());
    pair.bob.tables.run_timers(boot_ms());
    WorkerEvent event;
    for (Lane* const lane : {alice.get(), bob.get()}) {
      while (lane->in().events.take(event) || lane->out().events.take(event)) {
      }
    }
    ++pw_id;
    std::this_thread::sleep_for(std::chrono::microseconds(200));
  }
  for (Lane* const lane : {alice.get(), bob.get()}) {
    lane->ask_to_stop();
    lane->join();
  }
  stop = true;
  host.join();
  CHECK(got > 0);
  // A frame that waited until its key was dropped has the kid of a key that is held once in 2^14.
  CHECK(bob->in().drops.get(DropReason::not_authentic) <= 4);
  CHECK(bob->in().drops.get(DropReason::malformed) == 0);
}
