/// What the broker may do, and giving up the rest.
///
/// | capability | kept for | when |
/// |---|---|---|
/// | CAP_NET_ADMIN | TAPs, addresses, nft, SO_MARK, SO_RCVBUFFORCE | always |
/// | CAP_NET_RAW | AF_PACKET sockets (transport `ethernet`), SO_BINDTODEVICE | always |
/// | CAP_NET_BIND_SERVICE | UDP ports below 1024 | the list names one |
/// | CAP_SETUID, CAP_SETGID | starting the data plane as its own user | launcher mode |
/// | CAP_KILL | stopping it | launcher mode |
/// | CAP_CHOWN | giving sockets made anew to the control plane's user | launcher mode |
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>

namespace pairwire::devices {

struct Account {
  uid_t uid = 0;
  gid_t gid = 0;
};

/// A user by name or number. A number without an account gets the group of the same number.
/// @throws std::runtime_error for an unknown name
Account find_account(const std::string& name_or_uid);

/// The capabilities of the table, as a mask.
std::uint64_t needed_capabilities(bool launcher, bool low_port);

/// Keeps `capabilities` alone, in every set; no program run from here on gets more (uid 0
/// loses its special meaning); no new privileges.
/// @throws std::system_error if not even these are there, or the rest can't be given up
void keep_only(std::uint64_t capabilities);

/// In a child about to call execve: the program has this capability and no other.
void pass_on_only(int capability) noexcept;

/// In a child about to call execve: no capability, this user, no groups but its own.
/// Async-signal-safe.
bool become_user(const Account& account) noexcept;

}  // namespace pairwire::devices
