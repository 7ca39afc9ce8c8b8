// What every fuzzer ends with when something that must hold does not.
#pragma once

#include <cstdlib>

namespace pairwire::fuzz {

inline void require(bool ok) {
  if (!ok) std::abort();
}

}  // namespace pairwire::fuzz
