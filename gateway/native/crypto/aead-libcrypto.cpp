// AEAD by libcrypto's EVP interface: works on every machine.
#include <openssl/evp.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <utility>

#include "crypto/aead-backends.hpp"
#include "crypto/openssl.hpp"
#include "crypto/secret.hpp"

namespace pairwire::libcrypto {
namespace {

const EVP_CIPHER* fetch(Suite suite) {
  // Fetched once: looking an algorithm up by name takes longer than sealing a frame.
  static const CipherPtr aes(EVP_CIPHER_fetch(nullptr, "AES-256-GCM", nullptr));
  static const CipherPtr chacha(EVP_CIPHER_fetch(nullptr, "ChaCha20-Poly1305", nullptr));
  const EVP_CIPHER* cipher = suite == Suite::kAes256Gcm ? aes.get() : chacha.get();
  require_crypto(cipher != nullptr, "EVP_CIPHER_fetch");
  return cipher;
}

/// A small number for each thread, so that a thread comes back to the context it used last.
std::size_t thread_number() {
  static std::atomic<std::size_t> next{0};
  static thread_local const std::size_t number = next.fetch_add(1, std::memory_order_relaxed);
  return number;
}

enum class Direction : int { kOpen = 0, kSeal = 1 };  // As EVP_CipherInit_ex2 numbers them.

/// Contexts of one key and direction, made at first use. They belong to the key and not to the
/// threads, so the expanded key is gone when the key is.
class ContextPool {
  struct Slot {
    std::atomic_flag busy;
    CipherContextPtr context;  // Guarded by `busy`.
  };

 public:
  ContextPool(Suite suite, Direction direction) : cipher_(fetch(suite)), direction_(direction) {}

  /// Use of one context by one thread; gives it back at its end.
  class Lease {
   public:
    explicit Lease(Slot& slot) : slot_(&slot), context_(slot.context.get()) {}
    explicit Lease(CipherContextPtr own) : own_(std::move(own)), context_(own_.get()) {}
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;
    ~Lease() {
      if (slot_ != nullptr) slot_->busy.clear(std::memory_order_release);
    }
    [[nodiscard]] EVP_CIPHER_CTX* get() const { return context_; }

   private:
    Slot* slot_ = nullptr;
    CipherContextPtr own_;
    EVP_CIPHER_CTX* context_;
  };

  [[nodiscard]] Lease take(const Secret<kAeadKeySize>& key) const {
    const std::size_t start = thread_number();
    for (std::size_t i = 0; i < kSlots; ++i) {
      Slot& slot = slots_[(start + i) % kSlots];
      if (slot.busy.test_and_set(std::memory_order_acquire)) continue;
      if (slot.context == nullptr) {
        try {
          slot.context = make(key);
        } catch (...) {
          slot.busy.clear(std::memory_order_release);
          throw;
        }
      }
      return Lease(slot);
    }
    // More threads than slots at this very moment: correct, only slower.
    return Lease(make(key));
  }

 private:
  static constexpr std::size_t kSlots = 8;

  [[nodiscard]] CipherContextPtr make(const Secret<kAeadKeySize>& key) const {
    CipherContextPtr context(EVP_CIPHER_CTX_new());
    require_crypto(context != nullptr, "EVP_CIPHER_CTX_new");
    require_crypto(EVP_CipherInit_ex2(context.get(), cipher_, key.bytes().data(), nullptr,
                                      static_cast<int>(direction_), nullptr) == 1,
                   "EVP_CipherInit_ex2");
    return context;
  }

  const EVP_CIPHER* cipher_;
  Direction direction_;
  mutable std::array<Slot, kSlots> slots_;
};

void start(EVP_CIPHER_CTX* context, const AeadNonce& nonce) {
  require_crypto(EVP_CipherInit_ex2(context, nullptr, nullptr, nonce.data(), -1, nullptr) == 1,
                 "EVP_CipherInit_ex2");
}

/// Feeds associated data (`out` null) or text.
void update(EVP_CIPHER_CTX* context, ConstBytes in, std::uint8_t* out) {
  if (in.empty()) return;
  int written = 0;
  require_crypto(
      EVP_CipherUpdate(context, out, &written, in.data(), static_cast<int>(in.size())) == 1,
      "EVP_CipherUpdate");
}

class EvpKey final : public AeadKey {
 public:
  EvpKey(Suite suite, AeadKeyBytes key)
      : key_(key), seal_pool_(suite, Direction::kSeal), open_pool_(suite, Direction::kOpen) {}

 private:
  void do_seal(const AeadNonce& nonce, ConstBytes aad, ConstBytes head, ConstBytes body, Bytes out,
               AeadTag tag) const override {
    const auto lease = seal_pool_.take(key_);
    EVP_CIPHER_CTX* const context = lease.get();
    start(context, nonce);
    update(context, aad, nullptr);
    update(context, head, out.data());
    update(context, body, out.subspan(head.size()).data());
    require_crypto(finish(context), "EVP_CipherFinal_ex");
    require_crypto(
        EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_AEAD_GET_TAG, kAeadTagSize, tag.data()) == 1,
        "EVP_CTRL_AEAD_GET_TAG");
  }

  bool do_open(const AeadNonce& nonce, ConstBytes aad, ConstBytes cipher, AeadConstTag tag,
               Bytes head, Bytes body) const override {
    const auto lease = open_pool_.take(key_);
    EVP_CIPHER_CTX* const context = lease.get();
    start(context, nonce);
    update(context, aad, nullptr);
    update(context, cipher.first(head.size()), head.data());
    update(context, cipher.subspan(head.size()), body.data());
    // The interface takes a pointer to non-const for both directions; this one only reads.
    std::array<std::uint8_t, kAeadTagSize> expected;
    std::ranges::copy(tag, expected.begin());
    require_crypto(
        EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_AEAD_SET_TAG, kAeadTagSize, expected.data()) == 1,
        "EVP_CTRL_AEAD_SET_TAG");
    // Compares all 16 bytes with CRYPTO_memcmp.
    return finish(context);
  }

  static bool finish(EVP_CIPHER_CTX* context) {
    // Both suites are stream ciphers, so nothing is written here; the call wants an address.
    std::array<std::uint8_t, EVP_MAX_BLOCK_LENGTH> none;
    int written = 0;
    return EVP_CipherFinal_ex(context, none.data(), &written) == 1;
  }

  Secret<kAeadKeySize> key_;
  ContextPool seal_pool_;
  ContextPool open_pool_;
};

}  // namespace

std::unique_ptr<AeadKey> make(Suite suite, AeadKeyBytes key) {
  return std::make_unique<EvpKey>(suite, key);
}

void preload() {
  for (const Suite suite : {Suite::kAes256Gcm, Suite::kChaCha20Poly1305}) {
    static_cast<void>(fetch(suite));
  }
}

}  // namespace pairwire::libcrypto
