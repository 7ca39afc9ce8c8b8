// What frames say of addresses, routes and leases (l2/announcement), and the many ways to say it so
// that it is overlooked.
#include "l2/announcement.hpp"

#include <doctest/doctest.h>

#include "test/neighbour-frames.hpp"

using namespace pairwire;
using namespace pairwire::test;

namespace {

using What = Announcement::Kind;

constexpr MacAddress kSource{std::array<std::uint8_t, 6>{0x02, 0, 0, 0, 0, 2}};
constexpr MacAddress kOther{std::array<std::uint8_t, 6>{0x52, 0, 0, 0, 0, 9}};
constexpr MacAddress kNodes{std::array<std::uint8_t, 6>{0x33, 0x33, 0, 0, 0, 1}};
constexpr MacAddress kUnicast{std::array<std::uint8_t, 6>{0x02, 0, 0, 0, 0, 1}};

Announcement read(const Frame& frame) {
  // What is not looked at says nothing.
  const Announcement what = read_announcement(frame);
  if (!may_announce(frame)) CHECK(what.kind == What::kNone);
  return what;
}
Frame from_source(const MacAddress& to, unsigned type, const Frame& inside) {
  return ethernet_frame(to, kSource, type, inside);
}
Frame nd(const Frame& message, Frame extensions = {}, unsigned first = 58, unsigned hops = 255) {
  return from_source(kNodes, 0x86dd,
                     ipv6_packet(ipv6_of(0x11), ipv6_of(1), first, hops, extensions, message));
}
/// An extension header of 8 bytes before `next`.
Frame extension(unsigned next) {
  return {static_cast<std::uint8_t>(next), 0, 1, 4, 0, 0, 0, 0};
}
Frame fragment(unsigned next, unsigned offset, bool more) {
  Frame header;
  header.reserve(8);
  append(header, {next, 0});
  append16(header, (offset << 3) | (more ? 1U : 0U));
  append32(header, 77);
  return header;
}

const IpAddress k10 = IpAddress::of_ipv4(0x0a000001);

}  // namespace

TEST_CASE("announcement: TCP is not looked at, ARP, UDP and all else of IPv6 is") {
  FrameSpec spec;
  spec.payload = Frame(10);
  CHECK_FALSE(may_announce(make_frame(spec)));
  spec.ip_version = 6;
  CHECK_FALSE(may_announce(make_frame(spec)));
  spec.udp = true;
  CHECK(may_announce(make_frame(spec)));
  CHECK(read(make_frame(spec)).kind == What::kNone);
  spec.ip_version = 4;
  CHECK(may_announce(make_frame(spec)));
  CHECK(read(make_frame(spec)).kind == What::kNone);
}

TEST_CASE("announcement: ARP says whose address it is, and asks") {
  const Frame request = from_source(MacAddress::broadcast(), 0x0806,
                                    arp_packet(1, kSource, 0x0a000001, {}, 0x0a000002));
  const Announcement what = read(request);
  CHECK(what.kind == What::kArp);
  CHECK_FALSE(what.false_form);
  CHECK(what.claimed == k10);
  CHECK(what.asked == IpAddress::of_ipv4(0x0a000002));

  SUBCASE("a question to one machine is not everybody's") {
    CHECK(read(from_source(kUnicast, 0x0806, arp_packet(1, kSource, 0x0a000001, {}, 0x0a000002)))
              .asked.is_none());
  }
  SUBCASE("an announcement asks nothing, nor does a reply") {
    CHECK(read(from_source(MacAddress::broadcast(), 0x0806,
                           arp_packet(1, kSource, 0x0a000001, {}, 0x0a000001)))
              .asked.is_none());
    CHECK(read(from_source(MacAddress::broadcast(), 0x0806,
                           arp_packet(2, kSource, 0x0a000001, {}, 0x0a000002)))
              .asked.is_none());
  }
  SUBCASE("a probe claims nothing yet") {
    const Announcement probe = read(
        from_source(MacAddress::broadcast(), 0x0806, arp_packet(1, kSource, 0, {}, 0x0a000002)));
    CHECK(probe.claimed.is_none());
    CHECK_FALSE(probe.asked.is_none());
  }
  SUBCASE("another sender than the frame's source") {
    CHECK(read(from_source(kUnicast, 0x0806, arp_packet(2, kOther, 0x0a000001, {}, 0))).false_form);
  }
  SUBCASE("malformed") {
    Frame cut = request;
    cut.pop_back();
    CHECK(read(cut).false_form);
    for (std::size_t at = 14; at < 20; ++at) {
      Frame odd = request;
      odd[at] ^= 6;  // Also to hardware type 7 and such.
      CHECK_MESSAGE(read(odd).false_form, at);
    }
  }
  SUBCASE("RARP is no ARP") {
    CHECK(read(from_source(kUnicast, 0x8035, arp_packet(3, kOther, 0, {}, 0))).kind == What::kNone);
  }
}

