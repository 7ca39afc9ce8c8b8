// How the programs of the data plane and the relay end.
#pragma once

#include <cstdio>
#include <exception>
#include <stdexcept>
#include <string_view>
#include <vector>

namespace pairwire {

/// Calls `run` with the command line's words. Returns what it returns; 2 for wrong use
/// (std::invalid_argument), 1 for any other exception, each told of on standard error.
template <typename Run>
int run_program(const char* name, int argc, char** argv, Run run) {
  try {
    return run(std::vector<std::string_view>(argv + 1, argv + argc));
  } catch (const std::invalid_argument& error) {
    std::fprintf(stderr, "%s: %s\n", name, error.what());
    return 2;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s: %s\n", name, error.what());
    return 1;
  }
}

}  // namespace pairwire
