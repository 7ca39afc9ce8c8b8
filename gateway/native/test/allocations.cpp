// See allocations.hpp. A file of its own: where the compiler sees both a call of `new` and this
// `delete`, it takes the pair for a mistake.
#include "test/allocations.hpp"

#include <cstddef>
#include <cstdlib>
#include <new>

namespace pairwire::test {
std::atomic<std::uint64_t> cpp_allocations{0};
}  // namespace pairwire::test

void* operator new(std::size_t size) {
  pairwire::test::cpp_allocations.fetch_add(1, std::memory_order_relaxed);
  if (void* const at = std::malloc(size == 0 ? 1 : size)) return at;
  throw std::bad_alloc();
}
void* operator new(std::size_t size, std::align_val_t align) {
  pairwire::test::cpp_allocations.fetch_add(1, std::memory_order_relaxed);
  const auto unit = static_cast<std::size_t>(align);
  if (void* const at = std::aligned_alloc(unit, (size + unit - 1) / unit * unit)) return at;
  throw std::bad_alloc();
}
void operator delete(void* at) noexcept {
  std::free(at);
}
void operator delete(void* at, std::size_t) noexcept {
  std::free(at);
}
void operator delete(void* at, std::align_val_t) noexcept {
  std::free(at);
}
void operator delete(void* at, std::size_t, std::align_val_t) noexcept {
  std::free(at);
}
