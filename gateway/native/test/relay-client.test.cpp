// A member and its relay: it registers, says no more hellos than it should, sends by the relay
// first, leaves it for a direct path and comes back to it. The relay is the real one, on a socket
// that the test serves; time is the test's.
#include "core/relay-client.hpp"

#include <doctest/doctest.h>

#include "relay/relay-table.hpp"
#include "test/lab.hpp"

using namespace pairwire;
using namespace pairwire::test;

namespace {

constexpr std::uint64_t kWall = 1'800'000'000'000;

std::array<std::uint8_t, kRelayKeySize> relay_key() {
  std::array<std::uint8_t, kRelayKeySize> key{};
  key.fill(7);
  return key;
}

RelayTicket ticket(std::uint32_t index) {
  const std::uint64_t not_after = kWall + 3'600'000;
  return {index, not_after, relay_ticket_key(relay_key(), index, not_after)};
}

/// Takes datagrams from a socket, one by one, with the port on loopback that each came from.
struct Socket {
  Socket() : fd(open_udp(port)) {
    const int off = 0;
    setsockopt(fd.get(), SOL_UDP, 104 /* UDP_GRO */, &off, sizeof(off));
  }
  [[nodiscard]] Endpoint address() const { return loopback(port); }
  template <typename Take>
  void each(Take take) {
    std::array<std::uint8_t, 2048> buffer;
    for (;;) {
      sockaddr_in6 from{};
      socklen_t length = sizeof(from);
      const ssize_t size = recvfrom(fd.get(), buffer.data(), buffer.size(), 0,
                                    reinterpret_cast<sockaddr*>(&from), &length);
      if (size < 0) return;
      take(ntohs(from.sin6_port), Bytes(buffer).first(static_cast<std::size_t>(size)));
    }
  }
  std::uint16_t port = 0;
  UniqueFd fd;
};

struct Relay : Socket {
  void serve(std::uint64_t now_ms) {
    each([&](std::uint16_t from, Bytes datagram) {
      const auto header = parse_relay_header(datagram);
      if (header && header->type == RelayType::kHello) ++hellos;
      if (!answers) return;
      const auto action = table.receive(loopback(from), datagram, now_ms * 1000, kWall);
      if (!action) return;
      const ConstBytes control = ConstBytes(action->control).first(action->control_size);
      if (action->forward) ++forwarded;
      send_datagram(UdpSocket::of(fd.get()), action->to,
                    action->forward ? ConstBytes(datagram) : control);
    });
  }
  RelayTable table{relay_key(), {}};
  bool answers = true;
  std::size_t hellos = 0;
  std::size_t forwarded = 0;
};

/// A NAT box between two members: what one sends to it reaches the other, while it lets it.
struct Hop : Socket {
  void serve(const Node& one, const Node& other) {
    each([&](std::uint16_t from, Bytes datagram) {
      ++seen;
      const std::uint16_t to = from == one.udp_port ? other.udp_port : one.udp_port;
      if (open) send_datagram(UdpSocket::of(fd.get()), loopback(to), datagram);
    });
  }
  bool open = false;
  std::size_t seen = 0;
};

/// What the control thread does for a port.
struct Member {
  explicit Member(Node& of) : node(of) { client.set_socket(node.underlay()); }
  void pump(std::uint64_t now_ms) {
    now = now_ms;
    node.pump();
    for (const WorkerEvent& event : node.events()) {
      if (event.kind == WorkerEvent::Kind::kPathAnswer) {
        node.paths.answered(event.peer, event.number, event.time_us, now);
      } else if (event.kind == WorkerEvent::Kind::kHeardElsewhere) {
        node.paths.heard_elsewhere(event.peer, event.from, now);
      } else if (event.kind == WorkerEvent::Kind::kRelay) {
        const auto header = parse_relay_header(ConstBytes(event.relay).first<kRelayHeaderSize>());
        const std::size_t size = header ? kRelayHeaderSize : kRelayControlSize;
        client.received(ConstBytes(event.relay).first(size), event.time_us, now);
      }
    }
  }
  Node& node;
  std::uint64_t now = 0;
  std::size_t receipts = 0;
  RelayClient client{node.tables,
                     {.seen = [this](ConstBytes) { ++receipts; },
                      .changed = [this] { node.paths.relay_changed(now); }}};
};

struct Bench {
  Pair pair;
  Relay relay;
  Hop hop;
  Member alice{pair.alice};
  Member bob{pair.bob};
  std::uint64_t now = boot_ms();

