/// The data plane's sandbox: after `enter_sandbox` the process works on the descriptors it
/// holds and on those that the device broker passes it, and can make no other.
///
/// | layer | what it takes away |
/// |---|---|
/// | capabilities | all of them, in every set |
/// | no new privileges | setuid programs, file capabilities |
/// | not dumpable, no core | ptrace and /proc/PID/mem by processes of the same user; keys on disk |
/// | Landlock, where the kernel has it | every path, TCP bind and connect, abstract sockets and
/// signals outwards | | seccomp allow-list | every system call that is not in sandbox.cpp, and most
/// of its argument values |
///
/// The data plane parses frames of strangers. Whoever takes it over has its traffic keys; the
/// sandbox sees to it that this is all he has.
///
/// To be done before: everything that opens, makes or configures something (sockets, epoll,
/// timerfd, eventfd, signal handlers, OpenSSL's providers, the random generator, time zone,
/// reading of CPU features). Threads may start afterwards.
#pragma once

namespace pairwire {

struct SandboxOptions {
  /// For the self-test only: what is refused fails with EPERM instead of killing the process.
  bool permissive = false;
};

struct SandboxReport {
  /// The ABI of Landlock that is in force; 0 if this kernel has none.
  int landlock_abi = 0;
};

/// Enters the sandbox for good. To be called from the only thread (seccomp would be set in all
/// of them, Landlock and capabilities would not).
/// @throws std::system_error if a layer other than Landlock can't be had: then don't go on
SandboxReport enter_sandbox(const SandboxOptions& options);

/// `--sandbox-selftest`: makes each of the attempts below from inside the sandbox, each in a
/// child of its own so that a kill is visible, and prints one JSON object on standard output:
/// `{"landlock":N,"refused":true,"attempts":[{"name":"open","result":"killed"|"EPERM"|"succeeded"},...]}`.
/// Needs no rights. Must be called from the only thread.
/// @return 0 if everything was refused and what the data plane needs works, else 1
int run_sandbox_selftest();

}  // namespace pairwire
