// pairwire-relay: passes sealed frames on between members that can't reach each other, and tells
// each the address that it is seen at. It has no key that opens anything.
//
//   pairwire-relay --listen IP:PORT      ([IP]:PORT for IPv6)
//
// Standard input: 32 bytes, the key that it shares with the key server; when it is closed, the
// relay ends. Standard output: one JSON object a line, "ready" once and then its counters every 2
// s.
//
// One thread: batches by recvmmsg with UDP_GRO, out by sendmmsg with UDP_SEGMENT (io/udp). After
// the start it is in the data plane's sandbox.
#include <arpa/inet.h>
#include <netinet/udp.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cstring>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include "control/sandbox.hpp"
#include "core/run-program.hpp"
#include "io/udp.hpp"
#include "io/unique-fd.hpp"
#include "relay/relay-table.hpp"

#ifndef UDP_GRO
#define UDP_GRO 104
#endif

namespace pairwire {
namespace {

constexpr std::uint64_t kReportMs = 2'000;
constexpr int kBufferSize = 4 << 20;

[[noreturn]] void fail(const std::string& what) {
  throw std::system_error(errno, std::generic_category(), what);
}

Endpoint parse_address(std::string_view text) {
  const auto colon = text.rfind(':');
  if (colon == std::string_view::npos) throw std::invalid_argument("--listen: IP:PORT");
  std::string host(text.substr(0, colon));
  const std::string_view port_text = text.substr(colon + 1);
  std::uint16_t port = 0;
  const auto [end, error] =
      std::from_chars(port_text.data(), port_text.data() + port_text.size(), port);
  if (error != std::errc() || end != port_text.data() + port_text.size()) {
    throw std::invalid_argument("--listen: not a port");
  }
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
  }
  sockaddr_in6 address{};
  address.sin6_port = htons(port);
  in_addr v4{};
  if (inet_pton(AF_INET, host.c_str(), &v4) == 1) {
    address.sin6_addr.s6_addr[10] = address.sin6_addr.s6_addr[11] = 0xff;
    std::memcpy(&address.sin6_addr.s6_addr[12], &v4, sizeof(v4));
  } else if (inet_pton(AF_INET6, host.c_str(), &address.sin6_addr) != 1) {
    throw std::invalid_argument("--listen: not an IP address");
  }
  return Endpoint::from(address);
}

/// IPv4 gets a socket of its own family, so that a host without IPv6 will do.
UniqueFd listen_on(const Endpoint& address) {
  const bool v4 = address.is_v4();
  UniqueFd fd(socket(v4 ? AF_INET : AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd) fail("socket");
  const auto set = [&](int level, int name, int value) {
    return setsockopt(fd.get(), level, name, &value, sizeof(value)) == 0;
  };
  // What does not fit is the members' to find out: a relay neither cuts nor tells.
  if (!(v4 ? set(IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_PROBE)
           : set(IPPROTO_IPV6, IPV6_MTU_DISCOVER, IPV6_PMTUDISC_PROBE))) {
    fail("MTU_DISCOVER");
  }
  if (!v4) static_cast<void>(set(IPPROTO_IPV6, IPV6_V6ONLY, 0));
  static_cast<void>(set(SOL_UDP, UDP_GRO, 1));  // Without it, datagrams come one by one.
  static_cast<void>(set(SOL_SOCKET, SO_RCVBUF, kBufferSize));
  static_cast<void>(set(SOL_SOCKET, SO_SNDBUF, kBufferSize));
  UdpName name;
  const socklen_t size = name.set(address, v4);
  if (bind(fd.get(), &name.any, size) != 0) fail("bind");
  return fd;
}

std::array<std::uint8_t, kRelayKeySize> read_key() {
  std::array<std::uint8_t, kRelayKeySize> key{};
  std::size_t got = 0;
  while (got < key.size()) {
    const ssize_t size = read(STDIN_FILENO, key.data() + got, key.size() - got);
    if (size < 0 && errno == EINTR) continue;
    if (size <= 0) throw std::runtime_error("no key on standard input");
    got += static_cast<std::size_t>(size);
  }
  return key;
}

std::uint64_t wall_ms() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return static_cast<std::uint64_t>(
      std::chrono::duration_cast<std::chrono::milliseconds>(now).count());
}

/// False if nobody reads any more.
bool say(const std::string& line) {
  return write(STDOUT_FILENO, line.data(), line.size()) == static_cast<ssize_t>(line.size());
}

class Relay {
 public:
  Relay(int fd, const std::array<std::uint8_t, kRelayKeySize>& key)
      : fd_(fd),
        table_(key, {}),
        receiver_(UdpSocket::of(fd)),
        sender_(UdpSocket::of(fd), drops_) {}

