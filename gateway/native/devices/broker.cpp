#include "broker.hpp"

#include <linux/sockios.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>
#include <sstream>
#include <stdexcept>

#include "io/send-with-fd.hpp"
#include "throw-errno.hpp"

namespace pairwire::devices {
namespace {

constexpr std::size_t kMaxClients = 8;
constexpr std::size_t kMaxLine = 256;
/// A data plane that runs takes a device at once; one in back-off is not waited for longer.
constexpr std::chrono::milliseconds kTakeLimit{1000};

std::string quote(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      std::array<char, 8> escape{};
      std::snprintf(escape.data(), escape.size(), "\\u%04x", static_cast<unsigned>(c));
      out += escape.data();
    } else {
      out += c;
    }
  }
  return out + '"';
}

std::string quote(const std::vector<std::string>& items) {
  std::string out;
  for (const std::string& item : items) {
    if (!out.empty()) out += ',';
    out += quote(item);
  }
  return '[' + out + ']';
}

const char* boolean(bool value) {
  return value ? "true" : "false";
}

/// Who is at the other end; for a connected socket: who listened.
uid_t peer_of(int fd) {
  ucred peer{};
  socklen_t size = sizeof peer;
  if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) throw_errno("SO_PEERCRED");
  return peer.uid;
}

/// A read of what a data plane might say, to learn whether it is still there.
bool is_connected(int fd) {
  std::array<char, 256> buffer{};
  while (true) {
    const ssize_t size = recv(fd, buffer.data(), buffer.size(), MSG_DONTWAIT);
    if (size > 0) continue;
    return size < 0 && (errno == EAGAIN || errno == EINTR);
  }
}

/// Waits until the other end has taken all that was sent. What the control plane tells the data
/// plane next, over another socket, may name the device: it must not come first.
bool wait_until_taken(int fd) {
  const auto end = std::chrono::steady_clock::now() + kTakeLimit;
  while (true) {
    int unread = 0;
    if (ioctl(fd, SIOCOUTQ, &unread) != 0) throw_errno("SIOCOUTQ");
    if (unread == 0) return true;
    if (std::chrono::steady_clock::now() >= end) return false;
    poll(nullptr, 0, 1);
  }
}

}  // namespace

