// Tables: what commands do to them, and readers at the same time.
#include "core/tables.hpp"

#include <doctest/doctest.h>

#include <atomic>
#include <set>
#include <thread>

#include "test/support.hpp"

using namespace pairwire;
using namespace pairwire::test;

namespace {

constexpr std::uint64_t kNow = 1'000'000;

struct Bench {
  PortTables tables;
  Random random{11};
  std::uint32_t boot = 0;

  explicit Bench(bool with_index = true) {
    auto settings = std::make_unique<PortSettings>();
    settings->subnet = "lab";
    settings->member = "me";
    settings->backend = best_backend();
    tables.set_settings(std::move(settings));
    boot = tables.make_boot().boot;
    if (with_index) tables.set_boot_index(boot, 1, 0, kNow);
  }

  X25519KeyPair peer_boot = generate_x25519();
  Peer& add(std::string_view id, std::uint32_t index, std::vector<MacAddress> macs = {}) {
    return tables.set_peer({id, index, peer_boot.public_key, std::move(macs), {}, true}, kNow);
  }
};

MacAddress mac_of(std::uint32_t number) {
  std::array<std::uint8_t, 6> bytes{0x02, 0};
  store_be<std::uint32_t>(std::span(bytes).last<4>(), number);
  return MacAddress(bytes);
}

// Appended, because GCC 12 warns of "m" + std::to_string(..) where there is nothing wrong.
std::string name_of(std::uint32_t number) {
  std::string name("m");
  return name.append(std::to_string(number));
}

/// Says when it is used after it was freed.
struct Canary {
  static constexpr std::uint64_t kAlive = 0x600df00d600df00d;
  std::atomic<std::uint64_t> life{kAlive};
  ~Canary() { life.store(0, std::memory_order_relaxed); }
};

}  // namespace

TEST_CASE("rcu: an object is freed only when every reader has looked away") {
  struct Flag {
    explicit Flag(bool& freed_flag) : freed(freed_flag) {}
    ~Flag() { freed = true; }
    bool& freed;
  };
  RcuDomain domain;
  const auto a = domain.add_reader();
  const auto b = domain.add_reader();
  bool freed = false;
  a->online();
  domain.retire(std::make_unique<Flag>(freed));
  CHECK(domain.reclaim() == 1);
  CHECK_FALSE(freed);
  SUBCASE("quiescent") {
    a->quiescent();
  }
  SUBCASE("offline") {
    a->offline();
  }
  b->online();  // Came later: can't have seen it.
  CHECK(domain.reclaim() == 0);
  CHECK(freed);
}

