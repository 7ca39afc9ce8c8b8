#include "launcher.hpp"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>
#include <sstream>
#include <stdexcept>

#include "throw-errno.hpp"

namespace pairwire::devices {
namespace {

using namespace std::chrono_literals;

constexpr std::chrono::milliseconds kShortestBackOff = 100ms;
constexpr std::chrono::milliseconds kLongestBackOff = 30s;
constexpr std::chrono::seconds kLongLife{60};
constexpr int kStopMs = 3000;

/// When a process was started: with it a pid names a process for good.
std::string start_time_of(pid_t pid) {
  return start_time_in(read_file("/proc/" + std::to_string(pid) + "/stat"));
}

UniqueFd open_pidfd(pid_t pid) {
  return UniqueFd(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
}

}  // namespace

std::string start_time_in(const std::string& stat) {
  // The name in field 2 may contain anything, so count behind it.
  const std::size_t name_end = stat.rfind(')');
  if (name_end == std::string::npos) return {};
  std::istringstream fields(stat.substr(name_end + 1));
  std::string field;
  for (int number = 3; number <= 22; ++number) fields >> field;
  return fields ? field : std::string();
}

UniqueFd listen_at(const std::string& path, int type, uid_t owner) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) throw std::runtime_error(path + " is too long");
  std::copy(path.begin(), path.end(), address.sun_path);
  UniqueFd fd(socket(AF_UNIX, type | SOCK_CLOEXEC, 0));
  if (!fd) throw_errno(path);
  if (unlink(path.c_str()) != 0 && errno != ENOENT) throw_errno(path);
  const mode_t mask = umask(0177);
  const int bound = bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address);
  const int error = errno;
  umask(mask);
  errno = error;
  if (bound != 0) throw_errno(path);
  // The folder is ours and closed to writers: the name can't have been exchanged in between.
  if (owner != geteuid() && lchown(path.c_str(), owner, static_cast<gid_t>(-1)) != 0) {
    throw_errno(path);
  }
  if (listen(fd.get(), 16) != 0) throw_errno(path);
  return fd;
}

void write_file(const std::string& path, const std::string& text) {
  const std::string temporary = path + ".new";
  {
    const UniqueFd fd(
        open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0644));
    if (!fd) throw_errno(temporary);
    if (write(fd.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size())) {
      throw_errno(temporary);
    }
  }
  if (rename(temporary.c_str(), path.c_str()) != 0) throw_errno(path);
}

std::string read_file(const std::string& path) {
  const UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
  if (!fd) return {};
  std::array<char, 8192> buffer{};
  const ssize_t size = read(fd.get(), buffer.data(), buffer.size());
  return size > 0 ? std::string(buffer.data(), static_cast<std::size_t>(size)) : std::string();
}

Launcher::Launcher(LaunchOptions options)
    : options_(std::move(options)), back_off_(kShortestBackOff) {
  argv_text_ = {options_.program,
                "--control-fd",
                "3",
                "--devices-fd",
                "4",
                "--control-uid",
                std::to_string(options_.control_uid)};
  argv_text_.insert(argv_text_.end(), options_.arguments.begin(), options_.arguments.end());
  // Made here, because a child behind fork() should not allocate.
  for (std::string& argument : argv_text_) argv_.push_back(argument.data());
  argv_.push_back(nullptr);
}

bool Launcher::adopt() {
  std::istringstream text(read_file(options_.run_directory + "/dataplane.pid"));
  pid_t pid = 0;
  std::string start_time;
  if (!(text >> pid >> start_time) || pid <= 1) return false;
  // First the pidfd: what it names can't change any more, so the check behind it holds.
  UniqueFd process = open_pidfd(pid);
  if (!process || start_time_of(pid) != start_time) return false;
  // It may have ended and not been reaped: where init does not, that lasts.
  pollfd ended{process.get(), POLLIN, 0};
  if (poll(&ended, 1, 0) != 0) return false;
  process_ = std::move(process);
  pid_ = pid;
  adopted_ = true;
  started_ = Clock::now();
  return true;
}

void Launcher::make_sockets() {
  control_listener_ =
      listen_at(options_.run_directory + "/dataplane.sock", SOCK_STREAM, options_.control_uid);
  devices_listener_ =
      listen_at(options_.run_directory + "/dataplane-devices.sock", SOCK_SEQPACKET, geteuid());
}

void Launcher::start() {
  // Kept from one data plane to the next: who connects in between waits in their queue.
  if (!control_listener_ || !devices_listener_) make_sockets();
  spawn();
}

