#include "sandbox.hpp"

#include <fcntl.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <malloc.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <bit>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <system_error>
#include <vector>

#if defined(__x86_64__)
#define PAIRWIRE_AUDIT_ARCH AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define PAIRWIRE_AUDIT_ARCH AUDIT_ARCH_AARCH64
#else
#error "The sandbox knows the system call numbers of x86-64 and aarch64 only"
#endif

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define PAIRWIRE_SANITIZER_SYSCALLS 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define PAIRWIRE_SANITIZER_SYSCALLS 1
#endif
#endif

namespace pairwire {
namespace {

// Arguments are 64 bits wide and the filter reads 32 at a time; the low half comes first.
static_assert(std::endian::native == std::endian::little);

[[noreturn]] void fail(const char* what) {
  throw std::system_error(errno, std::generic_category(), what);
}

// --- Landlock -----------------------------------------------------------------------------------

// Debian 12's <linux/landlock.h> ends before ABI 3; the numbers are those of the kernel's.
struct LandlockRuleset {
  std::uint64_t handled_access_fs = 0;
  std::uint64_t handled_access_net = 0;  // since ABI 4
  std::uint64_t scoped = 0;              // since ABI 6
};
constexpr unsigned kLandlockVersion = 1U << 0;
constexpr long kNrLandlockCreateRuleset = 444;
constexpr long kNrLandlockRestrictSelf = 446;

/// Handles every access that this kernel's ABI knows and allows none of it.
int restrict_by_landlock() {
  const long abi = syscall(kNrLandlockCreateRuleset, nullptr, 0, kLandlockVersion);
  if (abi < 1) return 0;
  LandlockRuleset ruleset;
  // How many access rights each ABI has: 1 to 13, refer, truncate, (4: none), ioctl on devices.
  const int rights = abi >= 5 ? 16 : abi >= 3 ? 15 : abi >= 2 ? 14 : 13;
  ruleset.handled_access_fs = (std::uint64_t{1} << rights) - 1;
  std::size_t size = offsetof(LandlockRuleset, handled_access_net);
  if (abi >= 4) {
    ruleset.handled_access_net = 0b11;  // TCP bind, TCP connect
    size = offsetof(LandlockRuleset, scoped);
  }
  if (abi >= 6) {
    ruleset.scoped = 0b11;  // abstract Unix sockets, signals
    size = sizeof ruleset;
  }
  const long fd = syscall(kNrLandlockCreateRuleset, &ruleset, size, 0);
  if (fd < 0) fail("landlock_create_ruleset");
  const long result = syscall(kNrLandlockRestrictSelf, fd, 0);
  const int error = errno;
  close(static_cast<int>(fd));
  errno = error;
  if (result != 0) fail("landlock_restrict_self");
  return static_cast<int>(abi);
}

// --- Capabilities -------------------------------------------------------------------------------

void drop_capabilities() {
  if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) != 0) fail("clear ambient set");
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  std::array<__user_cap_data_struct, _LINUX_CAPABILITY_U32S_3> none{};
  if (syscall(SYS_capset, &header, none.data()) != 0) fail("capset");
}

// --- seccomp ------------------------------------------------------------------------------------

/// Builds a BPF program over `seccomp_data`. Every rule is a block of its own which ends in a
/// return or jumps over itself, so no jump is ever longer than a few instructions.
class Filter {
 public:
  explicit Filter(std::uint32_t refusal) : refusal_(refusal) {
    load(offsetof(seccomp_data, arch));
    unless_equal(PAIRWIRE_AUDIT_ARCH, 1);
    give(SECCOMP_RET_KILL_PROCESS);
    load(offsetof(seccomp_data, nr));
#if defined(__x86_64__)
    // x32: the same calls under other numbers, with other arguments.
    constexpr std::uint32_t x32 = 0x40000000;
    add(BPF_JMP | BPF_JSET | BPF_K, x32, 0, 1);
    give(SECCOMP_RET_KILL_PROCESS);
#endif
  }

  void allow(long number) { answer(number, SECCOMP_RET_ALLOW); }

  void answer_errno(long number, int error) {
    answer(number, SECCOMP_RET_ERRNO | (static_cast<std::uint32_t>(error) & SECCOMP_RET_DATA));
  }