TEST_CASE("rcu map: set, replace, erase, grow") {
  RcuDomain domain;
  RcuMap<int> map(domain, 99);
  std::vector<int> values(20'000);
  for (std::uint64_t key = 0; key < values.size(); ++key) map.set(key, &values[key]);
  CHECK(map.size() == values.size());
  for (std::uint64_t key = 0; key < values.size(); key += 2) map.erase(key);
  for (std::uint64_t key = 0; key < values.size(); ++key) {
    CHECK(map.find(key) == (key % 2 == 0 ? nullptr : &values[key]));
  }
  // Churn does not fill the table with the dead.
  for (int round = 0; round < 100; ++round) {
    for (std::uint64_t key = 1'000'000; key < 1'001'000; ++key) {
      map.set(key + static_cast<std::uint64_t>(round) * 1000, &values[0]);
      map.erase(key + static_cast<std::uint64_t>(round) * 1000);
    }
    domain.reclaim();
  }
  CHECK(map.size() == values.size() / 2);
  CHECK(map.find(1) == &values[1]);
}

TEST_CASE("rcu map: readers while the writer changes everything") {
  RcuDomain domain;
  RcuMap<Canary> map(domain, 5);
  std::vector<std::unique_ptr<Canary>> values(256);
  std::atomic<bool> stop{false};
  std::atomic<std::uint64_t> dead{0};
  std::atomic<std::uint64_t> seen{0};
  std::vector<std::unique_ptr<RcuDomain::Reader>> handles;
  std::vector<std::thread> readers;
  for (int i = 0; i < 2; ++i) {
    handles.push_back(domain.add_reader());
    RcuDomain::Reader& reader = *handles.back();
    readers.emplace_back([&, i] {
      std::uint64_t key = static_cast<std::uint64_t>(i);
      while (!stop.load(std::memory_order_relaxed)) {
        reader.online();
        for (int batch = 0; batch < 4; ++batch) {
          for (int look = 0; look < 64; ++look) {
            key = (key * 13 + 7) % values.size();
            if (const Canary* const canary = map.find(key)) {
              seen.fetch_add(1, std::memory_order_relaxed);
              if (canary->life.load(std::memory_order_relaxed) != Canary::kAlive) dead.fetch_add(1);
            }
          }
          reader.quiescent();
        }
        reader.offline();
        std::this_thread::yield();
      }
    });
  }
  Random random(3);
  // On a busy machine the readers may not have had their turn by then.
  for (int i = 0; i < 30'000 || (seen == 0 && i < 30'000'000); ++i) {
    const std::uint64_t key = random.below(values.size());
    if (random.below(3) == 0) {
      map.erase(key);
      domain.retire(std::move(values[key]));
    } else {
      auto made = std::make_unique<Canary>();
      map.set(key, made.get());
      domain.retire(std::exchange(values[key], std::move(made)));
    }
    if (i % 16 == 0) domain.reclaim();
    if (i % 256 == 0) std::this_thread::yield();
  }
  stop = true;
  for (std::thread& reader : readers) reader.join();
  CHECK(dead == 0);
  CHECK(seen > 0);
  CHECK(domain.reclaim() == 0);
}

TEST_CASE("keys: installing again is a no-op for counter and window (threats.md C1)") {
  Bench bench;
  Peer& peer = bench.add("bob", 2);
  const auto key = bench.random.array<32>();
  const auto first = bench.tables.install_pair_key("bob", bench.boot, key, 5, true);
  CHECK(first.fresh);
  SendKey* const send = peer.send.load();
  CHECK(send->counter->take(100, 1000).value() == 0);
  ReceiveKey* const receive = peer.incarnations[0]->pair_keys[0].load();
  CHECK(receive->window->accept(77));

  SUBCASE("the same command") {
    const auto again = bench.tables.install_pair_key("bob", bench.boot, key, 5, true);
    CHECK_FALSE(again.fresh);
    CHECK(again.kid_send == first.kid_send);
    CHECK(again.kid_receive == first.kid_receive);
    CHECK(peer.send.load() == send);
    CHECK(send->counter->take(1, 1).value() == 100);
    CHECK_FALSE(receive->window->accept(77));
  }
  SUBCASE("after the key was dropped") {
    bench.tables.drop_key("bob", 5, 0, kNow);
    CHECK(peer.send.load() == nullptr);
    CHECK(peer.incarnations[0]->is_stale(first.kid_receive));
    CHECK(bench.tables.install_pair_key("bob", bench.boot, key, 5, true).fresh);
    CHECK(peer.send.load()->counter->take(1, 1).value() == 100);
    CHECK_FALSE(peer.incarnations[0]->pair_keys[0].load()->window->accept(77));
  }
  SUBCASE("after the member was removed and came back") {
    bench.tables.remove_peer("bob");
    bench.tables.run_timers(kNow);
    Peer& again = bench.add("bob", 2);
    CHECK(bench.tables.install_pair_key("bob", bench.boot, key, 5, true).fresh);
    CHECK(again.send.load()->counter->take(1, 1).value() == 100);
    CHECK_FALSE(again.incarnations[0]->pair_keys[0].load()->window->accept(77));
  }
  SUBCASE("another KEY under the same pwId is another key") {
    auto other = key;
    other[0] ^= 1;
    const auto second = bench.tables.install_pair_key("bob", bench.boot, other, 5, true);
    CHECK(second.fresh);
    CHECK(peer.send.load()->counter->take(1, 1).value() == 0);
    CHECK(peer.send.load() != send);
  }
}

TEST_CASE("keys: the group key's counter survives dropping and coming again") {
  Bench bench;
  const auto key = bench.random.array<32>();
  bench.tables.install_group_key(key, 3, true, kNow);
  CHECK(bench.tables.group_send()->counter->take(10, 100).value() == 0);
  bench.tables.install_group_key(key, 3, true, kNow);
  CHECK(bench.tables.group_send()->counter->take(1, 1).value() == 10);
  bench.tables.drop_key("", 3, 0, kNow);
  CHECK(bench.tables.group_send() == nullptr);
  bench.tables.install_group_key(key, 3, true, kNow);
  CHECK(bench.tables.group_send()->counter->take(1, 1).value() == 11);
}

TEST_CASE("keys: limit and notice") {
  SendCounter counter;
  CHECK_FALSE(counter.just_worn());
  counter.advance_for_testing_only(kRekeyAfterFrames);
  CHECK(counter.take(1, 1).has_value());
  CHECK(counter.just_worn());
  CHECK_FALSE(counter.just_worn());
  counter.advance_for_testing_only(kFrameLimit - SendCounter::kMargin);
  CHECK_FALSE(counter.take(1, 1).has_value());
  // However often it is asked, the counter does not come round.
  for (int i = 0; i < 1000; ++i) CHECK_FALSE(counter.take(60'000, 1).has_value());
  SendCounter bytes;
  CHECK(bytes.take(1, kRekeyAfterBytes).has_value());
  CHECK(bytes.just_worn());
  CHECK_FALSE(bytes.take(1, kByteLimit).has_value());
}

TEST_CASE("keys: at most 4 for a sender; the oldest goes and its kid is stale") {
  Bench bench;
  Peer& peer = bench.add("bob", 2);
  std::vector<PortTables::Installed> installed;
  for (std::uint64_t pw_id = 1; pw_id <= 5; ++pw_id) {
    installed.push_back(
        bench.tables.install_pair_key("bob", bench.boot, bench.random.array<32>(), pw_id, true));
  }
  CHECK(peer.records.size() == kMaxKeysPerSender);
  CHECK(peer.incarnations[0]->is_stale(installed[0].kid_receive));
  CHECK(peer.send.load()->kid == installed[4].kid_send);
}

TEST_CASE("keys: key.use and key.drop with grace") {
  Bench bench;
  Peer& peer = bench.add("bob", 2);
  bench.tables.install_pair_key("bob", bench.boot, bench.random.array<32>(), 1, true);
  bench.tables.install_pair_key("bob", bench.boot, bench.random.array<32>(), 2, false);
  CHECK(peer.send.load()->pw_id == 1);
  bench.tables.use_key("bob", 2);
  CHECK(peer.send.load()->pw_id == 2);
  bench.tables.drop_key("bob", 1, 500, kNow);
  CHECK(bench.tables.run_timers(kNow + 499).value() <= kNow + 509);
  CHECK(peer.records.size() == 2);
  bench.tables.run_timers(kNow + 500);
  CHECK(peer.records.size() == 1);
  CHECK(peer.send.load()->pw_id == 2);
  CHECK_THROWS_AS(bench.tables.use_key("bob", 9), CommandError);
}

TEST_CASE(
    "keys: a newer generation that is heard commits us, an older one tells of a peer that lags") {
  using Other = PortTables::OtherKey;
  Bench bench;
  Peer& peer = bench.add("bob", 2);
  for (std::uint64_t pw_id = 1; pw_id <= 3; ++pw_id) {
    bench.tables.install_pair_key("bob", bench.boot, bench.random.array<32>(), pw_id, pw_id == 2);
  }
  const auto heard = [&](std::uint64_t pw_id, std::uint64_t after_ms) {
    return bench.tables.heard_other_key(peer.number, pw_id, kNow + after_ms);
  };
  CHECK(heard(2, 0) == Other::kNothing);
  // What was under way when we changed is no sign of anything; a second of it is, once a second.
  CHECK(heard(1, 0) == Other::kNothing);
  CHECK(heard(1, 999) == Other::kNothing);
  CHECK(heard(1, 1'000) == Other::kLagging);
  CHECK(heard(1, 1'999) == Other::kNothing);
  CHECK(heard(1, 2'000) == Other::kLagging);
  CHECK(peer.send.load()->pw_id == 2);

  CHECK(heard(9, 2'000) == Other::kNothing);  // Dropped meanwhile.
  CHECK(peer.send.load()->pw_id == 2);
  CHECK(heard(3, 2'000) == Other::kCommitted);
  CHECK(peer.send.load()->pw_id == 3);
  CHECK(heard(3, 2'001) == Other::kNothing);
  // Since this change, not since the one before.
  CHECK(heard(2, 2'001) == Other::kNothing);
  CHECK(heard(2, 3'001) == Other::kLagging);
  CHECK(bench.tables.heard_other_key(peer.number + 1, 1, kNow) == Other::kNothing);
}

TEST_CASE("keys: a group frame under a newer generation commits us") {
  Bench bench;
  static_cast<void>(bench.add("bob", 2));
  for (std::uint64_t pw_id = 1; pw_id <= 3; ++pw_id) {
    bench.tables.install_group_key(bench.random.array<32>(), pw_id, pw_id == 2, kNow);
  }
  REQUIRE(bench.tables.group_send() != nullptr);
  CHECK_FALSE(bench.tables.heard_newer_group_key(1));
  CHECK_FALSE(bench.tables.heard_newer_group_key(2));
  CHECK_FALSE(bench.tables.heard_newer_group_key(4));  // Dropped meanwhile.
  CHECK(bench.tables.group_send()->pw_id == 2);
  CHECK(bench.tables.heard_newer_group_key(3));
  CHECK(bench.tables.group_send()->pw_id == 3);
}

TEST_CASE("boots: nothing is sent before the index is known, then all that waited is") {
  Bench bench(false);
  Peer& peer = bench.add("bob", 2);
  bench.tables.install_pair_key("bob", bench.boot, bench.random.array<32>(), 1, true);
  bench.tables.install_group_key(bench.random.array<32>(), 1, true, kNow);
  CHECK(peer.send.load() == nullptr);
  CHECK(bench.tables.group_send() == nullptr);
  CHECK_THROWS_AS(bench.tables.set_boot_index(bench.boot, 2, 0, kNow), CommandError);  // Bob's.
  bench.tables.set_boot_index(bench.boot, 77, 0, kNow);
  CHECK(peer.send.load()->index == 77);
  CHECK(bench.tables.group_send()->index == 77);
  CHECK(bench.tables.sender(77)->peer == nullptr);

  // A newer boot takes over the group key at once, pairs when their key comes.
  const auto newer = bench.tables.make_boot();
  bench.tables.set_boot_index(newer.boot, 78, 0, kNow);
  CHECK(bench.tables.group_send()->index == 78);
  CHECK(peer.send.load()->index == 77);
  bench.tables.drop_boot(bench.boot, 0, kNow);
  CHECK(peer.send.load() == nullptr);
  CHECK(bench.tables.sender(77) == nullptr);
  CHECK(bench.tables.group_send()->index == 78);
}

namespace {

/// Bob has a key with us, the group has one, and a second boot key has got its index just now.
struct Renewal : Bench {
  static constexpr std::uint32_t kAfter = 3'000;
  static constexpr std::uint32_t kGrace = 13'000;
  const std::array<std::uint8_t, 32> key = random.array<32>();
  Peer& bob = add("bob", 2);
  std::uint32_t newer = 0;

  Renewal() {
    tables.install_pair_key("bob", boot, key, 1, true);
    tables.install_group_key(key, 1, true, kNow);
    newer = tables.make_boot().boot;
    tables.install_pair_key("bob", newer, key, 1, true);
    tables.set_boot_index(newer, 78, kAfter, kNow);
    tables.drop_boot(boot, kGrace, kNow);
  }

  std::size_t places_of(std::uint32_t index) {
    const Incarnation* const start = tables.sender(index);
    return static_cast<std::size_t>(std::ranges::count_if(
        start->pair_keys, [](const auto& place) { return place.load() != nullptr; }));
  }
};

}  // namespace

TEST_CASE("boots: a newer one is received under at once, and sent with when its time has come") {
  Renewal bench;
  PortTables& tables = bench.tables;
  CHECK(bench.places_of(2) == 2);
  CHECK(bench.bob.send.load()->index == 1);
  CHECK(tables.group_send()->index == 1);
  // Said again, by a control plane that was started meanwhile, nothing is put off.
  tables.set_boot_index(bench.newer, 78, Renewal::kAfter, kNow + 2'000);
  tables.drop_boot(bench.boot, Renewal::kGrace, kNow + 2'000);
  tables.run_timers(kNow + Renewal::kAfter - 1);
  CHECK(bench.bob.send.load()->index == 1);
  CHECK(tables.group_send()->index == 1);
  CHECK(tables.boots()[0].send);
  const SendCounter* const before = bench.bob.send.load()->counter;
  tables.run_timers(kNow + Renewal::kAfter);
  CHECK(bench.bob.send.load()->index == 78);
  CHECK(tables.group_send()->index == 78);
  CHECK(tables.boots()[1].send);
  CHECK(bench.bob.send.load()->counter != before);
  // What is under way under the old one still opens, until that goes with all its keys.
  tables.run_timers(kNow + Renewal::kGrace - 1);
  CHECK(tables.boots().size() == 2);
  CHECK(bench.places_of(2) == 2);
  const std::uint16_t old_kid = bench.bob.records.front()->kid_receive;
  tables.run_timers(kNow + Renewal::kGrace);
  REQUIRE(tables.boots().size() == 1);
  CHECK(tables.boots()[0].boot == bench.newer);
  CHECK(tables.sender(1) == nullptr);
  CHECK(bench.places_of(2) == 1);
  CHECK(tables.sender(2)->is_stale(old_kid));
  CHECK(bench.bob.send.load()->index == 78);
  CHECK_THROWS_AS(tables.install_pair_key("bob", bench.boot, bench.key, 1, true), CommandError);
}

TEST_CASE(
    "boots: the time of an older one may come behind that of a newer one, and changes nothing") {
  Renewal bench;
  PortTables& tables = bench.tables;
  const std::uint32_t third = tables.make_boot().boot;
  tables.install_pair_key("bob", third, bench.key, 1, true);
  tables.set_boot_index(third, 79, 0, kNow);
  CHECK(bench.bob.send.load()->index == 79);
  tables.run_timers(kNow + Renewal::kAfter);
  CHECK(bench.bob.send.load()->index == 79);
  CHECK(tables.group_send()->index == 79);
}

TEST_CASE(
    "boots: a peer that uses the newer one is answered with it, the others and the group wait") {
  Renewal bench;
  PortTables& tables = bench.tables;
  Peer& carol = bench.add("carol", 3);
  tables.install_pair_key("carol", bench.newer, bench.random.array<32>(), 1, true);
  // Carol had no key until now, and got our newest record before it.
  CHECK(carol.send.load()->index == 78);
  CHECK(bench.bob.send.load()->index == 1);
  tables.heard_boot(bench.bob.number, bench.boot);
  tables.heard_boot(bench.bob.number, bench.newer + 1);
  tables.heard_boot(99, bench.newer);
  CHECK(bench.bob.send.load()->index == 1);
  tables.heard_boot(bench.bob.number, bench.newer);
  CHECK(bench.bob.send.load()->index == 78);
  tables.heard_boot(bench.bob.number, bench.boot);  // Was under way.
  CHECK(bench.bob.send.load()->index == 78);
  CHECK(tables.group_send()->index == 1);
}

TEST_CASE("boots: whatever changes while two of them are there is there under both") {
  Renewal bench;
  PortTables& tables = bench.tables;
  const std::array<std::uint8_t, 32> next = bench.random.array<32>();
  SUBCASE("the next generation") {
    tables.install_pair_key("bob", bench.newer, next, 2, false);
    CHECK(bench.places_of(2) == 4);
    CHECK(bench.bob.send.load()->pw_id == 1);
    tables.install_pair_key("bob", bench.newer, next, 2, true);
    CHECK(bench.bob.send.load()->pw_id == 2);
    CHECK(bench.bob.send.load()->index == 1);  // Still.
    tables.run_timers(kNow + Renewal::kAfter);
    CHECK(bench.bob.send.load()->pw_id == 2);
    CHECK(bench.bob.send.load()->index == 78);
  }
  SUBCASE("generations without end: 4 for each boot key, and never more than there are places") {
    for (std::uint64_t pw_id = 2; pw_id < 20; ++pw_id) {
      tables.install_pair_key("bob", bench.newer, bench.random.array<32>(), pw_id, true);
      CHECK(bench.places_of(2) == std::min<std::size_t>(2 * pw_id, kKeyPlaces));
      CHECK(bench.bob.send.load()->pw_id == pw_id);
      CHECK(bench.bob.send.load()->index == 1);
    }
    const std::uint32_t third = tables.make_boot().boot;
    tables.install_pair_key("bob", third, bench.random.array<32>(), 20, true);
    CHECK(bench.places_of(2) == kKeyPlaces);
    CHECK(bench.bob.records.size() == kKeyPlaces);
  }
  SUBCASE("a start of the peer, and the one before it") {
    bench.peer_boot = generate_x25519();
    bench.add("bob", 3);
    tables.install_pair_key("bob", bench.newer, bench.key, 1, true);
    CHECK(bench.places_of(3) == 2);
    // The peer that has not heard of it goes on to send from there, with whatever comes next.
    tables.install_pair_key("bob", bench.newer, next, 2, false);
    CHECK(bench.places_of(3) == 4);
    CHECK(bench.places_of(2) == 4);
    CHECK(bench.bob.send.load()->index == 1);
    CHECK(bench.bob.send.load()->pw_id == 1);
  }
}

TEST_CASE("members: a new index adds, the old one is retired after 10 s") {
  Bench bench;
  Peer& peer = bench.add("bob", 2);
  bench.tables.install_pair_key("bob", bench.boot, bench.random.array<32>(), 1, true);
  bench.peer_boot = generate_x25519();
  bench.add("bob", 3);
  CHECK(bench.tables.sender(2) != nullptr);
  CHECK(bench.tables.sender(3)->peer == &peer);
  CHECK(peer.send.load() != nullptr);
  bench.tables.run_timers(kNow + kIncarnationGraceMs - 1);
  CHECK(bench.tables.sender(2) != nullptr);
  bench.tables.run_timers(kNow + kIncarnationGraceMs);
  CHECK(bench.tables.sender(2) == nullptr);
  CHECK(peer.send.load() == nullptr);
  CHECK(bench.tables.sender(3) != nullptr);
}

TEST_CASE("members: an old start that is told of again is the current one, and stays") {
  Bench bench;
  const auto key = bench.random.array<32>();
  Peer& bob = bench.add("bob", 50);
  bench.tables.install_pair_key("bob", bench.boot, key, 1, true);
  bench.add("bob", 51);
  bench.add("bob", 50);
  CHECK(bob.incarnations.back()->index == 50);
  CHECK_FALSE(bench.tables.install_pair_key("bob", bench.boot, key, 1, true).fresh);
  static_cast<void>(bench.tables.run_timers(kNow + kIncarnationGraceMs + 1));
  CHECK(bench.tables.sender(50) != nullptr);
  CHECK(bench.tables.sender(51) == nullptr);
  CHECK(bob.send.load() != nullptr);
}

TEST_CASE("members: what is refused changes nothing") {
  Bench bench;
  bench.add("bob", 2, {mac_of(1)});
  CHECK_THROWS_AS(bench.add("eve", 2), CommandError);
  CHECK_THROWS_AS(bench.add("eve", 1), CommandError);  // Our own index.
  CHECK_THROWS_AS(bench.add("me", 9), CommandError);   // pair(a, a) does not exist.
  CHECK_THROWS_AS(bench.add("eve", 9, {MacAddress::broadcast()}), CommandError);
  CHECK(bench.tables.peers().size() == 1);
  CHECK(bench.tables.destination(mac_of(1))->id == "bob");
}

TEST_CASE("members: addresses follow the last command; a refusal ends with it") {
  Bench bench;
  bench.tables.refuse_mac(mac_of(1), 2000, kNow);
  CHECK(bench.tables.refused(mac_of(1), kNow + 1999));
  CHECK_FALSE(bench.tables.refused(mac_of(1), kNow + 2000));
  Peer& bob = bench.add("bob", 2, {mac_of(1), mac_of(2)});
  CHECK_FALSE(bench.tables.refused(mac_of(1), kNow));
  Peer& eve = bench.add("eve", 3, {mac_of(2)});
  CHECK(bench.tables.destination(mac_of(2)) == &eve);
  bench.add("bob", 2, {mac_of(1)});  // Gives up what is not his any more.
  CHECK(bench.tables.destination(mac_of(2)) == &eve);
  CHECK_FALSE(bob.owns(mac_of(2)));
  bench.tables.remove_peer("eve");
  CHECK(bench.tables.destination(mac_of(2)) == nullptr);
}

TEST_CASE("limits: more addresses that nobody has than are remembered") {
  Bench bench;
  const auto address = [](std::uint32_t number) {
    std::array<std::uint8_t, 6> bytes{0x02, 1};
    store_be<std::uint32_t>(std::span(bytes).last<4>(), number);
    return MacAddress(bytes);
  };
  for (std::uint32_t i = 0; i < kMaxRefusedMacs; ++i)
    bench.tables.refuse_mac(address(i), 2000, kNow);
  CHECK(bench.tables.limits().refusals_lost == 0);
  bench.tables.refuse_mac(address(kMaxRefusedMacs), 2000, kNow);
  CHECK(bench.tables.limits().refusals_lost == 1);
  CHECK_FALSE(bench.tables.refused(address(kMaxRefusedMacs), kNow));
  CHECK(bench.tables.refused(address(0), kNow));
  // One that is remembered may be refused for longer, and the old ones make room in time.
  bench.tables.refuse_mac(address(0), 4000, kNow);
  bench.tables.refuse_mac(address(kMaxRefusedMacs), 2000, kNow + 2000);
  CHECK(bench.tables.refused(address(kMaxRefusedMacs), kNow + 2001));
  CHECK(bench.tables.refused(address(0), kNow + 2001));
  CHECK(bench.tables.limits().refusals_lost == 1);
}

TEST_CASE("limits: boot keys, and starts of one member") {
  Bench bench;
  std::size_t boots = bench.tables.boots().size();
  for (; boots < kMaxBoots; ++boots) static_cast<void>(bench.tables.make_boot());
  CHECK_THROWS_AS(static_cast<void>(bench.tables.make_boot()), CommandError);
  CHECK(bench.tables.boots().size() == kMaxBoots);
  bench.tables.drop_boot(bench.tables.boots().back().boot, 0, kNow);
  static_cast<void>(bench.tables.make_boot());

  for (std::uint32_t index = 100; index < 100 + kMaxIncarnations; ++index) {
    bench.peer_boot = generate_x25519();
    bench.add("bob", index);
  }
  CHECK(bench.tables.limits().starts_pushed_out == 0);
  bench.peer_boot = generate_x25519();
  Peer& bob = bench.add("bob", 200);
  CHECK(bob.incarnations.size() == kMaxIncarnations);
  CHECK(bench.tables.limits().starts_pushed_out == 1);
  CHECK(bench.tables.sender(100) == nullptr);
  CHECK(bench.tables.sender(101) != nullptr);
  CHECK(bench.tables.sender(200) != nullptr);
}

TEST_CASE("members: group frames go to those online, each once, whoever comes and goes") {
  Bench bench;
  std::set<std::string> online;
  Random random(17);
  for (int i = 0; i < 3000; ++i) {
    const auto number = static_cast<std::uint32_t>(random.below(200));
    const std::string id = name_of(number);
    if (random.below(2) == 0) {
      bench.add(id, 1000 + number);
      online.insert(id);
    } else {
      bench.tables.remove_peer(id);
      online.erase(id);
    }
  }
  std::multiset<std::string> seen;
  bench.tables.for_each_online([&](Peer& peer) { seen.insert(peer.id); });
  CHECK(seen.size() == online.size());
  CHECK(std::set<std::string>(seen.begin(), seen.end()) == online);
}

TEST_CASE("members: 10,000 with pair and group keys stay under 100 MB") {
  Bench bench;
  const std::size_t before = locked_memory_use().used;
  bench.tables.install_group_key(bench.random.array<32>(), 1, true, kNow);
  const auto key = bench.random.array<32>();
  for (std::uint32_t i = 0; i < 10'000; ++i) {
    const std::string id = name_of(i);
    bench.add(id, 10 + i, {mac_of(i)});
    bench.tables.install_pair_key(id, bench.boot, key, 1, true);
  }
  const std::size_t keys = locked_memory_use().used - before;
  const std::size_t windows = 20'000 * (sizeof(ReplayWindow) + 96);
  const std::size_t rest = 10'000 * (sizeof(Peer) + sizeof(Incarnation) + sizeof(PairKeyRecord) +
                                     sizeof(SendKey) + 2 * sizeof(ReceiveKey) + 1000);
  MESSAGE("keys ", keys >> 20, " MiB, windows ", windows >> 20, " MiB, rest ", rest >> 20, " MiB");
  CHECK(keys + windows + rest < 100'000'000);
  CHECK(bench.tables.destination(mac_of(9'999))->send.load() != nullptr);
}
