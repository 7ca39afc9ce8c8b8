// Two link ports of level `ip` with a router between them, which the test is: packets keep their IP
// header, and nothing but what may crosses in clear (docs/protocol.md sections 2.3 and 9.5).
#include <doctest/doctest.h>

#include <chrono>

#include "core/associated-data.hpp"
#include "core/outer-ip.hpp"
#include "core/wire-port.hpp"
#include "test/lab.hpp"

namespace pairwire::test {
namespace {

constexpr std::size_t kIp = kEthernetHeaderSize;

IpPrefix prefix(std::array<std::uint8_t, 4> base, std::uint8_t bits) {
  return IpPrefix::from(base, bits).value();
}
IpPrefix prefix6(std::uint8_t repeated) {
  std::array<std::uint8_t, 16> bytes{};
  bytes.fill(repeated);
  return IpPrefix::from(bytes, 128).value();
}

/// An interface and the router's end of its cable.
struct Cable {
  Cable() {
    int pair[2];
    REQUIRE(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) == 0);
    const int size = 4 << 20;
    for (const int fd : pair) setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
    near = UniqueFd(pair[0]);
    far = UniqueFd(pair[1]);
  }
  /// As the router does.
  void send(const Frame& frame) const {
    REQUIRE(::send(far.get(), frame.data(), frame.size(), 0) == static_cast<ssize_t>(frame.size()));
  }
  UniqueFd near;
  UniqueFd far;
};

/// make_frame's packets go from 10.1.2.3 (fdfd:...) in `east` to 10.1.2.4 (fcfc:...) in `west`.
struct Wire {
  Cable east_cable;
  Cable west_cable;
  Node east{"gw", Pair::kAlice, 1001, wire_of("east", east_cable)};
  Node west{"gw", Pair::kBob, 1002, wire_of("west", west_cable)};
  Random random{7};
  std::array<std::uint8_t, 32> key = random.array<32>();