Broker::Broker(BrokerOptions options)
    : options_(std::move(options)),
      closed_(options_.run_directory + "/closed.state"),
      bridges_(options_.run_directory + "/bridges.state"),
      guard_(options_.list, netlink_, closed_.names()),
      listener_(
          listen_at(options_.run_directory + "/devices.sock", SOCK_STREAM, options_.control_uid)),
      address_watch_(watch_addresses()) {
  if (options_.launch) launcher_.emplace(*options_.launch);
  sigset_t handled;
  sigemptyset(&handled);
  sigaddset(&handled, SIGTERM);
  sigaddset(&handled, SIGINT);
  if (sigprocmask(SIG_BLOCK, &handled, nullptr) != 0) throw_errno("sigprocmask");
  signals_.reset(signalfd(-1, &handled, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!signals_) throw_errno("signalfd");
  // A log that nobody reads any more must not end us.
  signal(SIGPIPE, SIG_IGN);
}

void Broker::run() {
  if (launcher_ && !launcher_->adopt()) launcher_->start();
  // TAPs of a former broker are there and up: their guard must not wait for `open`.
  for (const TapDevice& tap : options_.list.taps) {
    const auto link = netlink_.find_link(tap.name);
    if (link && link->owner == options_.dataplane.uid && !guard_.on()) guard_.turn_on();
  }

  while (!done_) {
    std::vector<pollfd> waiting = {
        {signals_.get(), POLLIN, 0},
        {address_watch_.get(), POLLIN, 0},
        {launcher_ ? launcher_->watch_fd() : -1, POLLIN, 0},
        {clients_.size() < kMaxClients ? listener_.get() : -1, POLLIN, 0}};
    const std::size_t first_client = waiting.size();
    for (const Client& client : clients_) waiting.push_back({client.fd.get(), POLLIN, 0});
    int timeout = -1;
    if (launcher_ && launcher_->next_start()) {
      const auto left = std::chrono::ceil<std::chrono::milliseconds>(*launcher_->next_start() -
                                                                     Launcher::Clock::now());
      timeout = static_cast<int>(std::max<long long>(left.count(), 0));
    }
    if (poll(waiting.data(), waiting.size(), timeout) < 0 && errno != EINTR) throw_errno("poll");

    if (waiting[0].revents != 0) return;
    if (waiting[1].revents != 0) {
      drain_watch(address_watch_.get());
      try {
        guard_.follow_addresses();
        for (const TapDevice& tap : options_.list.taps) add_routes(netlink_, tap);
      } catch (const std::exception& error) {
        std::fprintf(stderr, "pairwire-devices: guard, routes: %s\n", error.what());
      }
    }
    if (waiting[2].revents != 0) data_plane_ended();
    if (launcher_ && launcher_->next_start() &&
        *launcher_->next_start() <= Launcher::Clock::now()) {
      launcher_->on_time();
    }
    // Backwards, so that removing one does not move those still to be looked at.
    for (std::size_t i = clients_.size(); i-- > 0 && !done_;) {
      if (waiting[first_client + i].revents != 0 && !serve(clients_[i])) {
        clients_.erase(clients_.begin() + static_cast<std::ptrdiff_t>(i));
      }
    }
    if (!done_ && waiting[3].revents != 0) accept_client();
  }
}

void Broker::accept_client() {
  Client client{UniqueFd(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK)),
                {}};
  if (!client.fd) return;
  const uid_t peer = peer_of(client.fd.get());
  if (peer != options_.control_uid && peer != 0) {
    const std::string refusal =
        "{\"ok\":false,\"error\":\"uid " + std::to_string(peer) + " is not the control plane\"}\n";
    static_cast<void>(send(client.fd.get(), refusal.data(), refusal.size(), MSG_NOSIGNAL));
    std::fprintf(stderr, "pairwire-devices: refused uid %u\n", peer);
    return;
  }
  clients_.push_back(std::move(client));
}

bool Broker::serve(Client& client) {
  std::array<char, 512> buffer{};
  const ssize_t size = recv(client.fd.get(), buffer.data(), buffer.size(), 0);
  if (size < 0) return errno == EAGAIN || errno == EINTR;
  if (size == 0) return false;
  client.line.append(buffer.data(), static_cast<std::size_t>(size));
  for (std::size_t end = 0; !done_ && (end = client.line.find('\n')) != std::string::npos;) {
    const std::string line = client.line.substr(0, end);
    client.line.erase(0, end + 1);
    std::string answer;
    try {
      answer = "{\"ok\":true" + answer_to(line) + "}\n";
    } catch (const std::exception& error) {
      // Quoted: a line of the log is never a line that somebody else wrote.
      std::fprintf(stderr, "pairwire-devices: %s: %s\n", quote(line.substr(0, 40)).c_str(),
                   error.what());
      answer = "{\"ok\":false,\"error\":" + quote(error.what()) + "}\n";
    }
    // Answers fit the socket's buffer; who does not read them is not waited for.
    if (send(client.fd.get(), answer.data(), answer.size(), MSG_NOSIGNAL) !=
        static_cast<ssize_t>(answer.size())) {
      return false;
    }
  }
  return client.line.size() <= kMaxLine;
}

std::string Broker::answer_to(const std::string& line) {
  if (line.starts_with("open tap ")) return open_tap_named(line.substr(9));
  if (line.starts_with("open udp ")) return open_udp_port(line.substr(9));
  if (line.starts_with("open ethernet ")) return open_ethernet_named(line.substr(14));
  if (line.starts_with("open wire ")) return open_wire_named(line.substr(10));
  if (line == "guard on" || line == "guard off") {
    guard_wanted_ = line == "guard on";
    if (!guard_wanted_) {
      guard_.turn_off();
    } else if (guard_.on()) {
      // A new control plane asks too. Counters go on; what is missing is put back.
      static_cast<void>(guard_.counts());
    } else {
      guard_.turn_on();
    }
    return std::string(",\"guard\":") + boolean(guard_.on());
  }
  if (line == "status") return status();
  if (line == "down") {
    down();
    return {};
  }
  throw std::runtime_error("unknown command");
}