  /// One condition on the low 32 bits of an argument: `(argument & mask) == value`. All the
  /// arguments inspected here are ints or have no meaning above bit 31, which the kernel cuts
  /// off itself; where it does not (clone's flags, mmap's), `high_zero` is asked for as well.
  struct Condition {
    unsigned argument;
    std::uint32_t mask;
    std::uint32_t value;
    bool high_zero = false;
  };

  /// Allows `number` if all conditions hold; else the next rule for it, or the refusal.
  void allow_if(long number, const std::vector<Condition>& conditions) {
    // nr != number: over the block. Each condition: load, and, jump; and a load of nr behind.
    std::size_t length = 1;
    for (const Condition& c : conditions) length += c.high_zero ? 5 : 3;
    add(BPF_JMP | BPF_JEQ | BPF_K, static_cast<std::uint32_t>(number), 0,
        static_cast<std::uint8_t>(length));
    for (const Condition& c : conditions) {
      const std::size_t low = offsetof(seccomp_data, args) + c.argument * sizeof(std::uint64_t);
      if (c.high_zero) {
        load(low + sizeof(std::uint32_t));
        add(BPF_JMP | BPF_JEQ | BPF_K, 0, 0, static_cast<std::uint8_t>(length - 2));
        length -= 2;
      }
      load(low);
      add(BPF_ALU | BPF_AND | BPF_K, c.mask, 0, 0);
      add(BPF_JMP | BPF_JEQ | BPF_K, c.value, 0, static_cast<std::uint8_t>(length - 3));
      length -= 3;
    }
    give(SECCOMP_RET_ALLOW);
    // A condition that failed lands here with the accumulator overwritten.
    load(offsetof(seccomp_data, nr));
  }

  void install() {
    give(refusal_);
    sock_fprog program{static_cast<unsigned short>(program_.size()), program_.data()};
    // TSYNC: should a library have started a thread behind our back, it is bound as well.
    if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program) != 0) {
      fail("seccomp");
    }
  }

 private:
  void add(int code, std::uint32_t k, std::uint8_t jump_true, std::uint8_t jump_false) {
    program_.push_back({static_cast<std::uint16_t>(code), jump_true, jump_false, k});
  }
  void load(std::size_t offset) {
    add(BPF_LD | BPF_W | BPF_ABS, static_cast<std::uint32_t>(offset), 0, 0);
  }
  void give(std::uint32_t action) { add(BPF_RET | BPF_K, action, 0, 0); }
  void unless_equal(std::uint32_t value, std::uint8_t skip) {
    add(BPF_JMP | BPF_JEQ | BPF_K, value, skip, 0);
  }
  void answer(long number, std::uint32_t action) {
    add(BPF_JMP | BPF_JEQ | BPF_K, static_cast<std::uint32_t>(number), 0, 1);
    give(action);
  }

  std::vector<sock_filter> program_;
  std::uint32_t refusal_;
};

/// No argument can make these reach anything but what the process holds. Those of the frame
/// path come first: for a filter without a verdict bitmap (before Linux 5.11) order is time.
constexpr long kHarmless[] = {
    SYS_sendmsg, SYS_recvmsg, SYS_sendmmsg, SYS_recvmmsg, SYS_read, SYS_write, SYS_readv,
    SYS_writev, SYS_sendto, SYS_recvfrom, SYS_futex, SYS_clock_gettime, SYS_ppoll, SYS_epoll_pwait,
    SYS_epoll_ctl,
#if defined(__x86_64__)
    SYS_poll, SYS_epoll_wait,
#endif
    // time
    SYS_clock_nanosleep, SYS_nanosleep, SYS_gettimeofday, SYS_timerfd_settime, SYS_restart_syscall,
    // memory; mmap, mprotect below
    SYS_brk, SYS_munmap, SYS_mremap, SYS_madvise, SYS_mlock, SYS_munlock,
    // descriptors that are held; sockets of the control plane and the broker are accepted
    SYS_close, SYS_accept4, SYS_fstat, SYS_pread64,
    // threads and signals of this process; glibc sets a handler when the first thread starts
    SYS_rt_sigreturn, SYS_rt_sigaction, SYS_rt_sigprocmask, SYS_sigaltstack, SYS_gettid, SYS_getpid,
    SYS_sched_yield, SYS_sched_getaffinity, SYS_rseq, SYS_set_robust_list, SYS_membarrier, SYS_exit,
    SYS_exit_group, SYS_getrandom};

