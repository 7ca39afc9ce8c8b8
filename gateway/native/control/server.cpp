// See server.hpp.
//
//   connection:  accepted --- attach(epoch > ours) ---> controller --- higher epoch elsewhere --->
//   closed
//                    \------- observe ----------------> observer (stats only)
//
// A message is wiped from the input buffer as soon as it was done: it may have held a key.
#include "control/server.hpp"

#include <linux/netlink.h>
#include <openssl/crypto.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <system_error>

#include "io/wait.hpp"

namespace pairwire {
namespace {

constexpr std::size_t kMaxConnections = 16;
constexpr std::size_t kMaxDeviceConnections = 4;
/// Events that a controller has not read yet; more are dropped and counted.
constexpr std::size_t kMaxEventBytes = 256 * 1024;
/// With answers: a controller that is so far behind is not there any more.
constexpr std::size_t kMaxOutBytes = 8 * messages::kMaxMessage;
constexpr std::uint64_t kStalledMs = 10'000;
/// Work of one turn for one connection, so that events and timers get theirs.
constexpr std::size_t kReadsPerTurn = 16;

std::string name_of(const Device& device) {
  switch (device.kind) {
    case Device::Kind::kTap:
      return "tap " + device.name;
    case Device::Kind::kUdp:
      return "udp " + std::to_string(device.port);
    case Device::Kind::kEthernet:
      return "ethernet " + device.name;
    case Device::Kind::kWire:
      return "wire " + device.name;
  }
  return {};
}

}  // namespace

struct Server::Connection {
  explicit Connection(UniqueFd socket)
      : fd(std::move(socket)), in(new std::uint8_t[kInSize]), moved_ms(boot_ms()) {}
  ~Connection() { OPENSSL_cleanse(in.get(), in_used); }

  // One piece that never grows: growing would leave copies of keys behind.
  static constexpr std::size_t kInSize = messages::kMaxMessage + messages::kLengthSize;

  UniqueFd fd;
  Role role = Role::kNone;
  std::unique_ptr<std::uint8_t[]> in;
  std::size_t in_used = 0;
  std::vector<std::uint8_t> out;
  std::size_t out_done = 0;
  std::uint64_t moved_ms;  ///< when it last read something, or had nothing to read
  bool want_write = false;
  bool closed = false;

  [[nodiscard]] std::size_t waiting() const { return out.size() - out_done; }
};

Server::Server(Options options)
    : options_(std::move(options)), epoll_(epoll_create1(EPOLL_CLOEXEC)) {
  if (!epoll_) throw std::system_error(errno, std::generic_category(), "epoll_create1");
  for (const UniqueFd* fd : {&options_.control, &options_.devices, &options_.uevents,
                             &options_.signals, &options_.wake}) {
    if (*fd) watch(fd->get(), EPOLLIN);
  }
  std::vector<int> wakes;
  for (const UniqueFd& fd : options_.worker_wakes) wakes.push_back(fd.get());
  data_plane_ = std::make_unique<DataPlane>(
      DataPlane::Options{.wakes = std::move(wakes),
                         .control_wake = options_.wake.get(),
                         .cores = options_.cores,
                         .spare_cores = options_.spare_cores.get(),
                         .merge_udp = options_.merge_udp,
                         .tell = [this](const messages::Event& event) { tell(event); }});
  alone_since_ms_ = boot_ms();
}

Server::~Server() = default;

void Server::watch(int fd, std::uint32_t events) {
  epoll_event event{};
  event.events = events;
  event.data.fd = fd;
  if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) != 0) {
    throw std::system_error(errno, std::generic_category(), "epoll_ctl");
  }
}

void Server::log(LogLevel level, std::string_view text) {
  if (level > options_.log_level) return;
  static constexpr std::array<const char*, 4> kNames{"error", "warning", "info", "debug"};
  std::fprintf(stderr, "pairwire-dataplane: %s: %.*s\n", kNames[static_cast<std::size_t>(level)],
               static_cast<int>(text.size()), text.data());
  tell(messages::event::Log{static_cast<std::uint8_t>(level), std::string(text.substr(0, 500))});
}

int Server::run() {
  while (turn(-1)) {
  }
  return exit_.value_or(0);
}

