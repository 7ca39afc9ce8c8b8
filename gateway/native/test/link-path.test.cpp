// Two link ports of two subnets: what the kernel routes into one TAP comes out of the other, sealed
// between them as IP packets, and nothing else does (docs/protocol.md section 9).
#include <doctest/doctest.h>

#include "test/lab.hpp"

namespace pairwire::test {
namespace {

IpPrefix prefix(std::array<std::uint8_t, 4> base, std::uint8_t bits) {
  return IpPrefix::from(base, bits).value();
}

Node::Options link_of(std::string net) {
  Node::Options options;
  options.kind = PortKind::kLink;
  options.net = std::move(net);
  return options;
}

/// make_frame's packets go from 10.1.2.3, which is in `east`, to 10.1.2.4, which is in `west`.
struct Link {
  Node east{"gw", Pair::kAlice, 1001, link_of("east")};
  Node west{"gw", Pair::kBob, 1002, link_of("west")};
  Random random{7};
  std::array<std::uint8_t, 32> key = random.array<32>();

  Link() {
    east.know(west);
    west.know(east);
    route(east);
    route(west);
  }
  /// Both know the same; each calls its own net the empty one.
  void route(Node& node) const {
    const bool is_east = node.net == "east";
    node.tables.set_routes(is_east ? "" : "east", {prefix({10, 1, 2, 3}, 32)});
    node.tables.set_routes(is_east ? "west" : "", {prefix({10, 1, 2, 4}, 32)});
  }
  void install(std::uint64_t pw_id = 1) {
    west.tables.install_pair_key("east/gw", west.boot, key, pw_id, true);
    east.tables.install_pair_key("west/gw", east.boot, key, pw_id, true);
  }
  void send(const Frame& frame, const VnetHeader& header = {}) {
    east.from_host(header, frame);
    east.pump_out();
    west.pump_in();
  }
  Frame sealed() const {
    Frame bytes(2'000);
    const ssize_t size = recv(west.udp.get(), bytes.data(), bytes.size(), 0);
    REQUIRE(size > 0);
    bytes.resize(static_cast<std::size_t>(size));
    return bytes;
  }
};

FrameSpec with_payload(std::size_t size) {
  FrameSpec spec;
  spec.payload = Frame(size, 0x5a);
  return spec;
}

Frame packet_of(const Frame& frame) {
  return {frame.begin() + kEthernetHeaderSize, frame.end()};
}

TEST_CASE("link: an IP packet crosses, without its Ethernet header") {
  Link link;
  link.install();
  const Frame frame = make_frame(with_payload(100));
  link.east.from_host({}, frame);
  link.east.pump_out();
  const Frame sealed = link.sealed();
  CHECK(sealed.size() == packet_of(frame).size() + kFrameOverhead);
  const auto shim = parse_shim(sealed, Transport::kUdp);
  REQUIRE(shim);
  CHECK(shim->kind == Kind::kNet);

  link.send(frame);
  const auto out = link.west.to_host();
  REQUIRE(out);
  CHECK(packet_of(out->frame) == packet_of(frame));
  // For the TAP's own address, so that the kernel takes it as one for itself to route.
  CHECK(MacAddress(std::span(out->frame).first<6>()) == Pair::kBob);
  CHECK(get16(out->frame, 12) == 0x0800);
  CHECK(link.east.all_drops() == 0);
  CHECK(link.west.all_drops() == 0);
}

TEST_CASE("link: a super-frame is cut, and is one again at the far end") {
  Link link;
  link.install();
  const Frame frame = make_frame(with_payload(20 * 1'000), true);
  VnetHeader header;
  header.flags = vnet::kNeedsChecksum;
  header.gso_type = vnet::kGsoTcpV4;
  header.gso_size = 1'000;
  header.hdr_len = 54;
  header.csum_start = 34;
  header.csum_offset = 16;
  link.send(frame, header);
  const auto out = link.west.to_host();
  REQUIRE(out);
  CHECK(out->header.gso_size == 1'000);
  CHECK(out->frame.size() == frame.size());
  CHECK(link.west.tables.peer("east/gw")->rx_frames.load() == 20);
}

TEST_CASE("link: a packet that is too long for the path crosses in parts") {
  Link link;
  link.install();
  link.east.tables.peer("west/gw")->max_frame.store(kSafeFrame);
  FrameSpec spec = with_payload(1'900);
  spec.fragment = 0;
  link.send(make_frame(spec));
  const auto out = link.west.to_host();
  REQUIRE(out);
  CHECK(packet_of(out->frame) == packet_of(make_frame(spec)));
  CHECK(get16(out->frame, 12) == 0x0800);
}

TEST_CASE("link: IPv6 crosses as IPv6") {
  Link link;
  link.install();
  FrameSpec spec = with_payload(50);
  spec.ip_version = 6;
  const Frame frame = make_frame(spec);
  const auto ends = ip_ends(std::span(frame).subspan(kEthernetHeaderSize));
  REQUIRE(ends);
  for (Node* node : {&link.east, &link.west}) {
    const bool east = node == &link.east;
    node->tables.set_routes(east ? "" : "east",
                            {IpPrefix::from(ends->source.bytes(), 128).value()});
    node->tables.set_routes(east ? "west" : "",
                            {IpPrefix::from(ends->destination.bytes(), 128).value()});
  }
  link.send(frame);
  const auto out = link.west.to_host();
  REQUIRE(out);
  CHECK(get16(out->frame, 12) == 0x86dd);
  CHECK(packet_of(out->frame) == packet_of(frame));
}

TEST_CASE("link: what is not between the two subnets does not leave") {
  Link link;
  link.install();
  const auto refused = [&](const Frame& frame, DropReason reason) {
    const std::uint64_t before = link.east.drops(reason);
    link.send(frame);
    CHECK(link.east.drops(reason) == before + 1);
    CHECK_FALSE(link.west.to_host());
  };
  SUBCASE("a source that is not in our subnet") {
    link.east.tables.set_routes("", {prefix({10, 9, 0, 0}, 16)});
    refused(make_frame({}), DropReason::net_source);
  }
  SUBCASE("a source in the other subnet, as if it came from there") {
    link.east.tables.set_routes("", {});
    link.east.tables.set_routes("west", {prefix({10, 1, 2, 0}, 24)});
    refused(make_frame({}), DropReason::net_source);
  }
  SUBCASE("a destination in no subnet, and one in our own") {
    link.east.tables.set_routes("west", {prefix({10, 1, 3, 0}, 24)});
    refused(make_frame({}), DropReason::net_destination);
    link.east.tables.set_routes("", {prefix({10, 1, 2, 0}, 24)});
    refused(make_frame({}), DropReason::net_destination);
  }
  SUBCASE("ARP, a VLAN, multicast") {
    Frame arp = make_frame({});
    put16(arp, 12, 0x0806);
    refused(arp, DropReason::net_not_ip);
    FrameSpec tagged;
    tagged.tags = {0x81000007};
    refused(make_frame(tagged), DropReason::net_not_ip);
    Frame group = make_frame({});
    group.at(30) = 224;
    refused(group, DropReason::net_not_ip);
  }
  SUBCASE("without a key, and after its end") {
    link.east.tables.remove_peer("west/gw");
    refused(make_frame({}), DropReason::no_key);
  }
}

TEST_CASE("link: a far end that lies about sources or destinations is not believed") {
  Link link;
  link.install();
  SUBCASE("a source that is not behind its net") {
    link.west.tables.set_routes("east", {prefix({10, 7, 0, 0}, 16)});
    link.send(make_frame({}));
    CHECK(link.west.drops(DropReason::net_source) == 1);
  }
  SUBCASE("a source of our own") {
    link.west.tables.set_routes("east", {});
    link.west.tables.set_routes("", {prefix({10, 1, 2, 0}, 24)});
    link.send(make_frame({}));
    CHECK(link.west.drops(DropReason::net_source) == 1);
  }
  SUBCASE("a destination in a third subnet") {
    link.west.tables.set_routes("", {prefix({10, 1, 9, 0}, 24)});
    link.west.tables.set_routes("north", {prefix({10, 1, 2, 4}, 32)});
    link.send(make_frame({}));
    CHECK(link.west.drops(DropReason::net_destination) == 1);
  }
  CHECK_FALSE(link.west.to_host());
}

TEST_CASE("link: the key is one of the two link ports by name") {
  Link link;
  // To the far end we are somebody of another net: its keys are others.
  link.west.tables.remove_peer("east/gw");
  link.west.tables.set_peer({.peer = "north/gw",
                             .index = link.east.index,
                             .boot = link.east.boot_public,
                             .macs = {},
                             .endpoints = {loopback(link.east.udp_port)},
                             .online = true,
                             .net = "north"},
                            boot_ms());
  link.west.tables.install_pair_key("north/gw", link.west.boot, link.key, 1, true);
  link.east.tables.install_pair_key("west/gw", link.east.boot, link.key, 1, true);
  link.send(make_frame({}));
  CHECK(link.west.drops(DropReason::unknown_kid) + link.west.drops(DropReason::not_authentic) +
            link.west.in.counters.held.load() ==
        1);
  CHECK_FALSE(link.west.to_host());
}

TEST_CASE("link: frames of members are nothing to a link port, and the other way round") {
  Link link;
  link.install();
  SendKey* const key = link.east.tables.peer("west/gw")->send.load();
  Frame sealed(100 + kFrameOverhead);
  const std::span all(sealed);
  write_shim({Kind::kPair, 0, key->kid, key->index, 0}, all.first<kShimSize>());
  send_datagram(UdpSocket::of(link.east.udp.get()), loopback(link.west.udp_port), sealed);
  link.west.pump_in();
  CHECK(link.west.drops(DropReason::unknown_kid) == 1);
  CHECK(link.west.events().empty());  // Nobody is asked about it.

  Pair pair;
  pair.install_pair();
  Frame other = pair.seal_as_alice(make_frame({}), 5, pair.time_now(), Kind::kNet);
  pair.inject(other);
  CHECK(pair.bob.drops(DropReason::unknown_kid) == 1);
  CHECK(pair.bob.events().empty());
}

TEST_CASE("link: a frame under an index or kid that is not held is asked about") {
  Link link;
  link.east.tables.install_pair_key("west/gw", link.east.boot, link.key, 1, true);
  link.send(make_frame({}));
  const auto events = link.west.events();
  REQUIRE(events.size() == 1);
  CHECK(events.at(0).kind == WorkerEvent::Kind::kMissIndex);
  CHECK(events.at(0).index == link.east.index);
  // It waits, and crosses when the key is there.
  link.west.tables.install_pair_key("east/gw", link.west.boot, link.key, 1, true);
  link.west.pump_in();
  CHECK(link.west.to_host());
}

TEST_CASE("link: nothing is sent to an address that has not answered") {
  Link link;
  link.east.tables.remove_peer("west/gw");
  link.east.tables.set_peer({.peer = "west/gw",
                             .index = link.west.index,
                             .boot = link.west.boot_public,
                             .macs = {},
                             .endpoints = {loopback(link.west.udp_port)},
                             .online = true,
                             .net = "west"},
                            boot_ms());
  link.install();
  Peer& west = *link.east.tables.peer("west/gw");
  link.send(make_frame({}));
  CHECK(link.east.drops(DropReason::no_endpoint) == 1);
  const std::uint64_t now = boot_ms();
  link.east.paths.key_installed(west, now);
  link.east.paths.run(now);
  link.west.pump_in();
  link.east.pump_in();
  for (const WorkerEvent& event : link.east.events()) {
    if (event.kind != WorkerEvent::Kind::kPathAnswer) continue;
    link.east.paths.answered(event.peer, event.number, event.time_us, now);
  }
  link.send(make_frame({}));
  CHECK(link.west.to_host());
}

TEST_CASE("link: a probe that comes before the key waits for it") {
  Link link;
  link.east.tables.install_pair_key("west/gw", link.east.boot, link.key, 1, true);
  const std::uint64_t now = boot_ms();
  link.east.paths.key_installed(*link.east.tables.peer("west/gw"), now);
  link.east.paths.run(now);
  link.west.pump_in();
  CHECK(link.west.in.counters.held.load() == 1);
  CHECK(link.west.events().size() == 1);
  link.west.tables.install_pair_key("east/gw", link.west.boot, link.key, 1, true);
  link.west.pump_in();
  link.east.pump_in();
  bool answered = false;
  for (const WorkerEvent& event : link.east.events()) {
    answered = answered || event.kind == WorkerEvent::Kind::kPathAnswer;
  }
  CHECK(answered);
}

TEST_CASE("link: another link port of a net takes over when one is gone") {
  Link link;
  Node second("gw2", MacAddress{std::array<std::uint8_t, 6>{2, 0, 0, 0, 0, 9}}, 1003,
              link_of("west"));
  link.route(second);
  second.know(link.east);
  link.east.know(second);
  link.install();
  second.tables.install_pair_key("east/gw", second.boot, link.key, 1, true);
  link.east.tables.install_pair_key("west/gw2", link.east.boot, link.key, 1, true);
  const auto crossed = [&] {
    link.send(make_frame({}));
    second.pump_in();
    return std::pair(link.west.to_host().has_value(), second.to_host().has_value());
  };
  CHECK(crossed() == std::pair(true, false));
  link.east.know(link.west, false);
  CHECK(crossed() == std::pair(false, true));
  // It comes back: the one in use stays.
  link.east.know(link.west, true);
  CHECK(crossed() == std::pair(false, true));
  link.east.tables.remove_peer("west/gw2");
  CHECK(crossed() == std::pair(true, false));
}

TEST_CASE("link: the way to another subnet is probed without traffic") {
  Link link;
  link.install();
  const std::uint64_t now = boot_ms();
  Peer& west = *link.east.tables.peer("west/gw");
  // As after a quarter of an hour without a frame.
  link.east.paths.run(now + 900'000);
  const auto shim = parse_shim(link.sealed(), Transport::kUdp);
  REQUIRE(shim);
  CHECK(shim->kind == Kind::kPath);
  CHECK(west.path.watched);
}

TEST_CASE("link: of two prefixes the longer one counts, whatever the order") {
  Net net("west");
  const NetRoutes routes({{prefix({10, 0, 0, 0}, 8), &net},
                          {prefix({10, 1, 0, 0}, 16), nullptr},
                          {prefix({0, 0, 0, 0}, 0), &net}});
  const auto find = [&](std::uint32_t ip) { return routes.find(IpAddress::of_ipv4(ip)); };
  CHECK(find(0x0a010203)->net == nullptr);
  CHECK(find(0x0a020203)->net == &net);
  CHECK(find(0xc0000201)->prefix.bits() == 0);
  CHECK(routes.find(*IpAddress::from(std::array<std::uint8_t, 16>{0x20, 1})) == nullptr);
  CHECK_FALSE(IpPrefix::from(std::array<std::uint8_t, 4>{}, 33));
  CHECK_FALSE(IpPrefix::from(std::array<std::uint8_t, 3>{}, 8));
}

}  // namespace
}  // namespace pairwire::test