  void settle() {
    for (int i = 0; i < 6; ++i) {
      alice.pump(now);
      bob.pump(now);
      relay.serve(now);
      hop.serve(pair.alice, pair.bob);
    }
  }
  void enter(Member& member) {
    member.now = now;
    member.client.set({relay.address()}, ticket(member.node.index), now);
    for (int i = 0; i < 2; ++i) {
      member.client.run(now);
      settle();
    }
    REQUIRE(member.client.registered());
  }
  /// Both are registered, and are to reach each other by the NAT box, but by the relay first.
  Peer& relay_first() {
    enter(alice);
    enter(bob);
    know(pair.bob, pair.alice);
    Peer& peer = know(pair.alice, pair.bob);
    pair.install_pair();
    return peer;
  }
  Peer& know(Node& at, const Node& other) {
    at.tables.set_peer(
        {other.id, other.index, other.boot_public, {other.mac}, {hop.address()}, true, true}, now);
    Peer& peer = *at.tables.peer(other.id);
    at.paths.candidates_set(peer, now);
    return peer;
  }
  bool frame_arrives() {
    pair.alice.from_host({}, make_frame({}));
    settle();
    return pair.bob.to_host().has_value();
  }
  /// Alice goes on sending, and her control thread does what is due, for so long.
  template <typename Done>
  std::uint64_t until(Peer& peer, std::uint64_t longest_ms, Done done) {
    const std::uint64_t start = now;
    while (!done() && now < start + longest_ms) {
      now += 100;
      peer.tx_ms = now;
      pair.alice.paths.run(now);
      settle();
    }
    return now - start;
  }
};

}  // namespace

