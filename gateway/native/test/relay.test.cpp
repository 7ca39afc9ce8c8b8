// The relay: who may register, who may send, to whom; and what its messages look like, by the
// vectors that the key server's tests read too.
#include <doctest/doctest.h>

#include <cstdint>
#include <vector>

#include "core/relay-frame.hpp"
#include "relay/relay-table.hpp"
#include "test/support.hpp"

using namespace pairwire;
using namespace pairwire::test;

namespace {

constexpr std::uint64_t kWall = 1'800'000'000'000;
constexpr std::uint64_t kLater = kWall + 3'600'000;
constexpr std::uint64_t kUs = 1'000'000;

std::array<std::uint8_t, kRelayKeySize> relay_key() {
  std::array<std::uint8_t, kRelayKeySize> key{};
  for (std::size_t i = 0; i < key.size(); ++i) key[i] = static_cast<std::uint8_t>(i);
  return key;
}

Endpoint at(std::uint8_t host, std::uint16_t port) {
  const std::array<std::uint8_t, 4> ip{192, 0, 2, host};
  return Endpoint::from(ip, port).value();
}

RelayTicket ticket(std::uint32_t index, std::uint64_t not_after = kLater) {
  return {index, not_after, relay_ticket_key(relay_key(), index, not_after)};
}

std::vector<std::uint8_t> frame(std::uint32_t to, std::uint64_t token) {
  std::vector<std::uint8_t> bytes(kRelayHeaderSize + 60, 0xaa);
  bytes[kRelayHeaderSize] = 0x11;
  write_relay_header({RelayType::kForward, to, token}, std::span(bytes).first<kRelayHeaderSize>());
  return bytes;
}

struct Bench {
  RelayTable table{relay_key(), {}};

  std::optional<RelayTable::Action> give(const Endpoint& from, Bytes bytes,
                                         std::uint64_t now_us = kUs) {
    return table.receive(from, bytes, now_us, kWall);
  }
  RelayReceipt hello(const Endpoint& from, std::uint32_t index, std::uint64_t token) {
    RelayControl message = make_hello(ticket(index), token, 77);
    const auto action = give(from, message);
    REQUIRE(action.has_value());
    CHECK(action->to == from);
    CHECK(action->control_size <= message.size());
    const auto receipt = parse_receipt(action->control);
    REQUIRE(receipt.has_value());
    return *receipt;
  }
  std::uint64_t enter(const Endpoint& from, std::uint32_t index) {
    const RelayReceipt first = hello(from, index, 0);
    CHECK_FALSE(first.registered);
    CHECK(hello(from, index, first.token).registered);
    return first.token;
  }
};

}  // namespace

TEST_CASE("relay: an address is registered only after it answered from there") {
  Bench bench;
  const RelayReceipt first = bench.hello(at(1, 1000), 5, 0);
  CHECK_FALSE(first.registered);
  CHECK(first.seen == at(1, 1000));
  CHECK(first.nonce == 77);
  CHECK(bench.table.members() == 0);
  // The token of one address is worth nothing at another: a spoofed or copied hello.
  CHECK_FALSE(bench.hello(at(9, 1000), 5, first.token).registered);
  CHECK_FALSE(bench.hello(at(1, 1001), 5, first.token).registered);
  CHECK(bench.table.members() == 0);
  CHECK(bench.hello(at(1, 1000), 5, first.token).registered);
  CHECK(bench.table.members() == 1);
}

TEST_CASE("relay: without a good ticket there is no answer at all") {
  Bench bench;
  RelayControl late = make_hello(ticket(5, kWall - 1), 0, 1);
  CHECK_FALSE(bench.give(at(1, 1000), late));
  RelayTicket stolen = ticket(5);
  stolen.index = 6;
  RelayControl foreign = make_hello(stolen, 0, 1);
  CHECK_FALSE(bench.give(at(1, 1000), foreign));
  const RelayControl good = make_hello(ticket(5), 0, 1);
  for (std::size_t i = 0; i < good.size(); ++i) {
    if (i == 3) continue;  // The type: a frame from a stranger, which is another case.
    RelayControl bent = good;
    bent[i] ^= 1;
    CHECK_FALSE(bench.give(at(1, 1000), bent));
  }
  CHECK(bench.table.counted(RelayCount::receipts) == 0);
}

