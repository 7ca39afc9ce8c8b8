// Sealing and opening, for each backend, suite and size, in one piece and in two.
#include "crypto/aead.hpp"

#include <stdexcept>
#include <vector>

#include "bench/harness.hpp"

namespace pairwire::bench {
namespace {

void aead(Runner& runner, Backend backend, Suite suite, std::size_t size) {
  const std::array<std::uint8_t, kAeadKeySize> key_bytes{1, 2, 3};
  const auto key = make_aead_key(backend, suite, key_bytes);
  const std::vector<std::uint8_t> aad(16, 7);
  const std::vector<std::uint8_t> plain(size, 9);
  const std::array<std::uint8_t, kAeadHeadSize> head{};
  std::vector<std::uint8_t> sealed(size);
  std::vector<std::uint8_t> sealed_parts(size + kAeadHeadSize);
  std::vector<std::uint8_t> opened(size);
  std::array<std::uint8_t, kAeadHeadSize> opened_head{};
  std::array<std::uint8_t, kAeadTagSize> tag{};
  const std::vector<Label> labels{{"backend", backend_name(backend)},
                                  {"suite", suite_name(suite)},
                                  {"size", std::uint64_t{size}}};

  runner.measure("aead.seal", labels, [&](std::uint64_t i) {
    key->seal(i, aad, plain, sealed, tag);
    keep(sealed.data());
  });
  runner.measure("aead.seal_parts", labels, [&](std::uint64_t i) {
    key->seal_parts(i, aad, head, plain, sealed_parts, tag);
    keep(sealed_parts.data());
  });
  // Always the same counter: opening does not mind, and only a right tag is worth measuring.
  key->seal(0, aad, plain, sealed, tag);
  runner.measure("aead.open", labels, [&](std::uint64_t) {
    if (!key->open(0, aad, sealed, tag, opened)) throw std::logic_error("does not open");
    keep(opened.data());
  });
  key->seal_parts(0, aad, head, plain, sealed_parts, tag);
  runner.measure("aead.open_parts", labels, [&](std::uint64_t) {
    if (!key->open_parts(0, aad, sealed_parts, tag, opened_head, opened)) {
      throw std::logic_error("does not open");
    }
    keep(opened.data());
  });
}

const Registered registered([](Runner& runner) {
  for (const Backend backend : {Backend::kIpsecMb, Backend::kLibcrypto}) {
    if (!backend_available(backend)) continue;
    for (const Suite suite : {Suite::kAes256Gcm, Suite::kChaCha20Poly1305}) {
      for (const std::size_t size : {64UL, 128UL, 256UL, 512UL, 1024UL, 1420UL, 8900UL}) {
        aead(runner, backend, suite, size);
      }
      runner.measure("aead.make_key",
                     {{"backend", backend_name(backend)}, {"suite", suite_name(suite)}},
                     [&](std::uint64_t) {
                       const std::array<std::uint8_t, kAeadKeySize> key_bytes{4, 5, 6};
                       keep(make_aead_key(backend, suite, key_bytes).get());
                     });
    }
  }
});

}  // namespace
}  // namespace pairwire::bench
