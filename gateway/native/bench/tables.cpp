// What every frame asks the tables: the sender behind an index, the member behind a MAC address.
#include "core/tables.hpp"

#include <cstdlib>
#include <string>
#include <vector>

#include "bench/harness.hpp"
#include "core/clock.hpp"

namespace pairwire::bench {
namespace {

/// Spreads numbers so that neither hardware nor table sees them in order.
std::uint32_t scattered(std::uint64_t number) {
  return static_cast<std::uint32_t>((number * 0x9e3779b97f4a7c15U) >> 33) | 1U;
}

MacAddress mac_of(std::size_t member) {
  const std::uint32_t bits = scattered(member);
  return MacAddress(std::array<std::uint8_t, 6>{
      0x02, 0x10, static_cast<std::uint8_t>(bits >> 24), static_cast<std::uint8_t>(bits >> 16),
      static_cast<std::uint8_t>(bits >> 8), static_cast<std::uint8_t>(bits)});
}

void lookups(Runner& runner, std::size_t members) {
  PortTables tables;
  auto settings = std::make_unique<PortSettings>();
  settings->subnet = "bench";
  settings->member = "self";
  tables.set_settings(std::move(settings));
  for (std::size_t i = 0; i < members; ++i) {
    std::array<std::uint8_t, 32> boot{};
    boot[0] = static_cast<std::uint8_t>(i);
    boot[1] = static_cast<std::uint8_t>(i >> 8);
    boot[2] = 1;
    tables.set_peer({std::to_string(i), scattered(i), boot, {mac_of(i)}, {}, true}, boot_ms());
  }
  // Peers in turn: with many of them the tables do not stay in the first cache.
  const std::vector<Label> labels{{"members", std::uint64_t{members}}};
  std::size_t next = 0;
  const auto turn = [&] {
    next = (next + 7919) % members;
    return next;
  };
  runner.measure("tables.sender", labels, [&](std::uint64_t) {
    const Incarnation* const found = tables.sender(scattered(turn()));
    if (found == nullptr) std::abort();
    keep(found);
  });
  runner.measure("tables.destination", labels, [&](std::uint64_t) {
    const Peer* const found = tables.destination(mac_of(turn()));
    if (found == nullptr) std::abort();
    keep(found);
  });
}

const Registered registered([](Runner& runner) {
  for (const std::size_t members : {1UL, 100UL, 10'000UL}) lookups(runner, members);
});

}  // namespace
}  // namespace pairwire::bench
