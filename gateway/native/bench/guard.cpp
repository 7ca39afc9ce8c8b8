// What the address guard costs a frame, where it enters and where it is received.
#include <algorithm>
#include <array>
#include <cstdlib>
#include <memory>
#include <vector>

#include "bench/harness.hpp"
#include "core/address-guard.hpp"
#include "core/clock.hpp"
#include "core/tables.hpp"
#include "l2/wire.hpp"

namespace pairwire::bench {
namespace {

constexpr MacAddress kSource(std::array<std::uint8_t, 6>{2, 0, 0, 0, 0, 2});
constexpr std::array<std::uint8_t, 4> kBound{198, 51, 100, 7};

/// TCP, as nearly all frames are: the guard has to find out that it announces nothing.
std::vector<std::uint8_t> segment() {
  std::vector<std::uint8_t> frame(14 + 20 + 20 + 1448);
  frame[12] = 8;
  frame[14] = 0x45;
  frame[14 + 9] = 6;
  return frame;
}

/// An ARP request of the address's owner.
std::vector<std::uint8_t> arp() {
  std::vector<std::uint8_t> frame(60);
  std::ranges::fill_n(frame.begin(), 6, std::uint8_t{0xff});
  std::ranges::copy(kSource.bytes(), frame.begin() + 6);
  constexpr std::array<std::uint8_t, 10> kRequest{8, 6, 0, 1, 8, 0, 6, 4, 0, 1};
  std::ranges::copy(kRequest, frame.begin() + 12);
  std::ranges::copy(kSource.bytes(), frame.begin() + 22);
  std::ranges::copy(kBound, frame.begin() + 28);
  return frame;
}

const Registered registered([](Runner& runner) {
  const auto data = segment();
  runner.measure("guard.segment", {}, [&](std::uint64_t) {
    const bool maybe = may_announce(data);
    keep(&maybe);
  });
  const auto request = arp();
  for (const std::uint32_t bindings : {1U, 10'000U}) {
    PortTables tables;
    auto settings = std::make_unique<PortSettings>();
    settings->subnet = "bench";
    settings->member = "self";
    tables.set_settings(std::move(settings));
    std::vector<Bindings::Setting> list{{IpAddress::of_ipv4(0xc6336407), kSource}};
    for (std::uint32_t i = 1; i < bindings; ++i) {
      list.push_back({IpAddress::of_ipv4(0xcb000000 + i), kSource});
    }
    tables.set_bindings(list, true, false, boot_ms());
    if (tables.binding_count() != bindings) std::abort();
    runner.measure("guard.arp", {{"bindings", std::uint64_t{bindings}}}, [&](std::uint64_t) {
      const auto refused =
          refuse_announcement(tables, read_announcement(request), kSource, nullptr);
      keep(&refused);
    });
  }
});

}  // namespace
}  // namespace pairwire::bench
