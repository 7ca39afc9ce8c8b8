// Paths: probes, answers, endpoints that move, peers that fall silent.
#include "core/path.hpp"

#include <doctest/doctest.h>

#include "test/lab.hpp"

using namespace pairwire;
using namespace pairwire::test;

namespace {

/// Delivers what is under way, until nothing is.
void settle(Pair& pair, std::uint64_t now) {
  for (int i = 0; i < 4; ++i) {
    for (Node* const node : {&pair.alice, &pair.bob}) {
      node->pump();
      for (const WorkerEvent& event : node->events()) {
        if (event.kind == WorkerEvent::Kind::kPathAnswer) {
          node->paths.answered(event.peer, event.number, event.time_us, now);
        } else if (event.kind == WorkerEvent::Kind::kHeardElsewhere) {
          node->paths.heard_elsewhere(event.peer, event.from, now);
        }
      }
    }
  }
}

}  // namespace

TEST_CASE("path: a probe is answered, the round trip is known") {
  Pair pair;
  pair.install_pair();
  Peer& bob = *pair.alice.tables.peer("bob");
  const std::uint64_t now = boot_ms();
  begin_path(pair.alice, bob, now);
  settle(pair, now);
  CHECK(bob.path.confirmed);
  CHECK(bob.path.alive);
  CHECK(bob.path.rtt_us > 0);
  CHECK(pair.alice.moved.empty());
  CHECK(pair.alice.all_drops() == 0);
  CHECK(pair.bob.all_drops() == 0);
}

TEST_CASE("path: what waited for the key goes before the first probe") {
  Pair pair;
  pair.install_pair();
  const std::uint64_t now = boot_ms();
  pair.alice.paths.key_installed(*pair.alice.tables.peer("bob"), now);
  pair.alice.paths.run(now);
  pair.alice.paths.run(now + PathManager::kFramesFirstMs - 1);
  CHECK(pair.intercept().empty());
  pair.alice.paths.run(now + PathManager::kFramesFirstMs);
  CHECK(pair.intercept().size() == 1);
}

TEST_CASE("path: the first candidate that answers is used") {
  Pair pair;
  std::uint16_t dead_port = 0;
  const UniqueFd dead = open_udp(dead_port);
  pair.alice.tables.set_peer({"bob",
                              pair.bob.index,
                              pair.bob.boot_public,
                              {pair.bob.mac},
                              {loopback(dead_port), loopback(pair.bob.udp_port)},
                              true},
                             boot_ms());
  // Known before with one endpoint, which is in use until told otherwise: set the first candidate.
  Peer& bob = *pair.alice.tables.peer("bob");
  pair.alice.tables.set_endpoint(bob, loopback(dead_port));
  pair.install_pair();
  const std::uint64_t now = boot_ms();
  begin_path(pair.alice, bob, now);
  CHECK(*bob.endpoint.load() == loopback(dead_port));
  settle(pair, now);
  CHECK(*bob.endpoint.load() == loopback(pair.bob.udp_port));
  CHECK(pair.alice.moved == std::vector<std::string>{"bob"});
}