TEST_CASE("relay: a frame goes on, untouched, between registered members only") {
  Bench bench;
  const std::uint64_t alice = bench.enter(at(1, 1000), 5);
  const std::uint64_t bob = bench.enter(at(2, 2000), 6);
  auto sent = frame(6, alice);
  const auto untouched = sent;
  const auto action = bench.give(at(1, 1000), sent);
  REQUIRE(action.has_value());
  CHECK(action->forward);
  CHECK(action->to == at(2, 2000));
  const auto header = parse_relay_header(sent);
  REQUIRE(header.has_value());
  CHECK(header->index == 5);  // Who it is from.
  CHECK(header->token == 0);  // The sender's token is told to nobody.
  CHECK(std::equal(sent.begin() + kRelayHeaderSize, sent.end(),
                   untouched.begin() + kRelayHeaderSize));

  auto wrong = frame(6, alice ^ 1);
  CHECK_FALSE(bench.give(at(1, 1000), wrong));
  auto of_bob = frame(6, bob);
  CHECK_FALSE(bench.give(at(1, 1000), of_bob));
  CHECK(bench.table.counted(RelayCount::wrong_token) == 2);
  auto nobody = frame(7, alice);
  CHECK_FALSE(bench.give(at(1, 1000), nobody));
  auto self = frame(5, alice);
  CHECK_FALSE(bench.give(at(1, 1000), self));
  CHECK(bench.table.counted(RelayCount::unknown_destination) == 2);
  // With the right token from elsewhere: told so, in fewer bytes, and nothing is passed on.
  auto elsewhere = frame(6, alice);
  const auto told = bench.give(at(3, 1000), elsewhere);
  REQUIRE(told.has_value());
  CHECK_FALSE(told->forward);
  CHECK(told->to == at(3, 1000));
  CHECK(told->control_size < elsewhere.size());
}

TEST_CASE("relay: who moves is followed, who falls silent is forgotten") {
  Bench bench;
  const std::uint64_t alice = bench.enter(at(1, 1000), 5);
  static_cast<void>(bench.enter(at(2, 2000), 6));
  static_cast<void>(bench.enter(at(4, 4000), 6));
  auto sent = frame(6, alice);
  CHECK(bench.give(at(1, 1000), sent)->to == at(4, 4000));
  CHECK(bench.table.members() == 2);
  bench.table.expire(kUs + 61 * kUs);
  CHECK(bench.table.members() == 0);
}

TEST_CASE(
    "relay: a member that has a new index is found under both until the old one falls silent") {
  Bench bench;
  const std::uint64_t before = bench.enter(at(1, 1000), 5);
  const std::uint64_t other = bench.enter(at(2, 2000), 6);
  const std::uint64_t after = bench.enter(at(1, 1000), 7);
  CHECK(before != after);
  const auto sent = [&](const Endpoint& from, std::uint32_t to, std::uint64_t token) {
    auto bytes = frame(to, token);
    const auto action = bench.give(from, bytes);
    // Whom the frame names as its sender.
    return action && action->forward ? parse_relay_header(bytes)->index : 0;
  };
  CHECK(sent(at(2, 2000), 5, other) == 6);
  CHECK(sent(at(2, 2000), 7, other) == 6);
  CHECK(sent(at(1, 1000), 6, before) == 5);
  CHECK(sent(at(1, 1000), 6, after) == 7);
  CHECK(sent(at(1, 1000), 5, after) == 0);  // To itself.
  CHECK(bench.table.counted(RelayCount::unknown_destination) == 1);
  // A third: the oldest goes.
  const std::uint64_t third = bench.enter(at(1, 1000), 8);
  CHECK(sent(at(2, 2000), 5, other) == 0);
  CHECK(sent(at(1, 1000), 6, before) == 0);
  CHECK(sent(at(1, 1000), 6, after) == 7);
  CHECK(bench.table.members() == 3);
  // One moves, the other stays.
  const std::uint64_t moved = bench.enter(at(3, 3000), 8);
  CHECK(sent(at(1, 1000), 6, third) == 0);
  CHECK(sent(at(3, 3000), 6, moved) == 8);
  CHECK(sent(at(1, 1000), 6, after) == 7);
  bench.table.expire(kUs + 61 * kUs);
  CHECK(bench.table.members() == 0);
  CHECK(sent(at(1, 1000), 6, after) == 0);
}

TEST_CASE("relay: a full table refuses new members and keeps the old") {
  RelayTable table(relay_key(), {.members = 1});
  const auto enter = [&](std::uint8_t host, std::uint32_t index) {
    const std::uint64_t token = relay_token(relay_key(), index, at(host, 1000));
    RelayControl message = make_hello(ticket(index), token, 1);
    return table.receive(at(host, 1000), message, kUs, kWall).has_value();
  };
  CHECK(enter(1, 5));
  CHECK_FALSE(enter(2, 6));
  CHECK(enter(1, 5));
  CHECK(table.counted(RelayCount::table_full) == 1);
}