  void run() {
    std::uint64_t report_us = 0;
    std::array<pollfd, 2> fds{pollfd{fd_, POLLIN, 0}, pollfd{STDIN_FILENO, POLLIN, 0}};
    while (true) {
      const int ready = poll(fds.data(), fds.size(), static_cast<int>(kReportMs));
      if (ready < 0 && errno != EINTR) fail("poll");
      if (ready > 0 && fds[1].revents != 0) return;  // Closed, or not what was agreed.
      if (ready > 0 && fds[0].revents != 0) batch();
      const std::uint64_t now = boot_us();
      if (now < report_us) continue;
      report_us = now + kReportMs * 1000;
      table_.expire(now);
      if (!report()) return;
    }
  }

 private:
  void batch() {
    bool failed = false;
    const std::uint64_t now = boot_us();
    const std::uint64_t wall = wall_ms();
    for (const UdpReceiver::Train& train : receiver_.receive(failed)) {
      for (std::size_t at = 0; at < train.bytes.size(); at += train.frame_size) {
        const Bytes datagram =
            train.bytes.subspan(at, std::min(train.frame_size, train.bytes.size() - at));
        const auto action = table_.receive(train.from, datagram, now, wall);
        if (!action) continue;
        const ConstBytes out = action->forward
                                   ? ConstBytes(datagram)
                                   : ConstBytes(action->control).first(action->control_size);
        if (out.size() > UdpSender::kMaxFrame) {
          table_.count(RelayCount::malformed);
          continue;
        }
        if (action->forward) table_.count(RelayCount::forwarded);
        std::ranges::copy(out, sender_.reserve(action->to, out.size()).begin());
      }
    }
    sender_.flush();
    if (failed) throw std::runtime_error("the socket is of no use");
  }

  bool report() {
    std::string line = "{\"members\":" + std::to_string(table_.members());
    for (std::size_t i = 0; i < kRelayCountNames.size(); ++i) {
      const auto what = static_cast<RelayCount>(i);
      std::uint64_t value = table_.counted(what);
      if (what == RelayCount::send_failed) {
        value = drops_.get(DropReason::send_failed) + drops_.get(DropReason::oversize);
      }
      line += ",\"" + std::string(kRelayCountNames[i]) + "\":" + std::to_string(value);
    }
    return say(line + "}\n");
  }

  const int fd_;
  DropCounters drops_;
  RelayTable table_;
  UdpReceiver receiver_;
  UdpSender sender_;
};

int run(const std::vector<std::string_view>& words) {
  if (words.size() != 2 || words[0] != "--listen") {
    throw std::invalid_argument("usage: pairwire-relay --listen IP:PORT");
  }
  signal(SIGPIPE, SIG_IGN);
  const UniqueFd fd = listen_on(parse_address(words[1]));
  const auto key = read_key();
  // Whatever libcrypto loads or opens at the first use, it does now.
  Relay relay(fd.get(), key);
  static_cast<void>(relay_token(key, 1, {}));
  enter_sandbox({});
  relay.run();
  return 0;
}

}  // namespace
}  // namespace pairwire

int main(int argc, char** argv) {
  return pairwire::run_program("pairwire-relay", argc, argv, pairwire::run);
}
