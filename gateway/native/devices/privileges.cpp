#include "privileges.hpp"

#include <grp.h>
#include <linux/capability.h>
#include <linux/securebits.h>
#include <pwd.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include <array>
#include <charconv>
#include <stdexcept>

#include "io/unique-fd.hpp"
#include "throw-errno.hpp"

namespace pairwire::devices {
namespace {

constexpr std::uint64_t bit(int capability) {
  return std::uint64_t{1} << capability;
}

bool set_capabilities(std::uint64_t permitted, std::uint64_t inheritable) noexcept {
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  std::array<__user_cap_data_struct, _LINUX_CAPABILITY_U32S_3> sets{};
  for (std::size_t i = 0; i < sets.size(); ++i) {
    sets[i].permitted = sets[i].effective = static_cast<std::uint32_t>(permitted >> (32 * i));
    sets[i].inheritable = static_cast<std::uint32_t>(inheritable >> (32 * i));
  }
  return syscall(SYS_capset, &header, sets.data()) == 0;
}

std::uint64_t permitted_capabilities() {
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  std::array<__user_cap_data_struct, _LINUX_CAPABILITY_U32S_3> sets{};
  if (syscall(SYS_capget, &header, sets.data()) != 0) throw_errno("capget");
  return sets[0].permitted | (std::uint64_t{sets[1].permitted} << 32);
}

}  // namespace

Account find_account(const std::string& name_or_uid) {
  uid_t uid = 0;
  const char* end = name_or_uid.data() + name_or_uid.size();
  const auto [at, error] = std::from_chars(name_or_uid.data(), end, uid);
  const bool number = error == std::errc() && at == end && !name_or_uid.empty();
  // Before any thread: the broker has none.
  const passwd* entry = number ? getpwuid(uid) : getpwnam(name_or_uid.c_str());
  if (entry != nullptr) return {entry->pw_uid, entry->pw_gid};
  if (!number || uid == static_cast<uid_t>(-1)) {
    throw std::runtime_error("there is no user '" + name_or_uid + "'");
  }
  return {uid, uid};
}

std::uint64_t needed_capabilities(bool launcher, bool low_port) {
  std::uint64_t needed = bit(CAP_NET_ADMIN) | bit(CAP_NET_RAW);
  if (low_port) needed |= bit(CAP_NET_BIND_SERVICE);
  if (launcher) needed |= bit(CAP_SETUID) | bit(CAP_SETGID) | bit(CAP_KILL) | bit(CAP_CHOWN);
  return needed;
}

void keep_only(std::uint64_t capabilities) {
  const std::uint64_t have = permitted_capabilities();
  if ((have & capabilities) != capabilities) {
    throw std::runtime_error("capabilities are missing: start as root, or with those of the unit");
  }
  // Under systemd CapabilityBoundingSet= has done this, and CAP_SETPCAP is not there to do it.
  if ((have & bit(CAP_SETPCAP)) != 0) {
    for (int capability = 0; capability < 64; ++capability) {
      if ((capabilities & bit(capability)) != 0) continue;
      if (prctl(PR_CAPBSET_READ, capability, 0, 0, 0) != 1) continue;
      if (prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) != 0) throw_errno("drop a capability");
    }
    constexpr unsigned long bits = SECBIT_NOROOT | SECBIT_NOROOT_LOCKED;
    if (prctl(PR_SET_SECUREBITS, bits, 0, 0, 0) != 0) throw_errno("PR_SET_SECUREBITS");
  }
  if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) != 0) throw_errno("ambient set");
  if (!set_capabilities(capabilities, 0)) throw_errno("capset");
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) throw_errno("PR_SET_NO_NEW_PRIVS");
}

void pass_on_only(int capability) noexcept {
  if (set_capabilities(bit(capability), bit(capability))) {
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability, 0, 0);
  }
}

bool become_user(const Account& account) noexcept {
  return syscall(SYS_setgroups, 0, nullptr) == 0 &&
         syscall(SYS_setresgid, account.gid, account.gid, account.gid) == 0 &&
         syscall(SYS_setresuid, account.uid, account.uid, account.uid) == 0 &&
         prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) == 0 && set_capabilities(0, 0);
}

}  // namespace pairwire::devices
