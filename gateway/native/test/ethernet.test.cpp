// The transport `ethernet`: what is on the LAN byte by byte, what is refused, what a socket that is
// full or a frame that is too long does. A socket pair stands in for the LAN.
#include "io/ethernet.hpp"

#include <doctest/doctest.h>

#include <thread>

#include "core/associated-data.hpp"
#include "test/lab.hpp"

using namespace pairwire;
using namespace pairwire::test;

namespace {

struct Lan {
  Lan() {
    int pair[2];
    REQUIRE(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) == 0);
    const int size = 4 << 20;
    for (const int fd : pair) setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
    one = UniqueFd(pair[0]);
    other = UniqueFd(pair[1]);
  }
  UniqueFd one;
  UniqueFd other;
};

/// Alice and Bob on a LAN.
struct LanPair : Pair {
  explicit LanPair(Lan lan = {}) : Pair(std::move(lan.one), std::move(lan.other)) {}

  /// Takes what lies in Bob's socket away from him: whole frames, as on the wire.
  std::vector<Frame> on_wire() {
    std::vector<Frame> frames;
    for (;;) {
      Frame frame(70'000);
      const ssize_t got = recv(bob.lan.get(), frame.data(), frame.size(), MSG_DONTWAIT);
      if (got <= 0) return frames;
      frame.resize(static_cast<std::size_t>(got));
      frames.push_back(std::move(frame));
    }
  }
  void to_bob(const Frame& frame) {
    REQUIRE(::send(alice.lan.get(), frame.data(), frame.size(), 0) ==
            static_cast<ssize_t>(frame.size()));
    bob.pump_in();
  }
  void deliver(const Frame& frame) {
    alice.from_host({}, frame);
    alice.pump_out();
    bob.pump_in();
  }

  /// A whole frame as Alice would seal it, with anything in it.
  Frame sealed_by_alice(const MacAddress& destination, const MacAddress& source,
                        const Frame& payload, std::uint64_t counter, InnerHeader header = {},
                        Kind kind = Kind::kPair, std::uint8_t flags = Node::kTag) {
    const Endpoint to = Endpoint::of_ethernet(destination, source);
    const SendKey& send_key =
        kind == Kind::kGroup ? *alice.tables.group_send() : *alice.tables.peer("bob")->send.load();
    Frame whole(kOuterHeaderSize + payload.size() + kFrameOverhead);
    const std::span all(whole);
    std::ranges::copy(destination.bytes(), whole.begin());
    std::ranges::copy(source.bytes(), whole.begin() + 6);
    store_be<std::uint16_t>(all.subspan<12, 2>(), 0x88b5);
    const auto shim = all.subspan<kOuterHeaderSize, kShimSize>();
    write_shim({kind, flags, send_key.kid, send_key.index, counter}, shim);
    header.time = time_now();
    std::array<std::uint8_t, kInnerHeaderSize> head;
    write_inner_header(header, head);
    const AssociatedData aad(shim, to, Way::kSending);
    send_key.aead->seal_parts(
        counter, aad.bytes(), head, payload,
        all.subspan(kOuterHeaderSize + kShimSize, payload.size() + kInnerHeaderSize),
        all.last<kFrameTagSize>());
    return whole;
  }
};

Frame tcp_frame(std::size_t payload) {
  FrameSpec spec;
  spec.payload = Random(5).bytes(payload);
  return make_frame(spec);
}

/// An inner frame of any length with an EtherType that says nothing.
Frame plain_frame(std::size_t size, const Frame& destination = {0x02, 0, 0, 0, 0, 1}) {
  Frame frame = destination;
  append(frame, {0x02, 0, 0, 0, 0, 2, 0x88, 0xb6});
  while (frame.size() < size) append(frame, {static_cast<unsigned>(frame.size())});
  return frame;
}

/// What is left of a frame behind its addresses.
Frame behind_addresses(const Frame& frame) {
  return Frame(frame.begin() + 12, frame.end());
}

void check_refused(LanPair& pair, DropReason reason) {
  CHECK_MESSAGE(pair.bob.in.drops.get(reason) == 1, drop_reason_name(reason));
  CHECK(pair.bob.all_drops() == 1);
  CHECK_FALSE(pair.bob.to_host().has_value());
}

}  // namespace