std::string Broker::open_tap_named(const std::string& name) {
  const auto& taps = options_.list.taps;
  const auto tap =
      std::find_if(taps.begin(), taps.end(), [&](const auto& t) { return t.name == name; });
  if (tap == taps.end()) throw std::runtime_error("this TAP is not in the list");
  const std::string device = "tap " + name;

  Opened& opened = opened_[device];
  if (!opened.fd) {
    try {
      if (!tap->bridge.empty()) {
        refuse_underlay_in(tap->bridge);
        bridges_.prepare(netlink_, tap->bridge, tap->ports);
      }
      opened.tap = open_tap(netlink_, *tap, options_.dataplane.uid, [&] {
        if (guard_wanted_) guard_.on() ? guard_.follow_addresses() : guard_.turn_on();
      });
      opened.fd = std::move(opened.tap.fd);
    } catch (const std::system_error& error) {
      if (error.code().value() != EBUSY || !was_delivered(device)) {
        opened_.erase(device);
        throw;
      }
      opened.held = true;
      opened.tap.attached = true;
    } catch (...) {
      opened_.erase(device);
      throw;
    }
  }
  bool delivered = false;
  if (opened.fd) {
    delivered = deliver(device + " mac " + to_text(tap->mac) + " mtu " + std::to_string(tap->mtu) +
                            " offload " + (opened.tap.offload.empty() ? "0" : "1"),
                        opened.fd.get());
    opened.held = false;
    remember(device);
  }
  return ",\"device\":" + quote(device) + ",\"mac\":" + quote(to_text(tap->mac)) +
         ",\"mtu\":" + std::to_string(tap->mtu) + ",\"offload\":" + quote(opened.tap.offload) +
         ",\"attached\":" + boolean(opened.tap.attached) + ",\"delivered\":" + boolean(delivered) +
         ",\"held\":" + boolean(opened.held);
}

/// An interface that sealed frames are bound to must not be in the bridge of the TAP.
void Broker::refuse_underlay_in(const std::string& bridge) {
  const auto check = [&](const std::string& underlay) {
    if (underlay.empty() || !is_in(netlink_, underlay, bridge)) return;
    throw std::runtime_error(underlay + " carries the sealed frames and is in " + bridge +
                             ", the bridge of the TAP: they would go round");
  };
  for (const UdpDevice& udp : options_.list.udps) check(udp.device);
  for (const EthernetDevice& one : options_.list.ethernets) check(one.name);
  for (const WireDevice& one : options_.list.wires) check(one.name);
}

std::string Broker::open_udp_port(const std::string& port) {
  const auto& udps = options_.list.udps;
  const auto udp = std::find_if(udps.begin(), udps.end(),
                                [&](const auto& u) { return std::to_string(u.port) == port; });
  if (udp == udps.end()) throw std::runtime_error("this UDP port is not in the list");
  const std::string device = "udp " + port;

  Opened& opened = opened_[device];
  if (!opened.fd) {
    try {
      opened.fd = open_udp(*udp);
    } catch (const std::system_error& error) {
      if (error.code().value() != EADDRINUSE || !was_delivered(device)) {
        opened_.erase(device);
        throw;
      }
      opened.held = true;
    }
  }
  bool delivered = false;
  if (opened.fd) {
    delivered = deliver(device, opened.fd.get());
    opened.held = false;
    remember(device);
  }
  return ",\"device\":" + quote(device) + ",\"delivered\":" + boolean(delivered) +
         ",\"held\":" + boolean(opened.held);
}

std::string Broker::open_ethernet_named(const std::string& name) {
  const auto& ethernets = options_.list.ethernets;
  const auto ethernet = std::find_if(ethernets.begin(), ethernets.end(),
                                     [&](const auto& one) { return one.name == name; });
  if (ethernet == ethernets.end()) throw std::runtime_error("this interface is not in the list");
  const Link link = require_link(name);
  const auto& taps = options_.list.taps;
  const bool closed = std::any_of(taps.begin(), taps.end(),
                                  [&](const TapDevice& tap) { return tap.mac == link.mac; });
  if (closed) close_to_kernel(name, "has the MAC address of the TAP");
  return open_packet_named("ethernet " + name, link, closed,
                           [&] { return open_ethernet(*ethernet, link); });
}

