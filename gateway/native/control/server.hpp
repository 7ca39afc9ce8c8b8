// The sockets of the control thread and its loop. Framing, who may speak, and what happens to who
// does not listen.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "control/data-plane.hpp"
#include "io/unique-fd.hpp"

namespace pairwire {

/// Exit status that says: start me again, with new boot keys (EX_TEMPFAIL).
inline constexpr int kExitRestart = 75;

/// Levels as in `log` events and --log-level.
enum class LogLevel : std::uint8_t { kError = 0, kWarning = 1, kInfo = 2, kDebug = 3 };

/// Whether a uevent of the kernel (texts with a zero behind each) says that this machine is a copy.
[[nodiscard]] bool tells_of_new_vm(std::string_view uevent);

/// Threads: the control thread's. Never waits for a controller: what one does not read in time is
/// dropped together with its connection.
class Server {
 public:
  struct Options {
    UniqueFd control;  ///< listens, SOCK_STREAM
    UniqueFd devices;  ///< listens, SOCK_SEQPACKET
    UniqueFd uevents;  ///< netlink, or none
    UniqueFd signals;  ///< signalfd for SIGTERM and SIGINT, or none
    UniqueFd wake;     ///< eventfd that workers write to
    std::vector<UniqueFd> worker_wakes;
    uid_t control_uid = 0;
    std::optional<uid_t> devices_uid;  ///< besides root, the control plane's and our own
    uid_t own_uid = 0;
    std::uint64_t orphan_ms = 0;
    LogLevel log_level = LogLevel::kInfo;
    std::size_t cores = 1;
    std::unique_ptr<SpareCores> spare_cores;
    bool merge_udp = false;
  };

  /// Makes everything that can't be made in the sandbox any more.
  explicit Server(Options options);
  ~Server();
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  /// Serves until a signal or a reason to start anew. Returns the exit status.
  int run();

  /// For tests: one turn of the loop, waiting at most `limit_ms`. False when `run` would return.
  bool turn(int limit_ms);

  void log(LogLevel level, std::string_view text);

 private:
  enum class Role : std::uint8_t { kNone, kController, kObserver };
  struct Connection;

  void accept_control();
  void accept_devices();
  void read_devices(int fd);
  void read_control(Connection& connection);
  /// False if the connection must be closed.
  bool serve(Connection& connection, std::span<const std::uint8_t> message);
  bool attach(Connection& connection, std::uint32_t id, std::uint64_t epoch);
  bool answer(Connection& connection, std::uint32_t id, const messages::Answer& answer);
  bool flush(Connection& connection);
  void tell(const messages::Event& event);
  void check_uevents();
  void check_orphan(std::uint64_t now_ms);
  void end_for_restart(std::string_view why);
  void close(Connection& connection);
  void sweep(std::uint64_t now_ms);
  void watch(int fd, std::uint32_t events);

  Options options_;
  UniqueFd epoll_;
  std::vector<std::unique_ptr<Connection>> connections_;
  std::vector<UniqueFd> device_connections_;
  Connection* controller_ = nullptr;
  std::uint64_t epoch_ = 0;
  std::optional<std::uint64_t> alone_since_ms_;
  std::string_view wiped_why_;
  std::uint64_t events_lost_ = 0;
  TokenBucket event_budget_{2'000, 2'000};
  std::optional<int> exit_;
  /// Last, so that its workers end before what they write to is closed.
  std::unique_ptr<DataPlane> data_plane_;
};

}  // namespace pairwire
