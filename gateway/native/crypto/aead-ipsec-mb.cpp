// AEAD by intel-ipsec-mb's direct functions: the fastest on x86-64, with AVX-512 and VAES where the
// processor has them (the library finds out by itself).
//
// The direct functions are used, not the job queue: GCM and ChaCha20-Poly1305 gain nothing from
// being interleaved with other jobs, and a direct call needs no state but a context on the stack.
#include "crypto/aead-backends.hpp"

#if defined(PAIRWIRE_HAVE_IPSEC_MB)

#include <intel-ipsec-mb.h>

#include <array>
#include <cstring>

#include "crypto/openssl.hpp"
#include "crypto/secret.hpp"

namespace pairwire::ipsec_mb {
namespace {

using ManagerPtr = std::unique_ptr<IMB_MGR, FreeWith<free_mb_mgr>>;

/// The library's table of functions for this processor, or null if it should not be used here.
/// Threads: read-only once made; none of the functions used here writes to it.
const IMB_MGR* manager() {
  static const ManagerPtr instance = [] {
    // Size and layout of the structures below changed between versions with the same soname (1.4
    // writes 256 bytes more into a GCM key, intel-ipsec-mb issue 116), so only the version that
    // this file was compiled with may be used.
    if (imb_get_version() != IMB_VERSION_NUM) return ManagerPtr();
    ManagerPtr made(alloc_mb_mgr(0));
    if (made == nullptr) return made;
    init_mb_mgr_auto(made.get(), nullptr);
    // Without these instructions the library falls back to tables in memory: slower than libcrypto,
    // and the time would depend on the key.
    constexpr std::uint64_t needed = IMB_FEATURE_AESNI | IMB_FEATURE_PCLMULQDQ;
    const bool usable = imb_get_errno(made.get()) == 0 && (made->features & needed) == needed;
    if (!usable) made.reset();
    return made;
  }();
  return instance.get();
}

/// The library answers a null pointer by returning early, without a word and with the tag not
/// written. An empty span may have no address, so it gets one.
const std::uint8_t* address(ConstBytes bytes) {
  static constexpr std::uint8_t none = 0;
  return bytes.empty() ? &none : bytes.data();
}

/// Clears a context that held key stream. Inline, because OPENSSL_cleanse costs as much as the
/// rest of a short frame; the empty assembly keeps the compiler from leaving it out.
template <typename T>
struct WipedAtEnd : T {
  WipedAtEnd() = default;
  WipedAtEnd(const WipedAtEnd&) = delete;
  WipedAtEnd& operator=(const WipedAtEnd&) = delete;
  ~WipedAtEnd() {
    T* const self = this;
    std::memset(static_cast<void*>(self), 0, sizeof(T));
    asm volatile("" : : "r"(self) : "memory");
  }
};

/// Compares all 16 bytes in constant time.
bool equal_tags(AeadConstTag a, AeadConstTag b) {
  std::array<std::uint64_t, 2> x;
  std::array<std::uint64_t, 2> y;
  std::memcpy(x.data(), a.data(), kAeadTagSize);
  std::memcpy(y.data(), b.data(), kAeadTagSize);
  std::uint64_t difference = (x[0] ^ y[0]) | (x[1] ^ y[1]);
  // Keeps the compiler from comparing the halves one after the other.
  asm volatile("" : "+r"(difference));
  return difference == 0;
}

class GcmKey final : public AeadKey {
 public:
  explicit GcmKey(AeadKeyBytes key) { IMB_AES256_GCM_PRE(library_, key.data(), &key_); }
  ~GcmKey() override { OPENSSL_cleanse(&key_, sizeof(key_)); }

 private:
  void do_seal(const AeadNonce& nonce, ConstBytes aad, ConstBytes head, ConstBytes body, Bytes out,
               AeadTag tag) const override {
    WipedAtEnd<gcm_context_data> context;
    if (head.empty()) {
      IMB_AES256_GCM_ENC(library_, &key_, &context, writable(out), address(body), body.size(),
                         nonce.data(), address(aad), aad.size(), tag.data(), kAeadTagSize);
      return;
    }
    IMB_AES256_GCM_INIT(library_, &key_, &context, nonce.data(), address(aad), aad.size());
    IMB_AES256_GCM_ENC_UPDATE(library_, &key_, &context, out.data(), head.data(), head.size());
    if (!body.empty()) {
      IMB_AES256_GCM_ENC_UPDATE(library_, &key_, &context, out.data() + head.size(), body.data(),
                                body.size());
    }
    IMB_AES256_GCM_ENC_FINALIZE(library_, &key_, &context, tag.data(), kAeadTagSize);
  }

