/// pairwire-devices: opens the network devices of one gateway and passes them to its data plane.
///
/// The only part of Pairwire that keeps privileges, so it is small, and everything that it will
/// ever open is fixed by a list at its start. It never sees a key or a frame.
///
/// Order at start: arguments, list, folder, sockets; away from the terminal; capabilities down to
/// what is needed; only then the first program is run and the first line read.
#include <fcntl.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <exception>
#include <stdexcept>
#include <string>
#include <vector>

#include "broker.hpp"
#include "privileges.hpp"
#include "throw-errno.hpp"

namespace pairwire::devices {
namespace {

constexpr const char* kUsage =
    "usage: pairwire-devices --list FILE|- --run DIR --control-user USER --dataplane-user USER\n"
    "                        [--log FILE] [--oom-score N] [--dataplane PROGRAM [-- ARGUMENT...]]\n"
    "  --list            the devices that may be opened; - reads standard input\n"
    "  --run             folder for the sockets and pid files\n"
    "  --control-user    who may give orders (name or number)\n"
    "  --dataplane-user  who owns the TAPs and runs the data plane; not root\n"
    "  --dataplane       start the data plane, and again when it ends; else somebody else does\n"
    "  --log             append messages of both there; else standard error\n"
    "  --oom-score       oom_score_adj of both, -1000 to 1000\n";

struct Usage : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Arguments {
  std::string list;
  std::string run;
  std::string control_user;
  std::string dataplane_user;
  std::string dataplane;
  std::string log;
  std::string oom_score;
  std::vector<std::string> rest;
};

Arguments parse_arguments(const std::vector<std::string>& words) {
  Arguments out;
  for (std::size_t i = 0; i < words.size(); ++i) {
    if (words[i] == "--") {
      out.rest.assign(words.begin() + static_cast<std::ptrdiff_t>(i) + 1, words.end());
      break;
    }
    std::string* const target = words[i] == "--list"             ? &out.list
                                : words[i] == "--run"            ? &out.run
                                : words[i] == "--control-user"   ? &out.control_user
                                : words[i] == "--dataplane-user" ? &out.dataplane_user
                                : words[i] == "--dataplane"      ? &out.dataplane
                                : words[i] == "--log"            ? &out.log
                                : words[i] == "--oom-score"      ? &out.oom_score
                                                                 : nullptr;
    if (target == nullptr) throw Usage("unknown argument " + words[i]);
    if (++i == words.size() || words[i].empty()) throw Usage(words[i - 1] + " needs a value");
    if (!target->empty()) throw Usage(words[i - 1] + " is there twice");
    *target = words[i];
  }
  if (out.list.empty() || out.run.empty() || out.control_user.empty() ||
      out.dataplane_user.empty()) {
    throw Usage("--list, --run, --control-user and --dataplane-user are needed");
  }
  for (const std::string& path : {out.run, out.dataplane, out.log}) {
    if (!path.empty() && path[0] != '/') throw Usage(path + " is no absolute path");
  }
  if (!out.rest.empty() && out.dataplane.empty()) throw Usage("-- is for --dataplane");
  return out;
}

/// Others may pass through the folder (the sockets in it have owners) but change nothing there:
/// who can rename in it can put a socket of his own in place of ours.
void prepare_folder(const std::string& path) {
  if (mkdir(path.c_str(), 0711) == 0) {
    if (chmod(path.c_str(), 0711) != 0) throw_errno(path);
  } else if (errno != EEXIST) {
    throw_errno(path);
  }
  struct stat info{};
  if (lstat(path.c_str(), &info) != 0) throw_errno(path);
  if (!S_ISDIR(info.st_mode)) throw std::runtime_error(path + " is no folder");
  if (info.st_uid != geteuid()) throw std::runtime_error(path + " belongs to another user");
  if ((info.st_mode & (S_IWGRP | S_IWOTH)) != 0) {
    throw std::runtime_error(path + " is writable by others");
  }
}

/// Holds a lock for as long as we live, so that there is one broker for a folder.
UniqueFd write_pid_file(const std::string& path) {
  UniqueFd fd(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644));
  if (!fd) throw_errno(path);
  if (flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno == EWOULDBLOCK) throw std::runtime_error("another broker runs there: " + path);
    throw_errno(path);
  }
  const std::string text = std::to_string(getpid()) + '\n';
  if (ftruncate(fd.get(), 0) != 0 ||
      write(fd.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size())) {
    throw_errno(path);
  }
  return fd;
}

void leave_terminal(const std::string& log) {
  setsid();  // fails for the leader of a process group, whose parent has seen to it
  const UniqueFd null(open("/dev/null", O_RDWR | O_CLOEXEC));
  if (!null || dup2(null.get(), STDIN_FILENO) < 0 || dup2(null.get(), STDOUT_FILENO) < 0) {
    throw_errno("/dev/null");
  }
  if (log.empty()) return;
  const UniqueFd fd(
      open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0640));
  if (!fd || dup2(fd.get(), STDERR_FILENO) < 0) throw_errno(log);
}

int run(const Arguments& arguments) {
  BrokerOptions options;
  options.run_directory = arguments.run;
  options.control_uid = find_account(arguments.control_user).uid;
  options.dataplane = find_account(arguments.dataplane_user);
  if (options.dataplane.uid == 0) throw std::runtime_error("the data plane must not be root");
  try {
    options.list = parse_device_list(read_device_list(arguments.list));
  } catch (const std::runtime_error& error) {
    throw std::runtime_error("list of devices: " + std::string(error.what()));
  }
  if (!arguments.dataplane.empty()) {
    options.launch = LaunchOptions{arguments.dataplane, arguments.rest, options.dataplane,
                                   options.control_uid, arguments.run};
  }
  umask(0022);
  if (chdir("/") != 0) throw_errno("/");
  prepare_folder(arguments.run);
  const UniqueFd lock = write_pid_file(arguments.run + "/devices.pid");
  if (!arguments.oom_score.empty()) {
    // The data plane inherits it. A lower score needs CAP_SYS_RESOURCE, which containers lack.
    const UniqueFd fd(open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC));
    if (!fd || write(fd.get(), arguments.oom_score.data(), arguments.oom_score.size()) < 0) {
      std::fprintf(stderr, "pairwire-devices: --oom-score: %s\n", std::strerror(errno));
    }
  }
  const auto& udps = options.list.udps;
  const bool low_port =
      std::any_of(udps.begin(), udps.end(), [](const UdpDevice& udp) { return udp.port < 1024; });
  const std::uint64_t capabilities = needed_capabilities(options.launch.has_value(), low_port);

  Broker broker(std::move(options));
  leave_terminal(arguments.log);
  keep_only(capabilities);
  broker.run();
  return 0;
}

}  // namespace
}  // namespace pairwire::devices

int main(int argc, char** argv) {
  try {
    return pairwire::devices::run(
        pairwire::devices::parse_arguments(std::vector<std::string>(argv + 1, argv + argc)));
  } catch (const pairwire::devices::Usage& error) {
    std::fprintf(stderr, "pairwire-devices: %s\n%s", error.what(), pairwire::devices::kUsage);
    return 2;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "pairwire-devices: %s\n", error.what());
    return 1;
  }
}
