// HKDF against RFC 5869, X25519 against RFC 7748, traffic keys against test/vectors/kdf.json.
#include "crypto/kdf.hpp"

#include <doctest/doctest.h>

#include <stdexcept>
#include <type_traits>

#include "crypto/x25519.hpp"
#include "test/support.hpp"

namespace pairwire::test {
namespace {

Secret<32> secret(std::string_view hex) {
  return Secret<32>(array_from_hex<32>(hex));
}

TEST_CASE("Secret: moving wipes the source, equality looks at every byte") {
  static_assert(!std::is_copy_constructible_v<Secret<32>> &&
                !std::is_copy_assignable_v<Secret<32>>);
  Random random(11);
  auto bytes = random.array<32>();
  Secret<32> a(bytes);
  Secret<32> b(std::move(a));
  CHECK(a == Secret<32>());  // NOLINT(bugprone-use-after-move): defined, and what is tested.
  CHECK(to_hex(b.bytes()) == to_hex(bytes));
  Secret<32> c;
  c = std::move(b);
  CHECK(b == Secret<32>());  // NOLINT(bugprone-use-after-move)
  CHECK(c == Secret<32>(bytes));
  for (std::uint8_t& byte : bytes) {
    byte ^= 1;
    CHECK_FALSE(c == Secret<32>(bytes));
    byte ^= 1;
  }
  c.wipe();
  CHECK(c == Secret<32>());
}

TEST_CASE("Secret: the destructor wipes") {
  alignas(Secret<16>) std::array<std::uint8_t, sizeof(Secret<16>)> place{};
  Random random(12);
  auto* const object = new (place.data()) Secret<16>(random.array<16>());
  object->~Secret();
  CHECK(to_hex(place) == std::string(32, '0'));
}

struct HkdfVector {
  std::string_view ikm;
  std::string_view salt;
  std::string_view info;
  std::string_view prk;
  std::string_view okm;
};

// RFC 5869 appendix A.1 to A.3.
constexpr std::array kHkdfVectors{
    HkdfVector{
        "0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b", "000102030405060708090a0b0c",
        "f0f1f2f3f4f5f6f7f8f9", "077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5",
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"},
    HkdfVector{"000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
               "202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f"
               "404142434445464748494a4b4c4d4e4f",
               "606162636465666768696a6b6c6d6e6f707172737475767778797a7b7c7d7e7f"
               "808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9f"
               "a0a1a2a3a4a5a6a7a8a9aaabacadaeaf",
               "b0b1b2b3b4b5b6b7b8b9babbbcbdbebfc0c1c2c3c4c5c6c7c8c9cacbcccdcecf"
               "d0d1d2d3d4d5d6d7d8d9dadbdcdddedfe0e1e2e3e4e5e6e7e8e9eaebecedeeef"
               "f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff",
               "06a6b88c5853361a06104c9ceb35b45cef760014904671014a193f40c15fc244",
               "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c"
               "59045a99cac7827271cb41c65e590e09da3275600c2f09b8367793a9aca3db71"
               "cc30c58179ec3e87c14c01d5c1f3434f1d87"},
    HkdfVector{"0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b", "", "",
               "19ef24a32c717b167f33a91d6f648bdf96596776afdb6377ac434c1c293ccb04",
               "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d"
               "9d201395faa4b61a96c8"},
};

TEST_CASE("HKDF: RFC 5869 appendix A") {
  for (const HkdfVector& vector : kHkdfVectors) {
    const Secret<32> prk = hkdf_extract(from_hex(vector.salt), from_hex(vector.ikm));
    CHECK(to_hex(prk.bytes()) == vector.prk);
    std::vector<std::uint8_t> okm(vector.okm.size() / 2);
    hkdf_expand(prk, from_hex(vector.info), okm);
    CHECK(to_hex(okm) == vector.okm);
  }
}

TEST_CASE("HKDF: at most 255 blocks, and none is fine") {
  std::vector<std::uint8_t> most(255 * 32);
  CHECK_NOTHROW(hkdf_expand(Secret<32>(), {}, most));
  std::vector<std::uint8_t> more(255 * 32 + 1);
  CHECK_THROWS_AS(hkdf_expand(Secret<32>(), {}, more), std::length_error);
  CHECK_NOTHROW(hkdf_expand(Secret<32>(), {}, {}));
}

TEST_CASE("fields: lengths, integers, prefixes, limit") {
  Fields fields;
  fields.add("ab").add("").add("member:", "x").add(std::uint64_t{258});
  CHECK(to_hex(fields.bytes()) ==
        "00026162"
        "0000"
        "00086d656d6265723a78"
        "00080000000000000102");
  std::vector<std::uint8_t> most(65'535);
  CHECK(Fields().add(most).bytes().size() == 65'537);
  most.push_back(0);
  CHECK_THROWS_AS(Fields().add(most), std::length_error);
}

TEST_CASE("X25519: RFC 7748 section 5.2") {
  const auto shared = x25519(
      secret("a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4"),
      array_from_hex<32>("e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c"));
  REQUIRE(shared);
  CHECK(to_hex(shared->bytes()) ==
        "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552");

  // The iterated test: k and u start as 9; each round's result is the next k, the old k the next u.
  auto u = array_from_hex<32>("0900000000000000000000000000000000000000000000000000000000000000");
  auto k = u;
  for (int round = 1; round <= 1000; ++round) {
    const auto result = x25519(Secret<32>(k), u);
    REQUIRE(result);
    u = k;
    std::ranges::copy(result->bytes(), k.begin());
    if (round == 1) {
      CHECK(to_hex(k) == "422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079");
    }
  }
  CHECK(to_hex(k) == "684cf59ba83309552800ef566f2f4d3c1c3887c49360e3875f2eb94d99532c51");
}

TEST_CASE("X25519: RFC 7748 section 6.1") {
  const auto a = secret("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a");
  const auto b = secret("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb");
  const auto public_a = x25519_public(a);
  const auto public_b = x25519_public(b);
  CHECK(to_hex(public_a) == "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a");
  CHECK(to_hex(public_b) == "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f");
  const auto from_a = x25519(a, public_b);
  const auto from_b = x25519(b, public_a);
  REQUIRE(from_a);
  REQUIRE(from_b);
  CHECK(*from_a == *from_b);
  CHECK(to_hex(from_a->bytes()) ==
        "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742");
}

TEST_CASE("X25519: generated pairs are new and fit together") {
  const auto a = generate_x25519();
  const auto b = generate_x25519();
  CHECK_FALSE(a.private_key == b.private_key);
  CHECK(x25519_public(a.private_key) == a.public_key);
  const auto from_a = x25519(a.private_key, b.public_key);
  const auto from_b = x25519(b.private_key, a.public_key);
  REQUIRE(from_a);
  REQUIRE(from_b);
  CHECK(*from_a == *from_b);
}

TEST_CASE("X25519: an all-zero result is refused") {
  const auto pair = generate_x25519();
  // Points of small order: 0, 1, the two of order 8, p - 1, p, p + 1 (cr.yp.to/ecdh.html).
  for (const std::string_view point : {
           "0000000000000000000000000000000000000000000000000000000000000000",
           "0100000000000000000000000000000000000000000000000000000000000000",
           "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
           "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
           "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
           "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
           "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
       }) {
    CAPTURE(point);
    CHECK_FALSE(x25519(pair.private_key, array_from_hex<32>(point)));
  }
}

/// The parts that a pair and a net entry of kdf.json have in common.
struct PairEntry {
  explicit PairEntry(const nlohmann::json& entry)
      : a(entry.at("a")),
        b(entry.at("b")),
        key(array_from_hex<32>(entry.at("key").get<std::string>())),
        private_a(array_from_hex<32>(entry.at("bootPrivA").get<std::string>())),
        private_b(array_from_hex<32>(entry.at("bootPrivB").get<std::string>())),
        public_a(array_from_hex<32>(entry.at("bootPubA").get<std::string>())),
        public_b(array_from_hex<32>(entry.at("bootPubB").get<std::string>())),
        pw_id(entry.at("pwId")),
        traffic_key(entry.at("trafficKeyAB")),
        kid(entry.at("kidAB")) {}

  /// The same from either side, checked on the way.
  [[nodiscard]] Secret<32> shared() const {
    CHECK(x25519_public(private_a) == public_a);
    CHECK(x25519_public(private_b) == public_b);
    auto from_a = x25519(private_a, public_b);
    auto from_b = x25519(private_b, public_a);
    REQUIRE(from_a);
    REQUIRE(from_b);
    CHECK(*from_a == *from_b);
    return std::move(*from_a);
  }

  std::string a;
  std::string b;
  Secret<32> key;
  Secret<32> private_a;
  Secret<32> private_b;
  std::array<std::uint8_t, 32> public_a;
  std::array<std::uint8_t, 32> public_b;
  std::uint64_t pw_id;
  std::string traffic_key;
  std::uint16_t kid;
};

TEST_CASE("traffic keys: test/vectors/kdf.json, pair") {
  const auto file = load_vectors("kdf.json");
  REQUIRE(!file.at("pair").empty());
  for (const auto& json : file.at("pair")) {
    const PairEntry entry(json);
    const std::string subnet = json.at("subnet");
    const Secret<32> shared = entry.shared();
    const PairInputs inputs{.subnet = subnet,
                            .sender = entry.a,
                            .receiver = entry.b,
                            .sender_boot = entry.public_a,
                            .receiver_boot = entry.public_b,
                            .pw_id = entry.pw_id};
    const TrafficKey ab = derive_pair_key(entry.key, shared, inputs);
    CHECK(to_hex(ab.key.bytes()) == entry.traffic_key);
    CHECK(ab.kid == entry.kid);

    // Any other input gives another key: no nonce is ever used twice under one.
    const auto differs = [&](const PairInputs& other) {
      return !(derive_pair_key(entry.key, shared, other).key == ab.key);
    };
    PairInputs other = inputs;
    std::swap(other.sender, other.receiver);
    std::swap(other.sender_boot, other.receiver_boot);
    CHECK(differs(other));
    other = inputs;
    ++other.pw_id;
    CHECK(differs(other));
    other = inputs;
    other.subnet = "another";
    CHECK(differs(other));
    other = inputs;
    other.receiver_boot = entry.public_a;
    CHECK(differs(other));
  }
}

TEST_CASE("traffic keys: test/vectors/kdf.json, net") {
  const auto file = load_vectors("kdf.json");
  REQUIRE(!file.at("net").empty());
  for (const auto& json : file.at("net")) {
    const PairEntry entry(json);
    const TrafficKey ab = derive_net_key(entry.key, entry.shared(),
                                         {.sender = entry.a,
                                          .receiver = entry.b,
                                          .sender_boot = entry.public_a,
                                          .receiver_boot = entry.public_b,
                                          .pw_id = entry.pw_id});
    CHECK(to_hex(ab.key.bytes()) == entry.traffic_key);
    CHECK(ab.kid == entry.kid);
  }
}

TEST_CASE("traffic keys: test/vectors/kdf.json, group") {
  const auto file = load_vectors("kdf.json");
  REQUIRE(!file.at("group").empty());
  for (const auto& json : file.at("group")) {
    const std::string subnet = json.at("subnet");
    const std::string sender = json.at("a");
    const auto boot = array_from_hex<32>(json.at("bootPubA").get<std::string>());
    const TrafficKey key = derive_group_key(
        secret(json.at("key").get<std::string>()),
        {.subnet = subnet, .sender = sender, .sender_boot = boot, .pw_id = json.at("pwId")});
    CHECK(to_hex(key.key.bytes()) == json.at("trafficKey").get<std::string>());
    CHECK(key.kid == json.at("kid").get<std::uint16_t>());
  }
}

}  // namespace
}  // namespace pairwire::test
