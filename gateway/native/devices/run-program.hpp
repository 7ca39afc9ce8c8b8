/// Runs a program of the system and waits for it.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace pairwire::devices {

struct ProgramResult {
  int code = 0;
  std::string output;  ///< the first 64 KiB of standard output
  std::string errors;  ///< the first 64 KiB of standard error
};

/// Runs `argv[0]` (an absolute path) with `input`, a fixed environment, no other descriptors and
/// no capability but CAP_NET_ADMIN; kills it after 10 s.
/// @throws std::system_error, std::runtime_error if it can't be started or does not end in time
ProgramResult run_program(const std::vector<std::string>& argv, std::string_view input);

}  // namespace pairwire::devices
