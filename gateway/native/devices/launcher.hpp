/// Launcher mode: where no service manager does it, the broker starts the data plane, and again
/// when it died.
///
/// ```
///           start()                 it ends                  back-off over
///  stopped ---------> running ----------------> waiting -----------------> running
///     ^                  |  adopt(): one of a former broker     |
///     +------------------+--------------- stop() ---------------+
/// ```
/// Back-off: 0.1 s, doubled to 30 s at most, 0.1 s again after 60 s of life.
///
/// The data plane outlives the broker, so that traffic goes on; its pid and start time stand in
/// `dataplane.pid` for the next broker to adopt it.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "io/unique-fd.hpp"
#include "privileges.hpp"

namespace pairwire::devices {

struct LaunchOptions {
  std::string program;                 ///< absolute path
  std::vector<std::string> arguments;  ///< behind --control-fd, --devices-fd, --control-uid
  Account account;
  uid_t control_uid = 0;
  std::string run_directory;
};

class Launcher {
 public:
  using Clock = std::chrono::steady_clock;

  explicit Launcher(LaunchOptions options);

  /// Takes over a data plane that a former broker started. False if there is none alive.
  bool adopt();
  /// Makes the listening sockets anew and starts the data plane.
  void start();
  /// SIGTERM, and SIGKILL after 3 s. Removes the sockets.
  void stop();

  /// Gets readable when the data plane has ended; -1 while there is none.
  int watch_fd() const noexcept { return process_.get(); }
  /// To be called when `watch_fd` is readable.
  void on_end();
  /// To be called when the time of `next_start` has come.
  void on_time();
  std::optional<Clock::time_point> next_start() const noexcept { return next_start_; }

  pid_t pid() const noexcept { return process_ ? pid_ : 0; }
  bool adopted() const noexcept { return adopted_; }
  std::uint64_t restarts() const noexcept { return restarts_; }
  /// How the last one ended: "signal 9", "exit 1"; empty while none has.
  const std::string& last_end() const noexcept { return last_end_; }

 private:
  void make_sockets();
  void spawn();
  [[noreturn]] void become_data_plane(int program, int control, int devices) const noexcept;

  LaunchOptions options_;
  std::vector<std::string> argv_text_;
  std::vector<char*> argv_;
  UniqueFd control_listener_;
  UniqueFd devices_listener_;
  UniqueFd process_;  ///< a pidfd
  pid_t pid_ = 0;
  bool adopted_ = false;
  Clock::time_point started_;
  std::chrono::milliseconds back_off_;
  std::optional<Clock::time_point> next_start_;
  std::uint64_t restarts_ = 0;
  std::string last_end_;
};

/// A listening Unix socket at `path`, mode 0600, owned by `owner`. What was there is replaced.
UniqueFd listen_at(const std::string& path, int type, uid_t owner);

/// Writes a small file as a whole or not at all, mode 0644.
void write_file(const std::string& path, const std::string& text);

/// Empty if it can't be read.
std::string read_file(const std::string& path);

/// When the process of a /proc/PID/stat was started, in ticks since boot (field 22); empty if the
/// text is cut short.
std::string start_time_in(const std::string& stat);

}  // namespace pairwire::devices
