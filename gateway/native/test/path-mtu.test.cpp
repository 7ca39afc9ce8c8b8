// The search for a path's MTU with a clock of the test's own, against a path that swallows what is
// too long for it.
#include "core/path-mtu.hpp"

#include <doctest/doctest.h>

#include "test/lab.hpp"

using namespace pairwire;
using namespace pairwire::test;

namespace {

/// A path, and a sender that does what PathManager does.
struct Simulated {
  std::uint32_t path = 1'500;        ///< longer packets vanish
  std::uint32_t interface = 65'535;  ///< longer packets are refused by our own kernel
  bool dead = false;                 ///< nothing is answered
  bool sending = true;
  std::uint64_t now = 10'000;
  std::uint64_t small_answer = 0;
  std::uint32_t probes = 0;
  PathMtu mtu;

  /// `ms` go by in steps of 20.
  void run(std::uint64_t ms) {
    for (const std::uint64_t end = now + ms; now < end; now += 20) {
      const PathMtu::Evidence evidence{sending, small_answer, 200};
      while (const std::uint32_t size = mtu.due(now, evidence)) {
        ++probes;
        if (size > interface) {
          mtu.refused(size, now);
          continue;
        }
        if (dead) continue;
        small_answer = now;
        if (size <= path) mtu.answered(size, now);
      }
    }
  }
};

}  // namespace