bool Server::turn(int limit_ms) {
  const std::uint64_t before = boot_ms();
  auto next = data_plane_->run_timers(before);
  if (alone_since_ms_ && !data_plane_->empty()) {
    const std::uint64_t due = *alone_since_ms_ + options_.orphan_ms;
    if (!next || due < *next) next = due;
  }
  int wait = limit_ms;
  if (next) {
    const std::uint64_t left = *next > before ? *next - before : 0;
    const int until = static_cast<int>(std::min<std::uint64_t>(left, 60'000));
    wait = wait < 0 ? until : std::min(wait, until);
  }
  // Who does not read is found out even if nothing else happens.
  const bool stalled_soon = std::ranges::any_of(
      connections_, [](const auto& connection) { return connection->waiting() != 0; });
  if (stalled_soon) wait = wait < 0 ? 1'000 : std::min(wait, 1'000);

  std::array<epoll_event, 32> events;
  const int ready = epoll_wait(epoll_.get(), events.data(), static_cast<int>(events.size()), wait);
  for (int i = 0; i < ready && !exit_; ++i) {
    const int fd = events[static_cast<std::size_t>(i)].data.fd;
    const std::uint32_t what = events[static_cast<std::size_t>(i)].events;
    if (fd == options_.control.get()) {
      accept_control();
    } else if (fd == options_.devices.get()) {
      accept_devices();
    } else if (fd == options_.uevents.get()) {
      check_uevents();
    } else if (fd == options_.signals.get()) {
      signalfd_siginfo info;
      if (read(fd, &info, sizeof(info)) > 0) exit_ = 0;
    } else if (fd == options_.wake.get()) {
      std::uint64_t count = 0;
      static_cast<void>(!read(fd, &count, sizeof(count)));
      data_plane_->take_worker_events();
    } else if (std::ranges::any_of(device_connections_,
                                   [&](const UniqueFd& one) { return one.get() == fd; })) {
      read_devices(fd);
    } else {
      for (const auto& connection : connections_) {
        if (connection->fd.get() != fd || connection->closed) continue;
        if ((what & EPOLLOUT) != 0 && !flush(*connection)) close(*connection);
        if ((what & ~std::uint32_t{EPOLLOUT}) != 0 && !connection->closed)
          read_control(*connection);
        break;
      }
    }
  }
  const std::uint64_t now = boot_ms();
  check_orphan(now);
  sweep(now);
  if (data_plane_->snapshot_suspected() && !exit_) end_for_restart("server time jumped");
  if (exit_) data_plane_->wipe();
  return !exit_;
}

// --- Connections --------------------------------------------------------------------------------

void Server::accept_control() {
  UniqueFd fd(accept4(options_.control.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
  if (!fd) return;
  ucred peer{};
  socklen_t size = sizeof(peer);
  const bool known = getsockopt(fd.get(), SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0;
  if (!known || (peer.uid != 0 && peer.uid != options_.control_uid)) {
    return log(LogLevel::kWarning, "control socket: refused a connection of another user");
  }
  if (connections_.size() >= kMaxConnections) {
    return log(LogLevel::kWarning, "control socket: too many connections");
  }
  watch(fd.get(), EPOLLIN);
  connections_.push_back(std::make_unique<Connection>(std::move(fd)));
}

void Server::accept_devices() {
  UniqueFd fd(accept4(options_.devices.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
  if (!fd) return;
  ucred peer{};
  socklen_t size = sizeof(peer);
  const bool known = getsockopt(fd.get(), SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0;
  if (!known || (peer.uid != 0 && peer.uid != options_.own_uid &&
                 peer.uid != options_.control_uid && peer.uid != options_.devices_uid)) {
    return log(LogLevel::kWarning, "devices socket: refused a connection of another user");
  }
  // A new broker replaces old ones.
  if (device_connections_.size() >= kMaxDeviceConnections) {
    device_connections_.erase(device_connections_.begin());
  }
  watch(fd.get(), EPOLLIN);
  device_connections_.push_back(std::move(fd));
}

void Server::read_devices(int fd) {
  for (;;) {
    Device device;
    switch (receive_device(fd, device)) {
      case DeviceReceive::kDevice:
        log(LogLevel::kInfo, "device: " + name_of(device));
        data_plane_->add_device(std::move(device));
        continue;
      case DeviceReceive::kRefused:
        log(LogLevel::kWarning, "devices socket: a message that is no device");
        continue;
      case DeviceReceive::kNothingYet:
        return;
      case DeviceReceive::kClosed:
        std::erase_if(device_connections_, [&](const UniqueFd& one) { return one.get() == fd; });
        return;
    }
  }
}

void Server::read_control(Connection& connection) {
  for (std::size_t reads = 0; reads < kReadsPerTurn; ++reads) {
    const ssize_t got = read(connection.fd.get(), connection.in.get() + connection.in_used,
                             Connection::kInSize - connection.in_used);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (got <= 0) return close(connection);
    connection.in_used += static_cast<std::size_t>(got);

    std::size_t done = 0;
    while (connection.in_used - done >= messages::kLengthSize) {
      const std::uint8_t* const at = connection.in.get() + done;
      const auto length = messages::message_length(
          std::span<const std::uint8_t, messages::kLengthSize>(at, messages::kLengthSize),
          messages::kMaxMessage);
      if (!length) return close(connection);
      if (connection.in_used - done - messages::kLengthSize < *length) break;
      if (!serve(connection, {at + messages::kLengthSize, *length})) return close(connection);
      if (connection.closed) return;
      done += messages::kLengthSize + *length;
    }
    if (done != 0) {
      const std::size_t rest = connection.in_used - done;
      std::memmove(connection.in.get(), connection.in.get() + done, rest);
      OPENSSL_cleanse(connection.in.get() + rest, connection.in_used - rest);
      connection.in_used = rest;
    }
  }
}

bool Server::serve(Connection& connection, std::span<const std::uint8_t> message) {
  const messages::DecodeResult decoded = messages::decode_command(message);
  if (const auto* const error = std::get_if<messages::DecodeError>(&decoded)) {
    // Without an id there is nothing to answer to, and nothing after it can be trusted.
    if (!error->id) return false;
    return answer(connection, *error->id, messages::answer::Failed{error->text()});
  }
  const auto& request = std::get<messages::Request>(decoded);
  if (const auto* const one = std::get_if<messages::command::Attach>(&request.command)) {
    return attach(connection, request.id, one->epoch);
  }
  if (std::holds_alternative<messages::command::Observe>(request.command)) {
    if (connection.role == Role::kNone) connection.role = Role::kObserver;
    return answer(connection, request.id, messages::answer::Done{});
  }
  if (std::holds_alternative<messages::command::Stats>(request.command) &&
      connection.role != Role::kNone) {
    return answer(connection, request.id, data_plane_->stats(events_lost_));
  }
  if (connection.role != Role::kController) {
    return answer(connection, request.id, messages::answer::Failed{"not the controller"});
  }
  return answer(connection, request.id, data_plane_->run(request.command));
}

bool Server::attach(Connection& connection, std::uint32_t id, std::uint64_t epoch) {
  if (epoch <= epoch_) {
    return answer(connection, id, messages::answer::Failed{"older or equal epoch"});
  }
  epoch_ = epoch;
  if (controller_ != nullptr && controller_ != &connection) close(*controller_);
  controller_ = &connection;
  connection.role = Role::kController;
  alone_since_ms_.reset();
  if (!answer(connection, id, data_plane_->attached())) return false;
  if (!wiped_why_.empty()) {
    tell(messages::event::KeysWiped{std::string(std::exchange(wiped_why_, {}))});
  }
  return true;
}

bool Server::answer(Connection& connection, std::uint32_t id, const messages::Answer& reply) {
  if (messages::encode_answer(id, reply, connection.out)) {
    // Too large, or no memory: say that, if even that is possible.
    if (messages::encode_answer(id, messages::answer::Failed{"answer is too large"},
                                connection.out)) {
      return false;
    }
  }
  return flush(connection);
}

bool Server::flush(Connection& connection) {
  while (connection.waiting() != 0) {
    const ssize_t sent = send(connection.fd.get(), connection.out.data() + connection.out_done,
                              connection.waiting(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0 && errno == EAGAIN) break;
    if (sent <= 0) return false;
    connection.out_done += static_cast<std::size_t>(sent);
    connection.moved_ms = boot_ms();
  }
  if (connection.waiting() == 0) {
    connection.out.clear();
    connection.out_done = 0;
    connection.moved_ms = boot_ms();
  } else if (connection.out_done > messages::kMaxMessage) {
    connection.out.erase(connection.out.begin(),
                         connection.out.begin() + static_cast<std::ptrdiff_t>(connection.out_done));
    connection.out_done = 0;
  }
  const bool want_write = connection.waiting() != 0;
  if (want_write != connection.want_write) {
    connection.want_write = want_write;
    epoll_event event{};
    event.events = EPOLLIN | (want_write ? EPOLLOUT : 0U);
    event.data.fd = connection.fd.get();
    epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, connection.fd.get(), &event);
  }
  return connection.waiting() <= kMaxOutBytes;
}

void Server::tell(const messages::Event& event) {
  if (controller_ == nullptr || controller_->closed) return;
  if (controller_->waiting() > kMaxEventBytes || !event_budget_.take(boot_us()) ||
      messages::encode_event(event, controller_->out)) {
    ++events_lost_;
    return;
  }
  if (!flush(*controller_)) close(*controller_);
}

/// Marks only: somebody up the stack may hold a reference. `sweep` removes.
void Server::close(Connection& connection) {
  if (connection.closed) return;
  connection.closed = true;
  if (controller_ == &connection) {
    controller_ = nullptr;
    alone_since_ms_ = boot_ms();
  }
}

void Server::sweep(std::uint64_t now_ms) {
  for (const auto& connection : connections_) {
    if (!connection->closed && connection->waiting() != 0 &&
        now_ms - std::min(connection->moved_ms, now_ms) > kStalledMs) {
      log(LogLevel::kWarning, "control socket: cut off a connection that does not read");
      close(*connection);
    }
  }
  std::erase_if(connections_, [](const auto& connection) { return connection->closed; });
}

// --- When keys go -------------------------------------------------------------------------------

void Server::check_orphan(std::uint64_t now_ms) {
  if (!alone_since_ms_ || data_plane_->empty()) return;
  if (now_ms < *alone_since_ms_ + options_.orphan_ms) return;
  data_plane_->wipe();
  wiped_why_ = "orphaned";
  log(LogLevel::kWarning, "no controller for too long: all keys were wiped");
}

/// The kernel tells of a new VM generation id: this machine is a copy of one that may still run, or
/// was set back in time. Its keys and counters are then in use elsewhere (threats.md C9).
void Server::check_uevents() {
  std::array<char, 8192> buffer;
  for (;;) {
    sockaddr_storage from{};
    socklen_t from_size = sizeof(from);
    const ssize_t got = recvfrom(options_.uevents.get(), buffer.data(), buffer.size(), MSG_DONTWAIT,
                                 reinterpret_cast<sockaddr*>(&from), &from_size);
    if (got < 0) {
      if (errno == EINTR) continue;
      // Events were lost, and what we wait for may be among them. Not worth a wipe: bursts of
      // events come with every hot-plugged disk; the jump of server time catches it.
      return;
    }
    // The kernel has number 0. Others may send to a netlink socket too, and must not be able to end
    // us.
    sockaddr_nl sender{};
    std::memcpy(&sender, &from, sizeof(sender));
    if (sender.nl_family == AF_NETLINK && sender.nl_pid != 0) continue;
    if (tells_of_new_vm({buffer.data(), static_cast<std::size_t>(got)})) {
      return end_for_restart("machine was resumed from a snapshot");
    }
  }
}

bool tells_of_new_vm(std::string_view uevent) {
  while (!uevent.empty()) {
    const std::string_view line = uevent.substr(0, uevent.find('\0'));
    if (line == "NEW_VMGENID=1") return true;
    uevent.remove_prefix(std::min(line.size() + 1, uevent.size()));
  }
  return false;
}

void Server::end_for_restart(std::string_view why) {
  data_plane_->wipe();
  tell(messages::event::KeysWiped{std::string(why.substr(0, 40))});
  log(LogLevel::kWarning, std::string(why) + ": all keys were wiped, starting anew");
  exit_ = kExitRestart;
}

}  // namespace pairwire