std::string Broker::open_wire_named(const std::string& name) {
  const auto& wires = options_.list.wires;
  const auto wire =
      std::find_if(wires.begin(), wires.end(), [&](const auto& one) { return one.name == name; });
  if (wire == wires.end()) throw std::runtime_error("this interface is not in the list");
  const Link link = require_link(name);
  close_to_kernel(name, "leads to the router");
  return open_packet_named("wire " + name, link, true, [&] { return open_wire(*wire, link); });
}

Link Broker::require_link(const std::string& name) {
  const auto link = netlink_.find_link(name);
  if (!link) throw std::runtime_error(name + " is not there");
  return *link;
}

/// The kernel neither takes what comes by the interface nor speaks there. `why` it has to be so.
void Broker::close_to_kernel(const std::string& name, const std::string& why) {
  const bool news = closed_.close(netlink_, name, why);
  if (news && guard_wanted_) guard_.turn_on();
}

std::string Broker::open_packet_named(const std::string& device, const Link& link, bool closed,
                                      const std::function<UniqueFd()>& open) {
  Opened& opened = opened_[device];
  // An interface of that name that was taken away and made again is another one.
  if (!opened.fd || opened.interface != link.index) {
    try {
      opened.fd = open();
      opened.interface = link.index;
    } catch (...) {
      opened_.erase(device);
      throw;
    }
  }
  // After it is closed: an interface that comes up speaks.
  bring_up(device.substr(device.find(' ') + 1));
  const bool delivered = deliver(device + " mac " + to_text(link.mac) + " mtu " +
                                     std::to_string(std::min(link.mtu, std::uint32_t{65'535})),
                                 opened.fd.get());
  remember(device);
  return ",\"device\":" + quote(device) + ",\"mac\":" + quote(to_text(link.mac)) +
         ",\"mtu\":" + std::to_string(link.mtu) + ",\"closed\":" + boolean(closed) +
         ",\"delivered\":" + boolean(delivered) + ",\"held\":false";
}

// --- Passing devices on -------------------------------------------------------------------------

void Broker::connect_to_data_plane() {
  const std::string path = options_.run_directory + "/dataplane-devices.sock";
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) throw std::runtime_error(path + " is too long");
  std::copy(path.begin(), path.end(), address.sun_path);
  UniqueFd fd(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  if (!fd) throw_errno(path);
  // A data plane that hangs must not hang us.
  const timeval limit{2, 0};
  setsockopt(fd.get(), SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
  if (connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    throw_errno("the data plane is not there: " + path);
  }
  const uid_t listener = peer_of(fd.get());
  if (listener != 0 && listener != geteuid() && listener != options_.dataplane.uid) {
    throw std::runtime_error(path + " belongs to uid " + std::to_string(listener));
  }
  data_plane_ = std::move(fd);
}

bool Broker::deliver(const std::string& text, int fd) {
  if (data_plane_ && !is_connected(data_plane_.get())) data_plane_.reset();
  if (!data_plane_) connect_to_data_plane();
  if (send_with_fd(data_plane_.get(), text, fd) != static_cast<ssize_t>(text.size())) {
    // It may have died between the two.
    connect_to_data_plane();
    if (send_with_fd(data_plane_.get(), text, fd) != static_cast<ssize_t>(text.size())) {
      const int error = errno;
      data_plane_.reset();
      errno = error;
      throw_errno("pass '" + text + "' to the data plane");
    }
  }
  return wait_until_taken(data_plane_.get());
}

void Broker::data_plane_ended() {
  launcher_->on_end();
  data_plane_.reset();
  // What it held from a former broker is free now; `open` opens it anew.
  std::erase_if(opened_, [](const auto& entry) { return entry.second.held; });
}

std::string Broker::data_plane_name() const {
  if (!launcher_) return "external";
  return read_file(options_.run_directory + "/dataplane.pid");
}

void Broker::remember(const std::string& device) {
  const std::string path = options_.run_directory + "/devices.state";
  const std::string head = data_plane_name();
  std::string state = read_file(path);
  if (!state.starts_with(head)) state = head + (head.ends_with('\n') ? "" : "\n");
  if (state.find('\n' + device + '\n') != std::string::npos) return;
  write_file(path, state + device + '\n');
}

bool Broker::was_delivered(const std::string& device) const {
  if (launcher_ && !launcher_->adopted()) return false;
  const std::string state = read_file(options_.run_directory + "/devices.state");
  return state.starts_with(data_plane_name()) &&
         state.find('\n' + device + '\n') != std::string::npos;
}

// --- status, down -------------------------------------------------------------------------------

std::string Broker::status() {
  std::string devices;
  const auto add = [&](const std::string& device) {
    const auto at = opened_.find(device);
    const bool open = at != opened_.end();
    if (!devices.empty()) devices += ',';
    devices += "{\"device\":" + quote(device) + ",\"open\":" + boolean(open) +
               ",\"held\":" + boolean(open && at->second.held) +
               ",\"offload\":" + quote(open ? at->second.tap.offload : std::vector<std::string>()) +
               '}';
  };
  for (const TapDevice& tap : options_.list.taps) add("tap " + tap.name);
  for (const UdpDevice& udp : options_.list.udps) add("udp " + std::to_string(udp.port));
  for (const EthernetDevice& one : options_.list.ethernets) add("ethernet " + one.name);
  for (const WireDevice& one : options_.list.wires) add("wire " + one.name);

  const Guard::Counts counts = guard_.counts();
  std::string closed;
  for (const Guard::ClosedCount& count : counts.closed) {
    if (!closed.empty()) closed += ',';
    closed += "{\"interface\":" + quote(count.interface) +
              ",\"dropped\":" + std::to_string(count.dropped) + '}';
  }
  std::string taps;
  for (const Guard::Count& count : counts.taps) {
    if (!taps.empty()) taps += ',';
    taps += "{\"tap\":" + quote(count.tap) + ",\"addresses\":" + quote(count.addresses) +
            ",\"underlay\":" + std::to_string(count.underlay) +
            ",\"forward\":" + std::to_string(count.forward) +
            ",\"arp\":" + std::to_string(count.arp) + '}';
  }
  std::string out = ",\"pid\":" + std::to_string(getpid()) + ",\"dataplane\":";
  if (launcher_) {
    const pid_t pid = launcher_->pid();
    out += "{\"pid\":" + (pid > 0 ? std::to_string(pid) : "null") +
           ",\"adopted\":" + boolean(launcher_->adopted()) +
           ",\"restarts\":" + std::to_string(launcher_->restarts()) +
           ",\"lastEnd\":" + quote(launcher_->last_end()) + '}';
  } else {
    out += "null";
  }
  return out + ",\"devices\":[" + devices + "],\"guard\":{\"on\":" + boolean(guard_.on()) +
         ",\"table\":" + quote(guard_.table()) + ",\"taps\":[" + taps + "],\"closed\":[" + closed +
         "]}";
}

void Broker::down() {
  // In this order: no traffic, then no interface, then no guard. Each step is tried even if one
  // before it failed; the first failure is reported, and the broker stays so that it can be
  // asked again.
  std::string failure;
  const auto attempt = [&](const auto& step) {
    try {
      step();
    } catch (const std::exception& error) {
      if (failure.empty()) failure = error.what();
    }
  };
  attempt([&] {
    if (launcher_) launcher_->stop();
  });
  data_plane_.reset();
  opened_.clear();
  for (const TapDevice& tap : options_.list.taps) {
    attempt([&] { remove_tap(netlink_, tap, options_.dataplane.uid); });
  }
  attempt([&] { bridges_.undo(netlink_); });
  attempt([&] { closed_.open_all(netlink_); });
  attempt([&] { guard_.turn_off(); });
  if (!failure.empty()) throw std::runtime_error(failure);
  for (const char* name : {"/devices.state", "/devices.sock", "/devices.pid"}) {
    unlink((options_.run_directory + name).c_str());
  }
  done_ = true;
}

}  // namespace pairwire::devices
