// See locked-memory.hpp.
#include "core/locked-memory.hpp"

#include <openssl/crypto.h>
#include <sys/mman.h>

#include <array>
#include <mutex>

namespace pairwire {
namespace {

constexpr std::size_t kChunk = std::size_t{1} << 20;
constexpr std::size_t kGrain = 64;  // A cache line, and what AVX-512 loads want.
constexpr std::size_t kLargest = 16384;
constexpr std::size_t kClasses = kLargest / kGrain;

/// Threads: any, under `mutex_`.
class Arena {
 public:
  void* allocate(std::size_t size) {
    const std::size_t index = class_of(size);
    const std::scoped_lock guard(mutex_);
    if (free_[index] != nullptr) {
      Block* const block = free_[index];
      free_[index] = block->next;
      block->next = nullptr;
      use_.used += bytes_of(index);
      return block;
    }
    if (left_ < bytes_of(index)) take_chunk();
    std::byte* const at = next_;
    next_ += bytes_of(index);
    left_ -= bytes_of(index);
    use_.used += bytes_of(index);
    return at;
  }

  void free(void* at, std::size_t size) noexcept {
    if (at == nullptr) return;
    const std::size_t index = class_of(size);
    OPENSSL_cleanse(at, bytes_of(index));
    const std::scoped_lock guard(mutex_);
    free_[index] = ::new (at) Block{free_[index]};
    use_.used -= bytes_of(index);
  }

  LockedMemoryUse use() noexcept {
    const std::scoped_lock guard(mutex_);
    return use_;
  }

 private:
  struct Block {
    Block* next = nullptr;
  };

  static std::size_t class_of(std::size_t size) {
    if (size == 0 || size > kLargest) throw std::bad_alloc();
    return (size - 1) / kGrain;
  }
  static std::size_t bytes_of(std::size_t index) { return (index + 1) * kGrain; }

  /// The rest of the old chunk is given up: at most 16 KiB of a MiB.
  void take_chunk() {
    void* const at =
        mmap(nullptr, kChunk, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) throw std::bad_alloc();
    if (mlock(at, kChunk) != 0) use_.locked = false;
    // Both only make a leak less likely, so a refusal is no reason to fail.
    static_cast<void>(madvise(at, kChunk, MADV_DONTDUMP));
    static_cast<void>(madvise(at, kChunk, MADV_DONTFORK));
    next_ = static_cast<std::byte*>(at);
    left_ = kChunk;
    use_.mapped += kChunk;
  }

  std::mutex mutex_;
  std::array<Block*, kClasses> free_{};
  std::byte* next_ = nullptr;
  std::size_t left_ = 0;
  LockedMemoryUse use_;
};

/// Never destroyed: objects of static storage may still give back memory at the very end.
Arena& arena() {
  alignas(Arena) static std::byte storage[sizeof(Arena)];
  static Arena* const instance = ::new (storage) Arena;
  return *instance;
}

}  // namespace

void* locked_allocate(std::size_t size) {
  return arena().allocate(size);
}
void locked_free(void* at, std::size_t size) noexcept {
  arena().free(at, size);
}
LockedMemoryUse locked_memory_use() noexcept {
  return arena().use();
}

}  // namespace pairwire
