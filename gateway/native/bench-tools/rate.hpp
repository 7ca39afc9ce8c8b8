// Packet rate: paced plain datagrams one way, counted by sequence number at the other end.
#pragma once

#include <netinet/in.h>

#include <chrono>
#include <cstdint>
#include <string>

#include "bench-tools/sockets.hpp"

namespace pairwire::benchnet {

struct RateOptions {
  sockaddr_in control{};
  std::string target;
  std::size_t size = 64;  ///< of the IPv4 packet
  std::uint64_t pps = 0;  ///< 0: as fast as the socket takes them
  std::chrono::milliseconds time{1000};
};

/// Sends, asks the other end for its counts and prints one object of JSON.
void run_rate(const RateOptions& options);

/// The other end: `arguments` are what followed the word "rate".
void serve_rate(Conversation& conversation, const std::string& arguments);

}  // namespace pairwire::benchnet
