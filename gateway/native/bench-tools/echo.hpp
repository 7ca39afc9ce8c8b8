// Round trips: one UDP request at a time, answered by the other end.
#pragma once

#include <netinet/in.h>

#include <chrono>
#include <cstdint>
#include <string>

#include "bench-tools/sockets.hpp"

namespace pairwire::benchnet {

struct EchoOptions {
  sockaddr_in control{};
  std::string target;
  std::size_t size = 64;  ///< of the IPv4 packet
  std::uint64_t count = 1000;
  std::chrono::microseconds gap{1000};  ///< between an answer and the next request; 0: none
};

/// Asks `count` times and prints one object of JSON.
void run_echo(const EchoOptions& options);

/// The other end: answers until the conversation is over.
void serve_echo(Conversation& conversation);

}  // namespace pairwire::benchnet
