// pairwire-dataplane: packets and traffic keys, nothing else.
//
//   pairwire-dataplane --control-fd N --devices-fd N [--control-uid U] [--devices-uid U]
//                      [--orphan-seconds S] [--log-level error|warning|info|debug]
//   pairwire-dataplane --sandbox-selftest
//   pairwire-dataplane --speed
//
// Order at start: arguments; no dumps; algorithms loaded, descriptors made (nothing can be opened
// later); sandbox; then the control loop, which starts workers as ports come.
#include <fcntl.h>
#include <linux/netlink.h>
#include <sched.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include "control/sandbox.hpp"
#include "control/server.hpp"
#include "control/speed.hpp"
#include "core/run-program.hpp"
#include "core/spare-cores.hpp"
#include "crypto/aead.hpp"

namespace pairwire {
namespace {

constexpr std::uint64_t kDefaultOrphanSeconds = 15 * 60;
/// Multicast group of the kernel's own uevents; udev's are in another.
constexpr std::uint32_t kKernelUevents = 1;

struct Arguments {
  int control_fd = -1;
  int devices_fd = -1;
  uid_t control_uid = getuid();
  std::optional<uid_t> devices_uid;
  std::uint64_t orphan_seconds = kDefaultOrphanSeconds;
  LogLevel log_level = LogLevel::kInfo;
};

template <typename T>
T parse_number(std::string_view name, std::string_view text) {
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) {
    throw std::invalid_argument(std::string(name) + ": not a number: " + std::string(text));
  }
  return value;
}

LogLevel parse_level(std::string_view text) {
  if (text == "error") return LogLevel::kError;
  if (text == "warning" || text == "warn") return LogLevel::kWarning;
  if (text == "info") return LogLevel::kInfo;
  if (text == "debug" || text == "trace") return LogLevel::kDebug;
  throw std::invalid_argument("--log-level: error, warning, info or debug");
}

Arguments parse_arguments(const std::vector<std::string_view>& words) {
  Arguments arguments;
  for (std::size_t i = 0; i < words.size(); i += 2) {
    const std::string_view name = words[i];
    if (i + 1 == words.size()) {
      throw std::invalid_argument(std::string(name) + ": unknown, or without a value");
    }
    const std::string_view value = words[i + 1];
    if (name == "--control-fd") {
      arguments.control_fd = parse_number<int>(name, value);
    } else if (name == "--devices-fd") {
      arguments.devices_fd = parse_number<int>(name, value);
    } else if (name == "--control-uid") {
      arguments.control_uid = parse_number<uid_t>(name, value);
    } else if (name == "--devices-uid") {
      arguments.devices_uid = parse_number<uid_t>(name, value);
    } else if (name == "--orphan-seconds") {
      arguments.orphan_seconds = parse_number<std::uint32_t>(name, value);
    } else if (name == "--log-level") {
      arguments.log_level = parse_level(value);
    } else {
      throw std::invalid_argument("unknown argument: " + std::string(name));
    }
  }
  if (arguments.control_fd < 0 || arguments.devices_fd < 0) {
    throw std::invalid_argument("--control-fd and --devices-fd are needed");
  }
  return arguments;
}

UniqueFd checked(int fd, const char* what) {
  if (fd < 0) throw std::system_error(errno, std::generic_category(), what);
  return UniqueFd(fd);
}

/// No core file may ever hold a key, and no process of our own user may look into us. The sandbox
/// does the same; this is earlier.
void forbid_dumps() {
  const rlimit none{0, 0};
  if (prctl(PR_SET_DUMPABLE, 0) != 0 || setrlimit(RLIMIT_CORE, &none) != 0) {
    throw std::system_error(errno, std::generic_category(), "forbid dumps");
  }
}

/// Keys are locked in memory piece by piece; as much as the hard limit lets us.
void raise_memlock() {
  rlimit limit{};
  if (getrlimit(RLIMIT_MEMLOCK, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  static_cast<void>(setrlimit(RLIMIT_MEMLOCK, &limit));
}

/// Nothing if the kernel has no such family: then the jump of server time has to do.
UniqueFd open_uevents() {
  UniqueFd fd(socket(AF_NETLINK, SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC, NETLINK_KOBJECT_UEVENT));
  sockaddr_nl address{};
  address.nl_family = AF_NETLINK;
  address.nl_groups = kKernelUevents;
  if (fd && bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0) {
    return fd;
  }
  return {};
}

/// SIGTERM and SIGINT as a descriptor. All threads inherit the mask.
UniqueFd take_signals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  if (pthread_sigmask(SIG_BLOCK, &set, nullptr) != 0) throw std::runtime_error("pthread_sigmask");
  signal(SIGPIPE, SIG_IGN);
  return checked(signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC), "signalfd");
}

/// A TAP takes USO super-frames (VIRTIO_NET_HDR_GSO_UDP_L4) since Linux 6.2.
bool kernel_takes_uso() {
  utsname name{};
  if (uname(&name) != 0) return false;
  int major = 0;
  int minor = 0;
  if (std::sscanf(name.release, "%d.%d", &major, &minor) != 2) return false;
  return major > 6 || (major == 6 && minor >= 2);
}

/// Cores that this process may run on.
std::size_t usable_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return 1;
  return static_cast<std::size_t>(std::max(CPU_COUNT(&set), 1));
}

