#include "bench-tools/sockets.hpp"

#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/time.h>

#include <cerrno>
#include <stdexcept>
#include <system_error>
#include <thread>

namespace pairwire::benchnet {

namespace {

constexpr std::size_t kMaxLine = 200;
/// Enough for a tenth of a second of small packets at several million a second.
constexpr int kReceiveBuffer = 256 << 20;

void must(int result, const char* what) {
  if (result < 0) throw_errno(what);
}

void enable(int fd, int level, int option, const char* what) {
  const int on = 1;
  must(setsockopt(fd, level, option, &on, sizeof on), what);
}

const sockaddr* name_of(const sockaddr_in& address) {
  return reinterpret_cast<const sockaddr*>(&address);
}

sockaddr_in any_address(std::uint16_t port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  return address;
}

}  // namespace

void throw_errno(const char* what) {
  throw std::system_error(errno, std::generic_category(), what);
}

sockaddr_in parse_address(std::string_view address, std::uint16_t port) {
  sockaddr_in result = any_address(port);
  const std::string text(address);
  if (inet_pton(AF_INET, text.c_str(), &result.sin_addr) != 1) {
    throw std::invalid_argument(text + " is no IPv4 address");
  }
  return result;
}

UniqueFd udp_server(std::uint16_t& port) {
  UniqueFd fd(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  must(fd.get(), "UDP socket");
  // Beyond net.core.rmem_max where we may; else as much as anybody gets.
  if (setsockopt(fd.get(), SOL_SOCKET, SO_RCVBUFFORCE, &kReceiveBuffer, sizeof kReceiveBuffer) <
      0) {
    must(setsockopt(fd.get(), SOL_SOCKET, SO_RCVBUF, &kReceiveBuffer, sizeof kReceiveBuffer),
         "SO_RCVBUF");
  }
  enable(fd.get(), SOL_SOCKET, SO_RXQ_OVFL, "SO_RXQ_OVFL");
  sockaddr_in address = any_address(port);
  socklen_t size = sizeof address;
  must(bind(fd.get(), name_of(address), size), "bind");
  must(getsockname(fd.get(), reinterpret_cast<sockaddr*>(&address), &size), "getsockname");
  port = ntohs(address.sin_port);
  return fd;
}

UniqueFd udp_client(const sockaddr_in& to) {
  UniqueFd fd(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  must(fd.get(), "UDP socket");
  must(connect(fd.get(), name_of(to), sizeof to), "connect");
  return fd;
}

void set_receive_timeout(int fd, std::chrono::milliseconds timeout) {
  timeval value{};
  value.tv_sec = timeout.count() / 1000;
  value.tv_usec = timeout.count() % 1000 * 1000;
  must(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &value, sizeof value), "SO_RCVTIMEO");
}

UniqueFd tcp_listener(std::uint16_t port) {
  UniqueFd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  must(fd.get(), "TCP socket");
  enable(fd.get(), SOL_SOCKET, SO_REUSEADDR, "SO_REUSEADDR");
  const sockaddr_in address = any_address(port);
  must(bind(fd.get(), name_of(address), sizeof address), "bind");
  must(listen(fd.get(), 8), "listen");
  return fd;
}

UniqueFd tcp_connect(const sockaddr_in& to, std::chrono::milliseconds patience) {
  const Clock::time_point end = Clock::now() + patience;
  for (;;) {
    UniqueFd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    must(fd.get(), "TCP socket");
    if (connect(fd.get(), name_of(to), sizeof to) == 0) {
      enable(fd.get(), IPPROTO_TCP, TCP_NODELAY, "TCP_NODELAY");
      return fd;
    }
    // A server that was started a moment ago does not listen yet.
    if (errno != ECONNREFUSED || Clock::now() > end) throw_errno("the server does not answer");
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
}

void Conversation::say(const std::string& line) {
  const std::string text = line + "\n";
  std::size_t sent = 0;
  while (sent < text.size()) {
    const ssize_t n = send(socket_.get(), text.data() + sent, text.size() - sent, MSG_NOSIGNAL);
    if (n < 0) throw_errno("control connection");
    sent += static_cast<std::size_t>(n);
  }
}

std::string Conversation::hear() {
  for (;;) {
    const std::size_t end = buffer_.find('\n');
    if (end != std::string::npos) {
      std::string line = buffer_.substr(0, end);
      buffer_.erase(0, end + 1);
      return line;
    }
    if (buffer_.size() > kMaxLine) throw std::runtime_error("a control line is too long");
    char chunk[kMaxLine];
    const ssize_t n = recv(socket_.get(), chunk, sizeof chunk, 0);
    if (n < 0) throw_errno("control connection");
    if (n == 0) return {};
    buffer_.append(chunk, static_cast<std::size_t>(n));
  }
}

std::string Conversation::expect(std::string_view word) {
  const std::string line = hear();
  if (!line.starts_with(word)) {
    throw std::runtime_error("the other end said \"" + line + "\" and not " + std::string(word));
  }
  return line.substr(std::min(line.size(), word.size() + 1));
}

}  // namespace pairwire::benchnet