  bool do_open(const AeadNonce& nonce, ConstBytes aad, ConstBytes cipher, AeadConstTag tag,
               Bytes head, Bytes body) const override {
    WipedAtEnd<gcm_context_data> context;
    std::array<std::uint8_t, kAeadTagSize> expected;
    if (head.empty()) {
      IMB_AES256_GCM_DEC(library_, &key_, &context, writable(body), address(cipher), cipher.size(),
                         nonce.data(), address(aad), aad.size(), expected.data(), kAeadTagSize);
      return equal_tags(expected, tag);
    }
    IMB_AES256_GCM_INIT(library_, &key_, &context, nonce.data(), address(aad), aad.size());
    IMB_AES256_GCM_DEC_UPDATE(library_, &key_, &context, head.data(), cipher.data(), head.size());
    if (!body.empty()) {
      IMB_AES256_GCM_DEC_UPDATE(library_, &key_, &context, body.data(), cipher.data() + head.size(),
                                body.size());
    }
    IMB_AES256_GCM_DEC_FINALIZE(library_, &key_, &context, expected.data(), kAeadTagSize);
    return equal_tags(expected, tag);
  }

  /// As `address`, for outputs: nothing is written to it when the length is 0.
  static std::uint8_t* writable(Bytes bytes) {
    static std::uint8_t none = 0;
    return bytes.empty() ? &none : bytes.data();
  }

  const IMB_MGR* library_ = manager();
  gcm_key_data key_;
};

class ChaChaKey final : public AeadKey {
 public:
  explicit ChaChaKey(AeadKeyBytes key) : key_(key) {}

 private:
  void do_seal(const AeadNonce& nonce, ConstBytes aad, ConstBytes head, ConstBytes body, Bytes out,
               AeadTag tag) const override {
    WipedAtEnd<chacha20_poly1305_context_data> context;
    const std::uint8_t* const key = key_.bytes().data();
    IMB_CHACHA20_POLY1305_INIT(library_, key, &context, nonce.data(), address(aad), aad.size());
    if (!head.empty()) {
      IMB_CHACHA20_POLY1305_ENC_UPDATE(library_, key, &context, out.data(), head.data(),
                                       head.size());
    }
    if (!body.empty()) {
      IMB_CHACHA20_POLY1305_ENC_UPDATE(library_, key, &context, out.data() + head.size(),
                                       body.data(), body.size());
    }
    IMB_CHACHA20_POLY1305_ENC_FINALIZE(library_, &context, tag.data(), kAeadTagSize);
  }

  bool do_open(const AeadNonce& nonce, ConstBytes aad, ConstBytes cipher, AeadConstTag tag,
               Bytes head, Bytes body) const override {
    WipedAtEnd<chacha20_poly1305_context_data> context;
    std::array<std::uint8_t, kAeadTagSize> expected;
    const std::uint8_t* const key = key_.bytes().data();
    IMB_CHACHA20_POLY1305_INIT(library_, key, &context, nonce.data(), address(aad), aad.size());
    if (!head.empty()) {
      IMB_CHACHA20_POLY1305_DEC_UPDATE(library_, key, &context, head.data(), cipher.data(),
                                       head.size());
    }
    if (!body.empty()) {
      IMB_CHACHA20_POLY1305_DEC_UPDATE(library_, key, &context, body.data(),
                                       cipher.data() + head.size(), body.size());
    }
    IMB_CHACHA20_POLY1305_DEC_FINALIZE(library_, &context, expected.data(), kAeadTagSize);
    return equal_tags(expected, tag);
  }

  const IMB_MGR* library_ = manager();
  Secret<kAeadKeySize> key_;
};

}  // namespace

bool available() {
  return manager() != nullptr;
}

std::unique_ptr<AeadKey> make(Suite suite, AeadKeyBytes key) {
  if (suite == Suite::kAes256Gcm) return std::make_unique<GcmKey>(key);
  return std::make_unique<ChaChaKey>(key);
}

}  // namespace pairwire::ipsec_mb

#else  // Built without intel-ipsec-mb.

#include <stdexcept>

namespace pairwire::ipsec_mb {

bool available() {
  return false;
}

std::unique_ptr<AeadKey> make(Suite, AeadKeyBytes) {
  throw std::logic_error("built without intel-ipsec-mb");
}

}  // namespace pairwire::ipsec_mb

#endif
