// What errno says, as an exception that names what was being done.
#pragma once

#include <cerrno>
#include <string>
#include <system_error>

namespace pairwire::devices {

/// Throws what errno says, with what was being done in front: `pw0: TUNSETIFF: Device busy`.
[[noreturn]] inline void throw_errno(const std::string& what) {
  throw std::system_error(errno, std::generic_category(), what);
}

}  // namespace pairwire::devices
