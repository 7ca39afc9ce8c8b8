// See relay-table.hpp.
#include "relay/relay-table.hpp"

#include <openssl/rand.h>

#include <algorithm>
#include <cstring>

#include "crypto/openssl.hpp"

namespace pairwire {
namespace {

std::uint64_t random_seed() {
  std::uint64_t seed = 0;
  require_crypto(RAND_bytes(reinterpret_cast<unsigned char*>(&seed), sizeof(seed)) == 1,
                 "RAND_bytes");
  return seed;
}

std::uint64_t mix(std::uint64_t value) {
  value = (value ^ (value >> 31)) * 0x9e3779b97f4a7c15U;
  return (value ^ (value >> 29)) * 0xbf58476d1ce4e5b9U;
}

}  // namespace

std::size_t RelayTable::AddressHash::operator()(const Endpoint& endpoint) const noexcept {
  std::uint64_t high = 0;
  std::uint64_t low = 0;
  std::memcpy(&high, endpoint.ip.data(), sizeof(high));
  std::memcpy(&low, endpoint.ip.data() + sizeof(high), sizeof(low));
  return mix(mix(mix(seed ^ high) ^ low) ^ endpoint.port);
}

RelayTable::RelayTable(RelayKey key, const Limits& limits)
    : limits_(limits),
      hellos_(limits.hellos_per_second, limits.hellos_per_second),
      unknowns_(limits.unknowns_per_second, limits.unknowns_per_second),
      by_address_(16, AddressHash{random_seed()}) {
  std::ranges::copy(key, key_.begin());
}

std::optional<RelayTable::Action> RelayTable::receive(const Endpoint& from, Bytes datagram,
                                                      std::uint64_t now_us, std::uint64_t wall_ms) {
  const auto header = parse_relay_header(datagram);
  if (!header) return refuse(RelayCount::malformed);
  switch (header->type) {
    case RelayType::kForward:
      return forward(*header, from, datagram, now_us);
    case RelayType::kHello:
      return hello(from, datagram, now_us, wall_ms);
    case RelayType::kReceipt:
    case RelayType::kUnknown:
      break;
  }
  return refuse(RelayCount::malformed);
}

std::optional<RelayTable::Action> RelayTable::hello(const Endpoint& from, ConstBytes datagram,
                                                    std::uint64_t now_us, std::uint64_t wall_ms) {
  if (!hellos_.take(now_us)) return refuse(RelayCount::hello_limited);
  const auto hello = check_hello(datagram, key_, wall_ms);
  if (!hello) return refuse(RelayCount::hello_refused);
  const std::uint64_t token = relay_token(key_, hello->index, from);
  // Who has the token has received a receipt at this address.
  const bool proven = same_token(token, hello->token);
  if (proven && !enter(*hello, from, now_us)) return refuse(RelayCount::table_full);
  count(RelayCount::receipts);
  Action action{from, false, kRelayControlSize, {}};
  action.control = make_receipt(key_, *hello, from, token, proven, wall_ms);
  return action;
}

bool RelayTable::enter(const RelayHello& hello, const Endpoint& from, std::uint64_t now_us) {
  auto found = by_index_.find(hello.index);
  if (found == by_index_.end()) {
    if (by_index_.size() >= limits_.members) expire(now_us);
    if (by_index_.size() >= limits_.members) return false;
    const TokenBucket frames(limits_.frames_per_second, limits_.frames_per_second);
    found = by_index_.emplace(hello.index, Member{from, hello.token, now_us, frames}).first;
  } else if (found->second.address != from) {
    leave(found->second.address, hello.index);
  }
  Member& member = found->second;
  member.address = from;
  member.token = hello.token;
  member.heard_us = now_us;
  auto& here = by_address_[from];
  if (here[0] == hello.index || here[1] == hello.index) return true;
  // The same member's index from before, or another's whose address a NAT box gave away.
  if (here[1] != 0) by_index_.erase(here[1]);
  here = {hello.index, here[0]};
  return true;
}

/// The index is not at this address any more.
void RelayTable::leave(const Endpoint& address, std::uint32_t index) {
  const auto found = by_address_.find(address);
  if (found == by_address_.end()) return;
  auto& here = found->second;
  if (here[0] == index) here = {here[1], 0};
  if (here[1] == index) here[1] = 0;
  if (here[0] == 0) by_address_.erase(found);
}

std::optional<RelayTable::Action> RelayTable::forward(const RelayHeader& header,
                                                      const Endpoint& from, Bytes datagram,
                                                      std::uint64_t now_us) {
  const auto source = by_address_.find(from);
  if (source == by_address_.end()) {
    count(RelayCount::unknown_source);
    if (!unknowns_.take(now_us)) return std::nullopt;
    Action action{from, false, kRelayHeaderSize, {}};
    write_relay_header({RelayType::kUnknown, header.index, header.token},
                       std::span(action.control).first<kRelayHeaderSize>());
    return action;
  }
  std::uint32_t index = 0;
  for (const std::uint32_t one : source->second) {
    if (one != 0 && same_token(by_index_.at(one).token, header.token)) index = one;
  }
  if (index == 0) return refuse(RelayCount::wrong_token);
  if (!by_index_.at(index).frames.take(now_us)) return refuse(RelayCount::rate_limited);
  const auto receiver = by_index_.find(header.index);
  if (receiver == by_index_.end() || receiver->second.address == from) {
    return refuse(RelayCount::unknown_destination);
  }
  write_relay_header({RelayType::kForward, index, 0}, datagram.first<kRelayHeaderSize>());
  return Action{receiver->second.address, true, 0, {}};
}

void RelayTable::expire(std::uint64_t now_us) {
  const std::uint64_t lifetime_us = limits_.lifetime_ms * 1000;
  std::erase_if(by_index_, [&](const auto& entry) {
    const Member& member = entry.second;
    if (now_us < member.heard_us + lifetime_us) return false;
    leave(member.address, entry.first);
    return true;
  });
}

}  // namespace pairwire
