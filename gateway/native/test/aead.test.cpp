// AEAD: published vectors, both backends against each other, failures, threads, allocations.
#include "crypto/aead.hpp"

#include <doctest/doctest.h>

#include <atomic>
#include <stdexcept>
#include <thread>

#include "test/openssl-allocations.hpp"
#include "test/support.hpp"

namespace pairwire::test {
namespace {

constexpr std::array kSuites{Suite::kAes256Gcm, Suite::kChaCha20Poly1305};

std::vector<Backend> backends() {
  std::vector<Backend> result;
  for (const Backend backend : {Backend::kIpsecMb, Backend::kLibcrypto}) {
    if (backend_available(backend)) result.push_back(backend);
  }
  return result;
}

struct Vector {
  Suite suite;
  std::string_view name;
  std::string_view key;
  std::string_view nonce;
  std::string_view plain;
  std::string_view aad;
  std::string_view cipher;
  std::string_view tag;
};

// AES: McGrew and Viega, "The Galois/Counter Mode of Operation", appendix B; also in NIST's
// gcmEncryptExtIV256. ChaCha20: RFC 8439 section 2.8.2.
constexpr std::array kVectors{
    Vector{Suite::kAes256Gcm, "McGrew-Viega 13",
           "0000000000000000000000000000000000000000000000000000000000000000",
           "000000000000000000000000", "", "", "", "530f8afbc74536b9a963b4f1c4cb738b"},
    Vector{Suite::kAes256Gcm, "McGrew-Viega 14",
           "0000000000000000000000000000000000000000000000000000000000000000",
           "000000000000000000000000", "00000000000000000000000000000000", "",
           "cea7403d4d606b6e074ec5d3baf39d18", "d0d1c8a799996bf0265b98b5d48ab919"},
    Vector{Suite::kAes256Gcm, "McGrew-Viega 15",
           "feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308",
           "cafebabefacedbaddecaf888",
           "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72"
           "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b391aafd255",
           "",
           "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa"
           "8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662898015ad",
           "b094dac5d93471bdec1a502270e3cc6c"},
    Vector{Suite::kAes256Gcm, "McGrew-Viega 16",
           "feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308",
           "cafebabefacedbaddecaf888",
           "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72"
           "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39",
           "feedfacedeadbeeffeedfacedeadbeefabaddad2",
           "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa"
           "8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662",
           "76fc6ece0f4e1768cddf8853bb2d551b"},
    Vector{Suite::kChaCha20Poly1305, "RFC 8439 2.8.2",
           "808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9f",
           "070000004041424344454647",
           "4c616469657320616e642047656e746c656d656e206f662074686520636c6173"
           "73206f66202739393a204966204920636f756c64206f6666657220796f75206f"
           "6e6c79206f6e652074697020666f7220746865206675747572652c2073756e73"
           "637265656e20776f756c642062652069742e",
           "50515253c0c1c2c3c4c5c6c7",
           "d31a8d34648e60db7b86afbc53ef7ec2a4aded51296e08fea9e2b5a736ee62d6"
           "3dbea45e8ca9671282fafb69da92728b1a71de0a9e060b2905d6a5b67ecd3b36"
           "92ddbd7f2d778b8c9803aee328091b58fab324e4fad675945585808b4831d7bc"
           "3ff4def08e4b7a9de576d26586cec64b6116",
           "1ae10b594f09e26a7e902ecbd0600691"},
};

bool all_zero(ConstBytes bytes) {
  return std::ranges::all_of(bytes, [](std::uint8_t byte) { return byte == 0; });
}

TEST_CASE("AEAD: published vectors") {
  for (const Backend backend : backends()) {
    for (const Vector& vector : kVectors) {
      CAPTURE(backend_name(backend));
      CAPTURE(vector.name);
      const auto key = make_aead_key(backend, vector.suite, array_from_hex<32>(vector.key));
      const auto nonce = array_from_hex<12>(vector.nonce);
      const auto plain = from_hex(vector.plain);
      const auto aad = from_hex(vector.aad);
      const auto expected_tag = array_from_hex<16>(vector.tag);

      std::vector<std::uint8_t> out(plain.size());
      std::array<std::uint8_t, 16> tag{};
      key->seal_with_nonce_for_testing_only(nonce, aad, plain, out, tag);
      CHECK(to_hex(out) == vector.cipher);
      CHECK(to_hex(tag) == vector.tag);

      std::vector<std::uint8_t> opened(plain.size());
      CHECK(key->open_with_nonce_for_testing_only(nonce, aad, out, expected_tag, opened));
      CHECK(opened == plain);
    }
  }
}

TEST_CASE("AEAD: the nonce is 4 zero bytes and the counter, big-endian") {
  Random random(1);
  const auto key_bytes = random.array<32>();
  for (const Backend backend : backends()) {
    for (const Suite suite : kSuites) {
      const auto key = make_aead_key(backend, suite, key_bytes);
      const auto plain = random.bytes(40);
      std::vector<std::uint8_t> a(40);
      std::vector<std::uint8_t> b(40);
      std::array<std::uint8_t, 16> tag_a{};
      std::array<std::uint8_t, 16> tag_b{};
      key->seal(0x0102030405060708, {}, plain, a, tag_a);
      key->seal_with_nonce_for_testing_only(array_from_hex<12>("000000000102030405060708"), {},
                                            plain, b, tag_b);
      CHECK(a == b);
      CHECK(tag_a == tag_b);
    }
  }
}

/// Size of a body: all small ones come up, and those around the vector code's block borders.
std::size_t random_size(Random& random) {
  switch (random.below(3)) {
    case 0:
      return random.below(130);
    case 1:
      return std::min<std::size_t>(9000, 16 * random.below(563) + random.below(3));
    default:
      return random.below(9001);
  }
}

TEST_CASE("AEAD: both backends and all forms agree for random sizes") {
  constexpr std::array<std::size_t, 5> aad_sizes{0, 16, 24, 28, 48};
  Random random(2);
  for (const Suite suite : kSuites) {
    for (int round = 0; round < 1500; ++round) {
      const auto key_bytes = random.array<32>();
      const std::uint64_t counter = random.next();
      const auto aad = random.bytes(aad_sizes[random.below(aad_sizes.size())]);
      const std::size_t size = random_size(random);
      const auto plain = random.bytes(size + kAeadHeadSize);  // Head and body.
      const auto head = ConstBytes(plain).first<kAeadHeadSize>();
      const auto body = ConstBytes(plain).subspan(kAeadHeadSize);
      CAPTURE(suite_name(suite));
      CAPTURE(size);
      CAPTURE(aad.size());

      // libcrypto's one-piece form is the judge.
      std::vector<std::uint8_t> sealed(plain.size());
      std::array<std::uint8_t, 16> sealed_tag{};
      make_aead_key(Backend::kLibcrypto, suite, key_bytes)
          ->seal(counter, aad, plain, sealed, sealed_tag);

      for (const Backend backend : backends()) {
        CAPTURE(backend_name(backend));
        const auto key = make_aead_key(backend, suite, key_bytes);
        std::array<std::uint8_t, 16> tag{};

        std::vector<std::uint8_t> out(plain.size());
        key->seal(counter, aad, plain, out, tag);
        REQUIRE(out == sealed);
        REQUIRE(tag == sealed_tag);

        out = plain;
        key->seal(counter, aad, out, out, tag);
        REQUIRE(out == sealed);
        REQUIRE(tag == sealed_tag);

        std::ranges::fill(out, std::uint8_t{0});
        key->seal_parts(counter, aad, head, body, out, tag);
        REQUIRE(out == sealed);
        REQUIRE(tag == sealed_tag);

        std::ranges::fill(out, std::uint8_t{0});
        std::ranges::copy(body, out.begin() + kAeadHeadSize);
        key->seal_parts(counter, aad, head, Bytes(out).subspan(kAeadHeadSize), out, tag);
        REQUIRE(out == sealed);
        REQUIRE(tag == sealed_tag);

        REQUIRE(key->open(counter, aad, sealed, sealed_tag, out));
        REQUIRE(out == plain);

        out = sealed;
        REQUIRE(key->open(counter, aad, out, sealed_tag, out));
        REQUIRE(out == plain);

        std::array<std::uint8_t, kAeadHeadSize> opened_head{};
        std::vector<std::uint8_t> opened_body(size);
        REQUIRE(key->open_parts(counter, aad, sealed, sealed_tag, opened_head, opened_body));
        REQUIRE(std::ranges::equal(opened_head, head));
        REQUIRE(std::ranges::equal(opened_body, body));

        out = sealed;
        std::ranges::fill(opened_head, std::uint8_t{0});
        REQUIRE(key->open_parts(counter, aad, out, sealed_tag, opened_head,
                                Bytes(out).subspan(kAeadHeadSize)));
        REQUIRE(std::ranges::equal(opened_head, head));
        REQUIRE(std::ranges::equal(ConstBytes(out).subspan(kAeadHeadSize), body));
      }
    }
  }
}

TEST_CASE("AEAD: a flipped bit anywhere is refused and leaves no plaintext") {
  Random random(3);
  for (const Backend backend : backends()) {
    for (const Suite suite : kSuites) {
      for (const std::size_t size : {0UL, 1UL, 15UL, 64UL, 100UL, 1448UL}) {
        CAPTURE(backend_name(backend));
        CAPTURE(suite_name(suite));
        CAPTURE(size);
        const auto key = make_aead_key(backend, suite, random.array<32>());
        const std::uint64_t counter = random.next();
        auto aad = random.bytes(28);
        const auto plain = random.bytes(size + kAeadHeadSize);
        std::vector<std::uint8_t> sealed(plain.size());
        std::array<std::uint8_t, 16> tag{};
        key->seal(counter, aad, plain, sealed, tag);

        const auto refused = [&](std::uint64_t with_counter) {
          std::vector<std::uint8_t> out(plain.size(), 0xee);
          const bool opened = key->open(with_counter, aad, sealed, tag, out);
          std::array<std::uint8_t, kAeadHeadSize> head;
          head.fill(0xee);
          std::vector<std::uint8_t> body(size, 0xee);
          const bool opened_parts = key->open_parts(with_counter, aad, sealed, tag, head, body);
          std::vector<std::uint8_t> in_place = sealed;
          const bool opened_in_place = key->open(with_counter, aad, in_place, tag, in_place);
          return !opened && !opened_parts && !opened_in_place && all_zero(out) && all_zero(head) &&
                 all_zero(body) && all_zero(in_place);
        };

        for (std::uint8_t& byte : tag) {
          for (unsigned bit = 0; bit < 8; ++bit) {
            byte ^= static_cast<std::uint8_t>(1U << bit);
            CHECK(refused(counter));
            byte ^= static_cast<std::uint8_t>(1U << bit);
          }
        }
        for (const std::size_t at : {std::size_t{0}, sealed.size() / 2, sealed.size() - 1}) {
          sealed[at] ^= 0x10;
          CHECK(refused(counter));
          sealed[at] ^= 0x10;
        }
        for (std::uint8_t& byte : aad) {
          byte ^= 0x80;
          CHECK(refused(counter));
          byte ^= 0x80;
        }
        CHECK(refused(counter + 1));

        std::vector<std::uint8_t> out(plain.size());
        CHECK(key->open(counter, aad, sealed, tag, out));
        CHECK(out == plain);
      }
    }
  }
}

TEST_CASE("AEAD: frames of different transports don't open as each other") {
  Random random(4);
  const auto key = make_aead_key(best_backend(), Suite::kAes256Gcm, random.array<32>());
  const auto aad = random.bytes(28);
  const auto plain = random.bytes(100);
  std::vector<std::uint8_t> sealed(100);
  std::vector<std::uint8_t> out(100);
  std::array<std::uint8_t, 16> tag{};
  key->seal(0, aad, plain, sealed, tag);
  CHECK_FALSE(key->open(0, ConstBytes(aad).first(16), sealed, tag, out));
  CHECK_FALSE(key->open(0, ConstBytes(aad).first(24), sealed, tag, out));
  CHECK(key->open(0, aad, sealed, tag, out));
}

TEST_CASE("AEAD: sizes that don't fit are refused before anything is written") {
  Random random(5);
  for (const Backend backend : backends()) {
    const auto key = make_aead_key(backend, Suite::kAes256Gcm, random.array<32>());
    std::array<std::uint8_t, 16> tag{};
    std::array<std::uint8_t, 8> head{};
    std::vector<std::uint8_t> ten(10);
    std::vector<std::uint8_t> twelve(12);
    CHECK_THROWS_AS(key->seal(0, {}, ten, twelve, tag), std::length_error);
    CHECK_THROWS_AS(key->seal_parts(0, {}, head, ten, twelve, tag), std::length_error);
    CHECK_THROWS_AS(static_cast<void>(key->open(0, {}, ten, tag, twelve)), std::length_error);
    CHECK_THROWS_AS(static_cast<void>(key->open_parts(0, {}, ten, tag, head, twelve)),
                    std::length_error);
    CHECK(all_zero(twelve));
  }
}

TEST_CASE("AEAD: one key serves many threads at once") {
  Random random(6);
  for (const Backend backend : backends()) {
    for (const Suite suite : kSuites) {
      const auto key = make_aead_key(backend, suite, random.array<32>());
      // More threads than libcrypto's pool has contexts, so that its slow way is taken too.
      constexpr std::uint64_t threads = 12;
      std::atomic<int> failures{0};
      std::vector<std::jthread> running;
      for (std::uint64_t t = 0; t < threads; ++t) {
        running.emplace_back([&, t] {
          Random own(t);
          for (std::uint64_t i = 0; i < 200; ++i) {
            const auto plain = own.bytes(own.below(500));
            const auto aad = own.bytes(16);
            std::vector<std::uint8_t> text(plain.size());
            std::array<std::uint8_t, 16> tag{};
            key->seal(i * threads + t, aad, plain, text, tag);
            if (!key->open(i * threads + t, aad, text, tag, text) || text != plain) ++failures;
          }
        });
      }
      running.clear();
      CHECK(failures == 0);
    }
  }
}

TEST_CASE("AEAD: libcrypto allocates nothing for a frame") {
  Random random(7);
  for (const Suite suite : kSuites) {
    const auto key = make_aead_key(Backend::kLibcrypto, suite, random.array<32>());
    const auto aad = random.bytes(16);
    const auto head = random.array<8>();
    const auto body = random.bytes(1448);
    std::vector<std::uint8_t> sealed(body.size() + head.size());
    std::array<std::uint8_t, 8> opened_head{};
    std::vector<std::uint8_t> opened(body.size());
    std::array<std::uint8_t, 16> tag{};
    const auto frame = [&](std::uint64_t counter) {
      key->seal_parts(counter, aad, head, body, sealed, tag);
      return key->open_parts(counter, aad, sealed, tag, opened_head, opened);
    };
    REQUIRE(frame(0));  // Makes the contexts.
    const std::uint64_t before = openssl_allocations;
    bool ok = true;
    for (std::uint64_t counter = 1; counter <= 100; ++counter) ok = frame(counter) && ok;
    CHECK(ok);
    CHECK(openssl_allocations == before);
  }
}

TEST_CASE("AEAD: names and choice") {
  preload_crypto();
  CHECK(backend_available(Backend::kLibcrypto));
  CHECK_FALSE(backend_available(Backend::kNull));
  CHECK(backend_available(best_backend()));
  CHECK(parse_backend("ipsec-mb") == Backend::kIpsecMb);
  CHECK(parse_backend("libcrypto") == Backend::kLibcrypto);
  CHECK(parse_backend("openssl") == std::nullopt);
  CHECK(parse_suite("aes-256-gcm") == Suite::kAes256Gcm);
  CHECK(parse_suite("chacha20-poly1305") == Suite::kChaCha20Poly1305);
  CHECK(parse_suite("aes-128-gcm") == std::nullopt);
  CHECK_THROWS_AS(static_cast<void>(make_aead_key(Backend::kNull, Suite::kAes256Gcm,
                                                  std::array<std::uint8_t, 32>{})),
                  std::invalid_argument);
}

}  // namespace
}  // namespace pairwire::test