TEST_CASE("path MTU: what the interface gives is used at once, and confirmed by the first answer") {
  Simulated lab;
  lab.mtu.start(1'500, lab.now);
  CHECK(lab.mtu.current() == 1'500);
  CHECK(lab.mtu.proved() == PathMtu::kBase);
  lab.run(20);
  CHECK(lab.mtu.state() == PathMtu::State::kDone);
  CHECK(lab.mtu.proved() == 1'500);
  CHECK(lab.probes == 1);
}

TEST_CASE("path MTU: any path between 1,280 and the interface is found to the byte") {
  for (const std::uint32_t path : {1'280U, 1'281U, 1'400U, 1'492U, 1'499U, 8'000U}) {
    CAPTURE(path);
    Simulated lab;
    lab.path = path;
    lab.mtu.start(path > 1'500 ? 9'000 : 1'500, lab.now);
    lab.run(700);
    // Three probes were not answered and small ones were: never longer than the path from here on.
    CHECK(lab.mtu.current() <= path);
    lab.run(15'000);
    CHECK(lab.mtu.current() == path);
    CHECK(lab.mtu.proved() == path);
    CHECK(lab.mtu.state() == PathMtu::State::kDone);
  }
}

TEST_CASE("path MTU: a path that gets smaller is a black hole for 3 s at most") {
  Simulated lab;
  lab.mtu.start(1'500, lab.now);
  lab.run(5'000);
  lab.path = 1'300;
  lab.run(PathMtu::kConfirmMs + 700);
  CHECK(lab.mtu.current() <= 1'300);
  lab.run(15'000);
  CHECK(lab.mtu.current() == 1'300);
  SUBCASE("and what it was before is found again, in time") {
    lab.path = 1'500;
    lab.run(300'000);
    CHECK(lab.mtu.current() == 1'300);
    lab.run(PathMtu::kRaiseMs);
    CHECK(lab.mtu.current() == 1'500);
  }
}

TEST_CASE("path MTU: below 1,280 it never goes") {
  Simulated lab;
  lab.path = 600;
  lab.mtu.start(1'500, lab.now);
  lab.run(60'000);
  CHECK(lab.mtu.current() == PathMtu::kBase);
}

TEST_CASE("path MTU: a path that answers nothing says nothing about sizes") {
  Simulated lab;
  lab.mtu.start(1'500, lab.now);
  lab.run(100);
  lab.dead = true;
  lab.run(60'000);
  CHECK(lab.mtu.current() == 1'500);
  lab.dead = false;
  lab.run(5'000);
  CHECK(lab.mtu.current() == 1'500);
}

TEST_CASE("path MTU: three probes lost by chance cost a second, not ten minutes") {
  Simulated lab;
  lab.mtu.start(1'500, lab.now);
  lab.run(100);
  lab.path = 1'300;
  while (lab.mtu.current() == 1'500) lab.run(20);
  lab.path = 1'500;
  lab.run(1'000);
  CHECK(lab.mtu.current() == 1'500);
}

TEST_CASE("path MTU: who says that a packet was too long is not believed, but a probe is sent") {
  Simulated lab;
  lab.mtu.start(1'500, lab.now);
  lab.run(500);
  const std::uint32_t before = lab.probes;
  // Forged: a hundred reports a second.
  for (int i = 0; i < 100; ++i) {
    lab.mtu.suspect(lab.now);
    CHECK(lab.mtu.current() == 1'500);
    lab.run(10);
  }
  CHECK(lab.mtu.current() == 1'500);
  CHECK(lab.probes > before);
  CHECK(lab.probes <= before + 2'000 / PathMtu::kSuspectMs + 1);
  // True: found out without waiting for the next confirmation.
  lab.path = 1'400;
  lab.mtu.suspect(lab.now);
  lab.run(700);
  CHECK(lab.mtu.current() <= 1'400);
}

TEST_CASE("path MTU: an interface that got a smaller MTU is found out about at once") {
  Simulated lab;
  lab.mtu.start(1'500, lab.now);
  lab.run(500);
  lab.interface = 1'350;
  lab.mtu.suspect(lab.now);
  lab.run(20);
  CHECK(lab.mtu.current() == 1'350);
  CHECK(lab.mtu.proved() == 1'350);
}

TEST_CASE("path MTU: an idle pair is not probed") {
  Simulated lab;
  lab.mtu.start(1'500, lab.now);
  lab.run(100);
  lab.sending = false;
  const std::uint32_t before = lab.probes;
  lab.run(60'000);
  CHECK(lab.probes == before);
}

TEST_CASE("path MTU: late answers and those to other sizes mean nothing") {
  PathMtu mtu;
  mtu.start(1'500, 1'000);
  mtu.answered(1'500, 1'000);  // Nothing was sent.
  CHECK(mtu.proved() == PathMtu::kBase);
  CHECK(mtu.due(1'000, {true, 1'000, 200}) == 1'500);
  mtu.answered(1'400, 1'000);
  CHECK(mtu.proved() == PathMtu::kBase);
  mtu.answered(1'500, 1'000);
  CHECK(mtu.proved() == 1'500);
}

TEST_CASE("path MTU: a real peer answers padded probes, and frames follow what was found") {
  Pair pair;
  for (Node* const node : {&pair.alice, &pair.bob}) {
    auto settings = node->settings();
    settings->underlay_mtu = 1'500;
    node->tables.set_settings(std::move(settings));
  }
  pair.install_pair();
  Peer& bob = *pair.alice.tables.peer("bob");
  std::uint64_t now = boot_ms();
  // Delivers to Bob what the path lets through.
  const auto step = [&](std::size_t longest) {
    pair.alice.paths.run(now);
    for (const Frame& one : pair.intercept()) {
      if (one.size() + 48 <= longest) pair.inject(one);
    }
    pair.alice.pump();
    for (const WorkerEvent& event : pair.alice.events()) {
      if (event.kind == WorkerEvent::Kind::kPathAnswer) {
        pair.alice.paths.answered(event.peer, event.number, event.time_us, now);
      }
    }
    bob.tx_ms = now;
    now += 50;
  };
  CHECK(bob.max_frame == kNoFrameLimit);
  pair.alice.paths.key_installed(bob, now);
  CHECK(bob.max_frame == 1'500 - 48);
  CHECK(bob.proved_frame == kSafeFrame);
  for (int i = 0; i < 5; ++i) step(1'500);
  CHECK(bob.path.mtu.proved() == 1'500);
  CHECK(bob.max_frame == 1'500 - 48);
  CHECK(bob.proved_frame == 1'500 - 48);
  for (int i = 0; i < 400; ++i) step(1'321);
  CHECK(bob.path.mtu.current() == 1'321);
  CHECK(bob.max_frame == 1'321 - 48);
  CHECK(pair.bob.all_drops() == 0);
  // A new endpoint is a new path.
  pair.alice.tables.set_endpoint(bob, loopback(pair.alice.udp_port));
  pair.alice.paths.candidates_set(bob, now);
  CHECK(bob.max_frame == 1'500 - 48);
  CHECK(bob.proved_frame == kSafeFrame);
}

TEST_CASE("path MTU: by a relay no more is searched for than it is given") {
  Pair pair;
  auto settings = pair.alice.settings();
  settings->underlay_mtu = 9'000;
  pair.alice.tables.set_settings(std::move(settings));
  const Endpoint there = loopback(pair.bob.udp_port);
  pair.alice.tables.set_relay(std::make_unique<const RelayUse>(RelayUse{there, 7}));
  pair.install_pair();
  Peer& bob = *pair.alice.tables.peer("bob");
  bob.candidates.clear();
  std::uint64_t now = boot_ms();
  std::size_t longest = 0;
  bool sending = true;
  // The relay: takes its header off. The way back needs none here, an answer is known by its token.
  const auto run = [&](std::uint64_t ms) {
    for (const std::uint64_t end = now + ms; now < end; now += 100) {
      if (sending) bob.tx_ms = now;
      pair.alice.paths.run(now);
      for (const Frame& one : pair.intercept()) {
        longest = std::max(longest, one.size());
        REQUIRE(is_relay_frame(one));
        pair.inject(Frame(one.begin() + kRelayHeaderSize, one.end()));
      }
      pair.alice.pump_in();
      for (const WorkerEvent& event : pair.alice.events()) {
        if (event.kind == WorkerEvent::Kind::kPathAnswer) {
          pair.alice.paths.answered(event.peer, event.number, event.time_us, now);
        }
      }
    }
  };
  pair.alice.paths.candidates_set(bob, now);
  pair.alice.paths.key_installed(bob, now);
  CHECK(bob.owned_endpoint->relayed == pair.bob.index);
  CHECK(bob.max_frame == kMaxRelayedFrame);
  run(10'000);
  CHECK(longest == kRelayHeaderSize + kMaxRelayedFrame);
  CHECK(bob.path.mtu.state() != PathMtu::State::kOff);
  CHECK(bob.max_frame == kMaxRelayedFrame);
  CHECK(bob.proved_frame == kMaxRelayedFrame);
  // For half a minute a direct path is looked for often.
  CHECK_FALSE(bob.relay_settled);
  // A member may answer 64 probes a second, and these seconds are short ones.
  sending = false;
  run(30'000);
  CHECK(bob.relay_settled);
  // One was found.
  pair.alice.tables.set_endpoint(bob, there);
  pair.alice.paths.candidates_set(bob, now);
  CHECK_FALSE(bob.relay_settled);
  CHECK(bob.max_frame == 9'000 - 48);
}