void Launcher::become_data_plane(int program, int control, int devices) const noexcept {
  // Out of the way of the numbers they shall get.
  const int null = open("/dev/null", O_RDWR);
  const int moved_control = fcntl(control, F_DUPFD, 10);
  const int moved_devices = fcntl(devices, F_DUPFD, 10);
  const int moved_program = fcntl(program, F_DUPFD_CLOEXEC, 10);
  if (null < 0 || moved_control < 0 || moved_devices < 0 || moved_program < 0) _exit(127);
  if (dup2(null, 0) < 0 || dup2(null, 1) < 0 || dup2(moved_control, 3) < 0 ||
      dup2(moved_devices, 4) < 0 || dup2(moved_program, 5) < 0) {
    _exit(127);
  }
  if (fcntl(5, F_SETFD, FD_CLOEXEC) != 0 || close_range(6, ~0U, 0) != 0) _exit(127);

  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  signal(SIGPIPE, SIG_DFL);
  setsid();
  umask(0077);
  if (chdir("/") != 0) _exit(127);
  // As many descriptors and as much locked memory (keys) as the hard limits allow.
  for (const auto resource : {RLIMIT_NOFILE, RLIMIT_MEMLOCK}) {
    rlimit limit{};
    if (getrlimit(resource, &limit) == 0) {
      limit.rlim_cur = limit.rlim_max;
      setrlimit(resource, &limit);
    }
  }
  const rlimit no_core{0, 0};
  if (setrlimit(RLIMIT_CORE, &no_core) != 0) _exit(127);
  if (!become_user(options_.account)) _exit(126);
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) _exit(126);
  // By descriptor: the data plane's user need not be able to reach the path (a checkout in a
  // closed home, say).
  char* const environment[] = {nullptr};
  syscall(SYS_execveat, 5, "", argv_.data(), environment, AT_EMPTY_PATH);
  _exit(127);
}

void Launcher::spawn() {
  next_start_.reset();
  const UniqueFd program(open(options_.program.c_str(), O_PATH | O_CLOEXEC));
  if (!program) throw_errno(options_.program);
  const pid_t child = fork();
  if (child < 0) throw_errno("fork");
  if (child == 0) {
    become_data_plane(program.get(), control_listener_.get(), devices_listener_.get());
  }
  process_ = open_pidfd(child);
  if (!process_) throw_errno("pidfd_open");
  pid_ = child;
  adopted_ = false;
  started_ = Clock::now();
  write_file(options_.run_directory + "/dataplane.pid",
             std::to_string(child) + ' ' + start_time_of(child) + '\n');
}

void Launcher::on_end() {
  if (adopted_) {
    last_end_ = "ended (it was no child of this broker)";
    // The former broker's sockets have ended with their last holder. New ones at once: who
    // connects before the data plane is back waits in their queue instead of being refused.
    try {
      make_sockets();
    } catch (const std::exception& error) {
      std::fprintf(stderr, "pairwire-devices: %s\n", error.what());
    }
  } else {
    int status = 0;
    while (waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
    }
    last_end_ = WIFSIGNALED(status) ? "signal " + std::to_string(WTERMSIG(status))
                                    : "exit " + std::to_string(WEXITSTATUS(status));
  }
  process_.reset();
  const auto now = Clock::now();
  if (now - started_ >= kLongLife) back_off_ = kShortestBackOff;
  std::fprintf(stderr,
               "pairwire-devices: the data plane (%d) has ended: %s; next start in %lld ms\n", pid_,
               last_end_.c_str(), static_cast<long long>(back_off_.count()));
  next_start_ = now + back_off_;
  back_off_ = std::min(back_off_ * 2, kLongestBackOff);
}

void Launcher::on_time() {
  ++restarts_;
  try {
    start();
  } catch (const std::exception& error) {
    // An upgrade may have the program away for a moment.
    std::fprintf(stderr, "pairwire-devices: can't start the data plane: %s\n", error.what());
    next_start_ = Clock::now() + back_off_;
    back_off_ = std::min(back_off_ * 2, kLongestBackOff);
  }
}

void Launcher::stop() {
  next_start_.reset();
  if (process_) {
    syscall(SYS_pidfd_send_signal, process_.get(), SIGTERM, nullptr, 0);
    pollfd ended{process_.get(), POLLIN, 0};
    if (poll(&ended, 1, kStopMs) != 1) {
      syscall(SYS_pidfd_send_signal, process_.get(), SIGKILL, nullptr, 0);
      poll(&ended, 1, kStopMs);
    }
    if (!adopted_) {
      while (waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) {
      }
    }
    process_.reset();
  }
  control_listener_.reset();
  devices_listener_.reset();
  for (const char* name : {"/dataplane.sock", "/dataplane-devices.sock", "/dataplane.pid"}) {
    unlink((options_.run_directory + name).c_str());
  }
}

}  // namespace pairwire::devices
