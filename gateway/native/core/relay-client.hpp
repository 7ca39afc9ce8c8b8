// A port's dealings with its relay: registers, keeps the NAT mapping alive, learns the address that
// it is seen at.
//
//   idle --- ticket ---> asking --- receipt with a token ---> proving --- receipt ---> registered
//                          ^   next address after 3 hellos without answer                | 20 s
//                          +-------------------------------------------------------------+
//
// Nothing a relay says changes more than whether frames go through it: the address it saw is passed
// up as it came, because only the key server can check it.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "core/relay-frame.hpp"
#include "core/tables.hpp"
#include "io/underlay.hpp"

namespace pairwire {

/// Threads: the control thread's.
class RelayClient {
 public:
  struct Listener {
    std::function<void(ConstBytes receipt)> seen;  ///< a receipt for the key server
    std::function<void()> changed;                 ///< registered, or not any more
  };

  RelayClient(PortTables& tables, Listener listener);

  void set_socket(const Underlay& underlay) { underlay_ = underlay; }

  /// Where the relay is, and the ticket; no addresses: none is used. Says hello at once, so it is
  /// also to be called when our own addresses have changed.
  void set(std::vector<Endpoint> addresses, const RelayTicket& ticket, std::uint64_t now_ms);

  /// A message from the address of the relay that is not a frame.
  void received(ConstBytes message, std::uint64_t time_us, std::uint64_t now_ms);

  /// Does what is due. Returns when to call again, in boot ms.
  std::optional<std::uint64_t> run(std::uint64_t now_ms);

  [[nodiscard]] bool registered() const { return registered_; }
  [[nodiscard]] std::uint32_t rtt_us() const { return rtt_us_; }
  /// Of ours, as the relay saw it last. Not checked.
  [[nodiscard]] const Endpoint& seen() const { return seen_; }

 private:
  void hello(std::uint64_t now_ms);
  void publish();
  void forget();

  PortTables& tables_;
  const Listener listener_;
  Underlay underlay_;
  std::vector<Endpoint> addresses_;
  std::size_t at_ = 0;
  RelayTicket ticket_;
  std::uint64_t token_ = 0;  ///< what frames carry
  bool registered_ = false;
  std::uint32_t registered_index_ = 0;  ///< under which; that of the ticket, but while it is new
  std::uint64_t proof_ = 0;             ///< what the next hello carries
  std::uint32_t unanswered_ = 0;
  std::uint64_t nonce_ = 0;  ///< of the hello that is out; 0: none
  std::uint64_t sent_us_ = 0;
  std::uint64_t sent_ms_ = 0;
  std::uint64_t next_ms_ = 0;
  std::uint32_t rtt_us_ = 0;
  Endpoint seen_;
};

/// Sends a frame that is sealed already, through the relay if `to` says so; false if it could not
/// be sent. For the few frames outside a batch.
[[nodiscard]] bool send_sealed(const Underlay& underlay, const PortTables& tables,
                               const Endpoint& to, ConstBytes frame);

}  // namespace pairwire
