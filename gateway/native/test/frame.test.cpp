// The sealed frame: test/vectors/frame.json, refusals, time.
#include "core/frame.hpp"

#include <doctest/doctest.h>

#include "crypto/aead.hpp"
#include "test/support.hpp"

namespace pairwire::test {
namespace {

/// A smallest frame whose first bytes are `start`.
std::vector<std::uint8_t> frame(std::string_view start, std::size_t size = kFrameOverhead) {
  std::vector<std::uint8_t> bytes = from_hex(start);
  bytes.resize(size);
  return bytes;
}

TEST_CASE("shim: golden bytes") {
  const Shim shim{.kind = Kind::kGroup,
                  .flags = kFlagFragment | kFlagGroupDestination | 0x2a,
                  .kid = 0x1234,
                  .index = 0x89abcdef,
                  .counter = 0x0102030405060708};
  std::array<std::uint8_t, kShimSize> bytes{};
  write_shim(shim, bytes);
  //                       vk fl kid  index    counter
  CHECK(to_hex(bytes) == "12ea123489abcdef0102030405060708");
  const auto parsed = parse_shim(frame("12ea123489abcdef0102030405060708"), Transport::kEthernet);
  REQUIRE(parsed);
  CHECK(*parsed == shim);
  CHECK(parsed->fragment());
  CHECK(parsed->group_destination());
  CHECK(parsed->subnet_tag() == 0x2a);
}

TEST_CASE("shim: what is malformed") {
  CHECK(parse_shim(frame("11"), Transport::kUdp));
  CHECK_FALSE(parse_shim({}, Transport::kUdp));
  CHECK_FALSE(parse_shim(frame("11", kFrameOverhead - 1), Transport::kUdp));
  for (unsigned first = 0; first < 256; ++first) {
    std::vector<std::uint8_t> bytes(kFrameOverhead);
    bytes[0] = static_cast<std::uint8_t>(first);
    const bool right = first >= 0x11 && first <= 0x15;
    CHECK(parse_shim(bytes, Transport::kUdp).has_value() == right);
  }
  for (unsigned flags = 0; flags < 256; ++flags) {
    std::vector<std::uint8_t> bytes = frame("11");
    bytes[1] = static_cast<std::uint8_t>(flags);
    const bool tagged = (flags & 0x3f) != 0;
    CHECK(parse_shim(bytes, Transport::kUdp).has_value() == !tagged);
    CHECK(parse_shim(bytes, Transport::kIp).has_value() == !tagged);
    CHECK(parse_shim(bytes, Transport::kEthernet).has_value());
  }
}

TEST_CASE("inner header: golden bytes, and every first description byte") {
  const InnerHeader header{
      .time = 0xfffffff0,
      .description = {
          .partial_checksum = true, .part = 2, .last_part = true, .train = 7, .padding = 0x0102}};
  std::array<std::uint8_t, kInnerHeaderSize> bytes{};
  write_inner_header(header, bytes);
  CHECK(to_hex(bytes) == "fffffff00d070102");
  CHECK(parse_inner_header(bytes) == header);

  for (unsigned bits = 0; bits < 256; ++bits) {
    bytes[4] = static_cast<std::uint8_t>(bits);
    const auto parsed = parse_inner_header(bytes);
    const bool right = bits < 0x10 && (bits & 0x06) != 0x06;
    CHECK(parsed.has_value() == right);
    if (!parsed) continue;
    std::array<std::uint8_t, kInnerHeaderSize> again{};
    write_inner_header(*parsed, again);
    CHECK(again == bytes);
  }
}

TEST_CASE("payload size: padding can't be longer than what was opened") {
  CHECK(payload_size({.padding = 0}, 60) == 60);
  CHECK(payload_size({.padding = 46}, 46) == 0);
  CHECK(payload_size({.padding = 47}, 46) == std::nullopt);
}

TEST_CASE("frame time: units, wrap") {
  CHECK(frame_time(0) == 0);
  CHECK(frame_time(3) == 0);
  CHECK(frame_time(4) == 1);
  CHECK(frame_time(999) == 255);
  CHECK(frame_time(1000) == 256);
  CHECK(frame_time((std::uint64_t{1} << 32) / 256 * 1000) == 0);
  // The largest channel time, and the largest number at all, don't overflow on the way.
  CHECK(frame_time((std::uint64_t{1} << 48) - 1) == 927'712'935U);
  CHECK(frame_time(~std::uint64_t{0}) ==
        static_cast<std::uint32_t>(static_cast<unsigned __int128>(~std::uint64_t{0}) * 256 / 1000));
}

TEST_CASE("frame time: RFC 1982 comparison") {
  constexpr FrameTime half = FrameTime{1} << 31;
  CHECK(compare_frame_times(5, 5) == std::partial_ordering::equivalent);
  CHECK(compare_frame_times(6, 5) == std::partial_ordering::greater);
  CHECK(compare_frame_times(5, 6) == std::partial_ordering::less);
  CHECK(compare_frame_times(3, 0xfffffff0) == std::partial_ordering::greater);
  CHECK(compare_frame_times(0xfffffff0, 3) == std::partial_ordering::less);
  CHECK(compare_frame_times(half - 1, 0) == std::partial_ordering::greater);
  CHECK(compare_frame_times(half + 1, 0) == std::partial_ordering::less);
  // Undefined in RFC 1982: neither question gets a yes.
  CHECK(compare_frame_times(half, 0) == std::partial_ordering::unordered);
  CHECK_FALSE(std::is_gteq(compare_frame_times(half, 0)));
  CHECK_FALSE(std::is_lteq(compare_frame_times(half, 0)));
}

TEST_CASE("freshness: both directions, across the wrap, with the clock's age") {
  using namespace std::chrono_literals;
  const FrameTime tolerance = freshness_tolerance(30s, 0s);
  CHECK(tolerance == 30 * 256);
  CHECK(freshness_tolerance(30s, 5000s) == 31 * 256);
  CHECK(freshness_tolerance(1ms, 0s) == 1);
  CHECK(freshness_tolerance(-1s, -1s) == 0);
  CHECK(freshness_tolerance(std::chrono::milliseconds::max(), std::chrono::milliseconds::max()) ==
        0x7fffffff);
  for (const FrameTime now : {1'000'000U, 100U, 0xffffff00U}) {
    CHECK(is_fresh(now, now, 0));
    CHECK(is_fresh(now + tolerance, now, tolerance));
    CHECK(is_fresh(now - tolerance, now, tolerance));
    CHECK_FALSE(is_fresh(now + tolerance + 1, now, tolerance));
    CHECK_FALSE(is_fresh(now - tolerance - 1, now, tolerance));
    CHECK_FALSE(is_fresh(now + (FrameTime{1} << 31), now, tolerance));
  }
}

std::vector<Backend> backends() {
  std::vector<Backend> result;
  for (const Backend backend : {Backend::kIpsecMb, Backend::kLibcrypto}) {
    if (backend_available(backend)) result.push_back(backend);
  }
  return result;
}

/// The transport whose associated data have this tail.
Transport transport_of(std::size_t tail_size) {
  if (tail_size == 0) return Transport::kUdp;
  return tail_size == 12 ? Transport::kEthernet : Transport::kIp;
}

TEST_CASE("frame: test/vectors/frame.json, sealed and opened by every backend") {
  const auto file = load_vectors("frame.json");
  REQUIRE(!file.empty());
  for (const auto& entry : file) {
    const std::string sealed_hex = entry.at("sealed");
    const auto suite = parse_suite(entry.at("suite").get<std::string>());
    REQUIRE(suite);
    const auto key_bytes = array_from_hex<32>(entry.at("key").get<std::string>());
    const auto tail = from_hex(entry.at("aadTail").get<std::string>());
    const auto payload = from_hex(entry.at("payload").get<std::string>());
    const std::uint64_t counter = std::stoull(entry.at("counter").get<std::string>());
    const auto sealed = from_hex(sealed_hex);
    CAPTURE(sealed_hex);
    REQUIRE(sealed.size() == payload.size() + kFrameOverhead);

    // Our encoders make the same bytes.
    std::vector<std::uint8_t> made(sealed.size());
    const Shim shim{.kind = static_cast<Kind>(entry.at("kind").get<unsigned>()),
                    .flags = entry.at("flags"),
                    .kid = entry.at("kid"),
                    .index = entry.at("index"),
                    .counter = counter};
    write_shim(shim, std::span(made).first<kShimSize>());
    CHECK(parse_shim(sealed, transport_of(tail.size())) == shim);

    std::array<std::uint8_t, kInnerHeaderSize> head{};
    store_be<std::uint32_t>(std::span(head).first<4>(), entry.at("time").get<std::uint32_t>());
    std::ranges::copy(from_hex(entry.at("desc").get<std::string>()), head.begin() + 4);
    const auto inner = parse_inner_header(head);
    REQUIRE(inner);
    std::array<std::uint8_t, kInnerHeaderSize> head_again{};
    write_inner_header(*inner, head_again);
    CHECK(head_again == head);

    std::vector<std::uint8_t> aad(made.begin(), made.begin() + kShimSize);
    aad.insert(aad.end(), tail.begin(), tail.end());
    const auto text_of = [](auto&& bytes) {
      return bytes.subspan(kShimSize, bytes.size() - kShimSize - kFrameTagSize);
    };

    for (const Backend backend : backends()) {
      CAPTURE(backend_name(backend));
      const auto key = make_aead_key(backend, *suite, key_bytes);
      key->seal_parts(counter, aad, head, payload, text_of(Bytes(made)),
                      Bytes(made).last<kFrameTagSize>());
      CHECK(to_hex(made) == sealed_hex);

      std::array<std::uint8_t, kInnerHeaderSize> opened_head{};
      std::vector<std::uint8_t> opened(payload.size());
      CHECK(key->open_parts(counter, aad, text_of(ConstBytes(sealed)),
                            ConstBytes(sealed).last<kFrameTagSize>(), opened_head, opened));
      CHECK(opened_head == head);
      CHECK(opened == payload);
    }
  }
}

}  // namespace
}  // namespace pairwire::test
