/// The attempts of `--sandbox-selftest`: what an attacker inside the data plane would try, and
/// what the data plane itself must still be able to do.
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <exception>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "sandbox.hpp"

namespace pairwire {
namespace {

/// Made before the sandbox is entered, so that a refusal is about the call and nothing else.
struct Props {
  int unix_pair[2] = {-1, -1};
  int udp = -1;
  void* page = nullptr;
};

struct Attempt {
  std::string_view name;
  /// Returns what the system call returned; errno is looked at for -1.
  long (*run)(const Props&);
};

sockaddr_in loopback() {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(9);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return address;
}

// Calls go by number where glibc would choose another one.
const Attempt kForbidden[] = {
#if defined(__x86_64__)
    {"open", [](const Props&) { return syscall(SYS_open, "/etc/passwd", O_RDONLY); }},
    {"x32", [](const Props&) { return syscall(0x40000000L | SYS_getpid); }},
    {"fork", [](const Props&) { return syscall(SYS_fork); }},
#endif
    {"openat", [](const Props&) { return syscall(SYS_openat, AT_FDCWD, "/etc/passwd", O_RDONLY); }},
    {"openat2", [](const Props&) { return syscall(437, AT_FDCWD, "/etc/passwd", nullptr, 0); }},
    {"socket", [](const Props&) { return syscall(SYS_socket, AF_INET, SOCK_DGRAM, 0); }},
    {"socket AF_PACKET", [](const Props&) { return syscall(SYS_socket, AF_PACKET, SOCK_RAW, 0); }},
    {"socketpair",
     [](const Props&) {
       int pair[2];
       return syscall(SYS_socketpair, AF_UNIX, SOCK_STREAM, 0, pair);
     }},
    {"connect",
     [](const Props& props) {
       const sockaddr_in to = loopback();
       return syscall(SYS_connect, props.udp, &to, sizeof to);
     }},
    {"bind",
     [](const Props& props) {
       sockaddr_in to = loopback();
       to.sin_port = 0;
       return syscall(SYS_bind, props.udp, &to, sizeof to);
     }},
    {"ioctl",
     [](const Props& props) {
       int waiting = 0;
       return syscall(SYS_ioctl, props.udp, FIONREAD, &waiting);
     }},
    {"setsockopt",
     [](const Props& props) {
       const int on = 1;
       return syscall(SYS_setsockopt, props.udp, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
     }},
    {"getsockopt other than SO_PEERCRED and SO_DOMAIN",
     [](const Props& props) {
       int value = 0;
       socklen_t size = sizeof value;
       return syscall(SYS_getsockopt, props.udp, SOL_SOCKET, SO_RCVBUF, &value, &size);
     }},
    {"ptrace", [](const Props&) { return syscall(SYS_ptrace, PTRACE_TRACEME, 0, 0, 0); }},
    {"execve",
     [](const Props&) {
       const char* const argv[] = {"/bin/true", nullptr};
       const char* const envp[] = {nullptr};
       return syscall(SYS_execve, "/bin/true", argv, envp);
     }},
    {"clone a process", [](const Props&) { return syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0); }},
    {"clone3", [](const Props&) { return syscall(435, nullptr, 0); }},
    {"unshare", [](const Props&) { return syscall(SYS_unshare, CLONE_NEWUSER); }},
    {"io_uring_setup",
     [](const Props&) {
       std::array<char, 120> parameters{};
       return syscall(425, 4, parameters.data());
     }},
    {"bpf", [](const Props&) { return syscall(SYS_bpf, 0, nullptr, 0); }},
    {"userfaultfd", [](const Props&) { return syscall(SYS_userfaultfd, 0); }},
    {"perf_event_open",
     [](const Props&) { return syscall(SYS_perf_event_open, nullptr, 0, -1, -1, 0); }},
    {"keyctl", [](const Props&) { return syscall(SYS_keyctl, 0, 0, 0, 0, 0); }},
    {"mmap PROT_EXEC",
     [](const Props&) {
       return syscall(SYS_mmap, nullptr, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS,
                      -1, 0);
     }},
    {"mmap of a descriptor",
     [](const Props& props) {
       return syscall(SYS_mmap, nullptr, 4096, PROT_READ, MAP_PRIVATE, props.udp, 0);
     }},
    {"mprotect PROT_EXEC",
     [](const Props& props) {
       return syscall(SYS_mprotect, props.page, 4096, PROT_READ | PROT_EXEC);
     }},
    {"process_vm_readv",
     [](const Props& props) {
       std::array<char, 8> buffer{};
       const iovec local{buffer.data(), buffer.size()};
       const iovec remote{props.page, buffer.size()};
       return syscall(SYS_process_vm_readv, getppid(), &local, 1, &remote, 1, 0);
     }},
    {"kill", [](const Props&) { return syscall(SYS_kill, getppid(), 0); }},
    {"tgkill of another process",
     [](const Props&) { return syscall(SYS_tgkill, getppid(), getppid(), 0); }},
    {"sched_setscheduler SCHED_FIFO",
     [](const Props&) {
       const sched_param first{1};
       return syscall(SYS_sched_setscheduler, 0, SCHED_FIFO, &first);
     }},
    {"sched_setscheduler of another process",
     [](const Props&) {
       const sched_param none{};
       return syscall(SYS_sched_setscheduler, getppid(), SCHED_BATCH, &none);
     }},
    {"prctl PR_SET_DUMPABLE",
     [](const Props&) { return syscall(SYS_prctl, PR_SET_DUMPABLE, 1, 0, 0, 0); }},
    {"setrlimit", [](const Props&) { return syscall(SYS_prlimit64, 0, 4, nullptr, nullptr); }},
};

/// Thrown together so that a filter which refuses everything does not pass for a good one.
long use_what_is_needed(const Props& props) {
  // A thread, with its stack and, by a big allocation, an arena of its own.
  bool ran = false;
  std::thread thread([&ran] {
    const std::vector<char> memory(8 << 20, 'x');
    prctl(PR_SET_NAME, "selftest");
    const sched_param none{};
    ran = memory.back() == 'x' && sched_setscheduler(0, SCHED_BATCH, &none) == 0 &&
          sched_setscheduler(0, SCHED_OTHER, &none) == 0;
  });
  thread.join();
  if (!ran) return -1;

  char byte = 'x';
  if (send(props.unix_pair[0], &byte, 1, MSG_NOSIGNAL) != 1) return -1;
  pollfd waiting{props.unix_pair[1], POLLIN, 0};
  if (poll(&waiting, 1, 1000) != 1 || read(props.unix_pair[1], &byte, 1) != 1) return -1;
  ucred peer{};
  socklen_t size = sizeof peer;
  if (getsockopt(props.unix_pair[0], SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) return -1;
  const sockaddr_in to = loopback();
  if (sendto(props.udp, &byte, 1, 0, reinterpret_cast<const sockaddr*>(&to), sizeof to) != 1) {
    return -1;
  }
  // The caller does the same by writing its verdict and leaving.
  return 0;
}

/// Flushes and leaves without running what atexit() was given: the child is a copy of a
/// program that has not ended.
[[noreturn]] void leave(int code) {
  _exit(code);
}

/// Runs one attempt in a child; `killed`, `succeeded` or the name of an error.
std::string outcome(long (*run)(const Props&), const Props& props, bool permissive) {
  int verdict[2];
  if (pipe2(verdict, O_CLOEXEC) != 0) return "no pipe";
  const pid_t child = fork();
  if (child < 0) return "no child";
  if (child == 0) {
    try {
      enter_sandbox({.permissive = permissive});
    } catch (const std::exception& error) {
      std::fprintf(stderr, "sandbox: %s\n", error.what());
      leave(2);
    }
    errno = 0;
    const long result = run(props);
    // As text it fits any pipe buffer, and reading it back needs no agreement on layout.
    const std::string text = result == -1 ? strerrorname_np(errno) : "succeeded";
    const ssize_t written = write(verdict[1], text.data(), text.size());
    leave(written == static_cast<ssize_t>(text.size()) ? 0 : 3);
  }
  close(verdict[1]);
  std::array<char, 64> buffer{};
  const ssize_t size = read(verdict[0], buffer.data(), buffer.size());
  close(verdict[0]);
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  if (WIFSIGNALED(status)) return WTERMSIG(status) == SIGSYS ? "killed" : "died";
  if (WEXITSTATUS(status) == 2) return "no sandbox";
  return size > 0 ? std::string(buffer.data(), static_cast<std::size_t>(size)) : "no verdict";
}

/// A child reports the ABI by its exit code, because asking is part of entering.
int landlock_abi() {
  const pid_t child = fork();
  if (child == 0) {
    try {
      leave(enter_sandbox({}).landlock_abi);
    } catch (const std::exception&) {
      leave(255);
    }
  }
  int status = 0;
  while (child > 0 && waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  return child > 0 && WIFEXITED(status) ? WEXITSTATUS(status) : 255;
}

}  // namespace

int run_sandbox_selftest() {
  Props props;
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, props.unix_pair) != 0) return 1;
  props.udp = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  props.page = mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (props.udp < 0 || props.page == MAP_FAILED) return 1;

