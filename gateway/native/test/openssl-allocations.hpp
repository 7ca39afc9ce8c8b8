// How often libcrypto has asked for memory since the start of the test program.
#pragma once

#include <atomic>
#include <cstdint>

namespace pairwire::test {

extern std::atomic<std::uint64_t> openssl_allocations;

}  // namespace pairwire::test
