// Traffic keys in use: what seals, what opens, and the state that no re-installation resets.
//
// A key is named by the SHA-256 digest of its bytes. Counter (sending) and window (receiving)
// belong to the digest, not to the key object: whoever installs the same bytes again, after
// whatever removal, goes on with the same counter and window (threats.md C1, KRACK). A digest is
// forgotten only together with the boot key or group key generation it was derived from: then the
// bytes can't come again.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <unordered_map>

#include "core/bytes.hpp"
#include "core/frame.hpp"
#include "core/locked-memory.hpp"
#include "core/replay-window.hpp"
#include "crypto/aead.hpp"
#include "crypto/kdf.hpp"

namespace pairwire {

/// How often a sender key was used. Only ever goes up.
///
/// Threads: any, without locks.
class SendCounter {
 public:
  /// What a thread may reserve at once; the limit is tested after the fetch-add, so so many frames
  /// for each thread lie between the last one allowed and the end.
  static constexpr std::uint64_t kMargin = 64 * 1024;

  /// Reserves `frames` numbers. Nothing if the key has sealed as much as it may.
  [[nodiscard]] std::optional<std::uint64_t> take(std::uint32_t frames,
                                                  std::uint64_t bytes) noexcept {
    const std::uint64_t first = frames_.fetch_add(frames, std::memory_order_relaxed);
    const std::uint64_t sealed = bytes_.fetch_add(bytes, std::memory_order_relaxed) + bytes;
    if (first + frames > kFrameLimit - kMargin || sealed > kByteLimit) [[unlikely]] {
      return std::nullopt;
    }
    return first;
  }

  /// True once: when the next key should be asked for.
  [[nodiscard]] bool just_worn() noexcept {
    if (frames_.load(std::memory_order_relaxed) < kRekeyAfterFrames &&
        bytes_.load(std::memory_order_relaxed) < kRekeyAfterBytes) [[likely]] {
      return false;
    }
    return !reported_.exchange(true, std::memory_order_relaxed);
  }

  [[nodiscard]] std::uint64_t frames() const noexcept {
    return frames_.load(std::memory_order_relaxed);
  }
  /// Moves a new counter forward, so that tests need not seal 2^35 frames. Never back.
  void advance_for_testing_only(std::uint64_t to) noexcept {
    std::uint64_t now = frames_.load(std::memory_order_relaxed);
    while (now < to && !frames_.compare_exchange_weak(now, to, std::memory_order_relaxed)) {
    }
  }

 private:
  std::atomic<std::uint64_t> frames_{0};
  std::atomic<std::uint64_t> bytes_{0};
  std::atomic<bool> reported_{false};
};

using KeyDigest = std::array<std::uint8_t, kHashSize>;
struct KeyDigestHash {
  std::size_t operator()(const KeyDigest& digest) const noexcept {
    return static_cast<std::size_t>(load_be<std::uint64_t>(std::span(digest).first<8>()));
  }
};
/// SHA-256 of key bytes.
[[nodiscard]] KeyDigest digest_of(std::span<const std::uint8_t, kKeySize> key);

/// The state that belongs to key bytes. References stay good until the store goes.
///
/// Threads: the control thread's; what the references point to is shared.
class KeyStateStore {
 public:
  [[nodiscard]] SendCounter& counter(const KeyDigest& digest);
  [[nodiscard]] ReplayWindow& window(const KeyDigest& digest);
  [[nodiscard]] bool has_counter(const KeyDigest& digest) const {
    return counters_.contains(digest);
  }

 private:
  std::unordered_map<KeyDigest, std::unique_ptr<SendCounter>, KeyDigestHash> counters_;
  std::unordered_map<KeyDigest, std::unique_ptr<ReplayWindow>, KeyDigestHash> windows_;
};

/// A key that we seal with.
///
/// Threads: immutable but for the counter; published by RCU.
struct SendKey {
  std::unique_ptr<AeadKey> aead;
  SendCounter* counter = nullptr;
  std::uint64_t pw_id = 0;
  std::uint32_t boot = 0;   ///< number of our own boot key that it was made with
  std::uint32_t index = 0;  ///< our own sender index under that
  std::uint16_t kid = 0;
};

/// A key that we open with.
///
/// Threads: immutable but for the window, which takes care of itself; published by RCU.
struct ReceiveKey {
  std::unique_ptr<AeadKey> aead;
  ReplayWindow* window = nullptr;
  std::uint64_t pw_id = 0;
  std::uint32_t boot = 0;  ///< pair: number of our own boot key that it was made with
  std::uint16_t kid = 0;
  bool group = false;
  /// Group: boot time of the installation, 0 if it was prepared. Frames from before it (less 250
  /// ms) are refused.
  std::uint64_t installed_ms = 0;
};

}  // namespace pairwire