  bool refused = true;
  std::string attempts;
  for (const Attempt& attempt : kForbidden) {
    // Once as in earnest, once with the refusal visible as an error: the second one tells a
    // kill by the filter from a call that would have failed anyway.
    const std::string killed = outcome(attempt.run, props, false);
    const std::string error = outcome(attempt.run, props, true);
    // clone3 must fail softly, or glibc would not fall back to clone.
    const bool good = attempt.name == "clone3" ? killed == "ENOSYS" && error == "ENOSYS"
                      : attempt.name == "x32"  ? killed == "killed" && error == "killed"
                                               : killed == "killed" && error == "EPERM";
    refused = refused && good;
    if (!attempts.empty()) attempts += ',';
    attempts.append("{\"name\":\"").append(attempt.name).append("\",\"result\":\"").append(killed);
    attempts.append("\",\"permissive\":\"").append(error).append("\",\"refused\":");
    attempts.append(good ? "true}" : "false}");
  }
  const std::string needed = outcome(use_what_is_needed, props, false);
  const bool works = needed == "succeeded";
  std::printf("{\"landlock\":%d,\"refused\":%s,\"needed\":\"%s\",\"attempts\":[%s]}\n",
              landlock_abi(), refused ? "true" : "false", needed.c_str(), attempts.c_str());
  std::fflush(stdout);
  munmap(props.page, 4096);
  for (const int fd : {props.unix_pair[0], props.unix_pair[1], props.udp}) close(fd);
  return refused && works ? 0 : 1;
}

}  // namespace pairwire