TEST_CASE("relay client: registers by two hellos, and keeps it") {
  Bench bench;
  bench.alice.client.set({bench.relay.address()}, ticket(bench.pair.alice.index), bench.now);
  bench.alice.client.run(bench.now);
  bench.settle();
  CHECK_FALSE(bench.alice.client.registered());
  CHECK(bench.pair.alice.tables.relay()->token == 0);
  const auto next = bench.alice.client.run(bench.now);
  bench.settle();
  CHECK(bench.alice.client.registered());
  CHECK(bench.relay.hellos == 2);
  CHECK(bench.alice.receipts == 1);
  CHECK(bench.alice.client.seen() == loopback(bench.pair.alice.udp_port));
  CHECK(bench.pair.alice.tables.relay()->token ==
        relay_token(relay_key(), bench.pair.alice.index, loopback(bench.pair.alice.udp_port)));
  REQUIRE(next.has_value());
  // Not before the mapping of a NAT box has to be kept alive.
  for (std::uint64_t ms = 0; ms < 19'900; ms += 100) bench.alice.client.run(bench.now + ms);
  bench.relay.serve(bench.now);
  CHECK(bench.relay.hellos == 2);
  bench.alice.client.run(bench.now + 20'000);
  bench.relay.serve(bench.now);
  CHECK(bench.relay.hellos == 3);
}

TEST_CASE("relay client: one that does not answer is asked three times, then the next") {
  Bench bench;
  Relay silent;
  silent.answers = false;
  bench.alice.client.set({silent.address(), bench.relay.address()}, ticket(bench.pair.alice.index),
                         bench.now);
  const std::uint64_t start = bench.now;
  for (; bench.now < start + 10'000 && !bench.alice.client.registered(); bench.now += 100) {
    bench.alice.client.run(bench.now);
    silent.serve(bench.now);
    bench.settle();
  }
  CHECK(silent.hellos == 3);
  CHECK(bench.alice.client.registered());
  CHECK(bench.now - start < 5'000);
  CHECK(bench.pair.alice.tables.relay()->address == bench.relay.address());
}

TEST_CASE("limits: a relay, or who forges it, makes a member say few hellos") {
  Bench bench;
  bench.enter(bench.alice);
  bench.relay.answers = false;
  const std::size_t before = bench.relay.hellos;
  const std::uint64_t token = bench.pair.alice.tables.relay()->token;
  const auto unknown = [&](std::uint64_t with) {
    std::array<std::uint8_t, kRelayHeaderSize> message;
    write_relay_header({RelayType::kUnknown, 1, with}, message);
    bench.alice.client.received(message, boot_us(), bench.now);
    bench.alice.client.run(bench.now);
  };
  SUBCASE("with a token that is not ours: none") {
    for (int i = 0; i < 1000; ++i) unknown(token ^ 1);
    bench.relay.serve(bench.now);
    CHECK(bench.relay.hellos == before);
  }
  SUBCASE("as it would be if it was started anew: at once, then one in 200 ms") {
    bench.now += 1'000;
    for (int i = 0; i < 1000; ++i) unknown(token);
    bench.relay.serve(bench.now);
    CHECK(bench.relay.hellos == before + 1);
    for (int ms = 0; ms < 199; ++ms, ++bench.now) unknown(token);
    bench.relay.serve(bench.now);
    CHECK(bench.relay.hellos == before + 1);
    ++bench.now;
    unknown(token);
    bench.relay.serve(bench.now);
    CHECK(bench.relay.hellos == before + 2);
  }
}

TEST_CASE("limits: messages of a relay beyond fifty a second are not looked at") {
  Bench bench;
  bench.enter(bench.alice);
  std::array<std::uint8_t, kRelayHeaderSize> message;
  write_relay_header({RelayType::kUnknown, 1, 12345}, message);
  std::size_t events = 0;
  for (int i = 0; i < 300; ++i) {
    send_datagram(UdpSocket::of(bench.relay.fd.get()), loopback(bench.pair.alice.udp_port),
                  message);
    if (i % 50 == 49) bench.pair.alice.pump_in();
  }
  for (const WorkerEvent& event : bench.pair.alice.events()) {
    if (event.kind == WorkerEvent::Kind::kRelay) ++events;
  }
  CHECK(events >= 40);
  CHECK(events <= 60);
  CHECK(bench.pair.alice.in.counters.relay_over.load() == 300 - events);
  // Frames that come through it are not held up by that.
  Peer& peer = bench.relay_first();
  CHECK(peer.owned_endpoint->relayed == bench.pair.bob.index);
  CHECK(bench.frame_arrives());
}

TEST_CASE("path: by the relay first, and nothing waits for a probe") {
  Bench bench;
  const Peer& peer = bench.relay_first();
  CHECK(peer.owned_endpoint->relayed == bench.pair.bob.index);
  CHECK_FALSE(peer.path.confirmed);
  bench.pair.send(make_frame({}));
  bench.hop.serve(bench.pair.alice, bench.pair.bob);
  bench.relay.serve(bench.now);
  bench.pair.bob.pump_in();
  CHECK(bench.pair.bob.to_host().has_value());
  CHECK(bench.hop.seen == 0);
  CHECK(bench.relay.forwarded == 1);
  CHECK(bench.pair.bob.in.counters.relayed.load() == 1);
}

TEST_CASE("path: from the relay to the direct path when it answers, and back when it does not") {
  Bench bench;
  Peer& peer = bench.relay_first();
  begin_path(bench.pair.alice, peer, bench.now);
  bench.settle();
  REQUIRE(peer.path.confirmed);
  REQUIRE(peer.owned_endpoint->relayed != 0);
  CHECK(bench.hop.seen > 0);
  // The direct way is closed: it is looked for seldom, and the relay stays in use.
  const std::size_t probes = bench.hop.seen;
  bench.until(peer, 5'000, [] { return false; });
  CHECK(peer.owned_endpoint->relayed != 0);
  CHECK(bench.hop.seen - probes <= 4);
  CHECK(bench.hop.seen - probes >= 2);

  bench.hop.open = true;
  const auto direct = [&] { return *peer.owned_endpoint == bench.hop.address(); };
  CHECK(bench.until(peer, 8'000, direct) < 8'000);
  REQUIRE(direct());
  CHECK(bench.pair.alice.moved.back() == "bob");
  const std::uint64_t before = bench.relay.forwarded;
  CHECK(bench.frame_arrives());
  CHECK(bench.relay.forwarded == before);

  // The NAT box forgets: within a few seconds frames go by the relay again, and arrive.
  bench.hop.open = false;
  CHECK(bench.until(peer, 8'000, [&] { return !direct(); }) <= 5'000);
  CHECK(peer.owned_endpoint->relayed == bench.pair.bob.index);
  CHECK(bench.frame_arrives());
  CHECK(bench.relay.forwarded > before);
}

TEST_CASE("path: a relay that is gone is not sent through") {
  Bench bench;
  Peer& peer = bench.relay_first();
  REQUIRE(peer.owned_endpoint->relayed != 0);
  bench.alice.now = bench.now;
  bench.alice.client.set({}, {}, bench.now);
  CHECK(bench.pair.alice.tables.relay() == nullptr);
  CHECK(*peer.owned_endpoint == bench.hop.address());
  bench.hop.open = true;
  CHECK(bench.frame_arrives());
  CHECK(bench.pair.alice.out.counters.relayed.load() == 0);
}