TEST_CASE("announcement: tags and SNAP hide nothing") {
  const Frame arp = arp_packet(2, kOther, 0x0a000001, {}, 0);
  const auto tagged = [&](std::initializer_list<std::uint32_t> tags) {
    Frame frame = from_source(kUnicast, 0, {});
    frame.resize(12);
    for (const std::uint32_t tag : tags) append32(frame, tag);
    append16(frame, 0x0806);
    append(frame, arp);
    return read(frame);
  };
  CHECK(tagged({0x8100'0007}).false_form);
  CHECK(tagged({0x8100'0007}).in_vlan);
  CHECK(tagged({0x88a8'0000, 0x8100'0007}).in_vlan);
  // Machines read a frame with a priority tag as one without.
  CHECK(tagged({0x8100'e000}).false_form);
  CHECK_FALSE(tagged({0x8100'e000}).in_vlan);
  CHECK_FALSE(tagged({0x88a8'0000, 0x8100'0000}).in_vlan);
  for (const unsigned last : {0x00U, 0xf8U}) {
    Frame snap{0xaa, 0xaa, 3, 0, 0, static_cast<std::uint8_t>(last), 0x08, 0x06};
    append(snap, arp);
    CHECK(read(from_source(kUnicast, static_cast<unsigned>(snap.size()), snap)).false_form);
  }
  // A question in there is not answered here, because the answer would have to look like it.
  Frame question{0xaa, 0xaa, 3, 0, 0, 0, 0x08, 0x06};
  append(question, arp_packet(1, kSource, 1, {}, 2));
  CHECK(read(from_source(MacAddress::broadcast(), static_cast<unsigned>(question.size()), question))
            .asked.is_none());
}

TEST_CASE("announcement: neighbour discovery says whose address it is, and asks") {
  const IpAddress sender = *IpAddress::from(ipv6_of(0x11));
  const IpAddress target = *IpAddress::from(ipv6_of(0x22));
  const Announcement asks = read(nd(neighbour(135, ipv6_of(0x22), link_option(1, kSource))));
  CHECK(asks.kind == What::kNeighbour);
  CHECK_FALSE(asks.false_form);
  CHECK(asks.claimed == sender);
  CHECK(asks.asked == target);
  const Announcement says = read(nd(neighbour(136, ipv6_of(0x22), link_option(2, kSource))));
  CHECK(says.claimed == target);
  CHECK(says.asked.is_none());
  CHECK_FALSE(says.false_form);
  CHECK(read(nd(router_solicitation(link_option(1, kSource)))).claimed == sender);
  CHECK(read(nd(router_advertisement(link_option(1, kSource)))).kind == What::kRouter);
  CHECK(read(nd(redirect(link_option(2, kOther)))).kind == What::kRedirect);
  CHECK_FALSE(read(nd(redirect(link_option(2, kOther)))).false_form);

  // Duplicate address detection: asks from no address.
  const Announcement dad = read(from_source(
      kNodes, 0x86dd,
      ipv6_packet(Frame(16), ipv6_of(1), 58, 255, {}, neighbour(135, ipv6_of(0x22), {}))));
  CHECK(dad.claimed.is_none());
  CHECK(dad.asked == target);
}

TEST_CASE("announcement: neighbour discovery with somebody else's link-layer address") {
  CHECK(read(nd(neighbour(135, ipv6_of(0x22), link_option(1, kOther)))).false_form);
  CHECK(read(nd(neighbour(136, ipv6_of(0x22), link_option(2, kOther)))).false_form);
  CHECK(read(nd(router_solicitation(link_option(1, kOther)))).false_form);
  CHECK(read(nd(router_advertisement(link_option(1, kOther)))).false_form);
  Frame two = link_option(1, kSource);
  append(two, link_option(1, kOther));
  CHECK(read(nd(neighbour(135, ipv6_of(0x22), two))).false_form);
  Frame longer = link_option(1, kSource);
  longer[1] = 2;
  append(longer, Frame(8));
  CHECK(read(nd(neighbour(135, ipv6_of(0x22), longer))).false_form);
}

TEST_CASE("announcement: malformed neighbour discovery") {
  const Frame good = nd(neighbour(136, ipv6_of(0x22), link_option(2, kSource)));
  REQUIRE_FALSE(read(good).false_form);
  Frame hops = good;
  hops[14 + 7] = 254;
  CHECK(read(hops).false_form);
  Frame no_length = good;
  no_length[14 + 40 + 25] = 0;
  CHECK(read(no_length).false_form);
  Frame beyond = good;
  beyond[14 + 40 + 25] = 2;
  CHECK(read(beyond).false_form);
  Frame cut = good;
  cut.resize(cut.size() - 1);
  CHECK(read(cut).false_form);  // The IPv6 header says more.
  CHECK(read(nd(Frame{136, 0, 0, 0})).false_form);
  // Padding of the Ethernet frame is none of its options.
  Frame padded = good;
  padded.resize(padded.size() + 6, 0);
  CHECK_FALSE(read(padded).false_form);
}

TEST_CASE("announcement: extension headers and fragments hide no neighbour discovery") {
  const Frame spoof = neighbour(136, ipv6_of(0x22), link_option(2, kOther));
  for (const unsigned type : {0U, 43U, 60U}) {
    CHECK_MESSAGE(read(nd(spoof, extension(58), type)).false_form, type);
  }
  Frame authentication{58, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0};
  CHECK(read(nd(spoof, authentication, 51)).false_form);
  Frame two = extension(60);
  append(two, extension(58));
  CHECK(read(nd(spoof, two, 0)).false_form);
  // A payload length of 0 with a hop-by-hop header: Linux then takes all that is there.
  Frame none = nd(spoof, extension(58), 0);
  put16(none, 14 + 4, 0);
  CHECK(read(none).false_form);
  // Honest, but in a fragment, even the only one: RFC 6980.
  const Frame honest = neighbour(136, ipv6_of(0x22), link_option(2, kSource));
  CHECK(read(nd(honest, fragment(58, 0, false), 44)).false_form);
  CHECK(read(nd(honest, fragment(58, 0, true), 44)).false_form);
  // Nothing to see in a later one, which is nothing without the first.
  CHECK(read(nd(honest, fragment(58, 10, false), 44)).kind == What::kNone);
  // Chains whose end is elsewhere, or too far away: RFC 7113.
  CHECK(read(nd({}, fragment(58, 0, true), 44)).false_form);
  Frame open = fragment(60, 0, true);
  append(open, extension(58));
  open[8 + 1] = 9;  // Longer than what is here.
  CHECK(read(nd(spoof, open, 44)).false_form);
  Frame chain;
  for (std::size_t i = 0; i <= kMaxExtensionHeaders; ++i) append(chain, extension(60));
  chain[chain.size() - 8] = 58;
  CHECK(read(nd(honest, chain, 60)).false_form);
  // With one less it is read.
  chain.erase(chain.begin(), chain.begin() + 8);
  CHECK_FALSE(read(nd(honest, chain, 60)).false_form);
}

TEST_CASE("announcement: other ICMPv6 and protocols say nothing") {
  CHECK(read(nd(Frame{128, 0, 0, 0, 0, 0, 0, 0})).kind == What::kNone);
  CHECK(read(nd(Frame{143, 0, 0, 0, 0, 0, 0, 0}, extension(58), 0)).kind == What::kNone);  // MLD
  CHECK(read(nd(Frame(40), {}, 89)).kind == What::kNone);                                  // OSPF
  CHECK(read(nd(Frame(40), {}, 59)).kind == What::kNone);  // No next header.
}

TEST_CASE("announcement: what DHCP servers say") {
  const auto ipv4 = [](unsigned from, unsigned to, unsigned op, unsigned fragment_field = 0) {
    FrameSpec spec;
    spec.udp = true;
    spec.source_port = from;
    spec.destination_port = to;
    spec.payload = Frame(240);
    spec.payload[0] = static_cast<std::uint8_t>(op);
    spec.fragment = fragment_field;
    return make_frame(spec);
  };
  const auto is_server = [](const Frame& frame) { return read(frame).kind == What::kDhcpServer; };
  CHECK(is_server(ipv4(67, 68, 2)));
  CHECK(is_server(ipv4(12345, 68, 2)));  // Clients do not look where it is from,
  CHECK(is_server(ipv4(67, 68, 1)));
  CHECK(is_server(ipv4(67, 67, 2)));            // nor do relays.
  CHECK(is_server(ipv4(67, 68, 2, 0x2000)));    // The first fragment has the ports.
  CHECK_FALSE(is_server(ipv4(67, 68, 2, 20)));  // A later one has none.
  CHECK_FALSE(is_server(ipv4(68, 67, 1)));
  CHECK_FALSE(is_server(ipv4(67, 67, 1)));
  CHECK_FALSE(is_server(ipv4(5000, 5001, 2)));

  Frame options = ipv4(67, 68, 2);
  options[14] = 0x46;  // 4 bytes of options: the ports are further behind.
  options.insert(options.begin() + 34, 4, 1);
  CHECK(is_server(options));
  // Lengths that no IP stack takes, and clients that read raw frames never look at.
  Frame lies = ipv4(67, 68, 2);
  put16(lies, 16, 20);
  CHECK(is_server(lies));
  lies[14] = 0x05;  // Not even version 4.
  CHECK(is_server(lies));

  const auto ipv6 = [](unsigned from, unsigned to, unsigned type, const Frame& before = {},
                       unsigned first = 17) {
    Frame udp;
    udp.reserve(12);
    append16(udp, from);
    append16(udp, to);
    append32(udp, 0x000c0000);
    append(udp, {type, 0, 0, 1});
    return from_source(kUnicast, 0x86dd,
                       ipv6_packet(ipv6_of(2), ipv6_of(3), first, 64, before, udp));
  };
  CHECK(is_server(ipv6(547, 546, 2)));
  CHECK(is_server(ipv6(9999, 546, 7)));
  for (const unsigned type : {2U, 7U, 10U, 13U}) CHECK(is_server(ipv6(547, 547, type)));
  CHECK_FALSE(is_server(ipv6(546, 547, 1)));
  CHECK_FALSE(is_server(ipv6(547, 547, 12)));  // Of a relay, on its way to the server.
  CHECK(is_server(ipv6(547, 546, 2, extension(17), 60)));
  CHECK(is_server(ipv6(547, 546, 2, fragment(17, 0, true), 44)));
}

TEST_CASE("announcement: answers are what a neighbour would say") {
  std::array<std::uint8_t, kNeighbourAnswerSize> out{};
  const auto answer = [&](const Announcement& question, bool router) {
    const std::size_t size = write_neighbour_answer(question, kSource, kOther, router, out);
    return Frame(out.begin(), out.begin() + static_cast<std::ptrdiff_t>(size));
  };
  const Frame reply = answer(read(from_source(MacAddress::broadcast(), 0x0806,
                                              arp_packet(1, kSource, 0x0a000001, {}, 0x0a000002))),
                             false);
  CHECK(reply == ethernet_frame(kSource, kOther, 0x0806,
                                arp_packet(2, kOther, 0x0a000002, kSource, 0x0a000001)));

  const Announcement asks = read(nd(neighbour(135, ipv6_of(0x22), link_option(1, kSource))));
  const auto expected = [](const Frame& to, unsigned flags) {
    Frame message = neighbour(136, ipv6_of(0x22), link_option(2, kOther));
    message[4] = static_cast<std::uint8_t>(flags);
    return ethernet_frame(kSource, kOther, 0x86dd,
                          ipv6_packet(ipv6_of(0x22), to, 58, 255, {}, message));
  };
  CHECK(answer(asks, false) == expected(ipv6_of(0x11), 0x60));
  CHECK(answer(asks, true) == expected(ipv6_of(0x11), 0xe0));
  Announcement dad = asks;
  dad.claimed = {};
  CHECK(answer(dad, false) == expected({0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1}, 0x20));
}