TEST_CASE("path: a peer that moved is followed, after it answered from there") {
  Pair pair;
  pair.install_pair();
  const std::uint64_t now = boot_ms();
  Peer& alice = *pair.bob.tables.peer("alice");
  begin_path(pair.bob, alice, now);
  settle(pair, now);
  REQUIRE(alice.path.confirmed);

  // Alice's address changes: her sealed frames now come from another socket.
  std::uint16_t new_port = 0;
  const UniqueFd moved = open_udp(new_port);
  pair.send(make_frame({}));
  const Frame sealed = pair.intercept().at(0);
  send_datagram(UdpSocket::of(moved.get()), loopback(pair.bob.udp_port), sealed);
  pair.bob.pump_in();
  CHECK(*alice.endpoint.load() == loopback(pair.alice.udp_port));
  for (const WorkerEvent& event : pair.bob.events()) {
    if (event.kind == WorkerEvent::Kind::kHeardElsewhere) {
      CHECK(event.from == loopback(new_port));
      pair.bob.paths.heard_elsewhere(event.peer, event.from, now);
    }
  }
  CHECK(alice.path.roamed == loopback(new_port));
  CHECK(*alice.endpoint.load() == loopback(pair.alice.udp_port));  // Not yet.

  // The probe to the new address, opened and answered by Alice's own code.
  const auto forward = [&] {
    Frame probe(200);
    const ssize_t size = recv(moved.get(), probe.data(), probe.size(), 0);
    REQUIRE(size == static_cast<ssize_t>(kPathFrame));
    probe.resize(static_cast<std::size_t>(size));
    // From Bob's socket, so that Alice answers to him.
    send_datagram(UdpSocket::of(pair.bob.udp.get()), loopback(pair.alice.udp_port), probe);
  };
  SUBCASE("the old address is silent: moved") {
    Frame lost(200);
    while (recv(pair.alice.udp.get(), lost.data(), lost.size(), 0) > 0) {
    }
    forward();
    settle(pair, now);
    pair.bob.paths.run(now + 1'500);
    CHECK(*alice.endpoint.load() == loopback(new_port));
    CHECK(pair.bob.moved == std::vector<std::string>{"alice"});
  }
  SUBCASE("the old address answers too: an on-path copier, or a second address; stays") {
    forward();
    settle(pair, now);
    pair.bob.paths.run(now + 1'500);
    CHECK(*alice.endpoint.load() == loopback(pair.alice.udp_port));
    CHECK(pair.bob.moved.empty());
  }
  SUBCASE("nobody answers at the new address: stays") {
    settle(pair, now);
    pair.bob.paths.run(now + 1'500);
    CHECK(*alice.endpoint.load() == loopback(pair.alice.udp_port));
  }
}

TEST_CASE("limits: of more probes than may be out the oldest is forgotten") {
  Pair pair;
  std::vector<UniqueFd> dead;
  std::vector<Endpoint> candidates{loopback(pair.bob.udp_port)};
  const auto know = [&](std::size_t others) {
    while (candidates.size() < 1 + others) {
      std::uint16_t port = 0;
      dead.push_back(open_udp(port));
      candidates.push_back(loopback(port));
    }
    pair.alice.tables.set_peer(
        {"bob", pair.bob.index, pair.bob.boot_public, {pair.bob.mac}, candidates, true}, boot_ms());
    pair.install_pair();
    const std::uint64_t now = boot_ms();
    begin_path(pair.alice, *pair.alice.tables.peer("bob"), now);
    settle(pair, now);
    return pair.alice.tables.peer("bob")->path.confirmed;
  };
  SUBCASE("as many as fit") {
    CHECK(know(PathState::kMaxProbes - 1));
    CHECK(pair.alice.paths.probes_forgotten() == 0);
  }
  SUBCASE("one more: what answers to the first is not believed") {
    CHECK_FALSE(know(PathState::kMaxProbes));
    CHECK(pair.alice.paths.probes_forgotten() == 1);
  }
}

TEST_CASE("path: answers with a token that was not sent mean nothing") {
  Pair pair;
  pair.install_pair();
  Peer& bob = *pair.alice.tables.peer("bob");
  const std::uint64_t now = boot_ms();
  begin_path(pair.alice, bob, now);
  pair.alice.paths.answered(bob.number, 12345, boot_us(), now);
  pair.alice.paths.answered(bob.number, 0, boot_us(), now);
  pair.alice.paths.answered(999, 12345, boot_us(), now);
  CHECK_FALSE(bob.path.confirmed);
}

TEST_CASE("path: silent after 45 s, told once, and again only after an answer") {
  Pair pair;
  pair.install_pair();
  Peer& bob = *pair.alice.tables.peer("bob");
  std::uint64_t now = boot_ms();
  begin_path(pair.alice, bob, now);
  const std::uint64_t start = now;
  std::size_t probes = 0;
  for (; now < start + 44'000; now += 100) pair.alice.paths.run(now);
  CHECK(pair.alice.silent.empty());
  for (; now < start + 100'000; now += 100) {
    bob.tx_ms = now;  // Still in use.
    pair.alice.paths.run(now);
  }
  CHECK(pair.alice.silent.size() == 1);
  probes = pair.intercept().size();
  CHECK(probes > 5);
  CHECK(probes < 30);
}

TEST_CASE("path: pairs that are not used are not probed") {
  Pair pair;
  pair.install_pair();
  Peer& bob = *pair.alice.tables.peer("bob");
  const std::uint64_t now = boot_ms();
  begin_path(pair.alice, bob, now);
  settle(pair, now);
  bob.rx_ms = now;
  bob.tx_ms = now;
  pair.alice.paths.run(now + 181'000);
  pair.intercept();
  for (std::uint64_t later = now + 182'000; later < now + 300'000; later += 1000) {
    pair.alice.paths.run(later);
  }
  CHECK(pair.intercept().empty());
  CHECK_FALSE(bob.path.watched);
}
