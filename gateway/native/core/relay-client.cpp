// See relay-client.hpp.
#include "core/relay-client.hpp"

#include <openssl/rand.h>

#include <algorithm>
#include <memory>
#include <utility>

#include "core/clock.hpp"

namespace pairwire {
namespace {

/// Below the 30 s after which common NAT boxes forget a UDP mapping (RFC 4787 asks for 120 s).
constexpr std::uint64_t kKeepMs = 20'000;
constexpr std::uint64_t kFirstRetryMs = 500;
constexpr std::uint64_t kLastRetryMs = 8'000;
constexpr std::uint32_t kTries = 3;
/// What the relay (or who forges it) can make us send: one hello in this time.
constexpr std::uint64_t kLeastGapMs = 200;

std::uint64_t random_nonce() {
  std::uint64_t nonce = 0;
  // Without randomness no hello leaves.
  if (RAND_bytes(reinterpret_cast<unsigned char*>(&nonce), sizeof(nonce)) != 1) return 0;
  return nonce;
}

}  // namespace

RelayClient::RelayClient(PortTables& tables, Listener listener)
    : tables_(tables), listener_(std::move(listener)) {}

void RelayClient::set(std::vector<Endpoint> addresses, const RelayTicket& ticket,
                      std::uint64_t now_ms) {
  const bool new_index = ticket.index != ticket_.index;
  ticket_ = ticket;
  next_ms_ = now_ms;
  unanswered_ = 0;
  // Until the relay knows us under the new index frames go under the one before.
  if (new_index) proof_ = 0;
  if (addresses == addresses_) return;
  addresses_ = std::move(addresses);
  at_ = 0;
  forget();
}

/// Shows workers and paths what there is now.
void RelayClient::publish() {
  tables_.set_relay(addresses_.empty() ? nullptr
                                       : std::make_unique<const RelayUse>(
                                             RelayUse{addresses_[at_], registered_ ? token_ : 0}));
  listener_.changed();
}

std::optional<std::uint64_t> RelayClient::run(std::uint64_t now_ms) {
  if (addresses_.empty() || underlay_.fd < 0) return std::nullopt;
  if (now_ms >= next_ms_) {
    if (unanswered_ >= kTries) {
      at_ = (at_ + 1) % addresses_.size();
      unanswered_ = 1;  // The back-off goes on.
      forget();
    }
    hello(now_ms);
  }
  return next_ms_;
}

void RelayClient::forget() {
  token_ = 0;
  proof_ = 0;
  registered_ = false;
  publish();
}

void RelayClient::hello(std::uint64_t now_ms) {
  nonce_ = random_nonce();
  sent_ms_ = now_ms;
  sent_us_ = boot_us();
  ++unanswered_;
  next_ms_ = now_ms + std::min(kLastRetryMs, kFirstRetryMs << std::min(unanswered_ - 1, 4U));
  if (nonce_ == 0) return;
  // A relay that can't be reached shows as one that does not answer.
  static_cast<void>(send_frame(underlay_, addresses_[at_], make_hello(ticket_, proof_, nonce_)));
}

void RelayClient::received(ConstBytes message, std::uint64_t time_us, std::uint64_t now_ms) {
  const auto header = parse_relay_header(message);
  if (!header || header->type == RelayType::kForward || addresses_.empty()) return;
  if (header->type == RelayType::kUnknown) {
    // The relay was started anew, or our address has changed.
    if (token_ != 0 && header->token == token_) {
      next_ms_ = std::min(next_ms_, std::max(now_ms, sent_ms_ + kLeastGapMs));
    }
    return;
  }
  const auto receipt = parse_receipt(message);
  if (!receipt || nonce_ == 0 || receipt->nonce != nonce_ || receipt->index != ticket_.index) {
    return;
  }
  nonce_ = 0;
  unanswered_ = 0;
  rtt_us_ = static_cast<std::uint32_t>(std::min<std::uint64_t>(time_us - sent_us_, ~0U));
  seen_ = receipt->seen;
  proof_ = receipt->token;
  if (!receipt->registered) {
    // Now we have the token that proves where we are.
    next_ms_ = now_ms;
    if (registered_ && registered_index_ == receipt->index) {
      registered_ = false;
      publish();
    }
    return;
  }
  next_ms_ = now_ms + kKeepMs;
  if (!registered_ || token_ != receipt->token) {
    token_ = receipt->token;
    registered_ = true;
    registered_index_ = receipt->index;
    publish();
  }
  listener_.seen(message);
}

bool send_sealed(const Underlay& underlay, const PortTables& tables, const Endpoint& to,
                 ConstBytes frame) {
  if (to.relayed == 0) return send_frame(underlay, to, frame);
  const RelayUse* const relay = tables.relay();
  if (relay == nullptr || relay->token == 0) return false;
  std::vector<std::uint8_t> wrapped(kRelayHeaderSize + frame.size());
  write_relay_header({RelayType::kForward, to.relayed, relay->token},
                     std::span(wrapped).first<kRelayHeaderSize>());
  std::ranges::copy(frame, wrapped.begin() + kRelayHeaderSize);
  return send_frame(underlay, to, wrapped);
}

}  // namespace pairwire
