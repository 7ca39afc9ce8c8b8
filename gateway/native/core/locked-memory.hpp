// Memory for secrets: locked (never in swap), left out of core dumps, wiped when given back.
//
//   chunk of 1 MiB, mmap + mlock + MADV_DONTDUMP
//   +------+------+------+------+------------------------------+
//   | 64 B multiples, one size class after the other, by need  |
//   +------+------+------+------+------------------------------+
//     freed blocks are wiped, then chained in the free list of their class
#pragma once

#include <cstddef>
#include <new>

namespace pairwire {

/// What the arena has taken so far.
struct LockedMemoryUse {
  std::size_t mapped = 0;  ///< bytes taken from the kernel
  std::size_t used = 0;    ///< bytes handed out
  bool locked = true;      ///< false once an mlock failed (RLIMIT_MEMLOCK)
};

/// Takes `size` bytes, aligned to 64. Throws std::bad_alloc.
/// An mlock that fails does not fail the call: a key in swappable memory is worse than one in
/// locked memory, but better than no traffic; `LockedMemoryUse::locked` says so and the program
/// warns. Threads: any; a mutex guards the free lists (this is never called for a frame).
[[nodiscard]] void* locked_allocate(std::size_t size);
/// Wipes and gives back; `size` as it was asked for.
void locked_free(void* at, std::size_t size) noexcept;
[[nodiscard]] LockedMemoryUse locked_memory_use() noexcept;

/// Base of classes whose objects hold secrets: `new` and `make_unique` then use locked memory.
class LockedAllocated {
 public:
  static void* operator new(std::size_t size) { return locked_allocate(size); }
  static void* operator new(std::size_t size, std::align_val_t) { return locked_allocate(size); }
  static void operator delete(void* at, std::size_t size) noexcept { locked_free(at, size); }
  static void operator delete(void* at, std::size_t size, std::align_val_t) noexcept {
    locked_free(at, size);
  }
};

}  // namespace pairwire
