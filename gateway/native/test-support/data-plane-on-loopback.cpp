// pairwire-test-dataplane: the real data plane, for tests without root.
//
//   pairwire-test-dataplane CONTROL_PATH UDP_PORT FAR_PORT TAP MAC MTU PROGRAM [argument...]
//
// Does what the broker does - listening sockets, devices over SEQPACKET, another user if we are
// root - and becomes PROGRAM. The devices differ in one thing: a UDP socket on loopback stands in
// for the TAP, and what goes in and out there is at FAR_PORT. Prints `UDP_PORT TAP_PORT` (UDP_PORT
// 0 lets the kernel choose).
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>
#include <exception>
#include <stdexcept>
#include <string>
#include <vector>

#include "devices/launcher.hpp"
#include "devices/privileges.hpp"
#include "devices/throw-errno.hpp"
#include "io/send-with-fd.hpp"
#include "io/unique-fd.hpp"

namespace pairwire::devices {
namespace {

void must(int result, const char* what) {
  if (result < 0) throw_errno(what);
}

std::uint16_t port_of(int fd) {
  sockaddr_in6 address{};  // Both families have the port at the same place.
  socklen_t size = sizeof address;
  must(getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size), "getsockname");
  return ntohs(address.sin6_port);
}

/// As open_udp() of the broker makes it, without what needs a capability.
UniqueFd open_underlay(std::uint16_t port) {
  UniqueFd fd(socket(AF_INET6, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  const bool v6 = static_cast<bool>(fd);
  if (!v6) fd.reset(socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  must(fd.get(), "UDP socket");
  const int off = 0;
  const int on = 1;
  if (v6) {
    must(setsockopt(fd.get(), IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off), "IPV6_V6ONLY");
  }
  must(setsockopt(fd.get(), SOL_UDP, UDP_GRO, &on, sizeof on), "UDP_GRO");
  sockaddr_in6 any6{};
  any6.sin6_family = AF_INET6;
  any6.sin6_port = htons(port);
  sockaddr_in any4{};
  any4.sin_family = AF_INET;
  any4.sin_port = htons(port);
  must(v6 ? bind(fd.get(), reinterpret_cast<const sockaddr*>(&any6), sizeof any6)
          : bind(fd.get(), reinterpret_cast<const sockaddr*>(&any4), sizeof any4),
       "UDP port");
  return fd;
}

UniqueFd open_tap_stand_in(std::uint16_t far_port) {
  UniqueFd fd(socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  must(fd.get(), "TAP stand-in");
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  const auto* const name = reinterpret_cast<const sockaddr*>(&address);
  must(bind(fd.get(), name, sizeof address), "TAP stand-in: bind");
  address.sin_port = htons(far_port);
  must(connect(fd.get(), name, sizeof address), "TAP stand-in: connect");
  return fd;
}

void pass(int connection, const std::string& text, int fd) {
  must(static_cast<int>(send_with_fd(connection, text, fd)), "pass a device");
}

UniqueFd connect_to(const std::string& path) {
  UniqueFd fd(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  must(fd.get(), "devices socket");
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::copy(path.begin(), path.end(), address.sun_path);  // listen_at() has measured it.
  must(connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address), "connect");
  return fd;
}

void run(const std::vector<std::string>& words) {
  if (words.size() < 7) throw std::runtime_error("arguments are missing");
  const std::string devices_path = words[0] + ".devices";
  const auto number = [](const std::string& text) {
    return static_cast<std::uint16_t>(std::stoul(text));
  };
  const UniqueFd control = listen_at(words[0], SOCK_STREAM, geteuid());
  const UniqueFd devices = listen_at(devices_path, SOCK_SEQPACKET, geteuid());
  const UniqueFd udp = open_underlay(number(words[1]));
  const UniqueFd tap = open_tap_stand_in(number(words[2]));
  // They wait in the queue of the socket for the data plane that we become.
  const UniqueFd connection = connect_to(devices_path);
  pass(connection.get(), "tap " + words[3] + " mac " + words[4] + " mtu " + words[5] + " offload 0",
       tap.get());
  pass(connection.get(), "udp " + std::to_string(port_of(udp.get())), udp.get());

  // Opened now: the other user need not be able to reach a checkout in a closed home.
  const UniqueFd program(open(words[6].c_str(), O_PATH | O_CLOEXEC));
  must(program.get(), words[6].c_str());
  if (geteuid() == 0 && !become_user(find_account("nobody"))) throw_errno("become nobody");
  must(prctl(PR_SET_PDEATHSIG, SIGKILL), "PR_SET_PDEATHSIG");
  std::printf("%u %u\n", port_of(udp.get()), port_of(tap.get()));
  std::fflush(stdout);

  std::vector<std::string> arguments(words.begin() + 6, words.end());
  for (const UniqueFd* const fd : {&control, &devices}) {
    must(fcntl(fd->get(), F_SETFD, 0), "F_SETFD");
    arguments.insert(arguments.end(),
                     {fd == &control ? "--control-fd" : "--devices-fd", std::to_string(fd->get())});
  }
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  fexecve(program.get(), argv.data(), environ);
  throw_errno(words[6]);
}

}  // namespace
}  // namespace pairwire::devices

int main(int argc, char** argv) {
  try {
    pairwire::devices::run({argv + 1, argv + argc});
  } catch (const std::exception& error) {
    std::fprintf(stderr, "pairwire-test-dataplane: %s\n", error.what());
  }
  return 1;
}
