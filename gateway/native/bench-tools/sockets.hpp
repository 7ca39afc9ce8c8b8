// Sockets of pairwire-bench-net: UDP for what is measured, TCP for what both ends agree about.
#pragma once

#include <netinet/in.h>

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

#include "io/unique-fd.hpp"

namespace pairwire::benchnet {

using Clock = std::chrono::steady_clock;

/// @throws std::system_error with errno
[[noreturn]] void throw_errno(const char* what);

/// `ADDRESS`, a numeric IPv4 address. @throws std::invalid_argument
sockaddr_in parse_address(std::string_view address, std::uint16_t port);

/// A bound UDP socket with the largest receive buffer that the kernel lets us have.
UniqueFd udp_server(std::uint16_t& port);
/// A UDP socket that talks to one place.
UniqueFd udp_client(const sockaddr_in& to);

/// For how long a receiving call waits.
void set_receive_timeout(int fd, std::chrono::milliseconds timeout);

UniqueFd tcp_listener(std::uint16_t port);
UniqueFd tcp_connect(const sockaddr_in& to, std::chrono::milliseconds patience);

/// A line-based conversation, one line of at most 200 bytes at a time.
/// Threads: one.
class Conversation {
 public:
  explicit Conversation(UniqueFd socket) : socket_(std::move(socket)) {}

  /// @throws std::system_error if the other end is gone
  void say(const std::string& line);
  /// The next line without its end; empty if the other end has closed.
  /// @throws std::runtime_error if the line is too long
  std::string hear();
  /// The rest of the next line, which must begin with `word`.
  /// @throws std::runtime_error for anything else
  std::string expect(std::string_view word);

 private:
  UniqueFd socket_;
  std::string buffer_;
};

}  // namespace pairwire::benchnet