TEST_CASE("relay: a member has a limit") {
  RelayTable table(relay_key(), {.frames_per_second = 3});
  for (const std::uint32_t index : {5U, 6U}) {
    const Endpoint from = at(static_cast<std::uint8_t>(index), 1000);
    RelayControl message = make_hello(ticket(index), relay_token(relay_key(), index, from), 1);
    REQUIRE(table.receive(from, message, kUs, kWall).has_value());
  }
  const std::uint64_t token = relay_token(relay_key(), 5, at(5, 1000));
  int passed = 0;
  for (int i = 0; i < 10; ++i) {
    auto sent = frame(6, token);
    if (table.receive(at(5, 1000), sent, kUs, kWall)) ++passed;
  }
  CHECK(passed == 3);
  CHECK(table.counted(RelayCount::rate_limited) == 7);
}

TEST_CASE("relay: hellos have a limit, all together, and frames go on") {
  Bench bench;
  const std::uint64_t token = bench.enter(at(1, 1000), 5);
  bench.enter(at(2, 1000), 6);
  // From as many addresses as can be, with proofs that are wrong: they cost as much.
  RelayTicket forged = ticket(7);
  forged.key[0] ^= 1;
  RelayControl message = make_hello(forged, 0, 1);
  for (unsigned i = 4; i < 20'000; ++i) {
    bench.give(at(static_cast<std::uint8_t>(i), static_cast<std::uint16_t>(i)), message);
  }
  CHECK(bench.table.counted(RelayCount::hello_limited) == 0);
  RelayControl good = make_hello(ticket(8), 0, 1);
  CHECK_FALSE(bench.give(at(3, 1000), good).has_value());
  CHECK(bench.table.counted(RelayCount::hello_limited) == 1);
  auto sent = frame(6, token);
  CHECK(bench.give(at(1, 1000), sent).has_value());
  // A moment later there is room again.
  CHECK(bench.give(at(3, 1000), good, kUs + 1000).has_value());
}

TEST_CASE("relay: strangers are answered a thousand times a second, all together") {
  Bench bench;
  std::size_t answers = 0;
  for (unsigned i = 0; i < 1'500; ++i) {
    auto sent = frame(6, i);
    if (bench.give(at(static_cast<std::uint8_t>(i), static_cast<std::uint16_t>(i + 1)), sent)) {
      ++answers;
    }
  }
  CHECK(answers == 1'000);
  CHECK(bench.table.counted(RelayCount::unknown_source) == 1'500);
}

TEST_CASE("relay: malformed messages") {
  for (std::size_t size = 0; size < kRelayHeaderSize + 40; ++size) {
    const std::vector<std::uint8_t> zeros(size);
    CHECK_FALSE(parse_relay_header(zeros));
    std::vector<std::uint8_t> bytes = frame(6, 1);
    bytes.resize(size);
    CHECK_FALSE(parse_relay_header(bytes));
  }
  auto nested = frame(6, 1);
  nested[kRelayHeaderSize] = kRelayFirstByte;
  CHECK_FALSE(parse_relay_header(nested));
  auto flags = frame(6, 1);
  flags[1] = 1;
  CHECK_FALSE(parse_relay_header(flags));
  auto type = frame(6, 1);
  type[3] = 4;
  CHECK_FALSE(parse_relay_header(type));
  auto zero = frame(0, 1);
  CHECK_FALSE(parse_relay_header(zero));
}

TEST_CASE("relay: the vectors of test/vectors/relay.json") {
  const auto vectors = load_vectors("relay.json");
  const auto& ticket_vector = vectors.at("ticket");
  const auto key = from_hex(vectors.at("relayKey").get<std::string>());
  const RelayKey relay(key.data(), kRelayKeySize);
  const auto index = ticket_vector.at("index").get<std::uint32_t>();
  const auto not_after = ticket_vector.at("notAfter").get<std::uint64_t>();
  CHECK(to_hex(relay_ticket_key(relay, index, not_after)) ==
        ticket_vector.at("key").get<std::string>());
  const auto& receipt = vectors.at("receipt");
  const auto ip = from_hex(receipt.at("ip").get<std::string>());
  const Endpoint seen = Endpoint::from(ip, receipt.at("port").get<std::uint16_t>()).value();
  const RelayHello hello{index, 0, receipt.at("nonce").get<std::uint64_t>()};
  CHECK(to_hex(make_receipt(relay, hello, seen, receipt.at("token").get<std::uint64_t>(), true,
                            receipt.at("time").get<std::uint64_t>())) ==
        receipt.at("bytes").get<std::string>());
}
