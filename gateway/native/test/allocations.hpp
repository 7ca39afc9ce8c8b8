// Counts what the whole process takes with `new`, so that tests can show that a frame costs none.
#pragma once

#include <atomic>
#include <cstdint>

namespace pairwire::test {

extern std::atomic<std::uint64_t> cpp_allocations;

}  // namespace pairwire::test
