#include "run-program.hpp"

#include <fcntl.h>
#include <linux/capability.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>

#include <array>
#include <chrono>
#include <stdexcept>

#include "io/unique-fd.hpp"
#include "privileges.hpp"
#include "throw-errno.hpp"

namespace pairwire::devices {
namespace {

constexpr std::size_t kMaxOutput = 64 << 10;
constexpr std::chrono::seconds kTimeLimit{10};

struct Pipe {
  UniqueFd read_end;
  UniqueFd write_end;
};

Pipe make_pipe() {
  int fds[2];
  if (pipe2(fds, O_CLOEXEC | O_NONBLOCK) != 0) throw_errno("pipe");
  return {UniqueFd(fds[0]), UniqueFd(fds[1])};
}

/// In the child: only calls that are safe behind fork(). 127 as in a shell.
[[noreturn]] void become(char* const* argv, int in, int out, int err) {
  static char path[] = "PATH=/usr/sbin:/usr/bin:/sbin:/bin";
  static char locale[] = "LC_ALL=C";
  char* const environment[] = {path, locale, nullptr};
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  signal(SIGPIPE, SIG_DFL);
  const int sources[] = {in, out, err};
  for (int target = 0; target < 3; ++target) {
    // A pipe that already has the number keeps O_CLOEXEC through dup2, so it is moved away.
    const int moved = fcntl(sources[target], F_DUPFD, 3);
    if (moved < 0 || dup2(moved, target) < 0) _exit(127);
    // O_NONBLOCK belongs to the pipe's end, which is the child's alone.
    if (fcntl(target, F_SETFL, fcntl(target, F_GETFL) & ~O_NONBLOCK) < 0) _exit(127);
  }
  close_range(3, ~0U, 0);
  pass_on_only(CAP_NET_ADMIN);
  execve(argv[0], argv, environment);
  _exit(127);
}

/// Appends what there is. False at the end.
bool drain(int fd, std::string& text) {
  std::array<char, 4096> buffer{};
  const ssize_t size = read(fd, buffer.data(), buffer.size());
  if (size < 0) return errno == EAGAIN || errno == EINTR;
  if (size == 0) return false;
  text.append(buffer.data(), std::min(static_cast<std::size_t>(size), kMaxOutput - text.size()));
  return true;
}

}  // namespace

ProgramResult run_program(const std::vector<std::string>& argv, std::string_view input) {
  std::vector<char*> arguments;
  for (const std::string& argument : argv) arguments.push_back(const_cast<char*>(argument.c_str()));
  arguments.push_back(nullptr);
  Pipe in = make_pipe();
  Pipe out = make_pipe();
  Pipe err = make_pipe();

  const pid_t child = fork();
  if (child < 0) throw_errno("fork");
  if (child == 0) {
    become(arguments.data(), in.read_end.get(), out.write_end.get(), err.write_end.get());
  }
  in.read_end.reset();
  out.write_end.reset();
  err.write_end.reset();

  ProgramResult result;
  const auto end = std::chrono::steady_clock::now() + kTimeLimit;
  bool in_time = true;
  while (out.read_end || err.read_end) {
    if (in.write_end && input.empty()) in.write_end.reset();
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
        end - std::chrono::steady_clock::now());
    if (left.count() <= 0) {
      in_time = false;
      kill(child, SIGKILL);
      break;
    }
    pollfd waiting[] = {{in.write_end.get(), POLLOUT, 0},
                        {out.read_end.get(), POLLIN, 0},
                        {err.read_end.get(), POLLIN, 0}};
    if (poll(waiting, 3, static_cast<int>(left.count())) < 0 && errno != EINTR) break;
    if (waiting[0].revents != 0) {
      const ssize_t size = write(in.write_end.get(), input.data(), input.size());
      if (size > 0) input.remove_prefix(static_cast<std::size_t>(size));
      if (size < 0 && errno != EAGAIN && errno != EINTR) in.write_end.reset();
    }
    if (waiting[1].revents != 0 && !drain(out.read_end.get(), result.output)) out.read_end.reset();
    if (waiting[2].revents != 0 && !drain(err.read_end.get(), result.errors)) err.read_end.reset();
  }
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  if (!in_time) throw std::runtime_error(argv[0] + " did not end in time");
  result.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128;
  if (result.code == 127) throw std::runtime_error(argv[0] + " could not be started");
  return result;
}

}  // namespace pairwire::devices