TEST_CASE("ethernet: the frame on the LAN is what docs/protocol.md says, byte by byte") {
  LanPair pair;
  const X25519KeyPair bob = generate_x25519();
  pair.alice.tables.set_peer({"bob", 4711, bob.public_key, {Pair::kBob}, {}, true}, boot_ms());
  pair.alice.tables.install_pair_key("bob", pair.alice.boot, pair.key, 9, true);
  const Frame frame = tcp_frame(64);
  pair.send(frame);
  const auto wire = pair.on_wire();
  REQUIRE(wire.size() == 1);
  REQUIRE(wire[0].size() == 14 + 40 + frame.size() - 12);

  const auto shared = x25519(bob.private_key, pair.alice.boot_public);
  const TrafficKey key =
      derive_pair_key(Secret<32>(pair.key), shared.value(),
                      {"lab", "alice", "bob", pair.alice.boot_public, bob.public_key, 9});
  Frame expected(frame.begin(), frame.begin() + 12);
  append16(expected, 0x88b5);
  append16(expected, 0x112a);  // Version 1, kind 1; the tag.
  append16(expected, key.kid);
  append32(expected, 1001);
  append32(expected, 0);
  append32(expected, 0);
  CHECK(Frame(wire[0].begin(), wire[0].begin() + 30) == expected);

  Frame aad(wire[0].begin() + 14, wire[0].begin() + 30);
  aad.insert(aad.end(), wire[0].begin(), wire[0].begin() + 12);
  const auto aead =
      make_aead_key(backend_available(Backend::kLibcrypto) ? Backend::kLibcrypto : Backend::kNull,
                    Suite::kAes256Gcm, key.key.bytes());
  const Frame cipher(wire[0].begin() + 30, wire[0].end() - 16);
  const Frame tag(wire[0].end() - 16, wire[0].end());
  Frame opened(cipher.size());
  REQUIRE(aead->open(0, aad, cipher, ConstBytes(tag).first<16>(), opened));
  CHECK(Frame(opened.begin() + 8, opened.end()) == behind_addresses(frame));
}

TEST_CASE("ethernet: frames of every length cross, the tiny ones padded to 60 bytes") {
  LanPair pair;
  pair.install_pair();
  for (std::size_t size = 14; size <= 80; ++size) {
    CAPTURE(size);
    const Frame frame = plain_frame(size);
    pair.send(frame);
    const auto wire = pair.on_wire();
    REQUIRE(wire.size() == 1);
    CHECK(wire[0].size() == std::max<std::size_t>(60, 14 + 40 + size - 12));
    pair.to_bob(wire[0]);
    const auto got = pair.bob.to_host();
    REQUIRE(got.has_value());
    CHECK(got->frame == frame);
  }
  CHECK(pair.alice.all_drops() == 0);
  CHECK(pair.bob.all_drops() == 0);
  CHECK(pair.bob.events().empty());
}

TEST_CASE("ethernet: a group frame is broadcast once, its destination sealed") {
  LanPair pair;
  pair.install_group();
  const Frame group{0x01, 0x00, 0x5e, 0x7f, 0x33, 0x33};
  const Frame frame = plain_frame(40, group);
  pair.send(frame);
  const auto wire = pair.on_wire();
  REQUIRE(wire.size() == 1);
  CHECK(to_hex(ConstBytes(wire[0]).first(16)) == "ffffffffffff02000000000288b5122a");
  CHECK(wire[0].size() == 14 + 40 + frame.size());
  pair.to_bob(wire[0]);
  const auto got = pair.bob.to_host();
  REQUIRE(got.has_value());
  CHECK(got->frame == frame);
  CHECK(pair.bob.all_drops() == 0);
}

