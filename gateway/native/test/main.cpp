// Entry of pairwire-native-tests. libcrypto's allocations are counted from the very first one, so
// that tests can show that a frame costs none.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>
#include <openssl/crypto.h>

#include <cstdlib>

#include "test/openssl-allocations.hpp"

namespace pairwire::test {

std::atomic<std::uint64_t> openssl_allocations{0};

namespace {

void* counted_malloc(std::size_t size, const char*, int) {
  openssl_allocations.fetch_add(1, std::memory_order_relaxed);
  return std::malloc(size);
}
void* counted_realloc(void* old, std::size_t size, const char*, int) {
  openssl_allocations.fetch_add(1, std::memory_order_relaxed);
  return std::realloc(old, size);
}
void plain_free(void* old, const char*, int) {
  std::free(old);
}

}  // namespace
}  // namespace pairwire::test

int main(int argc, char** argv) {
  using namespace pairwire::test;
  // Fails if libcrypto has allocated before: then the counts would mean nothing.
  if (CRYPTO_set_mem_functions(counted_malloc, counted_realloc, plain_free) != 1) return 2;
  return doctest::Context(argc, argv).run();
}
