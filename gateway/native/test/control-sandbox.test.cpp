/// The sandbox refuses what it should and leaves what the data plane needs (sandbox.hpp).
#include <doctest/doctest.h>

#include "control/sandbox.hpp"

namespace pairwire {

// A sanitizer's runtime needs calls that are refused otherwise (sandbox.cpp), so such a build can
// only show that it still runs in there.
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
TEST_CASE("sandbox: every attempt to get out is refused") {
  CHECK(run_sandbox_selftest() == 0);
}
#endif

}  // namespace pairwire