  explicit Wire(bool keys = true) {
    east.know(west);
    west.know(east);
    route(east);
    route(west);
    if (keys) install();
  }
  static Node::Options wire_of(std::string net, Cable& cable) {
    Node::Options options;
    options.kind = PortKind::kLink;
    options.net = std::move(net);
    options.lan = std::move(cable.near);
    return options;
  }
  static void route(Node& node) {
    const bool is_east = node.net == "east";
    node.tables.set_routes(is_east ? "" : "east", {prefix({10, 1, 2, 3}, 32), prefix6(0xfd)});
    node.tables.set_routes(is_east ? "west" : "", {prefix({10, 1, 2, 4}, 32), prefix6(0xfc)});
  }
  void install() {
    west.tables.install_pair_key("east/gw", west.boot, key, 1, true);
    east.tables.install_pair_key("west/gw", east.boot, key, 1, true);
  }
  /// What east's port gives to its router.
  std::vector<Frame> leaving(const Frame& frame, const VnetHeader& header = {}) {
    east.from_host(header, frame);
    east.pump_out();
    return taken(east_cable);
  }
  static std::vector<Frame> taken(const Cable& cable) {
    std::vector<Frame> frames;
    for (;;) {
      Frame frame(70'000);
      const ssize_t got = recv(cable.far.get(), frame.data(), frame.size(), 0);
      if (got <= 0) return frames;
      frame.resize(static_cast<std::size_t>(got));
      frames.push_back(std::move(frame));
    }
  }
  static void give(const Cable& cable, Node& node, const Frame& frame) {
    cable.send(frame);
    node.pump_in();
  }
  /// What a router does to each packet.
  static Frame routed(Frame frame) {
    std::fill_n(frame.begin(), 6, std::uint8_t{0x0e});      // To whom it found by ARP,
    std::fill_n(frame.begin() + 6, 6, std::uint8_t{0x0a});  // from its other interface.
    if (frame.at(kIp) >> 4 == 4) {
      frame.at(kIp + 8) -= 1;
      write_ip_checksum(frame, kIp, 20);
    } else {
      frame.at(kIp + 7) -= 1;
    }
    return frame;
  }
  std::optional<TapPacket> cross(const Frame& frame, const VnetHeader& header = {}) {
    for (const Frame& one : leaving(frame, header)) west_cable.send(routed(one));
    west.pump_in();
    return west.to_host();
  }
};

FrameSpec spec_of(std::size_t payload, int version = 4) {
  FrameSpec spec;
  spec.payload = Frame(payload, 0x5a);
  spec.ip_version = version;
  return spec;
}

Frame packet_of(const Frame& frame) {
  return {frame.begin() + kIp, frame.end()};
}

/// ICMP from the router 192.0.2.1 (2001:db8::1) about `quoted`, a frame that it got.
Frame complaint(const Frame& quoted, unsigned type, unsigned code, unsigned rest,
                std::size_t bytes) {
  const bool v4 = quoted.at(kIp) >> 4 == 4;
  Frame icmp;
  append(icmp, {type, code, 0, 0});
  append32(icmp, rest);
  const Frame packet = packet_of(quoted);
  append(icmp, std::span(packet).first(std::min(bytes, packet.size())));
  Frame frame(quoted.begin() + 6, quoted.begin() + 12);
  append(frame, std::span(quoted).first(6));
  append16(frame, v4 ? 0x0800 : 0x86dd);
  if (v4) {
    append(frame, {0x45, 0});
    append16(frame, 20 + icmp.size());
    append(frame, {0, 1, 0, 0, 64, 1, 0, 0, 192, 0, 2, 1});
    append(frame, std::span(quoted).subspan(kIp + 12, 4));
    write_ip_checksum(frame, kIp, 20);
    put16(icmp, 2, ~judge::slow_sum(icmp) & 0xffff);
  } else {
    append32(frame, 0x60000000);
    append16(frame, icmp.size());
    append(frame, {58, 64, 0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1});
    append(frame, std::span(quoted).subspan(kIp + 8, 16));
    Frame pseudo(frame.begin() + kIp + 8, frame.begin() + kIp + 40);
    append32(pseudo, static_cast<std::uint32_t>(icmp.size()));
    append32(pseudo, 58);
    append(pseudo, icmp);
    put16(icmp, 2, ~judge::slow_sum(pseudo) & 0xffff);
  }
  append(frame, icmp);
  return frame;
}

TEST_CASE("wire: a packet keeps its addresses, and nothing else of it can be seen") {
  for (const int version : {4, 6}) {
    CAPTURE(version);
    Wire wire;
    FrameSpec spec = spec_of(100, version);
    spec.tos = 0xb9;  // EF, ECT(1).
    const Frame frame = make_frame(spec);
    const auto frames = wire.leaving(frame);
    REQUIRE(frames.size() == 1);
    const Frame& sent = frames[0];
    CHECK(sent.size() == frame.size() + outer_ip_size(version == 6) + kFrameOverhead);
    // To the same router, in the name of the same host.
    CHECK(std::equal(frame.begin(), frame.begin() + kIp, sent.begin()));
    if (version == 4) {
      CHECK(sent.at(kIp) == 0x45);
      CHECK(sent.at(kIp + 1) == 0xb9);
      CHECK(get16(sent, kIp + 2) == sent.size() - kIp);
      CHECK(get16(sent, kIp + 6) == 0x4000);
      CHECK(sent.at(kIp + 8) == 64);
      CHECK(sent.at(kIp + 9) == 253);
      CHECK(judge::slow_sum(std::span(sent).subspan(kIp, 20)) == 0xffff);
      CHECK(
          std::equal(frame.begin() + kIp + 12, frame.begin() + kIp + 20, sent.begin() + kIp + 12));
    } else {
      CHECK((get16(sent, kIp) >> 4) == 0x6b9);
      CHECK(get16(sent, kIp + 4) == sent.size() - kIp - 40);
      CHECK(sent.at(kIp + 6) == 253);
      CHECK(sent.at(kIp + 7) == 64);
      CHECK(std::equal(frame.begin() + kIp + 8, frame.begin() + kIp + 40, sent.begin() + kIp + 8));
    }
    const Frame payload(20, 0x5a);
    CHECK(std::search(sent.begin(), sent.end(), payload.begin(), payload.end()) == sent.end());

    Wire::give(wire.west_cable, wire.west, Wire::routed(sent));
    const auto out = wire.west.to_host();
    REQUIRE(out);
    // As if the router had passed the packet itself on.
    CHECK(out->frame == Wire::routed(frame));
    CHECK(wire.east.all_drops() == 0);
    CHECK(wire.west.all_drops() == 0);
  }
}

TEST_CASE("wire: a super-frame is cut into packets of their own, and is one again at the far end") {
  Wire wire;
  const Frame frame = make_frame(spec_of(20 * 1'000), true);
  const auto out = wire.cross(frame, gso_header(frame, 1'000));
  REQUIRE(out);
  CHECK(out->header.gso_size == 1'000);
  CHECK(out->frame.size() == frame.size());
  CHECK(out->frame.at(kIp + 8) == 63);
  CHECK(wire.west.tables.peer("east/gw")->rx_frames.load() == 20);
}

TEST_CASE("wire: options, extension headers and fragments travel in the seal") {
  Wire wire;
  FrameSpec spec = spec_of(64);
  SUBCASE("an option") {
    spec.ip_options = {0x94, 4, 0, 0};
  }  // Router alert.
  SUBCASE("a fragment") {
    spec.fragment = 0x2010;
  }
  SUBCASE("an extension header") {
    spec.ip_version = 6;
    spec.extensions = {Frame(8, 0)};
    spec.extension_types = {60};
  }
  const Frame frame = make_frame(spec);
  const auto frames = wire.leaving(frame);
  REQUIRE(frames.size() == 1);
  const auto outer = parse_outer_ip(std::span(const_cast<Frame&>(frames[0])).subspan(kIp));
  REQUIRE(outer);
  Wire::give(wire.west_cable, wire.west, frames[0]);
  const auto out = wire.west.to_host();
  REQUIRE(out);
  CHECK(out->frame == frame);
}

TEST_CASE("wire: congestion that the way has seen is told inside (RFC 6040)") {
  struct Row {
    unsigned inner, outer, result;
  };
  constexpr unsigned dropped = 9;
  for (const Row row : {Row{0, 0, 0}, Row{0, 3, dropped}, Row{2, 3, 3}, Row{1, 3, 3}, Row{3, 0, 3},
                        Row{2, 1, 1}, Row{2, 0, 2}, Row{0, 1, 0}}) {
    for (const int version : {4, 6}) {
      CAPTURE(row.inner);
      CAPTURE(row.outer);
      Wire wire;
      FrameSpec spec = spec_of(30, version);
      spec.tos = 0x20 | row.inner;
      auto frames = wire.leaving(make_frame(spec));
      REQUIRE(frames.size() == 1);
      Frame& sent = frames[0];
      // A router that marks another class, too: that stays outside.
      if (version == 4) {
        sent.at(kIp + 1) = static_cast<std::uint8_t>(0x48 | row.outer);
        write_ip_checksum(sent, kIp, 20);
      } else {
        put16(sent, kIp, 0x6000U | ((0x48 | row.outer) << 4) | (get16(sent, kIp) & 0xf));
      }
      Wire::give(wire.west_cable, wire.west, sent);
      const auto out = wire.west.to_host();
      CHECK(out.has_value() == (row.result != dropped));
      if (row.result == dropped) {
        CHECK(wire.west.drops(DropReason::net_outer) == 1);
        continue;
      }
      spec.tos = 0x20 | row.result;
      CHECK(out->frame == make_frame(spec));
    }
  }
}

TEST_CASE("wire: what any part of a packet has met, the packet has (RFC 3168, section 5.3)") {
  for (const int version : {4, 6}) {
    for (const std::size_t marked : {0, 1}) {
      for (const bool turned : {false, true}) {
        CAPTURE(version);
        CAPTURE(marked);
        CAPTURE(turned);
        Wire wire;
        FrameSpec spec = spec_of(1'440, version);
        spec.tos = 0x20 | 2;
        auto parts = wire.leaving(make_frame(spec));
        REQUIRE(parts.size() == 2);
        // One came by a longer way and saw congestion there.
        Frame& part = parts[marked];
        if (version == 4) {
          part.at(kIp + 1) |= 3;
          part.at(kIp + 8) = 7;
          write_ip_checksum(part, kIp, 20);
        } else {
          part.at(kIp + 1) |= 0x30;
          part.at(kIp + 7) = 7;
        }
        if (turned) std::swap(parts[0], parts[1]);
        for (const Frame& one : parts) Wire::give(wire.west_cable, wire.west, one);
        const auto out = wire.west.to_host();
        REQUIRE(out);
        spec.tos = 0x20 | 3;
        Frame expected = make_frame(spec);
        expected.at(kIp + (version == 4 ? 8 : 7)) = 7;
        if (version == 4) write_ip_checksum(expected, kIp, 20);
        CHECK(out->frame == expected);
      }
    }
  }
}

TEST_CASE("wire: a way can't raise a TTL") {
  Wire wire;
  auto frames = wire.leaving(make_frame(spec_of(30)));
  REQUIRE(frames.size() == 1);
  frames[0].at(kIp + 8) = 255;
  write_ip_checksum(frames[0], kIp, 20);
  Wire::give(wire.west_cable, wire.west, frames[0]);
  const auto out = wire.west.to_host();
  REQUIRE(out);
  CHECK(out->frame == make_frame(spec_of(30)));
}

TEST_CASE("wire: outer addresses are authentic, and those inside are the same") {
  Wire wire;
  for (Node* node : {&wire.east, &wire.west}) {
    const bool east = node->net == "east";
    node->tables.set_routes(east ? "" : "east", {prefix({10, 1, 2, 2}, 31)});
    node->tables.set_routes(east ? "west" : "", {prefix({10, 1, 2, 4}, 31)});
  }
  auto frames = wire.leaving(make_frame(spec_of(30)));
  REQUIRE(frames.size() == 1);
  SUBCASE("another source of the same net") {
    frames[0].at(kIp + 15) = 2;
  }
  SUBCASE("another destination") {
    frames[0].at(kIp + 19) = 5;
  }
  write_ip_checksum(frames[0], kIp, 20);
  Wire::give(wire.west_cable, wire.west, frames[0]);
  CHECK_FALSE(wire.west.to_host());
  CHECK(wire.west.drops(DropReason::not_authentic) == 1);
}

TEST_CASE("wire: a link port that seals another packet than it says outside is not believed") {
  Wire wire;
  for (Node* node : {&wire.east, &wire.west}) {
    node->tables.set_routes(node->net == "east" ? "" : "east", {prefix({10, 1, 2, 2}, 31)});
  }
  const Frame frame = make_frame(spec_of(30));
  auto frames = wire.leaving(frame);
  REQUIRE(frames.size() == 1);
  // The same key and number, another source inside.
  Frame& sent = frames[0];
  const std::span all(sent);
  const SendKey& key = *wire.east.tables.peer("west/gw")->send.load();
  const auto shim = all.subspan<kIp + 20, kShimSize>();
  Frame inner = packet_of(frame);
  inner.at(15) = 2;
  std::array<std::uint8_t, kInnerHeaderSize> head;
  InnerHeader header;
  header.time = frame_time(wire.east.clock.server_ms(boot_ms()));
  write_inner_header(header, head);
  const AssociatedData aad(shim, {}, Way::kSending, all.subspan(kIp + 12, 8));
  key.aead->seal_parts(0, aad.bytes(), head, inner,
                       all.subspan(kIp + 20 + kShimSize, kInnerHeaderSize + inner.size()),
                       all.last<kFrameTagSize>());
  Wire::give(wire.west_cable, wire.west, sent);
  CHECK_FALSE(wire.west.to_host());
  CHECK(wire.west.drops(DropReason::net_outer) == 1);
}

TEST_CASE("wire: what is not between the two subnets does not leave") {
  Wire wire;
  const auto refused = [&](const Frame& frame, DropReason reason) {
    const std::uint64_t before = wire.east.drops(reason);
    CHECK(wire.leaving(frame).empty());
    CHECK(wire.east.drops(reason) == before + 1);
  };
  SUBCASE("to elsewhere, from elsewhere") {
    FrameSpec spec = spec_of(20);
    Frame frame = make_frame(spec);
    frame.at(kIp + 19) = 9;
    refused(frame, DropReason::net_destination);
    frame = make_frame(spec);
    frame.at(kIp + 15) = 9;
    refused(frame, DropReason::net_source);
  }
  SUBCASE("tagged, no IP, to all") {
    FrameSpec tagged = spec_of(20);
    tagged.tags = {0x81000007};
    refused(make_frame(tagged), DropReason::net_not_ip);
    Frame other = make_frame(spec_of(20));
    put16(other, 12, 0x88cc);
    refused(other, DropReason::net_not_ip);
    FrameSpec group = spec_of(20);
    group.destination = Frame(6, 0xff);
    refused(make_frame(group), DropReason::net_not_ip);
  }
  SUBCASE("by a way of its own") {
    FrameSpec routed = spec_of(20);
    routed.ip_options = {0x83, 7, 4, 192, 0, 2, 9, 0};
    refused(make_frame(routed), DropReason::net_source_route);
    routed.ip_options = {1, 0x89, 7, 4, 192, 0, 2, 9};
    refused(make_frame(routed), DropReason::net_source_route);
    FrameSpec six = spec_of(20, 6);
    six.extensions = {Frame(8, 0), Frame(8, 0)};
    six.extension_types = {60, 43};
    refused(make_frame(six), DropReason::net_source_route);
  }
  SUBCASE("without a key") {
    wire.east.tables.remove_peer("west/gw");
    refused(make_frame(spec_of(20)), DropReason::no_key);
  }
}

TEST_CASE("wire: subnet and router find each other in clear, and say nothing else") {
  Wire wire;
  Frame arp = Frame(6, 0xff);
  append(arp, {2, 0, 0, 0, 0, 2, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 2, 10, 1, 2, 3});
  append(arp, {0, 0, 0, 0, 0, 0, 10, 1, 2, 1});
  // A neighbour solicitation, and the same with a hop limit that says that it was forwarded.
  Frame solicitation{0x33, 0x33, 0,    0,    0, 1, 2, 0, 0,  0,  0,
                     2,    0x86, 0xdd, 0x60, 0, 0, 0, 0, 24, 58, 255};
  append(solicitation, Frame(32, 0xfe));
  append(solicitation, {135, 0, 0, 0, 0, 0, 0, 0});
  append(solicitation, Frame(16, 0xfe));
  Frame forwarded = solicitation;
  forwarded.at(kIp + 7) = 254;
  Frame ospf = make_frame(spec_of(40));
  ospf.at(kIp + 9) = 89;
  write_ip_checksum(ospf, kIp, 20);
  const auto both_ways = [&](const Frame& frame) {
    const auto out = wire.leaving(frame);
    const bool left = out.size() == 1 && out[0] == frame;
    Wire::give(wire.east_cable, wire.east, frame);
    const auto in = wire.east.to_host();
    const bool came = in && in->frame == frame && in->header.flags == 0;
    return std::pair(left, came);
  };
  CHECK(both_ways(arp) == std::pair(true, true));
  CHECK(both_ways(solicitation) == std::pair(true, true));
  CHECK(both_ways(forwarded) == std::pair(false, false));
  const Frame plain = make_frame(spec_of(40));
  Wire::give(wire.west_cable, wire.west, plain);
  CHECK_FALSE(wire.west.to_host());
  CHECK(wire.west.drops(DropReason::net_clear) == 1);
  ospf.at(kIp + 19) = 9;  // To somebody who is in no linked subnet.
  write_ip_checksum(ospf, kIp, 20);
  CHECK(both_ways(ospf) == std::pair(false, false));
  auto settings = wire.east.settings();
  settings->pass = {89};
  wire.east.tables.set_settings(std::move(settings));
  CHECK(both_ways(ospf) == std::pair(true, true));
  // Between the subnets it is sealed all the same, or nothing.
  ospf.at(kIp + 19) = 4;
  write_ip_checksum(ospf, kIp, 20);
  const auto between = wire.leaving(ospf);
  REQUIRE(between.size() == 1);
  CHECK(between[0].at(kIp + 9) == 253);
  settings = wire.west.settings();
  settings->pass = {89};
  wire.west.tables.set_settings(std::move(settings));
  Wire::give(wire.west_cable, wire.west, ospf);
  CHECK_FALSE(wire.west.to_host());
  // Also while there is no link with it, if the operator says that it may be behind one.
  settings = wire.east.settings();
  settings->pass = {89};
  settings->elsewhere = {prefix({10, 1, 2, 4}, 32)};
  wire.east.tables.set_settings(std::move(settings));
  wire.east.tables.set_routes("west", {});
  CHECK(wire.leaving(ospf).empty());
  CHECK(wire.east.drops(DropReason::net_destination) == 2);
}

TEST_CASE("wire: a packet that comes before its key waits with its outer header") {
  Wire wire(false);
  wire.east.tables.install_pair_key("west/gw", wire.east.boot, wire.key, 1, true);
  const Frame frame = make_frame(spec_of(100));
  CHECK_FALSE(wire.cross(frame));
  const auto events = wire.west.events();
  REQUIRE(events.size() == 1);
  CHECK(events[0].kind == WorkerEvent::Kind::kMissIndex);
  wire.west.tables.install_pair_key("east/gw", wire.west.boot, wire.key, 1, true);
  wire.west.pump_in();
  const auto out = wire.west.to_host();
  REQUIRE(out);
  CHECK(out->frame == Wire::routed(frame));
}

TEST_CASE("wire: a replayed packet, a fragment of one, and another kind of frame are refused") {
  Wire wire;
  const auto frames = wire.leaving(make_frame(spec_of(100)));
  REQUIRE(frames.size() == 1);
  Frame sent = frames[0];
  Wire::give(wire.west_cable, wire.west, sent);
  CHECK(wire.west.to_host());
  Wire::give(wire.west_cable, wire.west, sent);
  CHECK(wire.west.drops(DropReason::replayed) == 1);
  put16(sent, kIp + 6, 0x2000);
  write_ip_checksum(sent, kIp, 20);
  Wire::give(wire.west_cable, wire.west, sent);
  CHECK(wire.west.drops(DropReason::net_clear) == 1);
  put16(sent, kIp + 6, 0x4000);
  sent.at(kIp + 20) = 0x14;  // A path frame.
  write_ip_checksum(sent, kIp, 20);
  Wire::give(wire.west_cable, wire.west, sent);
  CHECK(wire.west.drops(DropReason::malformed) == 1);
  CHECK_FALSE(wire.west.to_host());
}

TEST_CASE("wire: what a router says of a sealed packet reaches the sender of the one inside") {
  for (const int version : {4, 6}) {
    for (const std::size_t quoted :
         {std::size_t{548}, version == 4 ? std::size_t{28} : std::size_t{48}}) {
      CAPTURE(version);
      CAPTURE(quoted);
      Wire wire;
      FrameSpec spec = spec_of(100, version);
      const Frame first = make_frame(spec);
      const auto sealed = wire.leaving(first);
      spec.source_port = 50'000;
      const Frame second = make_frame(spec);
      static_cast<void>(wire.leaving(second));
      REQUIRE(sealed.size() == 1);
      // TTL exceeded about the first one.
      Wire::give(wire.east_cable, wire.east,
                 complaint(sealed[0], version == 4 ? 11 : 3, 0, 0, quoted));
      const auto told = wire.east.to_host();
      REQUIRE(told);
      // With all of the shim, about the packet itself; else about the newest between the two.
      const Frame about = packet_of(quoted > 100 ? first : second);
      const std::size_t quote = std::min<std::size_t>(about.size(), SentPackets::kStart);
      Frame start(about.begin(), about.begin() + static_cast<std::ptrdiff_t>(quote));
      const std::size_t header = version == 4 ? 20 : 40;
      REQUIRE(told->frame.size() == kIp + header + 8 + quote);
      CHECK(std::equal(start.begin(), start.end(),
                       told->frame.begin() + kIp + static_cast<std::ptrdiff_t>(header) + 8));
      const Frame icmp(told->frame.begin() + kIp + static_cast<std::ptrdiff_t>(header),
                       told->frame.end());
      CHECK(icmp.at(0) == (version == 4 ? 11 : 3));
      if (version == 4) {
        CHECK(judge::slow_sum(icmp) == 0xffff);
        CHECK(judge::slow_sum(std::span(told->frame).subspan(kIp, 20)) == 0xffff);
        CHECK(told->frame.at(kIp + 12) == 192);
      }
    }
  }
}

TEST_CASE("wire: a short path is told, is kept to, and never below 1,280 bytes") {
  for (const int version : {4, 6}) {
    CAPTURE(version);
    Wire wire;
    const std::size_t overhead = outer_ip_size(version == 6) + kFrameOverhead;
    const std::size_t at = kIp + (version == 4 ? 20 : 40) + (version == 4 ? 6 : 4);
    const auto told_mtu = [&](const TapPacket& told) {
      return version == 4 ? get16(told.frame, at)
                          : get16(told.frame, at) * 65'536 + get16(told.frame, at + 2);
    };
    const Frame frame = make_frame(spec_of(1'320, version));
    const auto sealed = wire.leaving(frame);
    REQUIRE(sealed.size() == 1);
    const auto too_big = [&](unsigned mtu) {
      Wire::give(wire.east_cable, wire.east,
                 complaint(sealed[0], version == 4 ? 3 : 2, version == 4 ? 4 : 0, mtu, 548));
      const auto told = wire.east.to_host();
      REQUIRE(told);
      return told_mtu(*told);
    };
    CHECK(too_big(1'400) == 1'400 - overhead);
    // The next one that is too long is answered here, and crosses in parts all the same.
    const auto parts = wire.leaving(frame);
    CHECK(parts.size() == 2);
    for (const Frame& part : parts) CHECK(part.size() - kIp <= 1'400);
    const auto answer = wire.east.to_host();
    REQUIRE(answer);
    CHECK(told_mtu(*answer) == 1'400 - overhead);
    for (const Frame& part : parts) Wire::give(wire.west_cable, wire.west, Wire::routed(part));
    const auto whole = wire.west.to_host();
    REQUIRE(whole);
    CHECK(whole->frame == Wire::routed(frame));

    CHECK(too_big(1'000) == 1'280);
    const auto more =
        wire.leaving(make_frame(spec_of(1'280 - 20 - (version == 4 ? 20 : 40), version)));
    CHECK(more.size() == 2);
    CHECK_FALSE(wire.east.to_host());
    for (const Frame& part : more) CHECK(part.size() - kIp <= 1'000);
    CHECK(too_big(40) == 1'280);
  }
}

TEST_CASE("wire: a complaint about what was not sent is nothing") {
  Wire wire;
  const Frame frame = make_frame(spec_of(1'300));
  auto sealed = wire.leaving(frame);
  REQUIRE(sealed.size() == 1);
  const auto refused = [&](const Frame& said) {
    const std::uint64_t before = wire.east.drops(DropReason::net_clear);
    Wire::give(wire.east_cable, wire.east, said);
    CHECK_FALSE(wire.east.to_host());
    CHECK(wire.east.drops(DropReason::net_clear) == before + 1);
  };
  Frame other = sealed[0];
  SUBCASE("another index") {
    other.at(kIp + 20 + 7) ^= 1;
  }
  SUBCASE("another kid") {
    other.at(kIp + 20 + 3) ^= 1;
  }
  SUBCASE("another destination") {
    other.at(kIp + 19) = 5;
  }
  SUBCASE("no sealed packet") {
    other.at(kIp + 9) = 6;
  }
  refused(complaint(other, 3, 4, 1'300, 548));
  // One with a wrong checksum.
  Frame wrong = complaint(sealed[0], 3, 4, 1'300, 548);
  wrong.back() ^= 1;
  refused(wrong);
  CHECK(wire.leaving(frame).size() == 1);
}

TEST_CASE(
    "wire: a later complaint makes no path longer, and an interface that takes less is noticed") {
  PathLimit limit;
  limit.shorten(1'400, 1'000, 500);
  limit.shorten(1'450, 1'100, 500);
  CHECK(limit.of(1'500, 1'100) == 1'400);
  limit.shorten(1'300, 1'200, 500);
  CHECK(limit.of(1'500, 1'699) == 1'300);
  CHECK(limit.of(1'200, 1'699) == 1'200);
  CHECK(limit.of(1'500, 1'700) == 1'500);
  limit.shorten(1'450, 1'800, 500);
  CHECK(limit.of(1'500, 1'900) == 1'450);
}

TEST_CASE("wire: what a SYN offers is lowered to what crosses in one piece") {
  for (const int version : {4, 6}) {
    CAPTURE(version);
    Wire wire;
    FrameSpec spec = spec_of(0, version);
    spec.flags = tcp_flag::kSyn;
    spec.tcp_options = {2, 4, 0x05, 0xb4};  // A segment of 1,460 bytes.
    const auto out = wire.cross(make_frame(spec));
    REQUIRE(out);
    const std::size_t headers = outer_ip_size(version == 6) + kTcpMinHeaderSize;
    const std::size_t room = 1'500 - outer_ip_size(version == 6) - kFrameOverhead;
    CHECK(get16(out->frame, kIp + headers + 2) == room - headers);
  }
}

TEST_CASE("wire: neighbour discovery comes from no other subnet") {
  Wire wire;
  Frame solicitation = make_frame(spec_of(24, 6));
  // In place of TCP, between the same addresses.
  solicitation.resize(kIp + 40);
  put16(solicitation, kIp + 4, 24);
  solicitation.at(kIp + 6) = 58;
  append(solicitation, {135, 0, 0, 0, 0, 0, 0, 0});
  append(solicitation, Frame(16, 0xfc));
  // Sealed by a gateway that does not look, as one with a hop limit that says that it was
  // forwarded.
  const auto frames = wire.leaving(solicitation);
  REQUIRE(frames.size() == 1);
  Wire::give(wire.west_cable, wire.west, Wire::routed(frames[0]));
  CHECK_FALSE(wire.west.to_host());
  CHECK(wire.west.drops(DropReason::net_not_ip) == 1);
}

TEST_CASE("wire: frames in clear have a limit, so that a loop ends") {
  Wire wire;
  Frame arp = Frame(6, 0xff);
  append(arp, {2, 0, 0, 0, 0, 2, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 2, 10, 1, 2, 3});
  append(arp, {0, 0, 0, 0, 0, 0, 10, 1, 2, 1});
  // In groups, so that even a slow build is faster than the limit.
  constexpr std::uint64_t kGroup = 32;
  const auto begin = std::chrono::steady_clock::now();
  std::uint64_t passed = 0;
  std::uint64_t sent = 0;
  while (wire.east.drops(DropReason::storm) < 1'000 && sent < 200'000) {
    for (std::uint64_t i = 0; i < kGroup; ++i) wire.east_cable.send(arp);
    sent += kGroup;
    wire.east.pump_in();
    while (wire.east.to_host()) ++passed;
  }
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
  CHECK(wire.east.drops(DropReason::storm) >= 1'000);
  CHECK(passed + wire.east.all_drops() == sent);
  CHECK(static_cast<double>(passed) <= kClearFrames * (1 + seconds.count()) + 1);
}

TEST_CASE("wire: complaints have a budget") {
  Wire wire;
  const auto sealed = wire.leaving(make_frame(spec_of(100)));
  REQUIRE(sealed.size() == 1);
  const Frame said = complaint(sealed[0], 11, 0, 0, 548);
  std::size_t told = 0;
  for (int i = 0; i < 300; ++i) {
    Wire::give(wire.east_cable, wire.east, said);
    if (wire.east.to_host()) ++told;
  }
  CHECK(told >= 100);
  CHECK(told < 200);
}

}  // namespace
}  // namespace pairwire::test