/// Nothing where not all cores are `usable`, for those that are spare may be the others, or where
/// somebody has chosen how we are scheduled.
std::unique_ptr<SpareCores> watch_spare_cores(std::size_t usable) {
  const long all = sysconf(_SC_NPROCESSORS_ONLN);
  if (all < 0 || usable < static_cast<std::size_t>(all)) return nullptr;
  if (sched_getscheduler(0) != SCHED_OTHER) return nullptr;
  UniqueFd uptime(open("/proc/uptime", O_RDONLY | O_CLOEXEC));
  if (!uptime) return nullptr;
  return std::make_unique<SpareCores>(std::move(uptime), static_cast<std::size_t>(all));
}

int run(const std::vector<std::string_view>& words) {
  if (words.size() == 1 && words[0] == "--sandbox-selftest") return run_sandbox_selftest();
  if (words.size() == 1 && words[0] == "--speed") return print_speed();
  const Arguments arguments = parse_arguments(words);
  forbid_dumps();
  raise_memlock();
  preload_crypto();

  Server::Options options;
  options.control = UniqueFd(arguments.control_fd);
  options.devices = UniqueFd(arguments.devices_fd);
  options.signals = take_signals();
  options.uevents = open_uevents();
  options.wake = checked(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC), "eventfd");
  for (std::size_t i = 0; i < kMaxPorts * Port::kWakeFds; ++i) {
    options.worker_wakes.push_back(checked(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC), "eventfd"));
  }
  options.control_uid = arguments.control_uid;
  options.devices_uid = arguments.devices_uid;
  options.own_uid = getuid();
  options.orphan_ms = arguments.orphan_seconds * 1000;
  options.log_level = arguments.log_level;
  options.cores = usable_cores();
  options.spare_cores = watch_spare_cores(options.cores);
  options.merge_udp = kernel_takes_uso();
  const bool uevents = static_cast<bool>(options.uevents);
  Server server(std::move(options));

  // The first key's memory, so that a limit that is too low is told of at once.
  locked_free(locked_allocate(64), 64);
  const SandboxReport sandbox = enter_sandbox({});
  if (kNullAead) server.log(LogLevel::kWarning, "BENCHMARK BUILD: NOTHING IS ENCRYPTED");
  if (!locked_memory_use().locked) {
    server.log(LogLevel::kWarning, "keys can't be locked in memory: raise RLIMIT_MEMLOCK");
  }
  if (!uevents) server.log(LogLevel::kWarning, "no uevents: snapshots are found by time only");
  server.log(LogLevel::kInfo, "ready, Landlock ABI " + std::to_string(sandbox.landlock_abi));
  return server.run();
}

}  // namespace
}  // namespace pairwire

int main(int argc, char** argv) {
  return pairwire::run_program("pairwire-dataplane", argc, argv, pairwire::run);
}
