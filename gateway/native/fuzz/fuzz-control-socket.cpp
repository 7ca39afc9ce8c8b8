// The sockets of the control thread, and all that stands behind them: several connections that send
// whole messages, pieces and rubbish, and a broker that passes devices. Every answer is a whole
// message; who has not attached changes nothing.
//
// Input: operations, a byte each with what follows it; see `Operation`.
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "control/server.hpp"
#include "fuzz/input.hpp"
#include "fuzz/require.hpp"
#include "io/send-with-fd.hpp"
#include "io/unique-fd.hpp"

namespace {

using namespace pairwire;
using namespace pairwire::fuzz;

enum Operation : unsigned {
  kConnect,
  kBytes,    ///< connection (1), length (2), bytes as they are
  kMessage,  ///< connection (1), length (2), a message without its length
  kClose,    ///< connection (1)
  kDevice,   ///< length (2), text of a device; with a descriptor
  kTurn,
  kOperations
};

constexpr std::size_t kMostConnections = 18;  // More than the server keeps.

UniqueFd must(int fd) {
  require(fd >= 0);
  return UniqueFd(fd);
}

/// A listening socket whose name the kernel chooses (unix(7), autobind).
struct Listener {
  explicit Listener(int type) : kind(type) {
    listener = must(socket(AF_UNIX, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    address.sun_family = AF_UNIX;
    require(bind(listener.get(), reinterpret_cast<sockaddr*>(&address), sizeof(sa_family_t)) == 0);
    require(getsockname(listener.get(), reinterpret_cast<sockaddr*>(&address), &length) == 0);
    require(listen(listener.get(), 64) == 0);
  }
  [[nodiscard]] UniqueFd connect() const {
    UniqueFd fd = must(socket(AF_UNIX, kind | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    require(::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), length) == 0);
    return fd;
  }
  int kind;
  UniqueFd listener;
  sockaddr_un address{};
  socklen_t length = sizeof(address);
};

struct Client {
  UniqueFd fd;
  std::vector<std::uint8_t> in;
};

class Bench {
 public:
  Bench() {
    Server::Options options;
    options.control = std::move(control_.listener);
    options.devices = std::move(devices_.listener);
    options.wake = must(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
    for (std::size_t i = 0; i < 2 * Port::kWakeFds; ++i) {
      options.worker_wakes.push_back(must(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)));
    }
    options.control_uid = getuid();
    options.own_uid = getuid();
    options.orphan_ms = 900'000;
    options.log_level = LogLevel::kError;
    server_ = std::make_unique<Server>(std::move(options));
    device_connection_ = devices_.connect();
  }

  void connect() {
    if (clients_.size() < kMostConnections) clients_.push_back({control_.connect(), {}});
  }
  void send(std::size_t which, std::span<const std::uint8_t> bytes) {
    if (clients_.empty()) return;
    const int fd = clients_[which % clients_.size()].fd.get();
    static_cast<void>(::send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT));
  }
  void close(std::size_t which) {
    if (!clients_.empty())
      clients_.erase(clients_.begin() + static_cast<std::ptrdiff_t>(which % clients_.size()));
  }
  void device(const std::vector<std::uint8_t>& text) {
    // Another end for each: a device of a name replaces the one before.
    int pair[2];
    require(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) == 0);
    const UniqueFd near(pair[0]);
    far_ends_.emplace_back(pair[1]);
    const std::string_view bytes(reinterpret_cast<const char*>(text.data()), text.size());
    static_cast<void>(send_with_fd(device_connection_.get(), bytes, near.get(), MSG_DONTWAIT));
  }

  /// False when the server would end, as after a jump of server time.
  bool turn() {
    for (int i = 0; i < 3; ++i) {
      if (!server_->turn(0)) return false;
    }
    for (Client& client : clients_) take_answers(client);
    return true;
  }

 private:
  static void take_answers(Client& client) {
    std::array<std::uint8_t, 16'384> buffer;
    for (;;) {
      const ssize_t got = read(client.fd.get(), buffer.data(), buffer.size());
      if (got <= 0) break;
      client.in.insert(client.in.end(), buffer.begin(), buffer.begin() + got);
    }
    std::size_t at = 0;
    while (client.in.size() - at >= messages::kLengthSize) {
      const auto length = messages::message_length(
          std::span(client.in).subspan(at).first<messages::kLengthSize>(), messages::kMaxMessage);
      require(length.has_value());
      if (client.in.size() - at - messages::kLengthSize < *length) break;
      // A map of what was asked, or an event: MessagePack's fixmap.
      require((client.in[at + messages::kLengthSize] & 0xf0) == 0x80 ||
              client.in[at + messages::kLengthSize] == 0xde);
      at += messages::kLengthSize + *length;
    }
    client.in.erase(client.in.begin(), client.in.begin() + static_cast<std::ptrdiff_t>(at));
  }

  Listener control_{SOCK_STREAM};
  Listener devices_{SOCK_SEQPACKET};
  std::vector<UniqueFd> far_ends_;
  std::unique_ptr<Server> server_;
  UniqueFd device_connection_;
  std::vector<Client> clients_;
};

std::vector<std::uint8_t> framed(const std::vector<std::uint8_t>& message) {
  std::vector<std::uint8_t> frame(messages::kLengthSize);
  for (std::size_t i = 0; i < frame.size(); ++i) {
    frame[i] = static_cast<std::uint8_t>(message.size() >> (8 * (frame.size() - 1 - i)));
  }
  frame.insert(frame.end(), message.begin(), message.end());
  return frame;
}

}  // namespace

/// Each input makes megabytes of buffers; kept as long as usual, they would cost more than all the
/// rest.
extern "C" const char* __asan_default_options() {
  return "quarantine_size_mb=16";
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Input input(data, size);
  Bench bench;
  for (int operations = 0; !input.empty() && operations < 64; ++operations) {
    switch (input.byte() % kOperations) {
      case kConnect:
        bench.connect();
        break;
      case kBytes: {
        const std::size_t which = input.byte();
        bench.send(which, input.bytes());
        break;
      }
      case kMessage: {
        const std::size_t which = input.byte();
        bench.send(which, framed(input.bytes()));
        break;
      }
      case kClose:
        bench.close(input.byte());
        break;
      case kDevice:
        bench.device(input.bytes());
        break;
      default:
        if (!bench.turn()) return 0;
    }
  }
  bench.turn();
  return 0;
}
