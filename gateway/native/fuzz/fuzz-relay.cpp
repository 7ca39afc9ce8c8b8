// A relay that strangers and members send to: whatever comes, it answers nobody with more than he
// sent, passes frames on between registered addresses only, and accounts for every datagram. The
// parsers that a member reads a relay's messages with take the same bytes.
#include <array>
#include <cstdint>
#include <map>
#include <vector>

#include "fuzz/input.hpp"
#include "fuzz/require.hpp"
#include "relay/relay-table.hpp"

namespace {

using namespace pairwire;
using namespace pairwire::fuzz;

constexpr std::size_t kPlaces = 6;
constexpr std::uint32_t kMembers = 5;
constexpr std::uint64_t kWallMs = 1'800'000'000'000;
constexpr std::uint64_t kNotAfterMs = kWallMs + 3'600'000;
constexpr RelayTable::Limits kLimits{.members = 3,
                                     .frames_per_second = 20,
                                     .hellos_per_second = 40,
                                     .unknowns_per_second = 5,
                                     .lifetime_ms = 1'000};

Endpoint place(std::uint8_t number) {
  const std::array<std::uint8_t, 4> ip{192, 0, 2, static_cast<std::uint8_t>(1 + number % kPlaces)};
  return *Endpoint::from(ip, 4'000);
}

class World {
 public:
  void step(Input& input) {
    switch (input.byte() % 4) {
      case 0: {
        const Endpoint from = place(input.byte());
        return send(from, input.bytes());
      }
      case 1:
        return hello(input.byte(), 1 + input.byte() % kMembers);
      case 2:
        return forward(input);
      default:
        now_us_ += std::uint64_t{input.number()} * 100;
        return table_.expire(now_us_);
    }
  }

 private:
  /// As a member says it, with the token of the last receipt at that place.
  void hello(std::uint8_t at, std::uint32_t index) {
    const Endpoint from = place(at);
    const RelayTicket ticket{index, kNotAfterMs, relay_ticket_key(key_, index, kNotAfterMs)};
    const RelayControl message = make_hello(ticket, tokens_[{at % kPlaces, index}], 7);
    send(from, {message.begin(), message.end()});
  }

  void forward(Input& input) {
    const std::uint8_t at = input.byte();
    const std::uint32_t own = 1 + input.byte() % kMembers;
    const std::uint32_t to = 1 + input.byte() % kMembers;
    std::vector<std::uint8_t> frame(kRelayHeaderSize);
    write_relay_header({RelayType::kForward, to, tokens_[{at % kPlaces, own}]},
                       std::span(frame).first<kRelayHeaderSize>());
    const auto payload = input.bytes();
    frame.insert(frame.end(), payload.begin(), payload.end());
    send(place(at), std::move(frame));
  }

  void send(const Endpoint& from, std::vector<std::uint8_t> datagram) {
    if (const auto header = parse_relay_header(datagram);
        header && header->type == RelayType::kReceipt) {
      static_cast<void>(parse_receipt(datagram));
    }
    const std::vector<std::uint8_t> before = datagram;
    const std::uint64_t counted = sum();
    const auto action = table_.receive(from, datagram, now_us_, kWallMs);
    require(table_.members() <= kLimits.members);
    if (!action) return require(sum() == counted + 1);
    if (action->forward) return passed(from, *action, before, datagram);
    require(sum() == counted + 1 && action->to == from);
    require(action->control_size <= before.size());
    if (action->control_size != kRelayControlSize) return;
    const auto receipt = parse_receipt(action->control);
    require(receipt && receipt->seen == from);
    for (std::uint8_t at = 0; at < kPlaces; ++at) {
      if (place(at) == from) tokens_[{at, receipt->index}] = receipt->token;
    }
    if (receipt->registered) registered_[receipt->index] = from;
  }

  /// To where the receiver registered last, from who did at his address, and not a byte longer.
  void passed(const Endpoint& from, const RelayTable::Action& action,
              const std::vector<std::uint8_t>& before, const std::vector<std::uint8_t>& datagram) {
    const auto was = parse_relay_header(before);
    const auto is = parse_relay_header(datagram);
    require(was && is && is->type == RelayType::kForward && is->token == 0);
    require(registered_.at(is->index) == from && registered_.at(was->index) == action.to);
    require(datagram.size() == before.size());
    require(std::equal(datagram.begin() + kRelayHeaderSize, datagram.end(),
                       before.begin() + kRelayHeaderSize));
  }

  [[nodiscard]] std::uint64_t sum() const {
    std::uint64_t all = 0;
    for (std::size_t i = 0; i < kRelayCountNames.size(); ++i) {
      all += table_.counted(static_cast<RelayCount>(i));
    }
    return all;
  }

  const std::array<std::uint8_t, kRelayKeySize> key_{0x5a};
  RelayTable table_{key_, kLimits};
  std::uint64_t now_us_ = 1'000'000;
  std::map<std::pair<std::size_t, std::uint32_t>, std::uint64_t> tokens_;
  std::map<std::uint32_t, Endpoint> registered_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Input input(data, size);
  World world;
  for (int steps = 0; steps < 200 && !input.empty(); ++steps) world.step(input);
  return 0;
}