#ifdef PAIRWIRE_SANITIZER_SYSCALLS
/// The runtimes of ASan and TSan read /proc/self/maps, move their shadow about and ask for
/// limits when a thread starts or a finding is printed. Such a build is for tests: its sandbox
/// lets files be opened (Landlock still refuses where there is one). LeakSanitizer's tracer is
/// not allowed: run with ASAN_OPTIONS=detect_leaks=0.
constexpr long kSanitizers[] = {
    SYS_openat,
    SYS_newfstatat,
    SYS_readlinkat,
    SYS_lseek,
    SYS_prlimit64,
    SYS_getrusage,
    SYS_sysinfo,
    SYS_getuid,
    SYS_geteuid,
    SYS_uname,
    SYS_sched_setaffinity,
    SYS_set_tid_address,
    SYS_pipe2,
#if defined(__x86_64__)
    SYS_readlink,
    SYS_open,
    SYS_stat,
    SYS_access,
    SYS_getrlimit,
#endif
};
#endif

void install_seccomp(bool permissive) {
  Filter filter(permissive ? SECCOMP_RET_ERRNO | EPERM : SECCOMP_RET_KILL_PROCESS);
  for (const long number : kHarmless) filter.allow(number);

  // Memory that can't be run, of no file: nothing that came over the network becomes code.
  filter.allow_if(SYS_mmap, {{2, PROT_EXEC, 0}, {3, MAP_ANONYMOUS, MAP_ANONYMOUS}});
  filter.allow_if(SYS_mprotect, {{2, PROT_EXEC, 0}});

  // Threads, never processes or namespaces. clone3 keeps its flags in memory, where a filter
  // can't read them: glibc takes ENOSYS as "an old kernel" and uses clone.
  constexpr std::uint32_t thread = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD;
  constexpr std::uint32_t namespaces = CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC |
                                       CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET;
  filter.allow_if(SYS_clone, {{0, thread | namespaces, thread, true}});
  filter.answer_errno(SYS_clone3, ENOSYS);

  // Who is at the other end of an accepted socket; of which family a passed one is. Not
  // setsockopt: that could take a locked filter or a mark off.
  filter.allow_if(SYS_getsockopt, {{1, ~0U, SOL_SOCKET}, {2, ~0U, SO_PEERCRED}});
  filter.allow_if(SYS_getsockopt, {{1, ~0U, SOL_SOCKET}, {2, ~0U, SO_DOMAIN}});

  // A lane between the two policies of ordinary threads, itself only; never before others.
  for (const std::uint32_t policy : {std::uint32_t{SCHED_OTHER}, std::uint32_t{SCHED_BATCH}}) {
    filter.allow_if(SYS_sched_setscheduler, {{0, ~0U, 0}, {1, ~0U, policy}});
  }

  // abort() of ourselves; nobody else gets a signal.
  filter.allow_if(SYS_tgkill, {{0, ~0U, static_cast<std::uint32_t>(getpid())}});
  filter.allow_if(SYS_prctl, {{0, ~0U, PR_SET_NAME}});

#ifdef PAIRWIRE_SANITIZER_SYSCALLS
  for (const long number : kSanitizers) filter.allow(number);
  filter.allow(SYS_prctl);
#else
  // fstat() of glibc 2.33 and later. Its path is in memory too; stdio takes a refusal well.
  filter.answer_errno(SYS_newfstatat, EACCES);
#endif
  filter.install();
}

}  // namespace

SandboxReport enter_sandbox(const SandboxOptions& options) {
  // With a limit of its own malloc never counts the CPUs, which would open files in /sys.
  mallopt(M_ARENA_MAX, 16);

  const rlimit none{0, 0};
  if (setrlimit(RLIMIT_CORE, &none) != 0) fail("RLIMIT_CORE");
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) fail("PR_SET_NO_NEW_PRIVS");

  SandboxReport report;
  report.landlock_abi = restrict_by_landlock();
  drop_capabilities();
  // After every change of credentials, because those set it anew.
  if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0) fail("PR_SET_DUMPABLE");
  install_seccomp(options.permissive);
  return report;
}

}  // namespace pairwire