TEST_CASE("ethernet: super-frames are cut, and joined again") {
  LanPair pair;
  pair.install_pair();
  for (const bool udp : {false, true}) {
    CAPTURE(udp);
    FrameSpec spec;
    spec.udp = udp;
    spec.payload = Random(3).bytes(40'000);
    const Frame super = make_frame(spec, true);
    const auto header = gso_header(super, 1'300);
    pair.send(super, header);
    pair.bob.pump_in();
    const auto got = pair.bob.to_host();
    REQUIRE(got.has_value());
    CHECK(got->frame == super);
    CHECK(got->header.gso_size == 1'300);
    CHECK_FALSE(pair.bob.to_host().has_value());
  }
  CHECK(pair.bob.all_drops() == 0);
}

TEST_CASE("ethernet: another flow in between loses nothing") {
  LanPair pair;
  pair.install_pair();
  std::vector<Frame> frames;
  for (const std::size_t size : {1'000, 1'000, 20, 600, 1'000, 14}) {
    frames.push_back(size < 100 ? plain_frame(size) : tcp_frame(size));
    pair.alice.from_host({}, frames.back());
  }
  pair.alice.pump_out();
  pair.bob.pump_in();
  for (const Frame& frame : frames) {
    const auto got = pair.bob.to_host();
    REQUIRE(got.has_value());
    CHECK(got->frame == frame);
  }
  CHECK(pair.bob.all_drops() == 0);
}

TEST_CASE("ethernet: refused") {
  LanPair pair;
  pair.install_pair();
  pair.send(tcp_frame(100));
  Frame wire = pair.on_wire().at(0);

  SUBCASE("another subnet") {
    wire[15] ^= 0x01;
    pair.to_bob(wire);
    check_refused(pair, DropReason::foreign_subnet);
  }
  SUBCASE("another outer source, which is not even the sender's") {
    wire[11] ^= 0x40;
    pair.to_bob(wire);
    check_refused(pair, DropReason::not_authentic);
  }
  SUBCASE("another outer destination") {
    std::fill_n(wire.begin(), 6, std::uint8_t{0xff});
    pair.to_bob(wire);
    check_refused(pair, DropReason::not_authentic);
  }
  SUBCASE("padding that nobody sealed") {
    wire.push_back(0);
    pair.to_bob(wire);
    check_refused(pair, DropReason::not_authentic);
  }
  SUBCASE("twice") {
    pair.to_bob(wire);
    REQUIRE(pair.bob.to_host().has_value());
    pair.to_bob(wire);
    check_refused(pair, DropReason::replayed);
  }
  SUBCASE("nothing but an outer header and one byte") {
    wire.resize(15);
    pair.to_bob(wire);
    check_refused(pair, DropReason::malformed);
  }
  SUBCASE("less than a shim and a tag") {
    wire.resize(14 + 39);
    pair.to_bob(wire);
    check_refused(pair, DropReason::malformed);
  }
  SUBCASE("an address that is not the sender's") {
    pair.to_bob(pair.sealed_by_alice(Pair::kBob, Pair::kBob, {0x88, 0xb6, 1, 2, 3, 4}, 50));
    check_refused(pair, DropReason::wrong_source_mac);
  }
  SUBCASE("an address that is not ours") {
    pair.to_bob(pair.sealed_by_alice(Pair::kAlice, Pair::kAlice, {0x88, 0xb6, 1, 2, 3, 4}, 50));
    check_refused(pair, DropReason::wrong_destination);
  }
  SUBCASE("an address that is not ours, broadcast") {
    pair.to_bob(
        pair.sealed_by_alice(MacAddress::broadcast(), Pair::kAlice, {0x88, 0xb6, 1, 2, 3, 4}, 50));
    check_refused(pair, DropReason::wrong_destination);
  }
  SUBCASE("a payload without an EtherType") {
    pair.to_bob(pair.sealed_by_alice(Pair::kBob, Pair::kAlice, {0x88}, 50));
    check_refused(pair, DropReason::malformed);
  }
  SUBCASE("padding over the addresses, which are not in the seal") {
    InnerHeader header;
    header.description.padding = 7;
    pair.to_bob(
        pair.sealed_by_alice(Pair::kBob, Pair::kAlice, {0x88, 0xb6, 1, 2, 3, 4}, 50, header));
    check_refused(pair, DropReason::malformed);
  }
  SUBCASE("a sealed frame in a sealed frame") {
    pair.to_bob(pair.sealed_by_alice(Pair::kBob, Pair::kAlice, {0x88, 0xb5, 1, 2, 3, 4}, 50));
    check_refused(pair, DropReason::inner_ethertype_own);
  }
  SUBCASE("a group frame for one address") {
    pair.install_group();
    pair.to_bob(pair.sealed_by_alice(MacAddress::broadcast(), Pair::kAlice, plain_frame(40), 50, {},
                                     Kind::kGroup));
    check_refused(pair, DropReason::group_unicast_mac);
  }
}

TEST_CASE("ethernet: what is flagged as for a group carries its addresses inside") {
  LanPair pair;
  pair.install_pair();
  const Frame frame = plain_frame(40, Frame(6, 0xff));
  pair.to_bob(pair.sealed_by_alice(Pair::kBob, Pair::kAlice, frame, 50, {}, Kind::kPair,
                                   Node::kTag | kFlagGroupDestination));
  const auto got = pair.bob.to_host();
  REQUIRE(got.has_value());
  CHECK(got->frame == frame);
}

TEST_CASE(
    "ethernet: a frame that waits for its key is opened with the addresses that it came with") {
  LanPair pair;
  pair.alice.tables.install_pair_key("bob", pair.alice.boot, pair.key, 1, true);
  const Frame frame = tcp_frame(100);
  pair.deliver(frame);
  CHECK_FALSE(pair.bob.to_host().has_value());
  const auto events = pair.bob.events();
  REQUIRE(events.size() == 1);
  CHECK(events[0].kind == WorkerEvent::Kind::kMissIndex);
  CHECK(events[0].from == Endpoint::of_ethernet(Pair::kAlice, Pair::kBob));
  pair.bob.tables.install_pair_key("alice", pair.bob.boot, pair.key, 1, true);
  pair.bob.pump_in();
  const auto got = pair.bob.to_host();
  REQUIRE(got.has_value());
  CHECK(got->frame == frame);
  CHECK(pair.bob.all_drops() == 0);
}

TEST_CASE("ethernet: one stranger's address uses up its own budget for questions, not another's") {
  LanPair pair;
  pair.install_pair();
  pair.send(tcp_frame(100));
  const Frame wire = pair.on_wire().at(0);
  const auto strange = [&](std::uint8_t source, std::uint32_t index) {
    Frame frame = wire;
    frame[11] = source;
    store_be<std::uint32_t>(std::span(frame).subspan<18, 4>(), index);
    pair.to_bob(frame);
  };
  for (std::uint32_t i = 0; i < 60; ++i) strange(0x66, 0x1000 + i);
  const std::size_t asked = pair.bob.events().size();
  CHECK(asked >= 20);
  CHECK(asked < 30);
  strange(0x67, 0x2000);
  CHECK(pair.bob.events().size() == 1);
}

TEST_CASE("ethernet: a probe is answered to the address that it came from") {
  LanPair pair;
  pair.install_pair();
  Peer& bob = *pair.alice.tables.peer("bob");
  const std::uint64_t now = boot_ms();
  begin_path(pair.alice, bob, now);
  pair.bob.pump_in();
  pair.alice.pump_in();
  for (const WorkerEvent& event : pair.alice.events()) {
    REQUIRE(event.kind == WorkerEvent::Kind::kPathAnswer);
    pair.alice.paths.answered(event.peer, event.number, event.time_us, now);
  }
  CHECK(bob.path.alive);
  CHECK(bob.path.confirmed);
  CHECK(*bob.endpoint.load() == Endpoint::of_ethernet(Pair::kBob, Pair::kAlice));
  CHECK(pair.alice.moved.empty());
  CHECK(pair.alice.all_drops() == 0);
  CHECK(pair.bob.all_drops() == 0);
}

TEST_CASE("ethernet: our own frames are not taken from the TAP") {
  LanPair pair;
  pair.install_pair();
  Frame own = plain_frame(80);
  own[13] = 0xb5;
  pair.send(own);
  CHECK(pair.alice.out.drops.get(DropReason::loop) == 1);
  CHECK(pair.on_wire().empty());
}

TEST_CASE(
    "ethernet sender: what does not fit the interface is oversize, what it does not take is lost") {
  Lan lan;
  const int small = 8'000;
  REQUIRE(setsockopt(lan.one.get(), SOL_SOCKET, SO_SNDBUF, &small, sizeof(small)) == 0);
  DropCounters drops;
  EthernetSender sender(lan.one.get(), drops);
  const Endpoint to = Endpoint::of_ethernet(Pair::kBob, Pair::kAlice);
  const auto put = [&](std::size_t size) {
    const Bytes room = sender.reserve(to, size);
    CHECK(room.size() == size);
    std::ranges::fill(room, std::uint8_t{7});
  };
  put(60'000);
  put(100);
  CHECK(sender.pending() == 60'100 + 28);
  sender.flush();
  CHECK(sender.pending() == 0);
  CHECK(drops.get(DropReason::oversize) == 1);
  CHECK(drops.get(DropReason::send_failed) == 0);

  EthernetReceiver receiver(lan.other.get());
  bool failed = false;
  auto trains = receiver.receive(failed);
  REQUIRE(trains.size() == 1);  // The one behind it went out all the same.
  CHECK(trains[0].bytes.size() == 100);
  CHECK(trains[0].from == Endpoint::of_ethernet(Pair::kAlice, Pair::kBob));

  // Nobody reads: the buffer fills, and after a while the rest is dropped.
  for (int i = 0; i < 500; ++i) put(1'000);
  sender.flush();
  const std::uint64_t lost = drops.get(DropReason::send_failed);
  CHECK(lost > 0);
  std::size_t arrived = 0;
  while (!(trains = receiver.receive(failed)).empty()) arrived += trains.size();
  CHECK(arrived + lost == 500);
  CHECK_FALSE(failed);
}

TEST_CASE("ethernet receiver: a frame longer than any is cut, so its tag fails") {
  LanPair pair;
  pair.install_pair();
  Frame wire =
      pair.sealed_by_alice(Pair::kBob, Pair::kAlice, behind_addresses(tcp_frame(20'000)), 0);
  pair.to_bob(wire);
  check_refused(pair, DropReason::not_authentic);
}
